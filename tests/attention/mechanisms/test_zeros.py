"""ZeroS, as a matrix and as running sums."""

import math

import torch
from contract import HEADS, WIDTH, Contract
from tiny import mechanism_of

from fairseq_gpam.attention import AttentionInput, AttentionMask


class TestZeroS(Contract):
    name = "zeros"
    needs_positions = True
    mixes_queries = True

    def test_half_precision(self, variant, monkeypatch):
        # A sum of weights that cancel out may be near 0, and the norm would enlarge its rounding.
        monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda values, shape: values)
        super().test_half_precision(variant)

    def reference(self, mechanism, q, k, v, x, bias, visible):
        """The paper's formula, position by position."""
        u_all = x @ mechanism.logit_proj.weight.T + mechanism.logit_proj.bias
        gates = 1 / (1 + torch.exp(-(x @ mechanism.gate_proj.weight.T + mechanism.gate_proj.bias)))

        def head(b, h, shown):
            u, tau = u_all[b, :, h * WIDTH : (h + 1) * WIDTH], torch.exp(mechanism.prior_log_weight[h, 0, 0])
            seen, logits, outputs, rows = [], [], [], []
            for t in range(len(shown)):
                if shown[t]:
                    seen.append(t)
                    mean = (tau * mechanism.prior_mean[h, 0] + u[seen].sum(0)) / (tau + len(seen))
                    logits.append(-(u[t] @ mean) / math.sqrt(WIDTH))
                row, output = torch.zeros(len(shown)).double(), torch.zeros(WIDTH).double()
                if seen:
                    n, s = len(seen), torch.stack(logits)
                    delta = s - s.mean()
                    rest = torch.exp(s) / torch.exp(s).sum() - 1 / n - delta / n
                    radial = gates[b, t, 2 * h] * delta / n + gates[b, t, 2 * h + 1] * rest
                    cosines = k[b, h, seen] @ q[b, h, t] / (k[b, h, seen].norm(dim=-1) * q[b, h, t].norm())
                    row = row.index_put((torch.tensor(seen),), radial * cosines)
                    output = row @ v[b, h]
                    output = (output - output.mean()) / torch.sqrt(output.var(correction=0) + 1e-5)
                outputs.append(output)
                rows.append(row)
            return torch.stack(outputs), torch.stack(rows)

        return self.head_by_head(head, visible)


def test_the_sums_are_the_matrix_where_logits_rise_by_hundreds():
    """Neither an early row nor a late one may overflow."""
    length = 150
    mechanism = mechanism_of("zeros", "decoder").double()
    q, k, v = torch.randn(3, 2, HEADS, length, 3, dtype=torch.float64)
    x = torch.randn(2, length, 6, dtype=torch.float64) * torch.linspace(1, 60, length)[:, None]
    inputs = AttentionInput(q, k, v, AttentionMask(causal=True), x)
    expected, _ = mechanism(AttentionInput(q, k, v, AttentionMask(causal=True), x, need_weights=True))
    output, _ = mechanism(inputs)
    assert output.isfinite().all()
    torch.testing.assert_close(output, expected, rtol=1e-8, atol=1e-8)
