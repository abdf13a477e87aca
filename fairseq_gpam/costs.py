"""Measures what a mechanism costs and keeps: parameters, multiply-adds, decoding state, row sum at the start."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fairseq_gpam.attention import FUTURE, REGISTRY, Settings, Site, build_mechanism
from fairseq_gpam.attention.core.base import SiteName, describe_neutral
from fairseq_gpam.attention.core.presets import PRESETS
from fairseq_gpam.modules import GPAMMultiheadAttention

STEPS = 8


@dataclass(frozen=True)
class Facts:
    """What a mechanism or a preset says of itself."""

    formula: str
    source: str
    row_sum: str
    sites: tuple[SiteName, ...]
    neutral: str
    positions: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Costs:
    """What one attention layer costs, the mechanism's part of the parameters apart.

    parameters, trained: all of them, and those that training changes.
    multiply_adds: for one token of a forward pass, projections included; products of matrices and convolutions, by the
    plain formula, not elementwise work.
    growth, constant: numbers cached for each token, and for each sentence, in a decoder layer; None without decoder.
    row_sum: mean, least and greatest sum of a row of weights before training, on random input; empty: the share of rows
    without any weight.
    """

    parameters: int
    trained: int
    multiply_adds: int
    growth: int | None
    constant: int | None
    row_sum: tuple[float, float, float]
    empty: float

    def added(self) -> str:
        """Returns the mechanism's parameters in words."""
        return f"{self.parameters:,}" + f" ({self.trained:,} trained)" * (self.trained != self.parameters)

    def state(self) -> str:
        """Returns the decoding state in words."""
        if self.growth is None:
            return "no decoder"
        words = [f"{self.growth:,} a token"] * bool(self.growth) + [f"{self.constant:,} in all"] * bool(self.constant)
        return ", ".join(words)

    def start(self) -> str:
        """Returns the row sums at the start in words."""
        numbers = [abs(value) if abs(value) < 0.005 else value for value in self.row_sum]
        mean, least, greatest = (f"{value:.2f}".replace("-", "−") for value in numbers)
        words = mean if least == greatest else f"{mean} ({least} … {greatest})"
        return words + f"; {self.empty:.0%} of the rows are 0" * (self.empty >= 0.005)


def facts(name: str) -> Facts:
    """Returns what a registered mechanism or a preset says of itself."""
    preset = PRESETS.get(name)
    mechanism = REGISTRY[preset.mechanism if preset else name]
    told = preset or mechanism
    neutral, note = ("none: a preset", preset.flags()) if preset else (describe_neutral(mechanism), "")
    return Facts(told.formula, told.source, told.row_sum, mechanism.sites, neutral, mechanism.positions, note)


def measure(name: str, settings: Settings, width: int, heads: int, length: int) -> Costs:
    """Measures self-attention of `width` channels and `heads` heads on `length` tokens, in the second of three layers.

    The decoder's is measured, the encoder's if the mechanism has no other. Raises ValueError if it cannot be built.
    """
    site: SiteName = "decoder" if "decoder" in facts(name).sites else "encoder"
    plain = Settings({**settings, "backend": "reference"})
    shared: dict[tuple[object, ...], Any] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        layers = []
        for layer in (0, 1):
            place = Site(site, layer, 3, width, heads, width // heads, shared, settings.query_rank)
            mechanism = build_mechanism(name, place, plain)
            attention = GPAMMultiheadAttention(width, heads, mechanism, self_attention=True)
            trained = sum(each.numel() for each in mechanism.parameters() if each.requires_grad)
            layers.append(attention.eval().double().requires_grad_(False))
        x = torch.randn(length, 1, width, dtype=torch.float64)
        future = FUTURE if site == "decoder" else None
        layers[0](x, x, x, attn_mask=future)
        with FlopCounterMode(display=False) as counter:
            layers[1](x, x, x, attn_mask=future, need_weights=False)
        layers[0](x, x, x, attn_mask=future)
        weights = layers[1](x, x, x, attn_mask=future, need_head_weights=True)[1]
        growth, constant = _decoding_state(layers, x) if site == "decoder" else (None, None)
    assert isinstance(weights, Tensor)
    sums = weights.sum(dim=-1)
    return Costs(
        sum(parameter.numel() for parameter in layers[1].mechanism.parameters()),
        trained,
        counter.get_total_flops() // 2 // length,
        growth,
        constant,
        (sums.mean().item(), sums.min().item(), sums.max().item()),
        (weights == 0).all(dim=-1).float().mean().item(),
    )


def report(name: str, settings: Settings, width: int, heads: int, length: int) -> str:
    """Returns what `info --mechanism` prints: the facts of a mechanism and its costs beside softmax's."""
    told, costs = facts(name), measure(name, settings, width, heads, length)
    softmax = measure("softmax", settings, width, heads, length)
    stock, ratio = 4 * (width * width + width), costs.multiply_adds / softmax.multiply_adds
    rows = {
        "mechanism": name + (f", a preset: {told.note}" if told.note else ""),
        "formula": told.formula,
        "source": told.source,
        "allowed for": ", ".join(told.sites) + " attention",
        "positions": ", ".join(("none", *told.positions)) + " (--gpam-position)",
        "neutral": told.neutral,
        "row sum": told.row_sum,
        "  at the start": f"{costs.start()}, on {length} random tokens",
        "parameters": f"+{costs.added()} to the {stock:,} of an attention of {width} channels and {heads} heads",
        "multiply-adds": f"{costs.multiply_adds:,} for a token of {length}, {ratio:.2f}× "
        f"softmax's {softmax.multiply_adds:,} (matrix products and convolutions of the plain formula)",
        "decoding keeps": f"{costs.state()}, numbers in one layer (softmax {softmax.state()})",
    }
    return "\n".join(f"{label:15} {words}" for label, words in rows.items())


def _decoding_state(layers: list[GPAMMultiheadAttention], x: Tensor) -> tuple[int, int]:
    """Returns how many numbers the second layer caches for each token, and how many for each sentence."""
    state: dict[str, dict[str, Tensor | None]] = {}
    sizes = []
    for step in x[:STEPS].split(1):
        for layer in layers:
            layer(step, step, step, incremental_state=state, need_weights=False)
        cached = layers[1]._get_input_buffer(state).values()
        sizes.append(sum(tensor.numel() for tensor in cached if tensor is not None))
    growth = sizes[-1] - sizes[-2]
    return growth, sizes[-1] - growth * len(sizes)
