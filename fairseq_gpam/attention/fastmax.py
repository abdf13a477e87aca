"""Fastmax: a polynomial in place of the exponential, so that time can be linear in length (Gerami et al. 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.families import MatrixMechanism, dot_scores, upcast, zero_hidden
from fairseq_gpam.attention.masks import AttentionMask

CHUNK = 64


def fastmax_weights(q: Tensor, k: Tensor, mask: AttentionMask) -> Tensor:
    """Returns P_ij = f(s_ij)/Σ_j f(s_ij), f(s) = 1 + s + s²/2 > 0, over the keys that row i sees: B × H × T × S.

    s = QKᵀ + the mask's finite bias, Q and K normalised by `normalize_tokens`. Gerami et al. 2024, arXiv 2402.07901
    (p = 2).
    """
    scores = dot_scores(q, k, mask, scale=1.0)
    values = zero_hidden(1 + scores + scores.square() / 2, mask)
    total = values.sum(dim=-1, keepdim=True)
    return values / torch.where(total > 0, total, 1.0)


def normalize_tokens(heads: Tensor, size: float) -> Tensor:
    """Returns each token's vector centred and scaled to the length `size`: B × H × T × D.

    The authors' code divides by the longest vector of the sequence, which tells every position of the later ones; a
    norm for each token is our reading.
    """
    wide = upcast(heads)
    return size * F.normalize(wide - wide.mean(dim=-1, keepdim=True), dim=-1)


def fastmax_linear(q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, causal: bool) -> Tensor:
    """Returns P·V for P of `fastmax_weights` in time linear in T + S, by sums over (1, k, kkᵀ): B × H × T × D.

    Shapes: q B × H × T × D, k and v B × H × S × D, padding bool B × S; with `causal`, query i sees the keys up to
    S−T+i. Work and memory grow with D², which pays only for sequences longer than about 2·D².
    """
    batch, heads, num_queries, width = q.shape
    num_keys = k.size(-2)
    ones = torch.ones(batch, heads, num_keys, 1, dtype=k.dtype, device=k.device)
    if padding is not None:
        ones = ones * (~padding)[:, None, :, None]
    # The last column of the values counts the keys: it becomes the normaliser.
    values = torch.cat([v.to(k.dtype) * ones, ones], dim=-1)
    before = num_keys - num_queries if causal else num_keys
    state = q.new_zeros(batch, heads, 1 + width + width * width, values.size(-1))
    for start in range(0, before, CHUNK):
        stop = min(start + CHUNK, before)
        state = state + _features(k[..., start:stop, :]).transpose(-2, -1) @ values[..., start:stop, :]
    if not causal:
        total = torch.cat([_features(part) @ state for part in q.split(CHUNK, dim=-2)], dim=-2)
    else:
        rows = []
        for start in range(0, num_queries, CHUNK):
            part = q[..., start : start + CHUNK, :]
            size = part.size(-2)
            new_k = k[..., before + start : before + start + size, :]
            new_values = values[..., before + start : before + start + size, :]
            scores = part @ new_k.transpose(-2, -1)
            inside = torch.tril(1 + scores + scores.square() / 2)
            rows.append(_features(part) @ state + inside @ new_values)
            state = state + _features(new_k).transpose(-2, -1) @ new_values
        total = torch.cat(rows, dim=-2)
    count = total[..., -1:]
    return total[..., :-1] / torch.where(count > 0, count, 1.0)


def _features(vectors: Tensor) -> Tensor:
    """Returns φ with φ(q)·φ(k) = 1 + q·k + (q·k)²/2: … × (1 + D + D²)."""
    outer = (vectors.unsqueeze(-1) * vectors.unsqueeze(-2)).flatten(-2) / math.sqrt(2)
    return torch.cat([torch.ones_like(vectors[..., :1]), vectors, outer], dim=-1)


@register_mechanism
class FastmaxAttention(MatrixMechanism):
    """Polynomial weights, held as a matrix or summed in linear time; both forms give the same numbers."""

    name = "fastmax"
    formula = "P = f(s)/Σ f(s), f(s) = 1 + s + s²/2, s of normalised q and k"
    source = "Gerami et al. 2024, arXiv 2402.07901; the norm per token is our reading"
    row_sum = "1"
    cost = "1×, or D²·(T+S) in the linear form"
    options = (
        Option(
            "fastmax_form",
            str,
            "auto",
            "a matrix of weights, or sums in linear time, which have no weights to drop; auto takes the sums for more "
            "than 2·D² keys where nothing forbids them",
            choices=("auto", "matrix", "linear"),
        ),
        Option(
            "fastmax_norm",
            float,
            1.0,
            "the length to which each query and key is scaled",
            check=lambda size: size > 0,
            allowed="a number > 0",
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.form: str = settings.fastmax_form
        self.norm: float = settings.fastmax_norm

    def weights(self, inputs: AttentionInput) -> Tensor:
        return fastmax_weights(
            normalize_tokens(inputs.q, self.norm), normalize_tokens(inputs.k, self.norm), inputs.mask
        )

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        has_matrix = inputs.mask.bias is not None or inputs.mask.hidden is not None
        if self.form == "linear":
            if inputs.dropout_p > 0:
                raise ValueError(
                    f"--attention-dropout {inputs.dropout_p:g} is not allowed with --gpam-fastmax-form linear, which "
                    "has no weights to drop; allowed: 0, or --gpam-fastmax-form matrix"
                )
            if has_matrix:
                raise ValueError("attn_mask as a matrix is not allowed with --gpam-fastmax-form linear")
        linear_pays = inputs.k.size(-2) > 2 * inputs.q.size(-1) ** 2 and not has_matrix and inputs.dropout_p == 0
        if inputs.need_weights or self.form == "matrix" or (self.form == "auto" and not linear_pays):
            return super().forward(inputs)
        output = fastmax_linear(
            normalize_tokens(inputs.q, self.norm),
            normalize_tokens(inputs.k, self.norm),
            inputs.v,
            inputs.mask.padding,
            inputs.mask.causal,
        )
        return output.type_as(inputs.v), None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form {self.form}"
