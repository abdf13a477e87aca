"""Softmax attention."""

from contract import Contract


class TestSoftmax(Contract):
    name = "softmax"
