"""Converts a checkpoint to fairseq's own model, which needs no --user-dir, if that is exact.

Softmax is kept unchanged; (1+λ)·softmax, daGPAM with λ⁻ = 0, and groups of such heads are folded into the output
projections. All other mechanisms are refused. The logits of both models are compared before the file is written.
"""

from __future__ import annotations

import argparse
import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
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
from fairseq_gpam.attention import AttentionMechanism
from fairseq_gpam.attention.core.heads import MixedHeads
from fairseq_gpam.attention.core.lambda_sources import TokenLambda
from fairseq_gpam.attention.mechanisms.dagpam import DualGPAMAttention
from fairseq_gpam.attention.mechanisms.scaled_softmax import ScaledSoftmaxAttention
from fairseq_gpam.attention.mechanisms.softmax import SoftmaxAttention
from fairseq_gpam.modules import attention_modules
from fairseq_gpam.modules.layer_fusion import LayerFusion
from fairseq_gpam.modules.skip_weight import SkipWeight
from fairseq_gpam.modules.stacks import is_translation
from fairseq_gpam.parameters import STOCK

TOLERANCE = 1e-5
"""The greatest difference of logits that is allowed, relative to the greatest logit or 1."""


class ExportError(ValueError):
    """No stock model computes exactly what the checkpoint's model computes."""


def export(checkpoint: Path, output: Path) -> float:
    """Writes the stock model's checkpoint to `output` and returns the greatest difference between the models' logits.

    Raises ExportError if a mechanism does not fold into softmax attention, with its layer, site and name, or if the
    logits of the two models differ by more than TOLERANCE.
    """
    if output.exists() and output.samefile(checkpoint):
        raise ExportError("--out is CHECKPOINT itself; give another name")
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))
    ours_settings = state["cfg"]["model"]
    settings = stock_settings(ours_settings)
    ours = _build(ours_settings, state["model"])
    weights = fold(ours, state["model"])
    try:
        stock = _build(settings, weights)
    except RuntimeError as error:
        raise ExportError(f"fairseq's own model has no place for its parameters: {error}") from error
    difference = compare_logits(ours, stock)
    part = output.with_name(output.name + ".part")
    torch.save(_stock_state(state, settings, weights), part)
    part.replace(output)
    return difference


def fold(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a stock model equivalent to `model`, whose state is `weights`.

    The heads' factors are multiplied into the columns of the output projections, in fp32. Raises ExportError if there
    is no such stock model.
    """
    if any(isinstance(module, LayerFusion) for module in model.modules()):
        raise ExportError("--gpam-layer-fusion does not fold into a stock model, whose output is its last layer's")
    folded = {name: tensor for name, tensor in weights.items() if ".mechanism." not in name}
    names = {module: name for name, module in model.named_modules()}
    for attention in attention_modules(model):
        site = attention.mechanism.site
        if site.query_dim != site.head_dim:
            raise ExportError(
                f"{site}: --gpam-query-rank {site.query_rank} does not fold into stock attention, whose queries have "
                f"{site.head_dim} channels in a head"
            )
        factors = torch.stack(list(softmax_factors(attention.mechanism)))
        if bool((factors == 1).all()):
            continue
        name = names[attention] + ".out_proj.weight"
        folded[name] = folded[name].float() * factors.repeat_interleave(attention.head_dim)
    for module in model.modules():
        if isinstance(module, SkipWeight):
            raise ExportError(f"--gpam-skip-weight {module.weight:g} does not fold into a stock model; only 1 does")
    return folded


@torch.no_grad()
def softmax_factors(mechanism: AttentionMechanism) -> Iterator[Tensor]:
    """Yields, for each head, the factor c for which its weights are c·softmax(QKᵀ/√D + M).

    Raises ExportError, with the reason, if there is none.
    """
    heads = mechanism.site.num_heads
    if isinstance(mechanism, MixedHeads):
        for group in mechanism.groups.values():
            assert isinstance(group, AttentionMechanism)
            yield from softmax_factors(group)
    elif isinstance(mechanism, SoftmaxAttention):
        yield from torch.ones(heads)
    elif isinstance(mechanism, (ScaledSoftmaxAttention, DualGPAMAttention)):
        if isinstance(mechanism, DualGPAMAttention):
            if isinstance(mechanism.lambda_minus, TokenLambda):
                raise ExportError(
                    f"{mechanism.site}: mechanism {mechanism.name!r} has a λ⁻ for each token (--gpam-lambda-source "
                    "'token'), which is never 0; only λ⁻ = 0 folds, because stock attention has one softmax and cannot "
                    "subtract a second one"
                )
            minus = torch.as_tensor(mechanism.lambda_minus()).flatten()
            if bool((minus != 0).any()):
                strengths = ", ".join(f"{one:.4g}" for one in minus.tolist())
                raise ExportError(
                    f"{mechanism.site}: mechanism {mechanism.name!r} has λ⁻ = {strengths}; only λ⁻ = 0 folds, because "
                    "stock attention has one softmax and cannot subtract a second one"
                )
        yield from (1 + torch.as_tensor(mechanism.lambda_plus())).flatten().expand(heads)
    else:
        raise ExportError(
            f"{mechanism.site}: mechanism {mechanism.name!r} does not fold into stock attention, because what it "
            f"computes, {mechanism.formula}, is no fixed multiple of softmax(QKᵀ/√D + M)"
        )


def stock_settings(settings: Any) -> dict[str, Any]:
    """Returns a model's settings (a Namespace or DictConfig) as those of fairseq's own model, in plain containers.

    The architecture becomes the stock one of the same preset; the --gpam settings, --user-dir and this package's
    optimiser are removed. Raises ExportError if the model is neither a `transformer` nor a `transformer_lm`.
    """
    values = _plain(settings)
    for key in ("arch", "_name"):
        if values.get(key):
            values[key] = _stock_name(values[key])
    if values.get("optimizer") == "gpam_adam":
        values["optimizer"] = "adam"
    return {name: value for name, value in values.items() if not name.startswith("gpam_") and name != "user_dir"}


def _stock_name(name: str) -> str:
    model = ARCH_MODEL_NAME_REGISTRY.get(name, name)
    if model in STOCK:
        return STOCK[model] + name.removeprefix(model)
    if model not in STOCK.values():
        raise ExportError(f"architecture {name!r} is not allowed; allowed: those of {', '.join(STOCK)}")
    return name


def compare_logits(ours: nn.Module, stock: nn.Module) -> float:
    """Returns the greatest difference between two models' logits on a padded batch.

    The difference is relative to max(1, greatest logit). Raises ExportError if it exceeds TOLERANCE.
    """
    generator = torch.Generator().manual_seed(1)
    vocabulary, longest = _vocabulary(ours.state_dict(), "decoder"), min(12, _shortest_limit(ours))

    def batch(entries: int) -> Tensor:
        tokens = torch.randint(4, entries, (4, longest), generator=generator)
        for row in range(1, 4):
            tokens[row, max(1, longest - 2 * row) :] = 1
        return tokens

    if is_translation(ours):
        source = batch(_vocabulary(ours.state_dict(), "encoder"))
        inputs = {"src_tokens": source, "src_lengths": source.ne(1).sum(1), "prev_output_tokens": batch(vocabulary)}
        visible = inputs["prev_output_tokens"].ne(1)
    else:
        inputs = {"src_tokens": batch(vocabulary)}
        visible = inputs["src_tokens"].ne(1)
    with torch.no_grad():
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


def _shortest_limit(model: Any) -> int:
    limits = model.max_positions()
    return int(min(limits) if isinstance(limits, tuple) else limits)


def _vocabulary(weights: Mapping[str, Tensor], stack: str) -> int:
    """Returns the number of entries of a stack's dictionary; an adaptive input has several tables."""
    prefix = f"{stack}.embed_tokens."
    if prefix + "weight" in weights:
        return weights[prefix + "weight"].size(0)
    bands = [
        weights[name] for name in weights if name.startswith(prefix + "embeddings.") and name.endswith(".0.weight")
    ]
    if not bands:
        raise ExportError(f"{prefix}* holds no word embeddings (--character-embeddings cannot be exported)")
    return sum(band.size(0) for band in bands)


def _build(settings: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """Builds a model for evaluation in fp32; only the sizes of its dictionaries matter."""
    dictionaries = {}
    for stack in ("encoder", "decoder"):
        if any(name.startswith(stack + ".") for name in weights):
            dictionaries[stack] = Dictionary()
            for index in range(_vocabulary(weights, stack) - len(dictionaries[stack])):
                dictionaries[stack].add_symbol(f"word{index}")
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
        arguments: Any = OrderedDict(settings)
        vars(arguments).update(settings)
        exported["args"] = arguments
    else:
        cfg = _plain(state["cfg"])
        cfg["model"] = settings
        cfg["common"]["user_dir"] = None
        if cfg["optimizer"]["_name"] == "gpam_adam":
            cfg["optimizer"]["_name"] = "adam"
        exported["cfg"] = cfg
    exported["fairseq_gpam"] = {"version": fairseq_gpam.__version__, "exported_from": _gpam(state["cfg"]["model"])}
    return exported


def _gpam(settings: Any) -> dict[str, Any]:
    values = _plain(settings)
    return {name: value for name, value in values.items() if name.startswith("gpam_") or name == "arch"}


def _plain(value: Any) -> Any:
    """Returns settings as dictionaries, lists, strings and numbers, which any safe loading accepts."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Tensor) or value is None or isinstance(value, (str, bytes, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)) or hasattr(value, "__iter__"):
        return [_plain(one) for one in value]
    raise ExportError(f"its settings hold a {type(value).__name__}, which no other program could load")
