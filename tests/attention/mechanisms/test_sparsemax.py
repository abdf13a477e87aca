"""Sparsemax."""

from contract import Contract
from reference import entmax


class TestSparsemax(Contract):
    name = "sparsemax"

    def row(self, mechanism, scores, head):
        return entmax(scores, 2.0)
