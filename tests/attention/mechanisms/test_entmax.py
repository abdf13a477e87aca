"""α-entmax with a learned α."""

import math

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks
from reference import entmax
from tiny import mechanism_of

from fairseq_gpam.attention import AttentionInput
from fairseq_gpam.attention.mechanisms.entmax import ALPHA_FLOOR


class TestEntmax(Contract):
    name = "entmax"
    variants = ({}, {"entmax_alpha": 1.6}, {"entmax_alpha": 2.5, "entmax_form": "softplus"})

    def row(self, mechanism, scores, head):
        alpha = 1 + 1 / (1 + torch.exp(-mechanism.theta))
        if mechanism.form == "softplus":
            alpha = ALPHA_FLOOR + torch.log(1 + torch.exp(mechanism.theta))
        return entmax(scores, alpha[head])


@pytest.mark.parametrize("form", ["sigmoid", "softplus"])
def test_alpha_stays_above_one(form):
    mechanism = mechanism_of("entmax", entmax_form=form).double()
    with torch.no_grad():
        mechanism.theta.fill_(-1000.0)
    assert (mechanism.alpha() > 1).all()
    q, k, v = torch.randn(3, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    output = mechanism(AttentionInput(q, k, v, masks("causal, left", LENGTH)[0], q))[0]
    output.sum().backward()
    assert output.isfinite().all()
    assert math.isfinite(mechanism.theta.grad.sum().item())


def test_the_start_of_alpha():
    drawn = mechanism_of("entmax", heads=1000, width=1).alpha()
    assert 1.45 < drawn.mean() < 1.55 and 0.15 < drawn.std() < 0.25 and drawn.max() <= 2
    assert mechanism_of("entmax", entmax_alpha=1.3).alpha().mean().item() == pytest.approx(1.3)
