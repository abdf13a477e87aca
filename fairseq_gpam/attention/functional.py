"""daGPAM as a function, in the manner of `torch.nn.functional.scaled_dot_product_attention`, and PyTorch's masks."""

import torch
from torch import Tensor

from fairseq_gpam.attention.core.affine import Coefficient, affine_attention
from fairseq_gpam.attention.core.base import AttentionInput
from fairseq_gpam.attention.core.masks import AttentionMask
from fairseq_gpam.attention.mechanisms.dagpam import dagpam_terms


def dagpam_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    negative_q: Tensor,
    lambda_plus: Coefficient = 0.5,
    lambda_minus: Coefficient = 0.5,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Returns ((1+λ⁺)·softmax(qkᵀ/√D + M) − λ⁻·softmax(negative_q kᵀ/√D + M)) v, B × H × T × E.

    Shapes: q and negative_q B × H × T × D, k B × H × S × D, v B × H × S × E; `attn_mask` broadcastable to
    B × H × T × S, bool (True = may be seen, as in `scaled_dot_product_attention`) or added to the scores; λ⁺ and λ⁻
    numbers or broadcastable to B × H × T × 1, as H × 1 × 1 for each head. In daGPAM negative_q is ReLU(q) W_Q⁻. With
    `is_causal` query i sees the keys 0 … i; dropout acts on the combined weights; a query that sees no key gets 0.
    Raises ValueError for shapes or types that do not fit. Heo & Choi 2024, arXiv 2410.15578.
    """
    _check(q, k, v, negative_q, attn_mask, dropout_p)
    scores = (q.size(0), q.size(1), q.size(2), k.size(2))
    for name, coefficient in (("lambda_plus", lambda_plus), ("lambda_minus", lambda_minus)):
        if isinstance(coefficient, Tensor) and not _broadcasts(coefficient, (*scores[:3], 1)):
            raise ValueError(f"{name} has shape {_shape(coefficient)}; allowed: broadcastable to B × H × T × 1")
    bias, hidden = None, None
    if attn_mask is not None:
        bias, hidden = (None, ~attn_mask) if attn_mask.dtype == torch.bool else split_additive(attn_mask)
    mask = torch_mask(None, bias, hidden, is_causal, q, k)
    inputs = AttentionInput(q, k, v, mask, q, dropout_p)
    return affine_attention(inputs, dagpam_terms(negative_q, lambda_plus, lambda_minus))[0]


def split_additive(mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Returns a mask that is added to scores as a finite bias and what it hides (−inf); None for a part that is empty.

    A bias that is trained is never empty.
    """
    hidden = mask == float("-inf")
    bias = mask.masked_fill(hidden, 0.0)
    return bias if mask.requires_grad or bool(bias.any()) else None, hidden if bool(hidden.any()) else None


def torch_mask(
    padding: Tensor | None, bias: Tensor | None, hidden: Tensor | None, is_causal: bool, q: Tensor, k: Tensor
) -> AttentionMask:
    """Returns PyTorch's masks as one, for q B × H × T × D and k B × H × S × D.

    PyTorch's causal mask shows query i the keys 0 … i; an AttentionMask's is aligned to the last key.
    """
    num_queries, num_keys = q.size(2), k.size(2)
    if is_causal and num_queries != num_keys:
        future = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).triu(1)
        hidden = future if hidden is None else hidden | future
    bias, hidden = (_written_out(part, num_queries, num_keys) for part in (bias, hidden))
    return AttentionMask(padding, is_causal and num_queries == num_keys, bias, hidden)


def _written_out(part: Tensor | None, num_queries: int, num_keys: int) -> Tensor | None:
    """Returns a mask as T × S or with four dimensions that end in T × S, as mechanisms expect it."""
    if part is None:
        return None
    part = part.expand(*part.shape[:-2], num_queries, num_keys)
    return part.unsqueeze(0) if part.dim() == 3 else part


def _check(q: Tensor, k: Tensor, v: Tensor, negative_q: Tensor, attn_mask: Tensor | None, dropout_p: float) -> None:
    named = {"q": q, "k": k, "v": v, "negative_q": negative_q}
    for name, tensor in named.items():
        if tensor.dim() != 4:
            raise ValueError(f"{name} has shape {_shape(tensor)}; allowed: B × H × length × channels")
        if not tensor.is_floating_point() or tensor.dtype != q.dtype:
            raise ValueError(f"{name} has type {tensor.dtype}; allowed: that of q, a floating-point type")
        if tensor.shape[:2] != q.shape[:2]:
            raise ValueError(f"{name} has shape {_shape(tensor)}, q {_shape(q)}; allowed: the same B and H")
    if negative_q.shape != q.shape:
        raise ValueError(f"negative_q has shape {_shape(negative_q)}; allowed: that of q, {_shape(q)}")
    if k.size(-1) != q.size(-1):
        raise ValueError(f"k has {k.size(-1)} channels in a head; allowed: as many as q, {q.size(-1)}")
    if v.size(2) != k.size(2):
        raise ValueError(f"v has {v.size(2)} positions; allowed: as many as k, {k.size(2)}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p {dropout_p} is not allowed; allowed: 0 ≤ dropout_p < 1")
    if attn_mask is not None:
        if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
            raise ValueError(f"attn_mask has type {attn_mask.dtype}; allowed: bool or a floating-point type")
        scores = (*q.shape[:3], k.size(2))
        if not _broadcasts(attn_mask, scores):
            raise ValueError(f"attn_mask has shape {_shape(attn_mask)}; allowed: broadcastable to {scores}")


def _broadcasts(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    sizes = zip(reversed(tensor.shape), reversed(shape), strict=False)
    return tensor.dim() <= len(shape) and all(size in (1, full) for size, full in sizes)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
