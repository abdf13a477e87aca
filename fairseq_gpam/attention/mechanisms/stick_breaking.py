"""Stick-breaking attention: from the newest back, each key takes a share of the weight left (Tan et al. 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.causal import earlier_keys, require_causal
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.core.masks import AttentionMask, zero_hidden


def stick_breaking_weights(q: Tensor, k: Tensor, mask: AttentionMask, own_gets_rest: bool) -> Tensor:
    """Returns P_ij = β_ij Π_{j<l<i} (1−β_il) for j < i, β = sigmoid(QKᵀ/√D + bias), and P_ii: B × H × T × S.

    P_ii, the weight of the query's own key, is the remainder Π_{j<i} (1−β_ij), or 0. A hidden key has β = 0. Tan et al.
    2024, arXiv 2410.17980; shawntan/stickbreaking-attention (`sb_ref.py`; for the remainder, its tests).
    """
    scores = dot_scores(q, k, mask)
    num_queries, num_keys = scores.shape[-2:]
    counted = earlier_keys(scores)
    if mask.padding is not None:
        counted = counted & ~mask.padding[:, None, None, :]
    log_rest = F.logsigmoid(-scores).masked_fill(~counted, 0.0)
    # `left − log_rest` is the log of the weight that the keys after j leave: the sum from the last key to j, without j.
    left = log_rest.flip(-1).cumsum(dim=-1).flip(-1)
    weights = torch.exp(F.logsigmoid(scores) + left - log_rest).masked_fill(~counted, 0.0)
    if own_gets_rest:
        own = torch.eye(num_queries, dtype=torch.bool, device=q.device)
        own = F.pad(own, (num_keys - num_queries, 0))
        weights = zero_hidden(torch.where(own, left[..., :1].exp(), weights), mask)
    return weights


@register_mechanism
class StickBreakingAttention(MatrixMechanism):
    """Causal weights that favour the newest keys by construction, so that positions need no encoding.

    A query does not score its own key. The weight left over by the earlier keys goes to the query's own value by
    default, as in the tests of the authors' code, or is dropped, as in its benchmarks. Which of the two holds for the
    authors' published models could not be confirmed.
    """

    name = "stick_breaking"
    formula = "P_ij = β_ij·Π_{j<l<i}(1−β_il), j < i, β = sigmoid(QKᵀ/√D); P_ii = Π_{l<i}(1−β_il)"
    source = "Tan et al. 2024, arXiv 2410.17980; shawntan/stickbreaking-attention"
    row_sum = "1; below 1 if the remainder is dropped"
    cost = "1×"
    why_never_neutral = "its weights come from a product of sigmoids"
    sites = ("decoder",)
    key_positions = "all"
    options = (
        Option(
            "stick_breaking_rest",
            str,
            "own",
            "where the remaining weight goes: to the query's own value, or nowhere",
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
        return f"{super().extra_repr()}, remaining weight to {'the own value' if self.own_gets_rest else 'nothing'}"
