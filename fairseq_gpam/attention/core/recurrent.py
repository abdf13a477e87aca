"""Mechanisms of decoder self-attention that decode with a state of constant size: no key is cached."""

from typing import Any

from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, AttentionMechanism, apply_weights
from fairseq_gpam.attention.core.causal import require_causal


class RecurrentMechanism(AttentionMechanism):
    """Attention by sums over the past; with attention dropout, or if weights are requested, by a T × T matrix."""

    sites = ("decoder",)
    key_positions = "all"
    caches_keys = False
    has_fused = False

    def prepare(self, inputs: AttentionInput, past: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """Returns the values, B × H × T × D, and what `matrix` and `sums` need; reads and replaces what is `past`."""
        raise NotImplementedError

    def matrix(self, parts: Any) -> Tensor:
        """Returns the weights of the values, B × H × T × T."""
        raise NotImplementedError

    def sums(self, v: Tensor, parts: Any, past: dict[str, Tensor]) -> Tensor:
        """Returns the weights times the values, B × H × T × D, earlier positions included; updates `past`."""
        raise NotImplementedError

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        self._check(inputs)
        past = {} if inputs.past is None else inputs.past
        v, parts = self.prepare(inputs, past)
        if not (inputs.need_weights or inputs.dropout_p > 0):
            return self.finish(self.sums(v, parts, past), inputs).type_as(inputs.v), None
        weights = self.matrix(parts)
        output = self.finish(apply_weights(weights, v, inputs.dropout_p), inputs).type_as(inputs.v)
        return output, weights.type_as(inputs.v) if inputs.need_weights else None

    def _check(self, inputs: AttentionInput) -> None:
        """Raises ValueError for what the sums cannot give: a bias, keys without queries, weights in decoding."""
        require_causal(self.name, inputs)
        if inputs.mask.bias is not None:
            raise ValueError(
                f"a bias in attn_mask is not allowed with --gpam-mechanism {self.name}, which has no scores of pairs"
            )
        if inputs.q.size(-2) != inputs.k.size(-2):
            raise ValueError(
                f"--gpam-mechanism {self.name} is not allowed with {inputs.k.size(-2)} keys for {inputs.q.size(-2)} "
                "queries; allowed: one key and value for each query"
            )
        if inputs.past is not None and (inputs.need_weights or inputs.dropout_p > 0):
            raise ValueError(
                f"weights and attention dropout are not allowed while --gpam-mechanism {self.name} decodes step by "
                "step: no key is cached; allowed: a full forward pass"
            )
