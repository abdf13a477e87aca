"""Stick-breaking attention: each key, from the newest back, takes a share of what is left (Tan et al. 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.causal import earlier_keys, require_causal
from fairseq_gpam.attention.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.masks import AttentionMask, zero_hidden


def stick_breaking_weights(q: Tensor, k: Tensor, mask: AttentionMask, own_gets_rest: bool) -> Tensor:
    """Returns P_ij = β_ij Π_{j<l<i} (1−β_il) for j < i, β = sigmoid(QKᵀ/√D + bias), and P_ii: B × H × T × S.

    P_ii, the query's own key, is what is left of the stick, Π_{j<i} (1−β_ij), or 0. A hidden key has β = 0. Tan et
    al. 2024, arXiv 2410.17980; shawntan/stickbreaking-attention (`sb_ref.py`, and its tests for what is left).
    """
    scores = dot_scores(q, k, mask)
    num_queries, num_keys = scores.shape[-2:]
    counted = earlier_keys(scores)
    if mask.padding is not None:
        counted = counted & ~mask.padding[:, None, None, :]
    log_rest = F.logsigmoid(-scores).masked_fill(~counted, 0.0)
    # The logarithm of what newer keys leave for key j: the sum from the last key to j, without the part of j itself.
    left = log_rest.flip(-1).cumsum(dim=-1).flip(-1)
    weights = torch.exp(F.logsigmoid(scores) + left - log_rest).masked_fill(~counted, 0.0)
    if own_gets_rest:
        own = torch.eye(num_queries, dtype=torch.bool, device=q.device)
        own = F.pad(own, (num_keys - num_queries, 0))
        weights = zero_hidden(torch.where(own, left[..., :1].exp(), weights), mask)
    return weights


@register_mechanism
class StickBreakingAttention(MatrixMechanism):
    """Weights that favour the newest keys by construction, so that positions need no encoding; causal by nature.

    A query does not score its own key. The weight left over by the earlier keys goes to the query's own value by
    default, as in the tests of the authors' code, or to nothing, as in its benchmarks. Which of the two the authors'
    published models do could not be confirmed.
    """

    name = "stick_breaking"
    formula = "P_ij = β_ij·Π_{j<l<i}(1−β_il), j < i, β = sigmoid(QKᵀ/√D); P_ii = Π_{l<i}(1−β_il)"
    source = "Tan et al. 2024, arXiv 2410.17980; shawntan/stickbreaking-attention"
    row_sum = "1; below 1 if the rest goes to nothing"
    cost = "1×"
    why_never_neutral = "its weights come from a product of sigmoids"
    sites = ("decoder",)
    options = (
        Option(
            "stick_breaking_rest",
            str,
            "own",
            "where the rest of the stick goes: to the query's own value, or nowhere",
            choices=("own", "none"),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.own_gets_rest: bool = settings.stick_breaking_rest == "own"

    def weights(self, inputs: AttentionInput) -> Tensor:
        require_causal(self.name, inputs)
        return stick_breaking_weights(inputs.q, inputs.k, inputs.mask, self.own_gets_rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, the rest to {'the own value' if self.own_gets_rest else 'nothing'}"
