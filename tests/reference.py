"""daGPAM in plain float64, written from the formula (Heo & Choi 2024, arXiv 2410.15578), and how results are compared.

Imports nothing of the package.

Shapes: B batch, H heads, T queries, S keys, D head dimension, C = H·D.
"""

import math

import torch


def visibility(batch, queries, keys, padding=None, additive=None, causal=False):
    """Returns what each query may see, bool B × 1 × T × S, and what is added to the scores, float64 or 0.0."""
    visible = torch.ones(batch, 1, queries, keys, dtype=torch.bool)
    added = 0.0
    if causal:
        for t in range(queries):
            visible[:, :, t, keys - queries + t + 1 :] = False
    if padding is not None:
        visible = visible & (padding == 0).reshape(batch, 1, 1, keys)
    if additive is not None:
        if additive.is_floating_point():
            hidden = additive <= -1e4
            added = torch.where(hidden, torch.zeros_like(additive), additive).double()
        else:
            hidden = additive != 0
        visible = visible & ~hidden
    return visible, added


def row_softmax(scores, visible):
    """Softmax over the visible keys only; a row that sees nothing has zero weights."""
    top = torch.where(visible, scores, torch.full_like(scores, -1e300)).amax(-1, keepdim=True).detach()
    powers = torch.where(visible, torch.exp(torch.where(visible, scores - top, torch.zeros_like(scores))), 0.0)
    total = powers.sum(-1, keepdim=True)
    return powers / torch.where(total > 0, total, torch.ones_like(total))


def entmax(row, alpha):
    """p_j = ((α−1)s_j − τ)₊^(1/(α−1)) with Σp = 1: τ by halving, differentiable in a last Newton step."""
    alpha = torch.as_tensor(alpha, dtype=row.dtype)
    scaled, power, low, high = (alpha - 1) * (row - row.max().detach()), 1 / (alpha - 1), -1.0, 0.0
    for _ in range(100):
        middle = (low + high) / 2
        total = torch.clamp(scaled.detach() - middle, min=0).pow(power.detach()).sum().item()
        low, high = (middle, high) if total >= 1 else (low, middle)
    support = scaled.detach() > low
    # One Newton step from the solution carries the gradient of the implicit function.
    reach = torch.where(support, scaled - low, 1.0)
    slope = torch.where(support, power * reach.pow(power - 1), 0.0).sum().detach()
    threshold = low + (torch.where(support, reach.pow(power), 0.0).sum() - 1) / slope
    reach = torch.where(support, scaled - threshold, 1.0)
    return torch.where(support, reach.pow(power), 0.0)


def assert_same(found, expected, leaves, rtol=1e-7, atol=1e-8):
    """The gradients in a random direction are the same, and the outputs even to a hundredth of that difference."""
    torch.testing.assert_close(found, expected, rtol=rtol / 100, atol=atol / 100)
    direction, options = torch.randn_like(expected), {"allow_unused": True, "materialize_grads": True}
    gradients = [torch.autograd.grad(each, leaves, direction, True, **options) for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=rtol, atol=atol)


def dagpam_weights(mechanism, q, k, x, added, visible):
    """P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax(Q⁻Kᵀ/√D + M), Q⁻ = a(Q)W_Q⁻ head by head or x W_Q⁻."""
    projection, width, second = mechanism.negative_projection, q.size(-1), []
    for head in range(q.size(1)):
        own = slice(head * width, (head + 1) * width) if len(projection.weight) > width else slice(None)
        offset = 0 if projection.bias is None else projection.bias[own]
        source = x if projection.weight.size(1) > width else q[:, head]
        source = source.clamp(min=0) if mechanism.activates else source
        second.append(source @ projection.weight[own].T + offset)
    plus = mechanism.lambda_plus()
    if hasattr(mechanism.lambda_minus, "projection"):
        logits = torch.einsum("btc,hc->bht", x, mechanism.lambda_minus.projection.weight)
        minus = (1 / (1 + torch.exp(-logits))).unsqueeze(-1)
    else:
        minus = mechanism.lambda_minus()
    positive, negative = (
        row_softmax(each @ k.transpose(-1, -2) / math.sqrt(width) + added, visible)
        for each in (q, torch.stack(second, dim=1))
    )
    return (1 + plus) * positive - minus * negative
