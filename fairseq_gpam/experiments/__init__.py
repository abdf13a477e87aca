"""Grids of runs, statistics, comparisons and result tables of the recipes under `examples/`."""
