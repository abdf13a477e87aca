"""Converts a checkpoint to fairseq's own model; `export_command` says what is kept and what is refused."""

import argparse
import copy
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, build_model
from torch import Tensor, nn

import fairseq_gpam
from fairseq_gpam.attention.core.heads import MixedHeads
from fairseq_gpam.attention.core.lambdas import TokenLambda
from fairseq_gpam.attention.mechanisms.dagpam import DualGPAMAttention
from fairseq_gpam.attention.mechanisms.scaled_softmax import ScaledSoftmaxAttention
from fairseq_gpam.attention.mechanisms.softmax import SoftmaxAttention
from fairseq_gpam.checkpoints import save
from fairseq_gpam.errors import blamed_on
from fairseq_gpam.modules.layer_fusion import LayerFusion
from fairseq_gpam.modules.multihead_attention import GPAMMultiheadAttention
from fairseq_gpam.modules.skip_weight import SkipWeight
from fairseq_gpam.modules.stacks import is_translation
from fairseq_gpam.parameters import STOCK

TOLERANCE = 1e-5
"""The greatest difference of logits that is allowed, relative to the greatest logit or 1."""


class ExportError(ValueError):
    """No stock model computes exactly what the checkpoint's model computes."""


def export(checkpoint: Path, output: Path) -> float:
    """Writes the stock model's checkpoint to `output` and returns the greatest difference between the models' logits.

    Raises ExportError if there is no stock model that computes the same, or the logits of the two differ by more than
    TOLERANCE; OSError, before anything is computed, if `output` cannot be written.
    """
    if output.exists() and output.samefile(checkpoint):
        raise ExportError(f"--out is CHECKPOINT itself, {output}; give another name")
    # What cannot be written is found out now and not after the work.
    part = output.with_name(output.name + ".part")
    part.touch()
    part.unlink()
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))
    with blamed_on(str(checkpoint)):
        ours_settings = state["cfg"]["model"]
        settings = stock_settings(ours_settings)
        ours = _build(ours_settings, state["model"])
        weights = fold(ours, state["model"])
        difference = compare_logits(ours, _build(settings, weights))
        exported = _stock_state(state, settings, weights)
    save(exported, output)
    return difference


@torch.no_grad()
def fold(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a stock model equivalent to `model`, whose state is `weights`.

    The heads' factors are multiplied into the columns of the output projections, in fp32. Raises ExportError if there
    is no such stock model.
    """
    folded = {name: tensor for name, tensor in weights.items() if ".mechanism." not in name}
    for name, module in model.named_modules():
        if isinstance(module, LayerFusion):
            raise ExportError("--gpam-layer-fusion cannot be exported: a stock model's output is its last layer's")
        if isinstance(module, SkipWeight):
            raise ExportError(f"--gpam-skip-weight {module.weight:g} cannot be exported; only 1 can")
        if isinstance(module, GPAMMultiheadAttention):
            site = module.mechanism.site
            if site.query_dim != site.head_dim:
                rank = f"--gpam-query-rank {site.query_rank}"
                raise ExportError(f"{site}: {rank} cannot be exported, only {site.head_dim}")
            if module.position != "none" or module.q_norm is not None:
                raise ExportError(f"{site}: --gpam-position and --gpam-qk-norm cannot be exported")
            factors = torch.tensor(softmax_factors(module.mechanism))
            if bool((factors != 1).any()):
                projection = f"{name}.out_proj.weight"
                folded[projection] = folded[projection].float() * factors.repeat_interleave(module.head_dim)
    return folded


def softmax_factors(mechanism: Any) -> list[float]:
    """Returns, for each head, the factor c for which its weights are c·softmax(QKᵀ/√D + M).

    Raises ExportError if there is none.
    """
    if isinstance(mechanism, MixedHeads):
        return [factor for group in mechanism.groups.values() for factor in softmax_factors(group)]
    if type(mechanism) is SoftmaxAttention:
        return [1.0] * mechanism.site.num_heads
    if type(mechanism) in (ScaledSoftmaxAttention, DualGPAMAttention):
        minus = getattr(mechanism, "lambda_minus", None)
        if minus is None or not (isinstance(minus, TokenLambda) or torch.as_tensor(minus()).any()):
            plus = 1 + torch.as_tensor(mechanism.lambda_plus()).flatten()
            return plus.expand(mechanism.site.num_heads).tolist()
    raise ExportError(
        f"{mechanism.site}: mechanism {mechanism.name!r} cannot be exported; only softmax, scaled_softmax, and dagpam "
        "whose λ⁻ is exactly 0 are a multiple of stock attention's one softmax"
    )


def stock_settings(settings: Any) -> dict[str, Any]:
    """Returns a model's settings (a Namespace or DictConfig) as those of fairseq's own model, in plain containers.

    The architecture becomes the stock one of the same preset; the --gpam settings, --user-dir and this package's
    optimiser are removed. Raises ExportError if the model is neither a `transformer` nor a `transformer_lm`.
    """
    values = {name: value for name, value in _plain(settings).items() if not name.startswith("gpam_")}
    values.pop("user_dir", None)
    if values.get("optimizer") == "gpam_adam":
        values["optimizer"] = "adam"
    for key in ("arch", "_name"):
        if name := values.get(key):
            model = ARCH_MODEL_NAME_REGISTRY.get(name, name)
            if model not in (*STOCK, *STOCK.values()):
                raise ExportError(f"architecture {name!r} is not allowed; allowed: those of {', '.join(STOCK)}")
            values[key] = STOCK.get(model, model) + name.removeprefix(model)
    return values


@torch.no_grad()
def compare_logits(ours: nn.Module, stock: nn.Module) -> float:
    """Returns the greatest difference between two models' logits on a padded batch.

    The difference is relative to max(1, greatest logit). Raises ExportError if it exceeds TOLERANCE.
    """
    limits = ours.max_positions()  # type: ignore[operator]
    longest = min(12, int(np.min(limits)))
    generator = torch.Generator().manual_seed(1)

    def batch(stack: str) -> Tensor:
        tokens = torch.randint(4, _vocabulary(ours.state_dict(), stack), (4, longest), generator=generator)
        # Rows end in none, two, four and six symbols of padding, as far as they are long enough.
        return tokens.masked_fill(torch.arange(longest) >= (longest - 2 * torch.arange(4)[:, None]).clamp(min=1), 1)

    inputs = {"src_tokens": batch("encoder" if is_translation(ours) else "decoder")}
    if is_translation(ours):
        inputs |= {"src_lengths": inputs["src_tokens"].ne(1).sum(1), "prev_output_tokens": batch("decoder")}
    visible = inputs.get("prev_output_tokens", inputs["src_tokens"]).ne(1)
    theirs, mine = (_logits(model, inputs)[visible] for model in (stock, ours))
    difference = float((theirs - mine).abs().max() / mine.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the exported model's logits differ by {difference:.1e} of the greatest logit; allowed: {TOLERANCE:.0e}"
        )
    return difference


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Returns the logits, or log-probabilities for an adaptive softmax, which has no logits for all words."""
    output = model(**inputs)
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        return model.get_normalized_probs(output, log_probs=True)  # type: ignore[operator]
    return output[0]


def _vocabulary(weights: Mapping[str, Tensor], stack: str) -> int:
    """Returns the number of entries of a stack's dictionary; an adaptive input has several tables."""
    table = re.compile(rf"{stack}\.embed_tokens\.(embeddings\.\d+\.0\.)?weight")
    entries = sum(tensor.size(0) for name, tensor in weights.items() if table.fullmatch(name))
    if not entries:
        raise ExportError(f"{stack} has no word embeddings (--character-embeddings cannot be exported)")
    return entries


def _build(settings: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """Builds a model for evaluation in fp32; only the sizes of its dictionaries matter."""
    dictionaries = {}
    for stack in ("encoder", "decoder"):
        if any(name.startswith(stack + ".") for name in weights):
            dictionaries[stack] = Dictionary()
            dictionaries[stack].pad_to_multiple_(_vocabulary(weights, stack))
    target = dictionaries["decoder"]
    task = SimpleNamespace(source_dictionary=dictionaries.get("encoder", target), target_dictionary=target)
    # Copies, because fairseq changes the settings and the dictionary when it builds and loads a model.
    model = build_model(argparse.Namespace(**settings) if isinstance(settings, dict) else copy.copy(settings), task)
    model.load_state_dict(dict(weights), strict=True)
    return model.float().eval()


def _stock_state(state: Mapping[str, Any], settings: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    kept = ("criterion", "optimizer_history", "task_state", "extra_state")
    exported: dict[str, Any] = {name: _plain(state[name]) for name in kept if name in state}
    exported |= {"args": None, "cfg": None, "model": weights, "last_optimizer_state": None}
    if isinstance(state["cfg"]["model"], argparse.Namespace):
        # fairseq and CTranslate2 read these settings as attributes. A Namespace is refused by torch's safe loading
        # unless a plugin allows it; an OrderedDict may have attributes and is allowed everywhere.
        exported["args"] = OrderedDict(settings)
        vars(exported["args"]).update(settings)
    else:
        cfg = exported["cfg"] = _plain(state["cfg"])
        cfg["model"], cfg["common"]["user_dir"] = settings, None
        if cfg["optimizer"]["_name"] == "gpam_adam":
            cfg["optimizer"]["_name"] = "adam"
    trained = _plain(state["cfg"]["model"])
    given = {name: value for name, value in trained.items() if name.startswith("gpam_") or name == "arch"}
    exported["fairseq_gpam"] = {"version": fairseq_gpam.__version__, "exported_from": given}
    return exported


def _plain(value: Any) -> Any:
    """Returns settings as dictionaries, lists, strings and numbers, which any safe loading accepts."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if value is None or isinstance(value, (Tensor, str, bytes, bool, int, float)):
        return value
    return [_plain(item) for item in value]
