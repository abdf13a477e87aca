"""α-entmax with a learned α: between softmax (α → 1) and sparsemax (α = 2), and beyond (Correia et al. 2019)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.families import MatrixMechanism, dot_scores, format_values
from fairseq_gpam.attention.lambdas import no_decay_parameter
from fairseq_gpam.attention.masks import AttentionMask, hide, zero_rows

# The bisection's exponent is 1/(α−1).
ALPHA_FLOOR = 1.01


def entmax_weights(q: Tensor, k: Tensor, mask: AttentionMask, alpha: Tensor) -> Tensor:
    """Returns P = α-entmax(QKᵀ/√D + M) along the keys, B × H × T × S; α > 1, broadcastable to B × H × T × 1.

    Peters, Niculae & Martins 2019, arXiv 1905.05702; α learned per head as in Correia, Niculae & Martins 2019, arXiv
    1909.00015; computed by the `entmax` package, by bisection.
    """
    scores, fully_masked = hide(dot_scores(q, k, mask), mask)
    alpha = alpha.to(scores.dtype).expand(*scores.shape[:-1], 1)
    bisect = entmax_package().entmax_bisect
    return zero_rows(nan_unless_finite(lambda finite: bisect(finite, alpha, dim=-1), scores), fully_masked)


def nan_unless_finite(normalise: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
    """Returns normalise(scores) along the keys, and NaN in the rows whose largest score is NaN or infinite.

    The `entmax` package raises IndexError there; softmax gives NaN, so that a diverged run is seen.
    """
    not_finite = ~scores.detach().amax(dim=-1, keepdim=True).isfinite()
    return normalise(scores.masked_fill(not_finite, 0.0)).masked_fill(not_finite, float("nan"))


def entmax_package() -> ModuleType:
    """Returns the `entmax` package; raises ImportError that names the extra if it is missing."""
    try:
        return importlib.import_module("entmax")
    except ImportError as error:
        raise ImportError(
            "--gpam-mechanism sparsemax, entmax15 and entmax need the package entmax: "
            "pip install 'fairseq-gpam[entmax]'"
        ) from error


@register_mechanism
class EntmaxAttention(MatrixMechanism):
    """Sparse weights, how sparse being learned by each head.

    As in public code, α = 1 + sigmoid(θ) within [1.01, 2], and each head's θ is drawn from N(0, 1). With the form
    softplus, α = 1.01 + softplus(θ) has no upper bound and all heads start at 1.5.
    """

    name = "entmax"
    formula = "P = α-entmax(QKᵀ/√D + M), α > 1 learned"
    source = "Correia, Niculae & Martins 2019, arXiv 1909.00015; the package entmax"
    row_sum = "1"
    cost = "1×, and 50 bisections of P"
    why_never_neutral = "α stays above 1, and only α → 1 is softmax attention"
    options = (
        Option(
            "entmax_alpha",
            float,
            None,
            "where the learned α of every head starts; drawn for each head if absent, or 1.5 with the form softplus",
            check=lambda alpha: alpha > ALPHA_FLOOR,
            allowed=f"a number > {ALPHA_FLOOR}",
        ),
        Option(
            "entmax_form",
            str,
            "sigmoid",
            "what keeps α above 1: 1 + sigmoid(θ), at most 2, or 1.01 + softplus(θ)",
            choices=("sigmoid", "softplus"),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        entmax_package()
        self.form: str = settings.entmax_form
        start: float | None = settings.entmax_alpha
        if self.form == "softplus":
            theta = torch.full((site.num_heads,), math.log(math.expm1((start or 1.5) - ALPHA_FLOOR)))
        elif start is None:
            theta = torch.randn(site.num_heads)
        elif start < 2:
            theta = torch.full((site.num_heads,), math.log((start - 1) / (2 - start)))
        else:
            raise ValueError(
                f"--gpam-entmax-alpha {start} is not allowed with --gpam-entmax-form sigmoid; allowed: a number "
                f"between {ALPHA_FLOOR} and 2, both excluded"
            )
        self.theta = no_decay_parameter(theta)

    def alpha(self) -> Tensor:
        """Returns the α of every head: H."""
        if self.form == "softplus":
            return ALPHA_FLOOR + F.softplus(self.theta)
        return (1 + torch.sigmoid(self.theta)).clamp(ALPHA_FLOOR, 2.0)

    def weights(self, inputs: AttentionInput) -> Tensor:
        return entmax_weights(inputs.q, inputs.k, inputs.mask, self.alpha().view(-1, 1, 1))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, α {format_values(self.alpha())}"
