"""Grids of runs, the quickstart, statistics, comparisons and result tables."""
