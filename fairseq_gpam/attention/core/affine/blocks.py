"""Long sequences on a CPU: blocks of rows whose weights the custom backward recomputes, with memory linear in T.

The branches are summed before the product with V, so that one product serves both, as does one product dO·Vᵀ in the
backward. The masked half of a causal matrix is skipped. Every branch is stored as E = 2^(scores · log₂ e) and divided
by its row sums l only after the products, which are smaller: P = Σ (c/l)·E, where c is the weight of the branch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_gpam.attention.core.affine.block_plan import BlockPlan
from fairseq_gpam.attention.core.affine.terms import AffineTerms, Branch
from fairseq_gpam.attention.core.base import AttentionInput
from fairseq_gpam.attention.core.masks import AttentionMask


def block_attention(inputs: AttentionInput, terms: AffineTerms) -> Tensor:
    """Returns the softmax branches' part of dropout(P) V, B × H × T × D; computed in fp32 for half precision.

    Differentiable once, in everything but the mask.
    """
    branches = terms.branches(inputs.q, inputs.k)
    exact = torch.float64 if inputs.q.dtype == torch.float64 else torch.float32
    queries = inputs.q if len(branches) == 1 else torch.cat([branch.q for branch in branches], dim=2)
    second_k = None if terms.negative_k is None else terms.negative_k.to(exact)
    return BlockwiseAttention.apply(
        queries.to(exact),
        inputs.k.to(exact),
        second_k,
        inputs.v.to(exact),
        _branch_factors(branches, inputs.q, exact),
        inputs.mask,
        inputs.dropout_p,
    ).type_as(inputs.q)


def _branch_factors(branches: list[Branch], q: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the weights of the branches: B × H × branches × 1 × 1, or × T × 1 where they depend on the query."""
    weights = [torch.as_tensor(branch.weight, dtype=dtype, device=q.device) for branch in branches]
    weights = [weight[(None,) * (4 - weight.dim())] for weight in weights]
    length = max(weight.size(2) for weight in weights)
    return torch.stack([weight.expand(q.size(0), q.size(1), length, 1) for weight in weights], dim=2)


class BlockwiseAttention(torch.autograd.Function):
    """Attention computed for one group of heads after another, and within it for one block of rows after another.

    The backward recomputes the weights, using the saved row sums (and row maxima, where overflow is possible).
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        k: Tensor,
        second_k: Tensor | None,
        v: Tensor,
        factors: Tensor,
        mask: AttentionMask,
        dropout_p: float,
    ) -> Tensor:
        seed = int(torch.randint(2**62, ()).item()) if dropout_p > 0 else 0
        plan = BlockPlan(queries.shape, k.size(2), factors, mask, dropout_p, seed)
        output = _empty((plan.bsz, plan.heads, plan.length, v.size(-1)), v)
        saved: list[Tensor | None] = []
        for group in plan.groups():
            keys = [group.of(each).flatten(0, 1).contiguous() for each in (k, second_k) if each is not None]
            values = group.of(v).flatten(0, 1).contiguous()
            own_queries = plan.stacked(group, queries)
            unscaled_output = k.new_empty(plan.num_blocks, group.size, plan.rows, values.size(-1))
            sums = k.new_empty(*own_queries.shape[:-1], 1)
            largest = None if plan.cannot_overflow(own_queries, keys) else torch.empty_like(sums)
            for block in plan.blocks:
                own_sums = sums[block.index]
                weights, memory = plan.buffers_of(group, block)
                plan.scores(own_queries[block.index], keys, block, weights)
                own_largest = None if largest is None else largest[block.index]
                plan.exponentials(group, block, weights, own_largest, known=False)
                torch.sum(weights, dim=-1, keepdim=True, out=own_sums)
                if mask.may_hide_all:
                    own_sums.masked_fill_(own_sums == 0, 1.0)
                matrix = plan.combined(group, block, weights, own_sums, memory)
                dropout_mask = plan.dropout_mask(group, block, matrix)
                if dropout_mask is not None:
                    matrix = dropout_mask.mul_(matrix)
                torch.bmm(matrix, values[:, : block.num_keys], out=unscaled_output[block.index])
            plan.write(group, unscaled_output, plan.factors_over_sums(group, sums)[:, :, 0], output)
            saved += [own_queries, *keys, values, sums, largest]
        ctx.save_for_backward(factors, *saved)
        ctx.mask, ctx.dropout_p, ctx.seed = mask, dropout_p, seed
        ctx.shapes = queries.shape, v.shape, [each.shape for each in (k, second_k) if each is not None]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        factors, *rest = ctx.saved_tensors
        saved = iter(rest)
        shape, values_shape, key_shapes = ctx.shapes
        plan = BlockPlan(shape, values_shape[2], factors, ctx.mask, ctx.dropout_p, ctx.seed)
        grad_queries, grad_v, *all_grad_keys = (_empty(each, factors) for each in (shape, values_shape, *key_shapes))
        by_branch = grad_queries.unflatten(2, (plan.branches, plan.length)).unbind(2)
        # The sum of E/l ∘ dP over the keys, for each row: the gradient of a branch's weight.
        grad_factors = factors.new_empty(plan.bsz, plan.heads, plan.branches, plan.length, 1)
        for group in plan.groups():
            own_queries = next(saved)
            keys = [next(saved) for _ in key_shapes]
            values, sums, largest = (next(saved) for _ in range(3))
            upstream = plan.in_blocks(group.of(grad_output)).flatten(0, 1).transpose(0, 1).contiguous()
            scaled = plan.factors_over_sums(group, sums).expand_as(sums)
            weighted_queries, weighted_upstream = own_queries * scaled, upstream * scaled[:, :, 0]
            row_sums, unscaled_grad_queries = torch.empty_like(sums), torch.empty_like(own_queries)
            grad_values, grad_keys = torch.empty_like(values), [torch.empty_like(each) for each in keys]
            for block in reversed(plan.blocks):
                index, num_keys = block.index, block.num_keys
                weights, memory = plan.buffers_of(group, block)
                plan.scores(own_queries[index], keys, block, weights)
                own_largest = None if largest is None else largest[index]
                plan.exponentials(group, block, weights, own_largest, known=True)
                matrix = plan.combined(group, block, weights, sums[index], memory)
                dropout_mask = plan.dropout_mask(group, block, matrix)
                if dropout_mask is not None:
                    matrix = torch.mul(matrix, dropout_mask, out=memory)
                # The last block comes first and sees every key: it needs no zeros to add to.
                beta = 0 if index == plan.num_blocks - 1 else 1
                _accumulate(grad_values, matrix, weighted_upstream[index], num_keys, 1.0, beta)
                grad_weights = torch.bmm(upstream[index], values[:, :num_keys].transpose(1, 2), out=memory)
                if dropout_mask is not None:
                    grad_weights.mul_(dropout_mask)
                gradients = plan.buffer("gradients", *weights.shape)
                grad_scores = torch.mul(weights, grad_weights.unsqueeze(1), out=gradients)
                own_row_sums = torch.sum(grad_scores, dim=-1, keepdim=True, out=row_sums[index]).div_(sums[index])
                grad_scores.addcmul_(weights, own_row_sums, value=-1)
                own_tensors = (grad_scores, weighted_queries[index], unscaled_grad_queries[index])
                # Branches with the same keys are stacked as rows of one product.
                stacked = [tuple(each.flatten(1, 2) for each in own_tensors)]
                pairs = zip(*(each.unbind(1) for each in own_tensors), strict=True) if len(keys) > 1 else stacked
                for (branch, query, product), each, total in zip(pairs, keys, grad_keys, strict=True):
                    torch.bmm(branch, each[:, :num_keys], out=product)
                    _accumulate(total, branch, query, num_keys, plan.scale, beta)
            for branch, grad in enumerate(by_branch):
                plan.write(group, unscaled_grad_queries[:, :, branch], scaled[:, :, branch] * plan.scale, grad)
                plan.write(group, row_sums[:, :, branch], 1.0, grad_factors[:, :, branch])
            for whole, own_grad in zip((grad_v, *all_grad_keys), (grad_values, *grad_keys), strict=True):
                destination = group.of(whole)
                destination.copy_(own_grad.view(destination.shape))
        grad_k, grad_second_k = (*all_grad_keys, None)[:2]
        return grad_queries, grad_k, grad_second_k, grad_v, grad_factors.sum_to_size(factors.shape), None, None


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Returns an empty B × H × T × D tensor, stored as T × B × H × D, which the projections read without a copy."""
    bsz, heads, length, width = shape
    return like.new_empty(length, bsz, heads, width).permute(1, 2, 0, 3)


def _accumulate(total: Tensor, left: Tensor, right: Tensor, num_keys: int, scale: float, beta: int) -> None:
    """Sets the first `num_keys` rows of `total` to beta · themselves + scale · leftᵀ @ right (n × s × D)."""
    part = total[:, :num_keys]
    torch.baddbmm(part, left.transpose(1, 2), right, beta=beta, alpha=scale, out=part)
