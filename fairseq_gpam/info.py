"""Prints what is installed and registered; with --arch, a model's number of parameters and the overhead over stock."""

from __future__ import annotations

import argparse
import sys

from fairseq.models import ARCH_MODEL_INV_REGISTRY

import fairseq_gpam
from fairseq_gpam import engine, parameters
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
    try:
        if arguments.vocabulary < 5:
            raise ValueError(f"--vocabulary {arguments.vocabulary} is not allowed; allowed: 5 or more")
        parameters.check_arch(arguments.arch)
        model = parameters.Model(arguments.arch, flags, arguments.vocabulary)
        print_parameters(model)
        if arguments.match:
            print_controls(model)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
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
    print("\nhow the affine family (softmax, dagpam, …) is computed; the first line that applies is taken:")
    print(describe_choices())


def print_parameters(model: parameters.Model) -> None:
    """Prints the exact number of parameters, how many each site adds, and the overhead over the stock model."""
    ours, stock = parameters.build(model), parameters.build(model.stock())
    total, stock_total = parameters.count(ours), parameters.count(stock)
    extra = total - stock_total
    print(f"model           {model.command()}")
    print(f"vocabulary      {model.vocabulary} entries, the same for source and target (--vocabulary)")
    print(f"parameters      {total:,}")
    print(f"stock           {stock_total:,}  {model.stock().arch}")
    print(f"overhead        {extra:+,}  {extra / stock_total:+.4%} of stock")
    layers = parameters.count_layers(stock)
    print(f"                {extra / layers:+.4%} of the {layers:,} in stock's layers (no embeddings, no output)")
    for site, name, number, added in parameters.count_sites(ours):
        print(f"  {site:8} {name:20} {number:3} attentions  {added:+,}")
    queries = parameters.count_query_width(ours)
    if queries:
        rank = parameters.parse(model).gpam_query_rank
        print(f"  queries and keys of width {rank} in a head (--gpam-query-rank): {queries:+,}")
    fusion = parameters.count_layer_fusion(ours)
    if fusion:
        print(f"  fusion of the layers (--gpam-layer-fusion): {fusion:+,}")
    if any("dagpam" in name for _, name, _, _ in parameters.count_sites(ours)):
        settings = parameters.parse(model)
        if settings.gpam_negative_source == "input":
            print("  W_Q⁻ of daGPAM: from the layer's input to all heads (--gpam-negative-source input)")
        else:
            print(f"  W_Q⁻ of daGPAM: {settings.gpam_negative_projection} (--gpam-negative-projection)")


def print_controls(model: parameters.Model) -> None:
    """Prints the flags of the parameter-matched controls and the differences that remain."""
    print("\ncontrols")
    for arm in parameters.match(model):
        print(f"{arm.name:15} {arm.model.command()}")
        share = arm.difference / arm.wanted
        print(f"                {arm.parameters:,} parameters, {arm.difference:+,} ({share:+.5%}) from {arm.wanted:,}")
