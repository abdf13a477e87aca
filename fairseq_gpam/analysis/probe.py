"""The probe: what flows through a fairseq transformer, by hooks, and switches that take parts of it out.

It works alike on stock attention and on this package's, and leaves the model as it found it. Layers count from 1;
layer 0 is what enters the first one.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_gpam.attention import AttentionMask
from fairseq_gpam.attention.affine import branch_weights
from fairseq_gpam.attention.measures import (
    mean_lambda,
    token_lambdas,
    unpadded_tokens,
    visible_to_tokens,
    with_constant_keys,
)
from fairseq_gpam.modules import GPAMMultiheadAttention, register_attention_hook

SWITCHES = ("skips", "mlps", "layer-norms")
"""What `Probe(without=…)` takes out."""


@dataclass(frozen=True)
class Attended:
    """One attention call.

    Shapes: weights B × H × T × S, signed, before dropout, part of the graph; probabilities the same or None; visible
    bool, broadcastable to them, True = this query is a token and sees this key; output B × T × C, before the skip;
    tokens bool B × T; token_lambdas has the λ's that differ between tokens, their means over the tokens, B × H.
    """

    site: str
    layer: int
    weights: Tensor
    probabilities: Tensor | None
    visible: Tensor
    output: Tensor
    tokens: Tensor
    token_lambdas: dict[str, Tensor]


@dataclass(frozen=True)
class States:
    """The hidden states after one layer, B × T × C; tokens bool B × T."""

    site: str
    layer: int
    states: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class AttentionPlace:
    site: str
    layer: int
    module: MultiheadAttention


def find_layers(model: nn.Module) -> list[tuple[str, int, nn.Module]]:
    """Returns (`encoder` or `decoder`, layer from 1, module) in the order of computation.

    Raises ValueError if the model has no fairseq transformer layer.
    """
    found = []
    for name, module in model.named_modules():
        match = re.search(r"(?:^|\.)(encoder|decoder)\.layers\.(\d+)$", name)
        if match and isinstance(getattr(module, "self_attn", None), MultiheadAttention):
            found.append((match.group(1), int(match.group(2)) + 1, module))
    if not found:
        raise ValueError(f"{type(model).__name__} has no fairseq transformer layers to look into")
    return found


def find_attentions(model: nn.Module) -> list[AttentionPlace]:
    """Returns the attentions with their site (`encoder`, `decoder`, `cross`) in the order of computation."""
    places = []
    for stack, layer, module in find_layers(model):
        places.append(AttentionPlace(stack, layer, module.self_attn))
        cross = getattr(module, "encoder_attn", None)
        if cross is not None:
            places.append(AttentionPlace("cross", layer, cross))
    return places


class Probe:
    """A context in which a model's forward passes are reported and parts of its layers are switched off.

    `without` names any of SWITCHES. `skips`: a sublayer returns its branch alone. `mlps`: the feed-forward sublayer
    returns its input. Both are the setting of Dong et al. 2021 (arXiv 2103.03404). Layer norms stay where they are (in
    a post-norm layer also the one after the missing MLP) unless `layer-norms` makes those inside the layers the
    identity; they rescale tokens and do not undo a collapse. A callback that is None costs nothing. Raises ValueError
    for an unknown switch, a model without transformer layers, or xformers attention.
    """

    def __init__(
        self,
        model: nn.Module,
        without: Iterable[str] = (),
        on_attention: Callable[[Attended], None] | None = None,
        on_states: Callable[[States], None] | None = None,
    ) -> None:
        self.without = frozenset(without)
        unknown = sorted(self.without - set(SWITCHES))
        if unknown:
            raise ValueError(f"without {', '.join(unknown)} is not allowed; allowed: {', '.join(SWITCHES)}")
        self.model = model
        self.layers = find_layers(model)
        self.attentions = find_attentions(model)
        if any(place.module.use_xformers for place in self.attentions):
            raise ValueError("xformers attention computes no weights that could be looked at")
        self.on_attention = on_attention
        self.on_states = on_states
        self._stack = ExitStack()
        self._tokens: dict[str, Tensor] = {}
        self._inputs: dict[tuple[str, int], dict[str, Any]] = {}
        self._weights: dict[tuple[str, int], Tensor] = {}
        self._token_lambdas: dict[tuple[str, int], dict[str, Tensor]] = defaultdict(dict)

    def __enter__(self) -> Probe:
        with ExitStack() as stack:
            self._switch_off(stack)
            if self.on_attention is not None or self.on_states is not None:
                self._listen_to_padding(stack)
            if self.on_attention is not None:
                self._listen_to_attention(stack)
            if self.on_states is not None:
                self._listen_to_states(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        for kept in (self._tokens, self._inputs, self._weights, self._token_lambdas):
            kept.clear()

    def _switch_off(self, stack: ExitStack) -> None:
        for _, _, layer in self.layers:
            if self.without & {"skips", "mlps"}:
                _patch_residuals(layer, "skips" in self.without, "mlps" in self.without, stack)
            if "layer-norms" in self.without:
                for module in layer.modules():
                    if isinstance(module, nn.LayerNorm) or type(module).__name__ == "FusedLayerNorm":
                        _keep(stack, module.register_forward_hook(lambda module, inputs, output: inputs[0]))

    def _listen_to_padding(self, stack: ExitStack) -> None:
        for place in self.attentions:

            def before(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: AttentionPlace = place
            ) -> None:
                given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
                query, padding = given["query"], given.get("key_padding_mask")
                if place.site != "cross":
                    self._tokens[place.site] = unpadded_tokens(query, padding)
                self._inputs[place.site, place.layer] = given

            _keep(stack, place.module.register_forward_pre_hook(before, with_kwargs=True))

    def _listen_to_attention(self, stack: ExitStack) -> None:
        def keep_ours(layer: int, site: str, weights: Tensor) -> None:
            self._weights[site, layer + 1] = weights

        if any(isinstance(place.module, GPAMMultiheadAttention) for place in self.attentions):
            _keep(stack, register_attention_hook(self.model, keep_ours))
        for place in self.attentions:
            if not isinstance(place.module, GPAMMultiheadAttention):
                self._open_stock_attention(place, stack)

            for name, source in token_lambdas(place.module).items():

                def keep_lambda(
                    module: nn.Module, inputs: Any, values: Tensor, at: AttentionPlace = place, name: str = name
                ) -> None:
                    self._token_lambdas[at.site, at.layer][name] = values.detach()

                _keep(stack, source.register_forward_hook(keep_lambda))

            def after(module: nn.Module, inputs: Any, output: Any, place: AttentionPlace = place) -> None:
                assert self.on_attention is not None
                self.on_attention(self._attended(place, output[0]))

            _keep(stack, place.module.register_forward_hook(after))

    def _open_stock_attention(self, place: AttentionPlace, stack: ExitStack) -> None:
        """Sends a stock attention through its own explicit path, where the weights go through its dropout module."""
        module = place.module
        before = module.skip_embed_dim_check
        module.skip_embed_dim_check = True
        stack.callback(setattr, module, "skip_embed_dim_check", before)

        def alias(dropout: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # The product with V is taken of this view, so that it has a gradient.
            weights = inputs[0]
            heads = weights.view(-1, module.num_heads, *weights.shape[-2:])
            if weights.dtype == torch.float64:
                # fairseq's softmax rounds to float32.
                exact = _softmax_branch(module, self._inputs[place.site, place.layer])
                heads = exact if exact.shape == heads.shape else heads
            self._weights[place.site, place.layer] = heads
            return (heads.view(weights.shape),)

        _keep(stack, module.dropout_module.register_forward_pre_hook(alias))

    def _attended(self, place: AttentionPlace, output: Tensor) -> Attended:
        given = self._inputs.pop((place.site, place.layer))
        weights = self._weights.pop((place.site, place.layer))
        tokens = self._tokens["decoder" if place.site == "cross" else place.site]
        key = given["query"] if place.module.self_attention else given["key"]
        mask = AttentionMask.from_fairseq(given.get("key_padding_mask"), given.get("attn_mask"))
        visible = with_constant_keys(visible_to_tokens(mask, tokens, key.size(0)), weights.size(-1))
        probabilities: Tensor | None = weights.detach()
        if isinstance(place.module, GPAMMultiheadAttention):
            with torch.no_grad():
                branch = _softmax_branch(place.module, given)
            probabilities = branch if branch.shape == weights.shape else None
        own = self._token_lambdas.pop((place.site, place.layer), {})
        means = {name: mean_lambda(values, tokens) for name, values in own.items()}
        output = output.detach().transpose(0, 1)
        return Attended(place.site, place.layer, weights, probabilities, visible, output, tokens, means)

    def _listen_to_states(self, stack: ExitStack) -> None:
        assert self.on_states is not None
        on_states = self.on_states
        entering: dict[str, Tensor] = {}

        for site, number, layer in self.layers:

            def before(module: nn.Module, args: tuple[Any, ...], kwargs: Any, site: str = site) -> None:
                entering[site] = (args[0] if args else kwargs["x"]).detach()

            def after(module: nn.Module, inputs: Any, output: Any, site: str = site, number: int = number) -> None:
                tokens = self._tokens[site]
                if number == 1:
                    on_states(States(site, 0, entering[site].transpose(0, 1), tokens))
                states = output[0] if isinstance(output, tuple) else output
                on_states(States(site, number, states.detach().transpose(0, 1), tokens))

            if number == 1:
                _keep(stack, layer.register_forward_pre_hook(before, with_kwargs=True))
            _keep(stack, layer.register_forward_hook(after))


def _keep(stack: ExitStack, handle: Any) -> None:
    stack.callback(handle.remove)


def _patch_residuals(layer: Any, no_skips: bool, no_mlps: bool, stack: ExitStack) -> None:
    """Replaces the layer's `residual_connection`, on the instance, until the stack closes."""
    stock = layer.residual_connection
    after_mlp = False

    def mark(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal after_mlp
        after_mlp = True

    def residual_connection(x: Tensor, residual: Tensor) -> Tensor:
        nonlocal after_mlp
        is_mlp, after_mlp = after_mlp, False
        if is_mlp and no_mlps:
            return residual
        return x if no_skips else stock(x, residual)

    _keep(stack, layer.fc2.register_forward_hook(mark))
    layer.residual_connection = residual_connection
    stack.callback(delattr, layer, "residual_connection")


def _softmax_branch(module: MultiheadAttention, given: dict[str, Any]) -> Tensor:
    """Returns softmax(QKᵀ/√D + M) of the module's own projections, B × H × T × S, without learned or zero keys."""
    query = given["query"]
    key = query if module.self_attention else given["key"]
    q, k = (
        projected.view(projected.size(0), projected.size(1), module.num_heads, -1).permute(1, 2, 0, 3)
        for projected in (module.q_proj(query), module.k_proj(key))
    )
    mask = AttentionMask.from_fairseq(given.get("key_padding_mask"), given.get("attn_mask"))
    bias, _ = mask.for_scores(query.size(0), key.size(0), q)
    return branch_weights(q, k, bias)


def iterate_parameters(model: nn.Module) -> Iterator[tuple[AttentionPlace, str, nn.Parameter]]:
    """Yields the query, key and value weights of every attention, as (place, `query` | `key` | `value`, weight)."""
    for place in find_attentions(model):
        for name, projection in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            yield place, name, getattr(place.module, projection).weight
