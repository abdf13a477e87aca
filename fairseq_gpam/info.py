"""Prints what is installed and registered; with --arch, a model's number of parameters and the overhead over stock."""

import argparse
import sys

import fairseq_gpam
from fairseq_gpam import engine
from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.attention.core.affine import describe_choices

MODELS = ("transformer_gpam", "transformer_lm_gpam")
VOCABULARY = 10_000

# With `--arch`, the flags of fairseq's models and of the mechanisms may follow.
TAKES_FURTHER_FLAGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        help="count the parameters of this architecture; its flags (--encoder-layers, --gpam-mechanism, …) may follow",
    )
    parser.add_argument(
        "--vocabulary",
        type=int,
        default=VOCABULARY,
        metavar="N",
        help="entries of the dictionary, special symbols included, the same one for source and target; "
        f"default: {VOCABULARY}",
    )
    parser.add_argument(
        "--match",
        action="store_true",
        help="print the flags of the controls: stock models with as many parameters (a wider FFN; more heads), and the "
        "mechanism's model with as many as stock",
    )


def run(arguments: argparse.Namespace) -> int:
    flags = tuple(getattr(arguments, "further_flags", ()))
    if arguments.arch is None:
        if flags or arguments.match:
            print(f"--arch is required with {' '.join(flags) or '--match'}", file=sys.stderr)
            return 2
        print_info()
        return 0
    fairseq_gpam.register()
    from fairseq_gpam import parameters
    from fairseq_gpam.parameter_report import print_controls, print_parameters

    if arguments.vocabulary < 5:
        raise ValueError(f"--vocabulary {arguments.vocabulary} is not allowed; allowed: 5 or more")
    parameters.check_arch(arguments.arch)
    model = parameters.Model(arguments.arch, flags, arguments.vocabulary)
    print_parameters(model)
    if arguments.match:
        print_controls(model)
    return 0


def print_architectures() -> None:
    """Prints the registered models with their architectures."""
    from fairseq.models import ARCH_MODEL_INV_REGISTRY

    for model in MODELS:
        print(f"\nmodel {model}, architectures:")
        for architecture in ARCH_MODEL_INV_REGISTRY[model]:
            print(f"  {architecture}")


def print_info() -> None:
    """Prints the versions, the engine, and the registered models, architectures and mechanisms."""
    print(f"fairseq_gpam {fairseq_gpam.__version__}")
    for name, version in engine.versions().items():
        print(f"{name} {version}")
    try:
        fairseq_gpam.register()
        print_architectures()
    except engine.EngineError as error:
        print(f"\nno models: {error}")
    print("\nmechanisms:")
    for name, mechanism in sorted(REGISTRY.items()):
        print(f"  {name:20} {mechanism.formula}")
    print(f"\n{engine.STOCK}")
    print("\nhow the affine family (softmax, dagpam, …) is computed; the first line that applies is taken:")
    print(describe_choices())
