"""What is installed and registered."""

from __future__ import annotations

import fairseq_gpam
from fairseq_gpam import engine
from fairseq_gpam.attention import REGISTRY


def print_info() -> None:
    """Prints the versions, the engine, and the registered models, architectures and mechanisms."""
    from fairseq.models import ARCH_MODEL_INV_REGISTRY

    print(f"fairseq_gpam {fairseq_gpam.__version__}")
    for name, version in engine.versions().items():
        print(f"{name} {version}")
    for model in ("transformer_gpam", "transformer_lm_gpam"):
        print(f"\nmodel {model}, architectures:")
        for architecture in ARCH_MODEL_INV_REGISTRY[model]:
            print(f"  {architecture}")
    print("\nmechanisms:")
    for name, mechanism in sorted(REGISTRY.items()):
        print(f"  {name:20} {mechanism.formula}")
