"""Corpora, runs, scores and result tables of the recipes under `examples/`."""
