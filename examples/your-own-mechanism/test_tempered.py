"""Tests tempered.py by the contract that every mechanism of the package is tested by."""

from pathlib import Path

from contract import Contract, softmax_map

from fairseq_gpam.plugins import import_file

import_file(str(Path(__file__).with_name("tempered.py")))


class TestTempered(Contract):
    name = "tempered"
    variants = ({}, {"tempered_tau": 0.5})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q / mechanism.tau, k, bias, visible)
        return weights @ v, weights
