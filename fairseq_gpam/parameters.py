"""Counts a model's parameters and finds models of equal size to compare it with, without allocating their memory."""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from fairseq import options as fairseq_options
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_INV_REGISTRY, ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.utils import eval_str_list
from torch import nn

from fairseq_gpam.attention import REGISTRY, SITES
from fairseq_gpam.attention.core.base import nearest
from fairseq_gpam.attention.core.heads import MixedHeads
from fairseq_gpam.attention.core.presets import PRESETS, check_known
from fairseq_gpam.errors import blamed_on
from fairseq_gpam.modules import attention_modules
from fairseq_gpam.modules.layer_fusion import LayerFusion
from fairseq_gpam.plugins import import_named_file

TASKS = {"transformer_gpam": "translation", "transformer_lm_gpam": "language_modeling"}
STOCK = {"transformer_gpam": "transformer", "transformer_lm_gpam": "transformer_lm"}


@dataclass(frozen=True)
class Model:
    """A model as described on the command line: the architecture and the flags of the model, not those of training."""

    arch: str
    flags: tuple[str, ...]
    vocabulary: int

    def command(self) -> str:
        return shlex.join(["--arch", self.arch, *self.flags])

    def with_flags(self, *flags: str) -> Model:
        """Returns the model with further flags; of a repeated flag the last one counts."""
        return Model(self.arch, (*self.flags, *flags), self.vocabulary)

    def with_mechanism(self, name: str) -> Model:
        """Returns the model with a mechanism or preset wherever that is allowed, softmax elsewhere."""
        check_known(name, name)
        cls = REGISTRY[PRESETS[name].mechanism if name in PRESETS else name]
        if cls.sites == SITES or TASKS[ARCH_MODEL_NAME_REGISTRY[self.arch]] == "language_modeling":
            return self.with_flags("--gpam-mechanism", name)
        chosen = [word for site in cls.sites for word in (f"--gpam-{site}-mechanism", name)]
        return self.with_flags("--gpam-mechanism", "softmax", *chosen)

    def stock(self) -> Model:
        """Returns the model of fairseq's own architecture with the same preset, without the --gpam flags."""
        our_model = ARCH_MODEL_NAME_REGISTRY[self.arch]
        arch = STOCK[our_model] + self.arch.removeprefix(our_model)
        return Model(arch, without_gpam(self.flags), self.vocabulary)


def without_gpam(flags: Sequence[str]) -> tuple[str, ...]:
    """Returns the flags without those that start with --gpam- and their values."""
    kept: list[str] = []
    skipping = False
    for word in flags:
        if word.startswith("--"):
            skipping = word.startswith("--gpam-")
        if not skipping:
            kept.append(word)
    return tuple(kept)


def check_arch(arch: str) -> None:
    """Raises ValueError if `arch` is not one of this package's architectures."""
    allowed = [name for model in TASKS for name in ARCH_MODEL_INV_REGISTRY[model]]
    if arch not in allowed:
        raise ValueError(f"--arch {arch!r} is not allowed{nearest(arch, allowed)}; allowed: {', '.join(allowed)}")


def parse(model: Model) -> argparse.Namespace:
    """Returns every setting of the model, including its preset; an unknown flag ends the program, as in training."""
    name = ARCH_MODEL_NAME_REGISTRY[model.arch]
    task = TASKS.get(name) or TASKS[f"{name}_gpam"]
    parser = fairseq_options.get_training_parser(task)
    import_named_file(model.flags)
    parser.usage = "python -m fairseq_gpam info --arch ARCH [flags of the model] [--gpam-…]"
    words = ["the-data", "--task", task, "--arch", model.arch, *model.flags]
    settings = fairseq_options.parse_args_and_arch(parser, words)
    dataclass = getattr(ARCH_MODEL_REGISTRY[model.arch], "__dataclass", None)
    if dataclass is not None and model.arch == name:
        # An architecture with the name of its model takes its defaults from the model's dataclass.
        settings = argparse.Namespace(**vars(dataclass.from_namespace(settings)))
    return settings


class Entries(Dictionary):
    """A dictionary of any size that stores no words: all but the special symbols are unknown ones."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __len__(self) -> int:
        return self.size


def build(model: Model) -> nn.Module:
    """Returns the model, built on PyTorch's meta device, where tensors have shapes but no data.

    Source and target share one dictionary of `vocabulary` entries, special symbols included. Raises ValueError if
    fairseq cannot build the model with it.
    """
    dictionary = Entries(model.vocabulary)
    settings = parse(model)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    last_cutoff = max((_last_cutoff(settings, name) for name in ("softmax", "input")), default=0)
    if last_cutoff > model.vocabulary:
        raise ValueError(
            f"--vocabulary {model.vocabulary} is not allowed with {model.command()}; allowed: at least as many entries "
            f"as the last cutoff of the adaptive softmax or input, {last_cutoff}"
        )
    with blamed_on(f"{model.command()} cannot be built"), torch.device("meta"):
        return ARCH_MODEL_REGISTRY[model.arch].build_model(settings, task)
    raise AssertionError("blamed_on passes no error on")


def _last_cutoff(settings: argparse.Namespace, name: str) -> int:
    """Returns the last cutoff of the adaptive `softmax` or `input`, 0 without one."""
    used = name == "softmax" or getattr(settings, "adaptive_input", False)
    cutoffs = getattr(settings, f"adaptive_{name}_cutoff", None) if used else None
    return max(eval_str_list(cutoffs, type=int) or [0]) if cutoffs else 0


def count(module: nn.Module) -> int:
    """Returns the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_sites(model: nn.Module) -> list[tuple[str, str, int, int]]:
    """Returns site, mechanism, number of attentions, and parameters added there; shared parameters count once."""
    rows: dict[tuple[str, str], tuple[int, int]] = {}
    counted: set[int] = set()
    for attention in attention_modules(model):
        mechanism = attention.mechanism
        new = [parameter for parameter in mechanism.parameters() if id(parameter) not in counted]
        counted.update(id(parameter) for parameter in new)
        key = (mechanism.site.name, mechanism.spec if isinstance(mechanism, MixedHeads) else mechanism.name)
        number, extra = rows.get(key, (0, 0))
        rows[key] = (number + 1, extra + sum(parameter.numel() for parameter in new))
    return [(site, name, number, extra) for (site, name), (number, extra) in rows.items()]


def count_query_width(model: nn.Module) -> int:
    """Returns how many parameters --gpam-query-rank adds to the query and key projections."""
    return sum(
        (projection.in_features + (projection.bias is not None)) * (projection.out_features - attention.embed_dim)
        for attention in attention_modules(model)
        for projection in (attention.q_proj, attention.k_proj)
    )


@dataclass(frozen=True)
class Control:
    """A control model, how many parameters it has, and how many it should have."""

    name: str
    model: Model
    parameters: int
    wanted: int

    @property
    def difference(self) -> int:
        return self.parameters - self.wanted


def match(model: Model) -> list[Control]:
    """Returns the controls of a mechanism, each with about the target number of parameters.

    `wider FFN` and `more heads` are stock models as large as the mechanism's model, the second also with more but
    narrower heads; `same parameters` is the mechanism's model with a narrower FFN, as large as the stock model. The
    changes of the FFN widths of encoder and decoder differ by at most 2. Raises ValueError if the FFN would vanish.
    """
    stock = model.stock()
    ours, theirs = count(build(model)), count(build(stock))
    wider = resize(stock, theirs, ours)
    arms = [Control("wider FFN", wider, count(build(wider)), ours)]
    heads = more_heads(stock)
    if heads is not None:
        narrow = wider.with_flags(*heads)
        arms.append(Control("more heads", narrow, count(build(narrow)), ours))
    smaller = resize(model, ours, theirs)
    arms.append(Control("same parameters", smaller, count(build(smaller)), theirs))
    return arms


def resize(model: Model, parameters: int, wanted: int) -> Model:
    """Returns the model with FFN widths changed so that it has about `wanted` parameters instead of `parameters`."""
    settings = parse(model)
    widths = {stack: getattr(settings, f"{stack}_ffn_embed_dim") for stack in stacks(settings)}
    units = {
        stack: count(build(model.with_flags(f"--{stack}-ffn-embed-dim", str(width + 1)))) - parameters
        for stack, width in widths.items()
    }
    middle = round((wanted - parameters) / sum(units.values()))
    near = itertools.product(range(middle - 1, middle + 2), repeat=len(units))
    candidates = [dict(zip(units, steps, strict=True)) for steps in near]

    def distance(steps: dict[str, int]) -> tuple[int, int]:
        missing = wanted - parameters - sum(units[stack] * step for stack, step in steps.items())
        return abs(missing), max(steps.values()) - min(steps.values())

    best = min(candidates, key=distance)
    flags: list[str] = []
    for stack, step in best.items():
        width = widths[stack] + step
        if width < 1:
            raise ValueError(f"no --{stack}-ffn-embed-dim makes {model.command()} as small as {wanted:,} parameters")
        flags += [f"--{stack}-ffn-embed-dim", str(width)]
    return model.with_flags(*flags)


def stacks(settings: argparse.Namespace) -> list[str]:
    """Returns which of `encoder` and `decoder` a model with these settings has."""
    return [stack for stack in ("encoder", "decoder") if getattr(settings, f"{stack}_layers", None)]


def more_heads(stock: Model) -> tuple[str, ...] | None:
    """Returns flags for twice the heads, or the next number that divides the width; None if there is none."""
    settings = parse(stock)
    flags: list[str] = []
    for stack in stacks(settings):
        width, heads = getattr(settings, f"{stack}_embed_dim"), getattr(settings, f"{stack}_attention_heads")
        larger = [number for number in range(heads + 1, width + 1) if width % number == 0]
        if not larger:
            return None
        chosen = 2 * heads if 2 * heads in larger else larger[0]
        flags += [f"--{stack}-attention-heads", str(chosen)]
    return tuple(flags)


def print_parameters(model: Model) -> None:
    """Prints the exact number of parameters, how many each site adds, and the overhead over the stock model."""
    ours, stock = build(model), build(model.stock())
    total, stock_total = count(ours), count(stock)
    extra = total - stock_total
    print(f"model           {model.command()}")
    print(f"vocabulary      {model.vocabulary} entries, the same for source and target (--vocabulary)")
    print(f"parameters      {total:,}")
    print(f"stock           {stock_total:,}  {model.stock().arch}")
    print(f"overhead        {extra:+,}  {extra / stock_total:+.4%} of stock")
    layers = sum(count(getattr(stock, name).layers) for name in ("encoder", "decoder") if hasattr(stock, name))
    print(f"                {extra / layers:+.4%} of the {layers:,} in stock's layers (no embeddings, no output)")
    sites, settings = count_sites(ours), parse(model)
    for site, name, number, added in sites:
        print(f"  {site:8} {name:20} {number:3} attentions  {added:+,}")
    if queries := count_query_width(ours):
        rank = settings.gpam_query_rank
        print(f"  queries and keys of width {rank} in a head (--gpam-query-rank): {queries:+,}")
    if fusion := sum(count(module) for module in ours.modules() if isinstance(module, LayerFusion)):
        print(f"  fusion of the layers (--gpam-layer-fusion): {fusion:+,}")
    if any("dagpam" in name for _, name, _, _ in sites):
        if settings.gpam_negative_source == "input":
            print("  W_Q⁻ of daGPAM: from the layer's input to all heads (--gpam-negative-source input)")
        else:
            print(f"  W_Q⁻ of daGPAM: {settings.gpam_negative_projection} (--gpam-negative-projection)")


def print_controls(model: Model) -> None:
    """Prints the flags of the parameter-matched controls and the differences that remain."""
    print("\ncontrols")
    for arm in match(model):
        print(f"{arm.name:15} {arm.model.command()}")
        share = arm.difference / arm.wanted
        print(f"                {arm.parameters:,} parameters, {arm.difference:+,} ({share:+.5%}) from {arm.wanted:,}")
