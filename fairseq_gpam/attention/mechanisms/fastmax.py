"""Fastmax: a polynomial in place of the exponential, so that time can be linear in length (Gerami et al. 2024)."""

import functools
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, upcast
from fairseq_gpam.attention.core.kernel_sums import kernel_sums
from fairseq_gpam.attention.core.masks import zero_hidden


def polynomial(scores: Tensor, degree: int) -> Tensor:
    """Returns f(s) = 1 + s, or 1 + s + s²/2 for degree 2."""
    return 1 + scores if degree == 1 else 1 + scores + scores.square() / 2


def normalize_tokens(heads: Tensor, size: float) -> Tensor:
    """Returns each token's vector centred and scaled to the length `size`: B × H × T × D.

    The authors' code divides by the longest vector of the sequence, so that every position depends on later ones.
    Normalising each token by itself is our reading.
    """
    wide = upcast(heads)
    return size * F.normalize(wide - wide.mean(dim=-1, keepdim=True), dim=-1)


def features(vectors: Tensor, degree: int) -> Tensor:
    """Returns φ with φ(q)·φ(k) = f(q·k): … × (1 + D), or … × (1 + D + D²) for degree 2."""
    parts = [torch.ones_like(vectors[..., :1]), vectors]
    if degree == 2:
        parts.append((vectors.unsqueeze(-1) * vectors.unsqueeze(-2)).flatten(-2) / math.sqrt(2))
    return torch.cat(parts, dim=-1)


@register_mechanism
class FastmaxAttention(MatrixMechanism):
    """Polynomial weights, computed as a matrix or as running sums in linear time; both forms give the same output.

    Queries and keys are centred over their channels and scaled to one length. At length 1 the weights stay nearly
    uniform (98 % of the maximum entropy), because each token is normalised by itself where the authors normalise over
    the sequence. A temperature below 1 or a larger length sharpens them. In the linear form, decoder self-attention
    caches only the sums, whose size does not grow. How a mask's finite bias enters is our reading: for degree 2 it is
    added to s; for degree 1, where that could make f negative, f is multiplied by its exponential.
    """

    name = "fastmax"
    formula = "P = f(s)/Σ f(s), f(s) = 1 + s + s²/2 (p = 2) or 1 + s (p = 1), s of normalised q and k, over τ"
    source = "Gerami et al. 2024, arXiv 2402.07901; the norm per token is our reading"
    row_sum = "1"
    cost = "1×, or D^p·(T+S) in the linear form"
    why_never_neutral = "a polynomial is not the exponential function"
    options = (
        Option(
            "fastmax_form",
            str,
            "auto",
            "compute a matrix of weights, or running sums in linear time, which allow no attention dropout; auto uses "
            "the sums for more than 2·D^p keys unless dropout, a mask matrix or requested weights rule them out",
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
        Option(
            "fastmax_degree",
            int,
            2,
            "the degree p of the polynomial",
            check=lambda degree: degree in (1, 2),
            allowed="1 or 2",
        ),
        Option(
            "fastmax_temperature",
            float,
            1.0,
            "the temperature τ that divides the scores",
            check=lambda temperature: temperature > 0,
            allowed="a number > 0",
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.form: str = settings.fastmax_form
        self.degree: int = settings.fastmax_degree
        self.temperature: float = settings.fastmax_temperature
        self.norm: float = settings.fastmax_norm
        if self.degree == 1 and self.norm**2 > self.temperature:
            raise ValueError(
                f"--gpam-fastmax-norm {self.norm:g} and --gpam-fastmax-temperature {self.temperature:g} are not "
                "allowed with --gpam-fastmax-degree 1, whose weights would be negative; allowed: norm² ≤ temperature"
            )
        if self.degree == 1 and self.norm**2 == self.temperature and site.query_dim == 2:
            raise ValueError(
                "--gpam-fastmax-degree 1 is not allowed with queries of 2 channels in a head, where half of all scores "
                f"are −norm²/τ and their weights 0; allowed: --gpam-fastmax-temperature above {self.norm**2:g}, degree "
                "2, or wider heads"
            )
        self.caches_keys = self.form != "linear"

    def _normalized(self, inputs: AttentionInput) -> tuple[Tensor, Tensor]:
        return normalize_tokens(inputs.q, self.norm / self.temperature), normalize_tokens(inputs.k, self.norm)

    def weights(self, inputs: AttentionInput) -> Tensor:
        q, k, mask = *self._normalized(inputs), inputs.mask
        scored = replace(mask, bias=None) if self.degree == 1 else mask
        values = polynomial(dot_scores(q, k, scored, scale=1.0), self.degree)
        if self.degree == 1 and mask.bias is not None:
            values = values * mask.bias.to(values.dtype).exp()
        values = zero_hidden(values, mask)
        total = values.sum(dim=-1, keepdim=True)
        return values / torch.where(total > 0, total, 1.0)

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        has_matrix = inputs.mask.bias is not None or inputs.mask.hidden is not None
        past = None if self.caches_keys else inputs.past
        if self.form == "linear":
            if inputs.dropout_p > 0:
                raise ValueError(
                    f"--attention-dropout {inputs.dropout_p:g} is not allowed with --gpam-fastmax-form linear, which "
                    "has no weights to drop; allowed: 0, or --gpam-fastmax-form matrix"
                )
            if has_matrix:
                raise ValueError("attn_mask as a matrix is not allowed with --gpam-fastmax-form linear")
            if past is not None and inputs.need_weights:
                raise ValueError(
                    "weights cannot be returned while --gpam-fastmax-form linear decodes step by step: no key is "
                    "cached; allowed: a full forward pass, or --gpam-fastmax-form matrix"
                )
        enough = inputs.k.size(-2) > 2 * inputs.q.size(-1) ** self.degree
        linear_pays = enough and not has_matrix and inputs.dropout_p == 0
        if inputs.need_weights or self.form == "matrix" or (self.form == "auto" and not linear_pays):
            return super().forward(inputs)
        output, sums = kernel_sums(
            *self._normalized(inputs),
            inputs.v,
            inputs.mask.padding,
            inputs.mask.causal or past is not None,
            functools.partial(features, degree=self.degree),
            lambda q, k: polynomial(q @ k.transpose(-2, -1), self.degree),
            None if past is None else past.get("sums"),
        )
        if past is not None:
            past["sums"] = sums
        return output.type_as(inputs.v), None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, form {self.form}, degree {self.degree}, τ {self.temperature:g}"
