"""α-entmax with a learned α: between softmax (α → 1) and sparsemax (α = 2), and beyond (Correia et al. 2019)."""

from __future__ import annotations

import importlib
import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.coefficients import learned_numbers
from fairseq_gpam.attention.families import MatrixMechanism, dot_scores, hide, numbers, zero_blind
from fairseq_gpam.attention.masks import AttentionMask

# The bisection's exponent is 1/(α−1).
ALPHA_FLOOR = 1.01


def entmax_weights(q: Tensor, k: Tensor, mask: AttentionMask, alpha: Tensor) -> Tensor:
    """Returns P = α-entmax(QKᵀ/√D + M) along the keys, B × H × T × S; α > 1, broadcastable to B × H × T × 1.

    Peters, Niculae & Martins 2019, arXiv 1905.05702; α learned per head as in Correia, Niculae & Martins 2019, arXiv
    1909.00015; computed by the `entmax` package, by bisection.
    """
    scores, sighted = hide(dot_scores(q, k, mask), mask)
    alpha = alpha.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return zero_blind(entmax_package().entmax_bisect(scores, alpha, dim=-1), sighted)


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
    """Sparse weights, how sparse being learned by each head: α = 1.01 + softplus(θ), so that α stays above 1."""

    name = "entmax"
    formula = "P = α-entmax(QKᵀ/√D + M), α > 1 learned"
    source = "Correia, Niculae & Martins 2019, arXiv 1909.00015; the package entmax"
    row_sum = "1"
    cost = "1×, and 50 bisections of P"
    options = (
        Option(
            "entmax_alpha",
            float,
            1.5,
            "where the learned α of every head starts",
            check=lambda alpha: alpha > ALPHA_FLOOR,
            allowed=f"a number > {ALPHA_FLOOR}",
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        entmax_package()
        start = math.log(math.expm1(settings.entmax_alpha - ALPHA_FLOOR))
        self.theta = learned_numbers(torch.full((site.num_heads,), start))

    def alpha(self) -> Tensor:
        """Returns the α of every head: H."""
        return ALPHA_FLOOR + F.softplus(self.theta)

    def weights(self, inputs: AttentionInput) -> Tensor:
        return entmax_weights(inputs.q, inputs.k, inputs.mask, self.alpha().view(-1, 1, 1))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, α {numbers(self.alpha())}"
