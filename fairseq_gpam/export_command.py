"""Converts a checkpoint to fairseq's own model, which needs no --user-dir, if that is exact.

Softmax is kept unchanged; the 1+λ⁺ of scaled softmax, of daGPAM whose λ⁻ is exactly 0, and of groups of such heads is
multiplied into the output projections. All else is refused. The logits of both models are compared before the file is
written.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint of fairseq-train")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write")


def run(arguments: argparse.Namespace) -> int:
    from fairseq_gpam.export import export

    difference = export(arguments.checkpoint, arguments.out)
    print(f"{arguments.out}: fairseq's own model, logits equal to the checkpoint's within {difference:.1e}")
    return 0
