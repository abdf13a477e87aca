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


def assert_same(found, expected, leaves, rtol=1e-7, atol=1e-8):
    """The gradients in a random direction are the same, and the outputs even to a hundredth of that difference."""
    torch.testing.assert_close(found, expected, rtol=rtol / 100, atol=atol / 100)
    direction, options = torch.randn_like(expected), {"allow_unused": True, "materialize_grads": True}
    gradients = [torch.autograd.grad(each, leaves, direction, True, **options) for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=rtol, atol=atol)


def dagpam_weights(q, k, plus, minus, negative_weight, negative_bias, visible, added=0.0):
    """P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax((ReLU(Q)W_Q⁻)Kᵀ/√D + M), head by head.

    `plus` and `minus` hold one number for each head; `negative_weight` H × D × D maps column vectors (as nn.Linear
    does), `negative_bias` H × D.
    """
    scale = 1 / math.sqrt(q.size(-1))
    heads = []
    for h in range(q.size(1)):
        seen = visible[:, h if visible.size(1) > 1 else 0]
        bias = added[:, h if added.size(1) > 1 else 0] if torch.is_tensor(added) and added.dim() == 4 else added
        negative_q = torch.clamp(q[:, h], min=0) @ negative_weight[h].T + negative_bias[h]
        positive = row_softmax(q[:, h] @ k[:, h].transpose(1, 2) * scale + bias, seen)
        negative = row_softmax(negative_q @ k[:, h].transpose(1, 2) * scale + bias, seen)
        heads.append((1 + plus[h]) * positive - minus[h] * negative)
    return torch.stack(heads, dim=1)


def lambda_values(parameters, name, fixed, heads, bound=None):
    """One λ for each head, from the module's θ where it is trained, else the fixed number."""
    theta = parameters.get(f"mechanism.{name}.theta")
    if theta is None:
        return torch.full((heads,), fixed, dtype=torch.float64)
    value = theta if bound is None else bound / (1 + torch.exp(-theta))
    return value.expand(heads)


def multihead(parameters, heads, query, key, value, visible, added=0.0, plus=0.5, minus=0.5, bound=None, tied=False):
    """The whole attention layer, T × B × C in and out, from a dictionary of float64 parameters; also its weights."""
    width = query.size(-1) // heads

    def project(name, x):
        return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    def split(x):
        return torch.stack(x.transpose(0, 1).split(width, dim=-1), dim=1)

    q, k, v = split(project("q_proj", query)), split(project("k_proj", key)), split(project("v_proj", value))
    if "bias_k" in parameters:
        rows = key.size(1)
        k = torch.cat([k, split(parameters["bias_k"].expand(1, rows, -1))], dim=2)
        v = torch.cat([v, split(parameters["bias_v"].expand(1, rows, -1))], dim=2)
    while visible.size(-1) > k.size(2):
        k = torch.cat([k, torch.zeros_like(k[:, :, :1])], dim=2)
        v = torch.cat([v, torch.zeros_like(v[:, :, :1])], dim=2)

    matrix = parameters["mechanism.negative_projection.weight"].reshape(-1, width, width)
    offset = parameters.get("mechanism.negative_projection.bias")
    offset = torch.zeros(1, width, dtype=torch.float64) if offset is None else offset.reshape(-1, width)
    lambda_plus = lambda_values(parameters, "lambda_plus", plus, heads, bound)
    lambda_minus = lambda_plus if tied else lambda_values(parameters, "lambda_minus", minus, heads, bound)
    weights = dagpam_weights(
        q,
        k,
        lambda_plus,
        lambda_minus,
        matrix.expand(heads, width, width),
        offset.expand(heads, width),
        visible,
        added,
    )
    mixed = torch.cat((weights @ v).unbind(1), dim=-1).transpose(0, 1)
    return project("out_proj", mixed), weights
