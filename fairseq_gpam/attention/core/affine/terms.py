"""The terms of a member of the affine family: P = s·I + a·softmax(QKᵀ/√D + M) − b·softmax(Q⁻K⁻ᵀ/√D + M) − u·U."""

from dataclasses import dataclass

from torch import Tensor

Coefficient = Tensor | float


@dataclass(frozen=True)
class Branch:
    """One softmax map and its signed weight: weight · softmax(q kᵀ/√D + M)."""

    weight: Coefficient
    q: Tensor
    k: Tensor


@dataclass(frozen=True)
class AffineTerms:
    """The coefficients and the second branch of one member of the family.

    Shapes: `positive` (a), `negative` (b), `uniform` (u) and `identity` (s) are numbers or broadcastable to
    B × H × T × 1; `negative_q` (Q⁻) B × H × T × D; `negative_k` (K⁻) B × H × S × D, the keys of the positive branch if
    None; `sink` H, the logit of an additional key, visible to every row, whose value is zero. U is uniform over the
    keys visible to a row. The second branch exists if `negative_q` is given.
    """

    positive: Coefficient = 1.0
    negative: Coefficient = 0.0
    negative_q: Tensor | None = None
    negative_k: Tensor | None = None
    uniform: Coefficient | None = None
    identity: Coefficient | None = None
    sink: Tensor | None = None

    def branches(self, q: Tensor, k: Tensor) -> list[Branch]:
        """Returns the softmax maps that are summed, one or two of them; q and k are those of the positive branch."""
        branches = [Branch(self.positive, q, k)]
        if self.negative_q is not None:
            branches.append(Branch(-self.negative, self.negative_q, k if self.negative_k is None else self.negative_k))
        return branches
