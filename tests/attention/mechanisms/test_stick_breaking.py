"""Stick-breaking attention."""

import math

import torch
from contract import Contract


class TestStickBreaking(Contract):
    name = "stick_breaking"
    needs_positions = True
    variants = ({}, {"stick_breaking_rest": "bias"}, {"stick_breaking_rest": "none"})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) + bias
        batch, heads, queries, keys = scores.shape
        offset = keys - queries
        maps = []
        for b in range(batch):
            for h in range(heads):
                for i in range(queries):
                    row, rest = [None] * keys, torch.ones((), dtype=torch.float64)
                    for j in reversed(range(keys)):
                        row[j] = torch.zeros((), dtype=torch.float64)
                        if j < offset + i and visible[b, h, i, j]:
                            share = 1 / (1 + torch.exp(-scores[b, h, i, j]))
                            row[j], rest = share * rest, rest * (1 - share)
                    if mechanism.rest == "own" and visible[b, h, i, offset + i]:
                        row[offset + i] = rest
                    maps.append(torch.stack(row))
        weights = torch.stack(maps).view(scores.shape)
        if mechanism.rest != "bias":
            return weights @ v, weights
        output = weights @ v + (1 - weights.sum(-1, keepdim=True)) * mechanism.rest_bias
        centred = output - output.mean(-1, keepdim=True)
        output = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5) ** 0.5
        scale, offset = (each.view(heads, 1, -1) for each in (mechanism.norm.weight, mechanism.norm.bias))
        return (output * scale + offset) * visible.any(-1, keepdim=True), weights
