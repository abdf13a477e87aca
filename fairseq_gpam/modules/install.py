"""Replaces every attention module of a stock fairseq transformer by one with a mechanism."""

import functools
from typing import Any

from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from fairseq_gpam.attention import FUTURE, FutureMask, Settings, Site, build_mechanism
from fairseq_gpam.attention.core.base import SiteName, refuse_options
from fairseq_gpam.attention.core.layers import is_layered
from fairseq_gpam.modules.layer_fusion import install_layer_fusion
from fairseq_gpam.modules.multihead_attention import GPAMMultiheadAttention
from fairseq_gpam.modules.skip_weight import install_skip_weight
from fairseq_gpam.modules.stacks import refuse_layerdrop, transformer_layers
from fairseq_gpam.modules.training_log import attach_training_log

# More positions than any input has, for stacks without a table of positions.
ANY_LENGTH = 10**9


def install_attention(model: nn.Module, settings: Settings) -> None:
    """Replaces every attention module of a newly built fairseq transformer, in place.

    The projections built by fairseq are kept, so that with the same seed a model with any mechanism starts from the
    stock model's weights. Raises ValueError for a layer of an unknown type.
    """
    if settings.warm_start:
        unchanged = (("position", "none", "none"), ("qk_norm", False, "training without it"))
        refuse_options(settings, "--gpam-warm-start, because it changes the stock model's output", unchanged)
    shared: dict[tuple[object, ...], Any] = {}
    for stack_name in ("encoder", "decoder"):
        stack = getattr(model, stack_name, None)
        if stack is None:
            continue
        layers = transformer_layers(stack)
        for index, layer in enumerate(layers):
            if isinstance(layer, TransformerEncoderLayerBase):
                attentions: dict[str, SiteName] = {"self_attn": "encoder"}
            elif isinstance(layer, TransformerDecoderLayerBase):
                attentions = {"self_attn": "decoder", "encoder_attn": "cross"}
            else:
                raise ValueError(
                    f"{stack_name} layer {index} is a {type(layer).__name__}; allowed: fairseq's transformer layers "
                    "(--ddp-backend fully_sharded wraps them and is not supported)"
                )
            for attribute, site_name in attentions.items():
                stock = getattr(layer, attribute)
                if stock is not None:
                    widths = (stock.embed_dim, stock.num_heads, stock.head_dim)
                    site = Site(site_name, index, len(layers), *widths, shared, settings.query_rank)
                    mechanism = build_mechanism(settings[f"{site.name}_mechanism"], site, settings)
                    noise = (layer.quant_noise, layer.quant_noise_block_size)
                    attention = GPAMMultiheadAttention.from_stock(stock, mechanism, *noise)
                    attention.set_form(settings.position, settings.qk_norm)
                    if site.name == "decoder" and stack.cross_self_attention:
                        mechanism.refuse_source_keys()
                    _check_layer_runs(stack, layer, attention, settings)
                    setattr(layer, attribute, attention)
        if settings.position != "none":
            _lift_limit(stack)
        if stack_name == "decoder" and not stack.cross_self_attention:
            stack.buffered_future_mask = future_mask
    install_skip_weight(model, settings.skip_weight, settings.warm_start)
    install_layer_fusion(model, settings.layer_fusion, settings.warm_start)
    attach_training_log(model, settings.log_attention)


def _lift_limit(stack: Any) -> None:
    """Lets a stack whose positions are computed take inputs of any length. Raises ValueError if it joins two kinds."""
    if getattr(stack, "cross_self_attention", False):
        raise ValueError(
            "--cross-self-attention is not allowed with --gpam-position, which the source's tokens do not have in the "
            "decoder; allowed: without it"
        )
    for limit in ("max_source_positions", "max_target_positions"):
        if hasattr(stack, limit):
            setattr(stack, limit, ANY_LENGTH)


def check_quantisation(model: nn.Module, args: Any) -> None:
    """Raises ValueError if scalar quantisation, which replaces layers by their class, would find a class of ours."""
    if not getattr(args, "quant_noise_scalar", 0):
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear and "mechanism" in name:
            raise ValueError(
                f"--quant-noise-scalar {args.quant_noise_scalar} is not allowed with {name}, a "
                f"{type(module).__name__}; allowed: 0, or for daGPAM --gpam-negative-projection shared"
            )


def check_pruning(model: nn.Module, args: Any, settings: Settings) -> None:
    """Raises ValueError if a trained model loses layers, and a layer's place decides what it computes."""
    for name in ("encoder", "decoder"):
        kept = getattr(args, f"{name}_layers_to_keep", None)
        for attention in getattr(model, name).modules() if kept else ():
            if not isinstance(attention, GPAMMultiheadAttention):
                continue
            spec = settings[f"{attention.mechanism.site.name}_mechanism"]
            if is_layered(spec) or attention.mechanism.needs_every_layer or attention.mechanism.depends_on_layer:
                raise ValueError(
                    f"--{name}-layers-to-keep {kept} is not allowed with --gpam-mechanism {spec}, with which a layer "
                    "computes something else in another place; allowed: all layers"
                )


def _check_layer_runs(
    stack: nn.Module, layer: nn.Module, attention: GPAMMultiheadAttention, settings: Settings
) -> None:
    """Raises ValueError if a layer may be skipped or run twice whose mechanism does not allow that."""
    mechanism = attention.mechanism
    spec = settings[f"{mechanism.site.name}_mechanism"]
    if mechanism.needs_every_layer:
        name = "encoder" if mechanism.site.name == "encoder" else "decoder"
        refuse_layerdrop(stack, name, f"--gpam-mechanism {spec}")
    # fairseq's checkpoint_wrapper replaces the layer's method by a partial.
    if (mechanism.needs_every_layer or mechanism.runs_once) and isinstance(layer.forward, functools.partial):
        raise ValueError(
            f"--checkpoint-activations is not allowed with --gpam-mechanism {spec}, whose layers cannot be rerun "
            "separately; allowed: training without it"
        )


def future_mask(tensor: Tensor) -> FutureMask:
    """Replaces the decoder's `buffered_future_mask`, which builds a T × T matrix."""
    return FUTURE
