"""The timed cases: the same work done by stock fairseq and by this package."""

import argparse
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.transformer import TransformerConfig
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from fairseq_gpam import options
from fairseq_gpam.attention import FUTURE, AttentionInput, AttentionMask, Site, build_mechanism
from fairseq_gpam.lab.benchmark.shapes import SHAPES, Candidate, Shape
from fairseq_gpam.lab.benchmark.timing import Step
from fairseq_gpam.modules import install_attention

VOCABULARY = 10_000

Build = Callable[[Candidate], tuple[Step, Step]]
"""Returns the steps to time, stock fairseq's and this package's."""


@contextmanager
def creating(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Within this context, new tensors and modules are created on `device` in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _backward(output: Tensor) -> None:
    output.backward(torch.ones_like(output))


def future_matrix(length: int) -> Tensor:
    """Returns the additive T × T mask that the stock decoder builds."""
    return torch.full((length, length), float("-inf")).triu(1)


def core_pair(candidate: Candidate, shape: Shape, dropout: float, training: bool = True) -> tuple[Step, Step]:
    """Returns causal self-attention without projections: stock's call (SDPA with a T × T mask) and our mechanism.

    Stock builds its mask in its first step and keeps it.
    """
    width = shape.width // shape.heads

    def leaf() -> Tensor:
        projected = torch.randn(shape.length, shape.batch, shape.heads, width)
        return projected.permute(1, 2, 0, 3).requires_grad_(training)

    q, k, v = leaf(), leaf(), leaf()
    x = torch.randn(shape.batch, shape.length, shape.width)
    site = Site("decoder", 0, 1, shape.width, shape.heads, width)
    mechanism = build_mechanism(candidate.mechanism, site, options.resolve(candidate.settings()))
    mask = functools.cache(lambda: future_matrix(shape.length).to(q))

    def stock() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask(), dropout_p=dropout)

    def ours() -> Tensor:
        return mechanism(AttentionInput(q, k, v, AttentionMask(causal=True), x, dropout))[0]

    return _once(stock, training, q, k, v), _once(ours, training, q, k, v, *mechanism.parameters())


def _once(forward: Callable[[], Tensor], training: bool, *leaves: Tensor) -> Step:
    """Returns a step that runs `forward` and, in training, the backward pass."""

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        with torch.set_grad_enabled(training):
            output = forward()
            if training:
                _backward(output)

    return run


def _layer(kind: str, shape: Shape, attention_dropout: float, candidate: Candidate | None) -> nn.Module:
    sizes = {"embed_dim": shape.width, "ffn_embed_dim": shape.feed_forward, "attention_heads": shape.heads}
    flags = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    settings = argparse.Namespace(attention_dropout=attention_dropout, dropout=0.1, **flags)
    config = TransformerConfig.from_namespace(settings)
    torch.manual_seed(1)
    if kind == "encoder":
        layer = TransformerEncoderLayerBase(config)
    else:
        layer = TransformerDecoderLayerBase(config, no_encoder_attn=kind == "lm")
    if candidate is not None:
        stack = nn.Module()
        stack.layers = nn.ModuleList([layer])
        stack.cross_self_attention = False  # type: ignore[assignment]
        model = nn.Module()
        setattr(model, "encoder" if kind == "encoder" else "decoder", stack)
        install_attention(model, options.resolve(candidate.settings()))
    return layer


def layer_pair(candidate: Candidate, shape: Shape, kind: str, dropout: float, training: bool) -> tuple[Step, Step]:
    """Returns one whole transformer layer, with dropout, feed-forward network and norms."""
    stock_layer, our_layer = (_layer(kind, shape, dropout, each).train(training) for each in (None, candidate))
    x, encoded = (torch.randn(shape.length, shape.batch, shape.width, requires_grad=training) for _ in range(2))
    padding = torch.zeros(shape.batch, shape.length, dtype=torch.bool)
    padding[::2, -3:] = True

    def step(layer: nn.Module, mask: Any) -> Step:
        def forward() -> Tensor:
            if kind == "encoder":
                return layer(x, padding)
            if kind == "decoder":
                return layer(x, encoded, padding, self_attn_mask=mask)[0]
            return layer(x, self_attn_mask=mask)[0]

        return _once(forward, training, x, encoded, *layer.parameters())

    return step(stock_layer, future_matrix(shape.length)), step(our_layer, FUTURE)


def decoding_pair(
    candidate: Candidate, shape: Shape, kind: str, rows: int = 160, steps: int = 100
) -> tuple[Step, Step]:
    """Returns `steps` decoding steps of one layer for `rows` hypotheses; the cache is reordered before each step."""
    x = torch.randn(1, rows, shape.width)
    encoded = torch.randn(shape.length, rows, shape.width)
    orders = [torch.randint(rows, (rows,)) for _ in range(steps)]

    def step(layer: Any) -> Step:
        layer.eval()

        @torch.no_grad()
        def run() -> None:
            state: dict[str, Any] = {}
            for order in orders:
                if state:
                    layer.self_attn.reorder_incremental_state(state, order)
                layer(x, encoded if kind == "decoder" else None, None, incremental_state=state)

        return run

    return step(_layer(kind, shape, 0.0, None)), step(_layer(kind, shape, 0.0, candidate))


def _dictionary() -> Dictionary:
    dictionary = Dictionary()
    dictionary.pad_to_multiple_(VOCABULARY)
    return dictionary


def _model(architecture: str, candidate: Candidate | None, **flags: Any) -> Any:
    dictionary = _dictionary()
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    prefix = "transformer_lm" if architecture.startswith("transformer_lm") else "transformer"
    args = argparse.Namespace(**flags)
    if candidate is not None:
        architecture = prefix + "_gpam" + architecture.removeprefix(prefix)
        args = candidate.settings(**flags)
    ARCH_CONFIG_REGISTRY[architecture](args)
    torch.manual_seed(1)
    # Sinusoidal position embeddings are made in fp32 whatever the default is; fairseq's --fp16 casts the model, too.
    return ARCH_MODEL_REGISTRY[architecture].build_model(args, task).to(torch.get_default_dtype())


def _translation_model(candidate: Candidate | None) -> Any:
    return _model("transformer_iwslt_de_en", candidate, share_all_embeddings=True)


def _language_model(candidate: Candidate | None) -> Any:
    # The plain `transformer_lm` takes its settings from a parsed command line; this preset fills in the missing ones.
    return _model(
        "transformer_lm_gpt2_tiny", candidate, decoder_embed_dim=512, decoder_ffn_embed_dim=2048, decoder_layers=6,
        decoder_attention_heads=8, activation_fn="relu", attention_dropout=0.0, max_target_positions=1024,
        share_decoder_input_output_embed=True,
    )  # fmt: skip


def model_pair(candidate: Candidate, shape: Shape, kind: str, training: bool) -> tuple[Step, Step]:
    """Returns training without the optimiser, or scoring, of `transformer_iwslt_de_en` or a 6-layer language model."""
    tokens = torch.randint(10, VOCABULARY, (shape.batch, shape.length))

    def step(model: Any) -> Step:
        model.train(training)

        def forward() -> Tensor:
            if kind == "lm":
                logits = model(tokens)[0]
            else:
                logits = model(tokens, torch.full((shape.batch,), shape.length), tokens)[0]
            return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

        return _once(forward, training, *model.parameters())

    model = _language_model if kind == "lm" else _translation_model
    return step(model(None)), step(model(candidate))


def generation_pair(candidate: Candidate, shape: Shape, beam: int = 5, sentences: int = 32) -> tuple[Step, Step]:
    """Returns beam search by a whole `transformer_iwslt_de_en`, every hypothesis as long as the source."""
    tokens = torch.randint(10, VOCABULARY, (sentences, shape.length))
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": torch.full((sentences,), shape.length)}}

    def step(model: Any) -> Step:
        model.eval()
        model.make_generation_fast_(beamable_mm_beam_size=beam)
        generator = SequenceGenerator(
            [model], _dictionary(), beam_size=beam, max_len_a=0, max_len_b=shape.length, min_len=shape.length
        )

        @torch.no_grad()
        def run() -> None:
            generator.generate([model], sample)

        return run

    return step(_translation_model(None)), step(_translation_model(candidate))


def all_cases(shape_names: list[str], levels: list[str]) -> list[tuple[dict[str, Any], Build]]:
    """Returns every comparison at these shapes and levels: level, shape, kind, mode and dropout, and what is timed."""
    cases: list[tuple[dict[str, Any], Build]] = []

    def add(level: str, mode: str, dropout: float, pair: Callable[..., tuple[Step, Step]]) -> None:
        if level in levels:
            case = {"level": level, "shape": name, "kind": kind, "mode": mode, "dropout": dropout}
            cases.append((case, functools.partial(pair, shape=shape)))

    for name in shape_names:
        shape = SHAPES[name]
        for kind in shape.kinds:
            for mode, dropout in (("inference", 0.0), ("training", 0.0), ("training", 0.1)):
                given: dict[str, Any] = {"dropout": dropout, "training": mode == "training"}
                if kind != "encoder":
                    add("core", mode, dropout, functools.partial(core_pair, **given))
                add("layer", mode, dropout, functools.partial(layer_pair, kind=kind, **given))
            if kind != "encoder" and name in ("iwslt", "lm512"):
                add("decoding", "100 steps", 0.0, functools.partial(decoding_pair, kind=kind))
                for mode in ("training", "inference"):
                    add("model", mode, 0.0, functools.partial(model_pair, kind=kind, training=mode == "training"))
            if kind == "decoder" and name == "iwslt":
                add("generation", "beam 5", 0.0, generation_pair)
    return cases
