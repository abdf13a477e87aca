"""Linear attention: a positive feature map in place of the exponential (Katharopoulos et al. 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, upcast
from fairseq_gpam.attention.core.kernel_sums import kernel_sums, without_autocast
from fairseq_gpam.attention.core.masks import zero_hidden


def positive_features(vectors: Tensor) -> Tensor:
    """Returns φ(x) = elu(x) + 1 > 0, in fp32 for half precision; same shape."""
    return F.elu(upcast(vectors)) + 1


@without_autocast
def product(q: Tensor, k: Tensor) -> Tensor:
    """Returns φ(q)·φ(k), T × S."""
    return positive_features(q) @ positive_features(k).transpose(-2, -1)


@register_mechanism
class LinearAttention(MatrixMechanism):
    """Weights φ(q)·φ(k)/Σ with φ = elu + 1, computed by sums over the keys in linear time, without a T × S matrix.

    Decoder self-attention caches only the sums, D × (D+1) numbers for each head, whatever the length. With attention
    dropout, a mask matrix or requested weights, the matrix P is computed instead; the result is the same. As in the
    authors' code, queries are not scaled by 1/√D; its ε = 1e-6 in the denominator is left out. Our reading: a mask's
    bias multiplies the weight by its exponential, as in softmax attention.
    """

    name = "linear"
    formula = "P = φ(Q)φ(K)ᵀ/Σ, φ(x) = elu(x) + 1"
    source = "Katharopoulos et al. 2020, arXiv 2006.16236"
    row_sum = "1"
    cost = "D·(T+S) instead of T·S; 1× with attention dropout"
    positions = ("rotary",)
    why_never_neutral = "elu + 1 is not the exponential function"
    caches_keys = False

    def weights(self, inputs: AttentionInput) -> Tensor:
        values, mask = product(inputs.q, inputs.k), inputs.mask
        if mask.bias is not None:
            values = values * mask.bias.to(values.dtype).exp()
        values = zero_hidden(values, mask)
        total = values.sum(dim=-1, keepdim=True)
        return values / torch.where(total > 0, total, 1.0)

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        mask, past = inputs.mask, inputs.past
        needs_matrix = inputs.need_weights or inputs.dropout_p > 0 or mask.bias is not None or mask.hidden is not None
        if past is None and needs_matrix:
            return super().forward(inputs)
        if needs_matrix:
            raise ValueError(
                "weights, attention dropout and an attn_mask are not allowed while --gpam-mechanism linear decodes "
                "step by step: no key is cached; allowed: a full forward pass"
            )
        q, k = upcast(inputs.q), upcast(inputs.k)
        causal = mask.causal or past is not None
        state = None if past is None else past.get("sums")
        output, sums = kernel_sums(q, k, inputs.v, mask.padding, causal, positive_features, product, state)
        if past is not None:
            past["sums"] = sums
        return output.type_as(inputs.v), None
