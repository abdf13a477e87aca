"""α-entmax with a learned α."""

import math

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks
from tiny import mechanism_of

from fairseq_gpam.attention import AttentionInput
from fairseq_gpam.attention.mechanisms.entmax import ALPHA_FLOOR


def solve(row, alpha):
    """p_j = ((α−1)s_j − τ)₊^(1/(α−1)) with Σp = 1: τ by halving, differentiable in a last Newton step."""
    scaled = (alpha - 1) * row
    power = 1 / (alpha - 1)
    low, high = scaled.max().item() - 1, scaled.max().item()
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


class TestEntmax(Contract):
    name = "entmax"
    variants = ({}, {"entmax_alpha": 1.6}, {"entmax_alpha": 2.5, "entmax_form": "softplus"})

    def row(self, mechanism, scores, head):
        alpha = 1 + 1 / (1 + torch.exp(-mechanism.theta))
        if mechanism.form == "softplus":
            alpha = ALPHA_FLOOR + torch.log(1 + torch.exp(mechanism.theta))
        return solve(scores, alpha[head])


@pytest.mark.parametrize("form", ["sigmoid", "softplus"])
def test_alpha_stays_above_one(form):
    entmax = mechanism_of("entmax", entmax_form=form).double()
    with torch.no_grad():
        entmax.theta.fill_(-1000.0)
    assert (entmax.alpha() > 1).all()
    q, k, v = torch.randn(3, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    output = entmax(AttentionInput(q, k, v, masks("causal, left", LENGTH)[0], q))[0]
    output.sum().backward()
    assert output.isfinite().all()
    assert math.isfinite(entmax.theta.grad.sum().item())


def test_the_start_of_alpha():
    drawn = mechanism_of("entmax", heads=1000, width=1).alpha()
    assert 1.45 < drawn.mean() < 1.55 and 0.15 < drawn.std() < 0.25 and drawn.max() <= 2
    assert mechanism_of("entmax", entmax_alpha=1.3).alpha().mean().item() == pytest.approx(1.3)
