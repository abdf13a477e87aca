"""ReLA."""

import torch
from contract import Contract, joined

from fairseq_gpam.attention.mechanisms.rela import gated_rms_norm


class TestRela(Contract):
    name = "rela"

    def row(self, mechanism, scores, head):
        return torch.clamp(scores, min=0)

    def finish(self, mechanism, output, x):
        rows = joined(output)
        normed = mechanism.norm_scale * rows / ((rows**2).mean(-1, keepdim=True) + 1e-8) ** 0.5
        normed = normed / (1 + torch.exp(-mechanism.norm_gate * rows))
        return torch.stack(normed.split(output.size(-1), dim=-1), dim=1)


def test_a_position_whose_weights_are_all_zero_gets_no_gradient_that_overflows():
    """The norm's factor 1/√eps = 10⁴ had made the gradient infinite in fp16, and the weights of 0 had made it NaN."""
    scores = torch.tensor([-1.0, 2.0], dtype=torch.float16, requires_grad=True)
    weights = torch.relu(scores).view(1, 1, 2, 1)
    values = torch.tensor([[1.0, -3.0]], dtype=torch.float16, requires_grad=True)
    output = gated_rms_norm(weights * values, torch.ones(2).half(), torch.ones(2).half())
    (output * torch.tensor([20.0, 30.0]).half()).sum().backward()
    assert output[0, 0, 0].eq(0).all()
    assert scores.grad[0] == 0
    assert torch.isfinite(scores.grad).all()
    assert torch.isfinite(values.grad).all() and values.grad.abs().max() > 0
