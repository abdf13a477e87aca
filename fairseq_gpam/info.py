"""What is installed and registered, and where."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq.models import ARCH_MODEL_INV_REGISTRY

import fairseq_gpam
from fairseq_gpam import engine
from fairseq_gpam.attention import REGISTRY

MODELS = ("transformer_gpam", "transformer_lm_gpam")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`path` and `info` take no arguments."""


def run(arguments: argparse.Namespace) -> int:
    if arguments.command == "path":
        print(Path(__file__).resolve().parent)
    else:
        print_info()
    return 0


def print_info() -> None:
    """Prints the versions, the engine, and the registered models, architectures and mechanisms."""
    print(f"fairseq_gpam {fairseq_gpam.__version__}")
    for name, version in engine.versions().items():
        print(f"{name} {version}")
    for model in MODELS:
        print(f"\nmodel {model}, architectures:")
        for architecture in ARCH_MODEL_INV_REGISTRY[model]:
            print(f"  {architecture}")
    print("\nmechanisms:")
    for name, mechanism in sorted(REGISTRY.items()):
        print(f"  {name:20} {mechanism.formula}")
