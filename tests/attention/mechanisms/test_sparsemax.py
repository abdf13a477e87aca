"""Sparsemax."""

import sys

import pytest
import torch
from contract import Contract
from tiny import mechanism_of

from fairseq_gpam.attention.core import sparse


def project(row):
    """The projection onto the simplex: the largest support whose smallest score is above the threshold."""
    ordered = sorted(row, key=lambda score: -score.item())
    threshold = ordered[0] - 1
    for size in range(1, len(ordered) + 1):
        total = sum(ordered[:size])
        if 1 + size * ordered[size - 1] > total:
            threshold = (total - 1) / size
    return torch.stack([torch.clamp(score - threshold, min=0) for score in row])


class TestSparsemax(Contract):
    name = "sparsemax"

    @pytest.fixture(autouse=True)
    def sorted_in_parts(self, monkeypatch):
        monkeypatch.setattr(sparse, "SORTED_FIRST", 2)

    def row(self, mechanism, scores, head):
        return project(scores)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15", "entmax"])
def test_a_missing_package_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "entmax", None)
    with pytest.raises(ImportError, match=r"pip install 'fairseq-gpam\[entmax\]'"):
        mechanism_of(name)
