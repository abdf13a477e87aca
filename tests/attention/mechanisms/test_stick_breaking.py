"""Stick-breaking attention."""

import math

import pytest
import torch
from contract import Contract, settings

from fairseq_gpam.attention import Site, build_mechanism


class TestStickBreaking(Contract):
    name = "stick_breaking"
    needs_positions = True
    variants = ({}, {"stick_breaking_rest": "none"})

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
                    if mechanism.own_gets_rest and visible[b, h, i, offset + i]:
                        row[offset + i] = rest
                    maps.append(torch.stack(row))
        weights = torch.stack(maps).view(scores.shape)
        return weights @ v, weights


@pytest.mark.parametrize("site", ["encoder", "cross"])
@pytest.mark.parametrize("name", ["stick_breaking", "forgetting", "selective"])
def test_causal_mechanisms_are_refused_elsewhere(name, site):
    with pytest.raises(ValueError, match=rf"'{name}' cannot be used for {site} .*--gpam-{site}-mechanism.*decoder"):
        build_mechanism(name, Site(site, 0, 1, 4, 2, 2), settings())
