"""CoDA: weights that add, subtract or drop a value, from a similarity and a dissimilarity (Tay et al. 2019)."""

import math

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, upcast
from fairseq_gpam.attention.core.masks import zero_hidden


@register_mechanism
class CodaAttention(MatrixMechanism):
    """Signed weights that are not normalised.

    With the doubled gate they are nearly 0 at first, because N is usually far below 0 at initialisation. Two details of
    the formula, section 2 of the source, are our reading: E and N are both divided by √D, and the mean of a row is
    taken over the keys that it sees, because the mean of the whole matrix would depend on the future.
    """

    name = "coda"
    formula = "P = tanh(E) ⊙ sigmoid(N − mean N), or tanh(E) ⊙ 2·sigmoid(N); E = QKᵀ/√D, N = −‖q−k‖₁/√D"
    source = "Tay et al. 2019 (NeurIPS), Compositional De-Attention Networks; our reading"
    row_sum = "any, between −n and n"
    cost = "1×, and T·S·D distances"
    rows_are_independent = True
    why_never_neutral = "its weights are not normalised"
    options = (
        Option(
            "coda_gate",
            str,
            "centered",
            "the gate: sigmoid(N − mean N) or 2·sigmoid(N)",
            choices=("centered", "doubled"),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.centered = settings.coda_gate == "centered"

    def weights(self, inputs: AttentionInput) -> Tensor:
        q, k, mask = inputs.q, inputs.k, inputs.mask
        similarity = torch.tanh(dot_scores(q, k, mask))
        distance = -torch.cdist(upcast(q), upcast(k), p=1.0) / math.sqrt(q.size(-1))
        if self.centered:
            mean = zero_hidden(distance, mask).sum(dim=-1, keepdim=True) / mask.visible_counts(distance)
            gate = torch.sigmoid(distance - mean)
        else:
            gate = 2 * torch.sigmoid(distance)
        # Hidden keys are set to 0 afterwards, because tanh(−∞) is −1.
        return zero_hidden(similarity * gate, mask)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gate {'centered' if self.centered else 'doubled'}"
