"""The affine family of mechanisms: O = s·V + a·SDPA(Q, K, V) − b·SDPA(Q⁻, K⁻, V) − u·mean(V).

Every member applies one matrix P = s·I + a·softmax(QKᵀ/√D + M) − b·softmax(Q⁻K⁻ᵀ/√D + M) − u·U to V, where U is
uniform over the keys visible to a row. Attention dropout acts on P itself, however P is computed.
"""

from fairseq_gpam.attention.core.affine.choice import BACKENDS, affine_attention, choose, describe_choices
from fairseq_gpam.attention.core.affine.naive import branch_weights
from fairseq_gpam.attention.core.affine.terms import AffineTerms, Coefficient

__all__ = ["BACKENDS", "AffineTerms", "Coefficient", "affine_attention", "branch_weights", "choose", "describe_choices"]
