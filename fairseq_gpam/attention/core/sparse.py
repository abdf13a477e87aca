"""The base of the mechanisms that give many keys a weight of exactly 0, using the `entmax` package."""

import importlib
from types import ModuleType

from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.core.masks import hide, zero_rows

# Few keys of a trained row have a weight. Rows with more of them are sorted again, twice as far.
SORTED_FIRST = 32


def entmax_package() -> ModuleType:
    """Returns the `entmax` package; raises ImportError with the command that installs it if it is missing."""
    try:
        return importlib.import_module("entmax")
    except ImportError as error:
        raise ImportError(
            "--gpam-mechanism sparsemax, entmax15 and entmax need the package entmax: "
            "pip install 'fairseq-gpam[entmax]'"
        ) from error


class SparseMechanism(MatrixMechanism):
    """Weights P = normalise(QKᵀ/√D + M), row by row.

    The `entmax` package raises IndexError where the largest score of a row is NaN or infinite. As softmax does, such a
    row gives NaN, so that a diverged run is noticed.
    """

    row_sum = "1"
    cost = "1×, and a partial sort of P"
    rows_are_independent = True

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        entmax_package()

    def normalise(self, scores: Tensor) -> Tensor:
        """Maps scores, B × H × T × S with −∞ on hidden keys, to weights of the same shape.

        By default by the function of the `entmax` package that has the mechanism's name.
        """
        weights: Tensor = getattr(entmax_package(), self.name)(scores, k=SORTED_FIRST)
        return weights

    def weights(self, inputs: AttentionInput) -> Tensor:
        scores, fully_masked = hide(dot_scores(inputs.q, inputs.k, inputs.mask), inputs.mask)
        not_finite = ~scores.detach().amax(dim=-1, keepdim=True).isfinite()
        weights = self.normalise(scores.masked_fill(not_finite, 0.0)).masked_fill(not_finite, float("nan"))
        return zero_rows(weights, fully_masked)
