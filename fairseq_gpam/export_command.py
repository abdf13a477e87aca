"""Converts a checkpoint to fairseq's own model, which needs no --user-dir, if that is exact.

Softmax is kept unchanged; (1+λ)·softmax, daGPAM with λ⁻ = 0, and groups of such heads are folded into the output
projections. All other mechanisms are refused. The logits of both models are compared before the file is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint of fairseq-train")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write")


def run(arguments: argparse.Namespace) -> int:
    from fairseq_gpam.export import ExportError, export

    try:
        difference = export(arguments.checkpoint, arguments.out)
    except (ExportError, OSError) as error:
        print(f"{arguments.checkpoint} is not exported: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: fairseq's own model, logits equal to the checkpoint's within {difference:.1e}")
    return 0
