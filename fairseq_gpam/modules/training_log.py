"""`--gpam-log-attention N`: what attention does while it is trained, every N updates, through fairseq's own metrics.

Named `gpam_SITE LAYER_WHAT`, such as `gpam_encoder1_entropy`; layers count from 1. Without the flag nothing is
attached to the model.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from fairseq.logging import metrics
from torch import Tensor, nn

from fairseq_gpam.attention import AttentionMask
from fairseq_gpam.attention.measures import (
    entropy,
    lambdas,
    mean_lambda,
    negative_mass,
    residual_ratio,
    row_sum,
    token_lambdas,
    unpadded_tokens,
    visible_to_tokens,
    with_constant_keys,
)
from fairseq_gpam.modules.multihead_attention import GPAMMultiheadAttention
from fairseq_gpam.modules.stacks import transformer_layers

PRIORITY = 10_000


class AttentionLog(nn.Module):
    """A part of a model that has no weights and listens, in training, to the first batch of every N-th update.

    Row sum, negative mass, entropy (nats) and λ of every attention, means over heads and sentences (a λ per token is
    averaged over a sentence's tokens first); the residual ratio
    of the states after every layer, mean over sentences; definitions in `attention.measures`. The query gradient norm
    is ‖dL/dW_Q‖_F per sample size before clipping; it appears one update later, from fairseq's own gradient norm:
    gnorm · ‖g_Q‖/‖g‖, whose quotient neither clipping nor loss scale nor sample size changes.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        super().__init__()
        self.every = every
        # In tuples, which do not register: the model would contain itself.
        self._model = (model,)
        self._layers: tuple[tuple[str, nn.Module], ...] = tuple(
            (f"{name}{number}", layer)
            for name in ("encoder", "decoder")
            if hasattr(model, name)
            for number, layer in enumerate(transformer_layers(getattr(model, name)), start=1)
        )
        self._attentions = tuple(
            (f"{module.mechanism.site.name}{module.mechanism.site.layer + 1}", module)
            for module in model.modules()
            if isinstance(module, GPAMMultiheadAttention)
        )
        self._handles: list[Any] = []
        self._tokens: dict[str, Tensor] = {}
        self._visible: dict[str, Tensor] = {}
        self._heard: int | None = None
        self._awaits_gradients = False

    def set_num_updates(self, num_updates: int) -> None:
        """Starts listening if it is time; fairseq calls it before every batch."""
        self._stop()
        if self.training and num_updates % self.every == 0 and self._heard != num_updates:
            self._heard = num_updates
            self._listen()

    def train(self, mode: bool = True) -> AttentionLog:
        """Logs the gradients of the update before; fairseq calls it before it discards them."""
        self._stop()
        if mode and self._awaits_gradients:
            self._awaits_gradients = False
            self._log_gradients()
        return super().train(mode)

    def _listen(self) -> None:
        self._awaits_gradients = True
        for name, attention in self._attentions:
            keep = functools.partial(self._keep_masks, name)
            self._handles.append(attention.register_forward_pre_hook(keep, with_kwargs=True))
            attention.weights_hooks[id(self)] = functools.partial(self._log_weights, name)
            for what, module in token_lambdas(attention).items():
                log_lambda = functools.partial(self._log_lambda, name, what)
                self._handles.append(module.register_forward_hook(log_lambda))
        for name, layer in self._layers:
            self._handles.append(layer.register_forward_hook(functools.partial(self._log_states, name)))

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        for _, attention in self._attentions if self._handles else ():
            attention.weights_hooks.pop(id(self), None)
        for kept in (self._handles, self._tokens, self._visible):
            kept.clear()

    def _keep_masks(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(module, GPAMMultiheadAttention)
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        query, padding = given["query"], given.get("key_padding_mask")
        stack = "encoder" if module.mechanism.site.name == "encoder" else "decoder"
        num_keys = (query if module.self_attention else given["key"]).size(0)
        if module.mechanism.site.name != "cross":
            self._tokens[stack] = unpadded_tokens(query, padding)
        mask = AttentionMask.from_fairseq(padding, given.get("attn_mask"))
        self._visible[name] = visible_to_tokens(mask, self._tokens[stack], num_keys)

    @torch.no_grad()
    def _log_weights(self, name: str, module: GPAMMultiheadAttention, weights: Tensor) -> None:
        weights, visible = weights.float(), with_constant_keys(self._visible[name], weights.size(-1))
        values = {
            "row_sum": row_sum(weights, visible),
            "negative_mass": negative_mass(weights, visible),
            "entropy": entropy(weights, visible),
            **lambdas(module),
        }
        for what, value in values.items():
            _log(f"{name}_{what}", value.nanmean())

    @torch.no_grad()
    def _log_lambda(self, name: str, what: str, module: nn.Module, args: Any, values: Tensor) -> None:
        tokens = self._tokens["encoder" if name.startswith("encoder") else "decoder"]
        _log(f"{name}_{what}", mean_lambda(values, tokens).nanmean())

    @torch.no_grad()
    def _log_states(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        tokens = self._tokens[name.rstrip("0123456789")]
        _log(f"{name}_residual_ratio", residual_ratio(states.transpose(0, 1).float(), tokens).nanmean())

    @torch.no_grad()
    def _log_gradients(self) -> None:
        meter = metrics.get_meter("default", "gnorm")
        gradients = [parameter.grad for parameter in self._model[0].parameters() if parameter.grad is not None]
        if meter is None or meter.val is None or not gradients:
            return
        total = torch.stack([gradient.float().norm() for gradient in gradients]).norm()
        for name, attention in self._attentions:
            gradient = attention.q_proj.weight.grad
            if gradient is not None:
                _log(f"{name}_query_gradient", meter.val * gradient.float().norm() / total)

    def extra_repr(self) -> str:
        return f"every {self.every} updates"


def _log(name: str, value: Tensor) -> None:
    metrics.log_scalar(f"gpam_{name}", float(value), weight=1, priority=PRIORITY, round=5)


def attach_training_log(model: nn.Module, every: int) -> None:
    """Gives a model an AttentionLog for every `every` updates; 0 attaches nothing."""
    if every:
        model.attention_log = AttentionLog(model, every)
