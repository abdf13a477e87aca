"""Stick-breaking attention: from the newest back, each key takes a share of the weight left (Tan et al. 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, apply_weights, register_mechanism
from fairseq_gpam.attention.core.causal import earlier_keys, require_causal
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, join_heads, split_heads, upcast
from fairseq_gpam.attention.core.masks import zero_hidden, zero_rows


@register_mechanism
class StickBreakingAttention(MatrixMechanism):
    """Causal weights that favour the newest keys by construction, so that positions need no encoding.

    A query does not score its own key, and a hidden key has β = 0. By default the weight left over by the earlier keys,
    the remainder, goes to the query's own value, as in the authors' models until December 2024 (`sb_remainder: True`).
    With `--gpam-stick-breaking-rest bias` it goes to a vector that each head learns from 0, and GroupNorm with a group
    for each head follows, as in their models since. With `none` it is dropped, as in the benchmarks of their code.
    """

    name = "stick_breaking"
    formula = "P_ij = β_ij·Π_{j<l<i}(1−β_il), j < i, β = sigmoid(QKᵀ/√D); P_ii = Π_{l<i}(1−β_il)"
    source = "Tan et al. 2024, arXiv 2410.17980; shawntan/stickbreaking-attention; its models: dolomite-engine"
    row_sum = "1; below 1 if the remainder is dropped"
    cost = "1×"
    rows_are_independent = True
    why_never_neutral = "its weights come from a product of sigmoids"
    sites = ("decoder",)
    key_positions = "all"
    options = (
        Option(
            "stick_breaking_rest",
            str,
            "own",
            "where the remaining weight goes: to the query's own value; to a learned vector of each head, followed by "
            "a norm of each head; or nowhere",
            choices=("own", "bias", "none"),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.rest: str = settings.stick_breaking_rest
        if self.rest == "bias":
            self.rest_bias = nn.Parameter(torch.zeros(site.num_heads, 1, site.head_dim))
            self.norm = nn.GroupNorm(site.num_heads, site.num_heads * site.head_dim)

    def weights(self, inputs: AttentionInput) -> Tensor:
        require_causal(self.name, inputs)
        scores, mask = dot_scores(inputs.q, inputs.k, inputs.mask), inputs.mask
        counted = earlier_keys(scores)
        if mask.padding is not None:
            counted = counted & ~mask.padding[:, None, None, :]
        log_rest = F.logsigmoid(-scores).masked_fill(~counted, 0.0)
        # The log of the weight that is left after each key and those behind it.
        left = log_rest.flip(-1).cumsum(dim=-1).flip(-1)
        # A key's share is exp(score) of what it leaves: log sigmoid(s) − log sigmoid(−s) = s.
        weights = torch.exp(scores.masked_fill(~counted, float("-inf")) + left)
        if self.rest == "own":
            own_keys = torch.eye(scores.size(-2), dtype=torch.bool, device=scores.device)
            own_keys = F.pad(own_keys, (scores.size(-1) - scores.size(-2), 0))
            weights = zero_hidden(torch.where(own_keys, left[..., :1].exp(), weights), mask)
        return weights

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        if self.rest != "bias":
            return super().forward(inputs)
        weights = self.weights(inputs)
        heads = apply_weights(weights, upcast(inputs.v), inputs.dropout_p)
        joined = join_heads(heads + (1 - weights.sum(dim=-1, keepdim=True)) * self.rest_bias)
        scale, offset = self.norm.weight.to(joined.dtype), self.norm.bias.to(joined.dtype)
        normed = F.group_norm(joined.flatten(0, 1), self.norm.num_groups, scale, offset, self.norm.eps)
        output = split_heads(normed.view(joined.shape), self.norm.num_groups).type_as(inputs.v)
        fully_masked = inputs.mask.fully_masked(weights.size(-2), weights.size(-1), weights.device)
        output = zero_rows(output, fully_masked)
        return output, weights.type_as(inputs.v) if inputs.need_weights else None

    def extra_repr(self) -> str:
        receiver = {"own": "the own value", "bias": "a learned vector", "none": "nothing"}[self.rest]
        return f"{super().extra_repr()}, remaining weight to {receiver}"
