"""Prints what is installed and registered, a mechanism's facts and costs, a model's parameters and overhead."""

import argparse

import fairseq_gpam
from fairseq_gpam import engine, options, plugins
from fairseq_gpam.attention import REGISTRY, Settings
from fairseq_gpam.attention.core.affine import describe_choices
from fairseq_gpam.attention.core.presets import PRESETS, check_known

VOCABULARY = 10_000
LENGTH = 256

# With `--arch`, the flags of fairseq's models and of the mechanisms may follow.
TAKES_FURTHER_FLAGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        help="count the parameters of this architecture; its flags (--encoder-layers, --gpam-mechanism, …) may follow",
    )
    parser.add_argument(
        "--mechanism",
        metavar="NAME",
        help="what this mechanism computes, costs and keeps, in an attention of --arch; default: 512 channels, 8 heads",
    )
    parser.add_argument(
        "--length", type=int, default=LENGTH, metavar="N", help=f"tokens for these costs; default: {LENGTH}"
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
    name = arguments.mechanism
    if arguments.arch is None:
        imports = name is not None and plugins.imported(flags) is not None and len(flags) < 3
        if (flags and not imports) or arguments.match:
            raise ValueError(f"--arch is required with {' '.join(flags) or '--match'}")
        if name:
            plugins.import_named_file(flags)
            print_mechanism(name, arguments.length, options.resolve(argparse.Namespace()))
        else:
            print_info()
        return 0
    fairseq_gpam.register()
    from fairseq_gpam import parameters

    if arguments.vocabulary < 5:
        raise ValueError(f"--vocabulary {arguments.vocabulary} is not allowed; allowed: 5 or more")
    parameters.check_arch(arguments.arch)
    model = parameters.Model(arguments.arch, flags, arguments.vocabulary)
    if name:
        model = model.with_mechanism(name)
        parsed = parameters.parse(model)
        width, heads = parsed.decoder_embed_dim, parsed.decoder_attention_heads
        print_mechanism(name, arguments.length, options.resolve(parsed), width, heads)
        print()
    parameters.print_parameters(model)
    if arguments.match:
        parameters.print_controls(model)
    return 0


def print_mechanism(name: str, length: int, settings: Settings, width: int = 512, heads: int = 8) -> None:
    """Prints a mechanism's facts and costs. Raises ValueError if it is unknown, or the length is not positive."""
    check_known(name, name)
    if length < 1:
        raise ValueError(f"--length {length} is not allowed; allowed: 1 or more")
    fairseq_gpam.register()
    from fairseq_gpam import costs

    print(costs.report(name, settings, width, heads, length))


def print_info() -> None:
    """Prints the versions, the engine, and the registered models, architectures and mechanisms."""
    print(f"fairseq_gpam {fairseq_gpam.__version__}")
    for name, version in engine.versions().items():
        print(f"{name} {version}")
    try:
        fairseq_gpam.register()
        from fairseq.models import ARCH_MODEL_INV_REGISTRY

        for model in ("transformer_gpam", "transformer_lm_gpam"):
            print(f"\nmodel {model}, architectures:", *ARCH_MODEL_INV_REGISTRY[model], sep="\n  ")
    except engine.EngineError as error:
        print(f"\nno models: {error}")
    print("\nmechanisms:")
    for name, mechanism in sorted(REGISTRY.items()):
        print(f"  {name:22} {mechanism.formula}")
    print("\npresets:")
    for name, preset in sorted(PRESETS.items()):
        print(f"  {name:22} {preset.formula}\n  {'':22} {preset.flags()}")
    print(f"\n{engine.STOCK}")
    print("\nhow the affine family (softmax, dagpam, …) is computed; the first line that applies is taken:")
    print(describe_choices())
