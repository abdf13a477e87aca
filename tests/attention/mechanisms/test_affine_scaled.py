"""Affine-scaled attention, and its moving average."""

import pytest
import torch
from contract import Contract, softmax_map, uniform_map
from tiny import mechanism_of

from fairseq_gpam.attention import AttentionMask


class TestAffineScaled(Contract):
    name = "affine_scaled"

    def build(self, variant, *arguments, **named):
        mechanism = super().build(variant, *arguments, **named).eval()
        mechanism.average.copy_(torch.tensor([0.3, 0.6]))
        return mechanism

    def weights(self, mechanism, q, k, x, bias, visible):
        share = alpha(mechanism, x).permute(0, 2, 1)[..., None]
        return share * softmax_map(q, k, bias, visible) + (mechanism.average[:, None, None] - share) * uniform_map(
            visible
        )


def made():
    torch.manual_seed(0)
    return mechanism_of("affine_scaled", "decoder").double()


def step(mechanism, x, padding=None):
    """One forward pass; the row sums, B × H × T."""
    q = torch.zeros(x.size(0), 2, x.size(1), 3, dtype=x.dtype)
    return Contract().call(mechanism, q, q, q, AttentionMask(padding, True), x, need_weights=True)[1].sum(-1)


def alpha(mechanism, x):
    return (0.1 * x @ mechanism.scale_proj.weight.T + 0.5).clamp(0, 1)


def test_the_average_follows_training_and_is_constant_in_evaluation():
    mechanism, x = made(), torch.randn(2, 4, 6, dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    padding = torch.tensor([[True, False, False, False]] * 2)
    for _ in range(3):
        torch.testing.assert_close(step(mechanism, x, padding)[:, :, -1], expected.expand(2, 2))
        expected = 0.9 * expected + 0.1 * alpha(mechanism, x[:, 1:]).mean(dim=(0, 1))
        torch.testing.assert_close(mechanism.average, expected)
    mechanism.eval()
    step(mechanism, x)
    torch.testing.assert_close(mechanism.average, expected)
    other = made()
    other.load_state_dict(mechanism.state_dict())
    assert torch.equal(other.average, mechanism.average)


def average_in_a_process(rank, batches, path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/meeting", rank=rank, world_size=2)
    mechanism = made()
    step(mechanism, batches[rank])
    torch.save(mechanism.average, path / f"{rank}.pt")


def test_the_average_is_that_of_all_processes(tmp_path):
    batches = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(5, 4, 6, dtype=torch.float64)
    torch.multiprocessing.start_processes(average_in_a_process, (batches, tmp_path), 2, start_method="fork")
    expected = 0.1 * alpha(made(), torch.cat(batches)).mean(dim=(0, 1))
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_average_reaches_the_mean_in_half_precision(dtype):
    mechanism = mechanism_of("affine_scaled", "decoder").to(dtype)
    x = torch.randn(3, 5, mechanism.site.embed_dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    for _ in range(100):
        step(mechanism.train(), x)
    torch.testing.assert_close(mechanism.average, alpha(mechanism, x).float().mean(dim=(0, 1)), rtol=2e-3, atol=2e-3)
