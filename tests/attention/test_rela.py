"""ReLA."""

import torch
from contract import Contract, joined, row_by_row


class TestRela(Contract):
    name = "rela"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5 + bias
        weights = row_by_row(
            q.size(2), k.size(2), visible, lambda b, h, i, seen: torch.clamp(scores[b, h, i, seen], min=0)
        )
        rows = joined(weights @ v)
        normed = mechanism.norm_scale * rows / ((rows**2).mean(-1, keepdim=True) + 1e-8) ** 0.5
        normed = normed / (1 + torch.exp(-mechanism.norm_gate * rows))
        return torch.stack(normed.split(q.size(-1), dim=-1), dim=1), weights
