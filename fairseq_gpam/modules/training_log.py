"""`--gpam-log-attention N`: logs measures of attention every N updates of training, through fairseq's own metrics.

Names such as `gpam_encoder0_entropy` give the site, the layer (counted from 0) and the measure. Without the flag
nothing is attached to the model.
"""

from __future__ import annotations

import torch
from fairseq.logging import metrics
from torch import Tensor, nn

from fairseq_gpam.attention.core.measures import entropy, lambdas, negative_mass, residual_ratio, row_sum
from fairseq_gpam.modules.listener import AttentionCall, HiddenStates, Listener, find_attentions

PRIORITY = 10_000


class AttentionLog(nn.Module):
    """A module without weights that, in training, observes the first batch of every N-th update.

    It logs the row sum, negative mass, entropy (nats) and λ of every attention, averaged over heads and sentences (a λ
    per token is averaged over the tokens of a sentence first), and the residual ratio of the states after every layer,
    averaged over sentences; `attention.measures` defines them. The query gradient norm is ‖dL/dW_Q‖_F divided by the
    sample size, before clipping. It is logged one update later, as gnorm · ‖g_Q‖/‖g‖ with fairseq's own gradient norm,
    because the quotient does not depend on clipping, loss scale and sample size.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        super().__init__()
        self.every = every
        # The tuple keeps the model from being registered as a submodule of itself.
        self._model = (model,)
        self._listener: Listener | None = None
        self._last_update: int | None = None
        self._has_begun = False
        self._awaits_gradients = False

    def set_num_updates(self, num_updates: int) -> None:
        """Starts listening if it is time; fairseq calls it before every batch, and when it loads a checkpoint."""
        self._stop()
        if self.training and self._has_begun and num_updates % self.every == 0 and self._last_update != num_updates:
            self._last_update = num_updates
            self._awaits_gradients = True
            self._listener = Listener(*self._model, self._log_attention, self._log_states)

    def train(self, mode: bool = True) -> AttentionLog:
        """Logs the gradients of a completed update; fairseq calls this before it discards them.

        fairseq calls it before every batch too, when the gradients of an update may be incomplete (`--update-freq`).
        """
        self._stop()
        self._has_begun = True
        if mode and self._awaits_gradients and self._is_completed():
            self._awaits_gradients = False
            self._log_gradients()
        return super().train(mode)

    def _is_completed(self) -> bool:
        completed = _latest("num_updates")
        return completed is not None and completed - 1 == self._last_update

    def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @torch.no_grad()
    def _log_attention(self, call: AttentionCall) -> None:
        weights, visible = call.weights.float(), call.visible
        values = {
            "row_sum": row_sum(weights, visible),
            "negative_mass": negative_mass(weights, visible),
            "entropy": entropy(weights, visible),
            **lambdas(call.place.module),
            **call.token_lambdas,
        }
        for what, value in values.items():
            _log(call.site, call.layer, what, value.nanmean())

    @torch.no_grad()
    def _log_states(self, after: HiddenStates) -> None:
        if after.layer >= 0:
            ratio = residual_ratio(after.states.float(), after.tokens)
            _log(after.site, after.layer, "residual_ratio", ratio.nanmean())

    @torch.no_grad()
    def _log_gradients(self) -> None:
        norm = _latest("gnorm")
        gradients = [parameter.grad for parameter in self._model[0].parameters() if parameter.grad is not None]
        if norm is None or not gradients:
            return
        total = torch.stack([gradient.float().norm() for gradient in gradients]).norm()
        for place in find_attentions(self._model[0]):
            gradient = place.module.q_proj.weight.grad
            if gradient is not None:
                _log(place.site, place.layer, "query_gradient", norm * gradient.float().norm() / total)

    def extra_repr(self) -> str:
        return f"every {self.every} updates"


def _latest(name: str) -> float | None:
    """Returns the value that fairseq logged last.

    When a checkpoint was loaded, fairseq goes on writing to the meters that are active, which `get_meter` then forgets.
    """
    meters = metrics._active_aggregators.get("default", metrics.get_meters("default"))
    return meters[name].val if name in meters else None


def _log(site: str, layer: int, what: str, value: Tensor) -> None:
    metrics.log_scalar(f"gpam_{site}{layer}_{what}", float(value), weight=1, priority=PRIORITY, round=5)


def attach_training_log(model: nn.Module, every: int) -> None:
    """Attaches an AttentionLog that logs every `every` updates, or nothing if that is 0."""
    if every:
        model.attention_log = AttentionLog(model, every)
