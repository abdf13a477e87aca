"""α-entmax with a learned α: between softmax (α → 1) and sparsemax (α = 2), and beyond (Correia et al. 2019)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.base import Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import format_values
from fairseq_gpam.attention.core.lambdas import no_decay_parameter
from fairseq_gpam.attention.core.sparse import SparseMechanism

# The power 1/(α−1) is infinite at α = 1.
ALPHA_FLOOR = 1.01


@register_mechanism
class EntmaxAttention(SparseMechanism):
    """Sparse weights whose sparsity each head learns.

    As in public code, α = 1 + sigmoid(θ), clamped to [1.01, 2], with each head's θ initialised from N(0, 1). With
    `--gpam-entmax-form softplus`, α = 1.01 + softplus(θ) has no upper bound and is initially 1.5 in all heads.
    """

    name = "entmax"
    formula = "P = α-entmax(QKᵀ/√D + M), α > 1 learned"
    source = "Correia, Niculae & Martins 2019, arXiv 1909.00015"
    why_never_neutral = "α stays above 1, and it is softmax attention only in the limit α → 1"
    options = (
        Option(
            "entmax_alpha",
            float,
            None,
            "the initial α of each head; if absent, it is random, or 1.5 with --gpam-entmax-form softplus",
            check=lambda alpha: alpha > ALPHA_FLOOR,
            allowed=f"a number > {ALPHA_FLOOR}",
            former_defaults=(1.5,),
        ),
        Option(
            "entmax_form",
            str,
            "sigmoid",
            "how α is kept above 1: as 1 + sigmoid(θ), which is at most 2, or as 1.01 + softplus(θ)",
            choices=("sigmoid", "softplus"),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
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

    def alphas(self, scores: Tensor) -> Tensor:
        return self.alpha().view(-1, 1, 1).to(scores.dtype).expand(*scores.shape[:-1], 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, α {format_values(self.alpha())}"
