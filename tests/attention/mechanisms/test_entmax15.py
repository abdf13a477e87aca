"""1.5-entmax."""

from contract import Contract
from reference import entmax


class TestEntmax15(Contract):
    name = "entmax15"

    def row(self, mechanism, scores, head):
        return entmax(scores, 1.5)
