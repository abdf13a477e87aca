"""Observes attention weights and hidden states of a fairseq transformer, stock or of this package, through hooks.

Layers count from 0; the input of the first is reported as the states of layer −1.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fairseq_gpam.attention import AttentionMask
from fairseq_gpam.attention.core.affine import branch_weights
from fairseq_gpam.attention.core.base import SiteName
from fairseq_gpam.attention.core.measures import mean_lambda, token_lambdas
from fairseq_gpam.modules.multihead_attention import GPAMMultiheadAttention
from fairseq_gpam.modules.stacks import transformer_layers


@dataclass(frozen=True)
class AttentionPlace:
    """An attention module with its site (`encoder`, `decoder` or `cross`) and layer."""

    site: str
    layer: int
    module: MultiheadAttention


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention module.

    Shapes: weights B × H × T × S, signed, before dropout, part of the autograd graph; visible bool, broadcastable to
    them, True = the query is not padding and may see the key; output B × T × C, before the skip connection; tokens bool
    B × T, True = not padding. `arguments` are those of the module's forward. `token_lambdas` holds the λ's that differ
    between tokens, averaged over the tokens, B × H.
    """

    place: AttentionPlace
    arguments: dict[str, Any]
    weights: Tensor
    visible: Tensor
    output: Tensor
    tokens: Tensor
    token_lambdas: dict[str, Tensor]

    @property
    def site(self) -> str:
        return self.place.site

    @property
    def layer(self) -> int:
        return self.place.layer

    def probabilities(self) -> Tensor | None:
        """Returns softmax(QKᵀ/√D + M) from the module's own projections, B × H × T × S, detached.

        None if its shape differs from that of the weights (learned keys, paired heads).
        """
        if not isinstance(self.place.module, GPAMMultiheadAttention):
            return self.weights.detach()
        with torch.no_grad():
            probabilities = _softmax_branch(self.place.module, self.arguments)
        return probabilities if probabilities.shape == self.weights.shape else None


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states after a layer (−1: the input), B × T × C, detached; tokens bool B × T, True = not padding."""

    site: str
    layer: int
    states: Tensor
    tokens: Tensor


def attention_modules(model: nn.Module) -> Iterator[GPAMMultiheadAttention]:
    """Yields this package's attention modules in the order of the model's layers."""
    for module in model.modules():
        if isinstance(module, GPAMMultiheadAttention):
            yield module


def register_attention_hook(model: nn.Module, fn: Callable[[int, SiteName, Tensor], None]) -> RemovableHandle:
    """Calls `fn(layer, site, weights)` after every attention call; weights are signed, B × H × T × S, before dropout.

    Layers count from 0; site is `encoder`, `decoder` or `cross`. Models without hooks run at full speed. Raises
    ValueError if the model has no attention of this package.
    """
    attentions = list(attention_modules(model))
    if not attentions:
        raise ValueError(
            f"{type(model).__name__} has no attention of fairseq_gpam to hook; for a stock model, build the "
            "corresponding architecture (transformer_gpam… for transformer…) with --gpam-mechanism softmax and load "
            "the stock checkpoint into it: its weights are the same"
        )

    def hook(attention: GPAMMultiheadAttention, weights: Tensor) -> None:
        fn(attention.mechanism.site.layer, attention.mechanism.site.name, weights)

    first, *others = (attention.weights_hooks for attention in attentions)
    handle = RemovableHandle(first, extra_dict=others)
    for hooks in (first, *others):
        hooks[handle.id] = hook
    return handle


def find_layers(model: nn.Module) -> list[tuple[str, int, nn.Module]]:
    """Returns (`encoder` or `decoder`, layer, module) in the order of computation.

    Raises ValueError if the model has no fairseq transformer layer.
    """
    layers = [
        (site, number, layer)
        for site in ("encoder", "decoder")
        if hasattr(getattr(model, site, None), "layers")
        for number, layer in enumerate(transformer_layers(getattr(model, site)))
        if isinstance(getattr(layer, "self_attn", None), MultiheadAttention)
    ]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no fairseq transformer layers")
    return layers


def distinct_heads(attention: Any) -> list[int]:
    """Returns the first head of every map: all heads, or one of each pair if the mechanism pairs them."""
    if isinstance(attention, GPAMMultiheadAttention):
        return attention.mechanism.distinct_heads()
    return list(range(attention.num_heads))


def find_attentions(model: nn.Module) -> list[AttentionPlace]:
    """Returns the attention modules with their places in the order of computation."""
    places = []
    for site, layer, module in find_layers(model):
        places.append(AttentionPlace(site, layer, module.self_attn))
        cross = getattr(module, "encoder_attn", None)
        if cross is not None:
            places.append(AttentionPlace("cross", layer, cross))
    return places


class Listener(ExitStack):
    """Reports every attention call and all hidden states of a model's forward passes until it is closed.

    Without a callback nothing is hooked. Raises ValueError for a model without transformer layers or with xformers
    attention.
    """

    def __init__(
        self,
        model: nn.Module,
        on_attention: Callable[[AttentionCall], None] | None = None,
        on_states: Callable[[HiddenStates], None] | None = None,
    ) -> None:
        super().__init__()
        self._arguments: dict[tuple[str, int], dict[str, Any]] = {}
        self._weights: dict[tuple[str, int], Tensor] = {}
        self._tokens: dict[str, Tensor] = {}
        places = find_attentions(model)
        if any(place.module.use_xformers for place in places):
            raise ValueError("xformers attention does not expose its weights")
        if on_attention is not None or on_states is not None:
            for place in places:
                self._listen_to_arguments(place)
        if on_attention is not None:
            if any(isinstance(place.module, GPAMMultiheadAttention) for place in places):
                self.remove_on_close(register_attention_hook(model, self._keep_weights))
            for place in places:
                self._listen_to_attention(place, on_attention)
        if on_states is not None:
            for site, number, layer in find_layers(model):
                self._listen_to_states(site, number, layer, on_states)

    def remove_on_close(self, handle: RemovableHandle) -> None:
        """Arranges that a hook is removed when the listener is closed."""
        self.callback(handle.remove)

    def _keep_weights(self, layer: int, site: str, weights: Tensor) -> None:
        self._weights[site, layer] = weights

    def _listen_to_arguments(self, place: AttentionPlace) -> None:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            if place.site != "cross":
                self._tokens[place.site] = _unpadded_tokens(arguments["query"], arguments.get("key_padding_mask"))
            self._arguments[place.site, place.layer] = arguments

        self.remove_on_close(place.module.register_forward_pre_hook(before, with_kwargs=True))

    def _listen_to_attention(self, place: AttentionPlace, on_attention: Callable[[AttentionCall], None]) -> None:
        strengths: dict[str, Tensor] = {}

        def keep_lambda(name: str, module: nn.Module, inputs: Any, values: Tensor) -> None:
            strengths[name] = values.detach()

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            arguments = self._arguments.pop((place.site, place.layer))
            weights = self._weights.pop((place.site, place.layer))
            tokens = self._tokens["decoder" if place.site == "cross" else place.site]
            keys = (arguments["query"] if place.module.self_attention else arguments["key"]).size(0)
            mask = AttentionMask.from_fairseq(arguments.get("key_padding_mask"), arguments.get("attn_mask"))
            mask = mask.expanded(tokens.size(1), keys, tokens.device).extended(weights.size(-1) - keys)
            visible = mask.visible_to(tokens, weights.size(-1))
            attended = output[0].detach().transpose(0, 1)
            means = {name: mean_lambda(values, tokens) for name, values in strengths.items()}
            on_attention(AttentionCall(place, arguments, weights, visible, attended, tokens, means))

        if not isinstance(place.module, GPAMMultiheadAttention):
            self._open_stock_attention(place)
        for name, source in token_lambdas(place.module).items():
            self.remove_on_close(source.register_forward_hook(functools.partial(keep_lambda, name)))
        self.remove_on_close(place.module.register_forward_hook(after))

    def _open_stock_attention(self, place: AttentionPlace) -> None:
        """Makes a stock attention compute its weights explicitly, so that they pass through its dropout module."""
        module = place.module
        self.callback(setattr, module, "skip_embed_dim_check", module.skip_embed_dim_check)
        module.skip_embed_dim_check = True

        def alias(dropout: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # The view is passed on to the product with V, so that it receives a gradient.
            weights = inputs[0]
            heads = weights.view(-1, module.num_heads, *weights.shape[-2:])
            if weights.dtype == torch.float64:
                # fairseq's softmax rounds to float32.
                exact = _softmax_branch(module, self._arguments[place.site, place.layer])
                heads = exact if exact.shape == heads.shape else heads
            self._weights[place.site, place.layer] = heads
            return (heads.view(weights.shape),)

        self.remove_on_close(module.dropout_module.register_forward_pre_hook(alias))

    def _listen_to_states(
        self, site: str, number: int, layer: nn.Module, on_states: Callable[[HiddenStates], None]
    ) -> None:
        entering: list[Tensor] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering[:] = [args[0] if args else kwargs["x"]]

        def report(layer: int, states: Tensor) -> None:
            on_states(HiddenStates(site, layer, states.detach().transpose(0, 1), self._tokens[site]))

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            # By now the first attention has recorded which states are padding.
            if entering:
                report(-1, entering.pop())
            report(number, output[0] if isinstance(output, tuple) else output)

        if number == 0:
            self.remove_on_close(layer.register_forward_pre_hook(before, with_kwargs=True))
        self.remove_on_close(layer.register_forward_hook(after))


def _unpadded_tokens(query: Tensor, padding: Tensor | None) -> Tensor:
    """Returns which queries (T × B × C) are not padding: bool B × T, from the padding mask of the keys, B × S.

    With --cross-self-attention the keys are those of the source, then those of the target, so the last T are used.
    """
    length, batch = query.shape[:2]
    if padding is None:
        return torch.ones(batch, length, dtype=torch.bool, device=query.device)
    return ~padding.bool()[:, -length:]


def _softmax_branch(module: MultiheadAttention, arguments: dict[str, Any]) -> Tensor:
    """Returns softmax(QKᵀ/√D + M) from the module's own projections, B × H × T × S, without learned or zero keys."""
    query = arguments["query"]
    key = query if module.self_attention else arguments["key"]
    q, k = (
        projected.view(projected.size(0), projected.size(1), module.num_heads, -1).permute(1, 2, 0, 3)
        for projected in (module.q_proj(query), module.k_proj(key))
    )
    mask = AttentionMask.from_fairseq(arguments.get("key_padding_mask"), arguments.get("attn_mask"))
    if isinstance(module, GPAMMultiheadAttention):
        form = module.form(q, mask.padding, None)
        q, k = form.query(q), form.key(k)
        mask = module.with_positions(mask, q, k)
    bias, _ = mask.for_scores(query.size(0), key.size(0), q)
    if bias is not None and bias.dim() == 4 and bias.size(1) > 1:
        bias = bias.repeat_interleave(module.num_heads // bias.size(1), dim=1)
    return branch_weights(q, k, bias)
