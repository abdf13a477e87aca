"""Gated DeltaNet: chunks, the matrix and the recurrence are one function."""

import math

import pytest
import torch
from contract import HEADS, WIDTH, Contract
from tiny import mechanism_of

from fairseq_gpam.attention.mechanisms import gated_deltanet


def recurrence(q, k, v, decay, beta):
    """o_t = S_t q_t, S_t = α_t S_{t−1}(I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ, for one head: T × D; α and β T."""
    state = torch.zeros(v.size(-1), k.size(-1), dtype=torch.float64)
    outputs = []
    for t in range(len(q)):
        removed = torch.eye(k.size(-1), dtype=torch.float64) - beta[t] * torch.outer(k[t], k[t])
        state = decay[t] * state @ removed + beta[t] * torch.outer(v[t], k[t])
        outputs.append(state @ q[t])
    return torch.stack(outputs)


class TestGatedDeltaNet(Contract):
    name = "gated_deltanet"
    needs_positions = True
    mixes_queries = True
    # A position taken out of the middle would bring its neighbours nearer to each other in the convolutions.
    removed = ([0], [4], [0, 1, 4])

    def reference(self, mechanism, q, k, v, x, bias, visible):
        step = torch.log(1 + torch.exp(x @ mechanism.decay_proj.weight.T + mechanism.step))
        decay = torch.exp(-torch.exp(mechanism.log_rate) * step)
        beta, gate = torch.sigmoid(x @ mechanism.beta_proj.weight.T), x @ mechanism.gate_proj.weight.T

        def head(b, h, shown):
            seen = shown.double()

            def convolved(values, taps):
                values, rows = values[b, h] * seen[:, None], []
                for t in range(len(seen)):
                    row = sum(taps[h, 0, :, 3 - back] * values[t - back] for back in range(min(t, 3) + 1))
                    rows.append(row * torch.sigmoid(row) * seen[t])
                return torch.stack(rows)

            new_q, new_k = convolved(q, mechanism.q_taps), convolved(k, mechanism.k_taps)
            new_q, new_k = (part / torch.sqrt((part**2).sum(-1, keepdim=True) + 1e-6) for part in (new_q, new_k))
            kept, written = torch.where(shown, decay[b, :, h], 1.0), beta[b, :, h] * seen
            # With the identity for values the output of a position is its row of weights.
            output, weights = (
                recurrence(new_q / math.sqrt(WIDTH), new_k, values, kept, written)
                for values in (convolved(v, mechanism.v_taps), torch.eye(len(seen)).double())
            )
            output = output / torch.sqrt((output**2).mean(-1, keepdim=True) + 1e-5) * mechanism.norm_weight
            own = gate[b, :, h * WIDTH : (h + 1) * WIDTH]
            return output * own * torch.sigmoid(own), weights

        return self.head_by_head(head, visible)


@pytest.mark.parametrize("length", [63, 64, 65, 150])
def test_chunks_are_the_recurrence(length):
    q, k, v = torch.randn(3, 1, HEADS, length, WIDTH, dtype=torch.float64)
    q, k = (part / part.norm(dim=-1, keepdim=True) for part in (q, k))
    decay, beta = torch.rand(2, 1, HEADS, length, 1, dtype=torch.float64)
    found, state = gated_deltanet.delta_sums(q, k, v, (decay.log(), beta), None)
    halves = [part.split(40, dim=2) for part in (q, k, v, decay.log(), beta)]
    continued, rows = None, []
    for new_q, new_k, new_v, *gates in zip(*halves, strict=True):
        row, continued = gated_deltanet.delta_sums(new_q, new_k, new_v, tuple(gates), continued)
        rows.append(row)
    for h in range(HEADS):
        expected = recurrence(q[0, h], k[0, h], v[0, h], decay[0, h, :, 0], beta[0, h, :, 0])
        for output in (found, torch.cat(rows, dim=2)):
            torch.testing.assert_close(output[0, h], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(continued, state, rtol=0, atol=1e-10)


def test_initial_rates_are_those_of_the_source():
    mechanism = mechanism_of("gated_deltanet", "decoder", heads=1000, width=4)
    rate, step = mechanism.log_rate.exp(), torch.nn.functional.softplus(mechanism.step).log()
    low, high = math.log(0.001), math.log(0.1)
    for values, (first, last) in ((rate, (0, 16)), (step, (low, high))):
        assert first - 1e-3 <= values.min() < first + 0.05 * (last - first)
        assert last - 0.05 * (last - first) < values.max() <= last + 1e-3
