"""How a member of the family is computed: the table of choices and the function that applies it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_gpam.attention.core.affine.blocks import block_attention
from fairseq_gpam.attention.core.affine.naive import naive_attention, short_attention
from fairseq_gpam.attention.core.affine.sdpa import sdpa_attention
from fairseq_gpam.attention.core.affine.terms import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput

BACKENDS = ("auto", "reference", "fused")
# Measured on CPUs with AVX-512: up to this many queries and keys the matrix stays in the cache.
LONGEST_SHORT = 192


@dataclass(frozen=True)
class Call:
    """The properties of a call on which the choice depends."""

    inputs: AttentionInput
    terms: AffineTerms
    backend: str

    @property
    def needs_naive(self) -> bool:
        bias = self.inputs.mask.bias
        if self.backend == "reference" or self.terms.sink is not None or (bias is not None and bias.requires_grad):
            return True
        wants_matrix = self.inputs.need_weights or self.inputs.dropout_p > 0
        has_more_parts = self.terms.uniform is not None or self.terms.identity is not None
        return wants_matrix and (has_more_parts or torch.compiler.is_compiling())

    @property
    def is_short(self) -> bool:
        return max(self.inputs.q.size(-2), self.inputs.k.size(-2)) <= LONGEST_SHORT

    @property
    def may_stack(self) -> bool:
        """Returns whether the queries of both branches may be rows of one product."""
        q, k = self.inputs.q, self.inputs.k
        if torch.is_grad_enabled() or self.inputs.dropout_p > 0 or q.is_cuda or q.dtype != k.dtype:
            return False
        is_half = q.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(q.device.type)
        return self.backend == "auto" and self.is_short and self.terms.negative_k is None and not is_half

    @property
    def suits_kernel(self) -> bool:
        """Returns whether one call of PyTorch's kernel suffices without a T × S matrix for the causal mask."""
        q, v, mask = self.inputs.q, self.inputs.v, self.inputs.mask
        has_one_branch = self.terms.negative_q is None and q.size(-1) == v.size(-1)
        return has_one_branch and self.inputs.dropout_p == 0 and (mask.is_plainly_causal or not mask.causal)


@dataclass(frozen=True)
class Choice:
    """One row of the table: an implementation, its condition in words, and its condition in code."""

    implementation: str
    when: str
    applies: Callable[[Call], bool]


# The first row that applies is used.
CHOICES = (
    Choice(
        "naive",
        "backend reference, a sink or trained bias; dropout or weights, if compiled or with a uniform or identity part",
        lambda call: call.needs_naive,
    ),
    Choice(
        "short",
        f"no gradients, no dropout, one set of keys, at most {LONGEST_SHORT} tokens, fp32 or fp64 on a CPU, and "
        "two branches, one query or weights requested",
        lambda call: (
            call.may_stack
            and (call.terms.negative_q is not None or call.inputs.q.size(-2) == 1 or call.inputs.need_weights)
            and not torch.compiler.is_compiling()
        ),
    ),
    Choice("naive", "weights requested", lambda call: call.inputs.need_weights),
    Choice("sdpa", "on a GPU, or compiled", lambda call: call.inputs.q.is_cuda or torch.compiler.is_compiling()),
    Choice("blocks", "backend fused", lambda call: call.backend == "fused"),
    Choice("sdpa", "one branch without dropout, causal or padded but not both", lambda call: call.suits_kernel),
    Choice("naive", f"at most {LONGEST_SHORT} tokens", lambda call: call.is_short),
    Choice("blocks", "everything else", lambda call: True),
)


def choose(inputs: AttentionInput, terms: AffineTerms, backend: str = "auto") -> str:
    """Returns which implementation is used: `naive`, `short`, `sdpa` or `blocks`."""
    call = Call(inputs, terms, backend)
    return next(choice.implementation for choice in CHOICES if choice.applies(call))


def describe_choices() -> str:
    """Returns the table of choices as text."""
    return "\n".join(f"  {choice.implementation:7} {choice.when}" for choice in CHOICES)


def with_nan_shown(output: Tensor, inputs: AttentionInput, terms: AffineTerms) -> Tensor:
    """Returns the output with NaN in rows whose query, and in heads of which a key or value, is not finite.

    Otherwise the kernels would mask such queries and keys in some or all rows, and a diverged run would go unnoticed.
    """
    by_row, by_head = (-1,), (-2, -1)
    sources = ((terms.negative_q, by_row), (inputs.k, by_head), (terms.negative_k, by_head), (inputs.v, by_head))
    # In half precision, finite numbers could add up to infinity.
    exact = torch.float64 if inputs.q.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        total = inputs.q.sum(dim=-1, keepdim=True, dtype=exact)
        for source, dim in sources:
            if source is not None:
                total = total + source.sum(dim=dim, keepdim=True, dtype=exact)
    return torch.add(output, total, alpha=0).type_as(output)


def affine_attention(inputs: AttentionInput, terms: AffineTerms, backend: str = "auto") -> tuple[Tensor, Tensor | None]:
    """Returns dropout(P) V, B × H × T × D, and P before dropout, B × H × T × S, if it is requested."""
    implementation = choose(inputs, terms, backend)
    weights: Tensor | None = None
    if implementation == "naive":
        output, weights = naive_attention(inputs, terms)
        return with_nan_shown(output, inputs, terms), weights if inputs.need_weights else None
    if implementation == "short":
        output, weights = short_attention(inputs, terms)
    else:
        output = (sdpa_attention if implementation == "sdpa" else block_attention)(inputs, terms)
        output = with_nan_shown(output, inputs, terms)
    v, num_queries = inputs.v, inputs.q.size(-2)
    if terms.uniform is not None:
        output = output - terms.uniform * inputs.mask.visible_mean(v, num_queries)
    if terms.identity is not None:
        output = output + terms.identity * v[..., v.size(-2) - num_queries :, :]
    return output.type_as(inputs.q), weights if inputs.need_weights else None
