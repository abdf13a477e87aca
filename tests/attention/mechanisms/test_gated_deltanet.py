"""Gated DeltaNet: chunks, the matrix and the recurrence are one function."""

import math

import pytest
import torch
from contract import WIDTH, Contract, settings

from fairseq_gpam.attention import Site, build_mechanism
from fairseq_gpam.attention.mechanisms.gated_deltanet import delta_sums, delta_weights


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


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

    def attend(self, attention, x, padding, **arguments):
        return super().attend(attention, x, padding, need_weights=False, **arguments)

    def reference(self, mechanism, q, k, v, x, bias, visible):
        batch, heads, length, _ = q.shape
        seen = visible[:, :, -1].double()
        step = torch.log(1 + torch.exp(x @ mechanism.decay_proj.weight.T + mechanism.step))
        decay = torch.exp(-torch.exp(mechanism.log_rate) * step)
        beta, gate = sigmoid(x @ mechanism.beta_proj.weight.T), x @ mechanism.gate_proj.weight.T
        outputs, maps = [], []
        for b in range(batch):
            for h in range(heads):

                def convolved(values, taps, b=b, h=h):
                    values = values[b, h] * seen[b, h][:, None]
                    rows = []
                    for t in range(length):
                        row = sum(taps[h, 0, :, 3 - back] * values[t - back] for back in range(min(t, 3) + 1))
                        rows.append(row * sigmoid(row) * seen[b, h, t])
                    return torch.stack(rows)

                new_q, new_k = convolved(q, mechanism.q_taps), convolved(k, mechanism.k_taps)
                new_q, new_k = (part / torch.sqrt((part**2).sum(-1, keepdim=True) + 1e-6) for part in (new_q, new_k))
                new_v = convolved(v, mechanism.v_taps)
                kept = torch.where(seen[b, h] > 0, decay[b, :, h], 1.0)
                written = beta[b, :, h] * seen[b, h]
                arguments = new_q / math.sqrt(WIDTH), new_k
                head = recurrence(*arguments, new_v, kept, written)
                # With the identity for values the output of a position is its row of weights.
                maps.append(recurrence(*arguments, torch.eye(length, dtype=torch.float64), kept, written))
                head = head / torch.sqrt((head**2).mean(-1, keepdim=True) + 1e-5) * mechanism.norm_weight
                own = gate[b, :, h * WIDTH : (h + 1) * WIDTH]
                outputs.append(head * own * sigmoid(own))
        return torch.stack(outputs).view(q.shape), torch.stack(maps).view(batch, heads, length, length)


@pytest.mark.parametrize("length", [1, 63, 64, 150])
def test_chunks_are_the_recurrence(length):
    q, k, v = torch.randn(3, 2, 2, length, WIDTH, dtype=torch.float64)
    k = k / k.norm(dim=-1, keepdim=True)
    decay, beta = torch.rand(2, 2, 2, length, 1, dtype=torch.float64)
    output, _ = delta_sums(q, k, v, (decay.log(), beta), None)
    torch.testing.assert_close(delta_weights(q, k, decay.log(), beta) @ v, output, rtol=1e-10, atol=1e-12)
    for b in range(2):
        for h in range(2):
            expected = recurrence(q[b, h], k[b, h], v[b, h], decay[b, h, :, 0], beta[b, h, :, 0])
            torch.testing.assert_close(output[b, h], expected, rtol=1e-10, atol=1e-12)


def test_initial_rates_are_those_of_the_source():
    mechanism = build_mechanism("gated_deltanet", Site("decoder", 0, 1, 4000, 1000, 4), settings())
    rate, step = mechanism.log_rate.exp(), torch.nn.functional.softplus(mechanism.step).log()
    low, high = math.log(0.001), math.log(0.1)
    for values, (first, last) in ((rate, (0, 16)), (step, (low, high))):
        assert first - 1e-3 <= values.min() < first + 0.05 * (last - first)
        assert last - 0.05 * (last - first) < values.max() <= last + 1e-3
