"""Every --gpam flag with its type, default, help and check, declared once for both models.

The flags have no argparse default; those that are absent are filled in after the architecture's preset, so that an
explicit flag overrides a preset and a preset overrides the default.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import Any

from fairseq_gpam.attention import REGISTRY, SITES, AttentionMechanism, Option, Settings
from fairseq_gpam.attention.core.affine import BACKENDS
from fairseq_gpam.attention.core.heads import is_mixture
from fairseq_gpam.attention.core.layers import is_layered
from fairseq_gpam.attention.core.presets import PRESETS
from fairseq_gpam.plugins import IMPORT_FLAG, TRUSTED, import_named_file, import_setting


def _mechanism(name: str, default: str | None, help: str) -> Option:
    """Returns an option whose value is a mechanism; mixtures are checked when the model is built."""
    return Option(
        name,
        str,
        default,
        help,
        check=lambda spec: is_mixture(spec) or is_layered(spec) or spec in REGISTRY or spec in PRESETS,
        allowed=", ".join(sorted({*REGISTRY, *PRESETS})) + "; groups of heads as in dagpam:4,softmax:4; layers as in "
        "softmax@0-2,4;dagpam@3,5 or the cycle softmax*3,dagpam",
    )


GENERAL_OPTIONS = (
    _mechanism("mechanism", "dagpam", "the mechanism of every attention"),
    _mechanism("encoder_mechanism", None, "the mechanism of encoder self-attention, in place of --gpam-mechanism"),
    _mechanism("decoder_mechanism", None, "the mechanism of decoder self-attention, in place of --gpam-mechanism"),
    _mechanism("cross_mechanism", None, "the mechanism of cross-attention, in place of --gpam-mechanism"),
    Option(
        "import",
        str,
        None,
        "registers a mechanism of your own; the checkpoint keeps its path, but the file runs again only where "
        "the command line or the environment variable GPAM_IMPORT names it too",
        allowed="a Python file",
    ),
    Option(
        "warm_start",
        bool,
        False,
        "start every mechanism at its neutral setting, which reproduces a stock checkpoint's outputs exactly at step "
        "0; refused for a mechanism without one, and with flags whose values are neither neutral nor the default; a "
        "flag given with its default value counts as absent",
    ),
    Option("backend", str, "auto", "how attention is computed; results agree up to rounding", choices=BACKENDS),
    Option(
        "query_rank",
        int,
        None,
        "the width of a head's queries and keys; if absent, that of its values, embed_dim/heads; scores are divided by "
        "its square root (arXiv 2407.16153)",
        check=lambda rank: rank > 0,
        allowed="a whole number > 0",
    ),
    Option(
        "position",
        str,
        "none",
        "positions of self-attention in place of fairseq's position embeddings, which are then off: rotated queries "
        "and keys (arXiv 2104.09864), or a bias that falls with the distance (ALiBi, arXiv 2108.12409); inputs may "
        "then be longer than in training",
        choices=("none", "rotary", "alibi"),
    ),
    Option(
        "qk_norm",
        bool,
        False,
        "RMSNorm of queries and keys over a head's channels, one weight vector for all heads, before any rotation, as "
        "in Qwen3 (arXiv 2505.09388)",
    ),
    Option(
        "layer_fusion",
        str,
        "none",
        "how the layers of the encoder, or of a language model's decoder, are combined into its output (arXiv "
        "2202.08625)",
        choices=("none", "concat", "max", "gate"),
    ),
    Option(
        "skip_weight",
        float,
        None,
        "the weight of the skip connection around self-attention; 0 removes it (arXiv 2311.01906); if absent, 0 around "
        "shaped attention and 1 around any other, and 1 with --gpam-warm-start",
        check=lambda weight: weight >= 0,
        allowed="0 (no skip connection) or a number > 0",
    ),
    Option(
        "spectrum_penalty",
        float,
        0.0,
        "the weight with which the variance of the QK eigenspectrum is added to the training loss per token (arXiv "
        "2402.02098)",
        check=lambda weight: weight >= 0,
        allowed="0 (off) or a number > 0",
    ),
    Option(
        "log_attention",
        int,
        0,
        "how often, in updates, to log row sums, entropy, λ and other measures of attention",
        check=lambda updates: updates >= 0,
        allowed="0 (off) or a whole number of updates",
    ),
)

WITHOUT_EFFECT_ON_OUTPUTS = frozenset(
    ["mechanism", *(f"{site}_mechanism" for site in SITES), "import", "backend", "spectrum_penalty", "log_attention"]
)
"""Names of options that leave the outputs of trained weights as they are, or are compared on their own: mechanisms."""


def all_options() -> tuple[Option, ...]:
    """Returns the general options and those of every registered mechanism, each once."""
    options = {option.name: option for option in GENERAL_OPTIONS}
    for mechanism in REGISTRY.values():
        for option in mechanism.options:
            known = options.setdefault(option.name, option)
            if known is not option:
                raise ValueError(f"two different options are named {option.flag}")
    return tuple(options.values())


def grouped() -> dict[str, tuple[Option, ...]]:
    """Returns the general options under "", and those of each mechanism, daGPAM's first; each option once."""
    groups: dict[str, tuple[Option, ...]] = {"": GENERAL_OPTIONS}
    listed = set(GENERAL_OPTIONS)
    for name in ("dagpam", *sorted(set(REGISTRY) - {"dagpam"})):
        new = tuple(option for option in REGISTRY[name].options if option not in listed)
        listed.update(new)
        if new:
            groups[name] = new
    return groups


def users(option: Option) -> list[str]:
    """Returns the names of the mechanisms that read this option; none for a general one."""
    return sorted(name for name, mechanism in REGISTRY.items() if option in mechanism.options)


def help_text(option: Option) -> str:
    words = [option.help]
    if option.choices:
        words.append("one of: " + ", ".join(option.choices))
    elif option.allowed:
        words.append(option.allowed)
    if option.default is not None and option.type is not bool:
        words.append(f"default: {option.default}")
    readers = users(option)
    if readers:
        words.append("for " + ", ".join(readers))
    return "; ".join(words).replace("%", "%%")


def _argparse_type(option: Option) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = option.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if option.flag == IMPORT_FLAG:
            TRUSTED.add(value)
        return value

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds every --gpam flag to `parser`, without a default.

    fairseq collects the flags before it parses the command line. The file of --gpam-import must run before that, so its
    name is looked up in `sys.argv`.
    """
    import_named_file(sys.argv[1:])
    for option in all_options():
        value: dict[str, Any] = {"type": _argparse_type(option), "metavar": option.type.__name__.upper()}
        kind = {"action": "store_true"} if option.type is bool else value
        parser.add_argument(option.flag, default=argparse.SUPPRESS, help=help_text(option), **kind)


def fill_defaults(args: Any) -> None:
    """Sets on `args` (a namespace or a DictConfig open for writing) every option that is not set yet.

    The file of --gpam-import runs first, so that the options of its mechanisms are among them.
    """
    path = getattr(args, "gpam_import", None)
    if path is not None:
        args.gpam_import = import_setting(path)
    for option in all_options():
        if getattr(args, option.dest, None) is None:
            setattr(args, option.dest, option.default)


def resolve(args: Any) -> Settings:
    """Returns the checked value of every option on `args`, a namespace or a DictConfig.

    Raises ValueError with the flag, the value and what is allowed.
    """
    if getattr(args, "gpam_import", None) is not None:
        import_setting(args.gpam_import)
    values = {option.name: option.parse(getattr(args, option.dest, None)) for option in all_options()}
    for site in SITES:
        name = f"{site}_mechanism"
        values[name] = values[name] or values["mechanism"]
    given = map(str, vars(args) if isinstance(args, argparse.Namespace) else args)
    unknown = sorted(name for name in given if name.startswith("gpam_") and name[len("gpam_") :] not in values)
    if unknown:
        raise ValueError(
            f"unknown setting {', '.join(unknown)}; allowed: {', '.join(option.dest for option in all_options())}, and "
            "those of mechanisms that an installed package or --gpam-import registers"
        )
    return Settings(values)


def refuse_unread(settings: Settings, mechanisms: Iterable[AttentionMechanism]) -> None:
    """Raises ValueError if a flag was changed that nothing in the model reads.

    Such a flag is an option of a mechanism that the model does not have, or the mechanism of an attention that it does
    not have, for example cross-attention in a language model. Ignored silently, it would leave another model than the
    one that was meant.
    """
    built = [mechanism for mechanism in mechanisms if mechanism.name in REGISTRY]
    sites = [site for site in SITES if any(mechanism.site.name == site for mechanism in built)]
    for site in SITES:
        spec = settings[f"{site}_mechanism"]
        if site not in sites and spec != settings["mechanism"]:
            raise ValueError(
                f"--gpam-{site}-mechanism {spec!r} is not allowed in a model without {site} attention; allowed here: "
                + ", ".join(["--gpam-mechanism", *(f"--gpam-{name}-mechanism" for name in sites)])
            )
    installed = {type(mechanism) for mechanism in built}
    for option in all_options():
        value, readers = settings[option.name], users(option)
        if not readers or value in (option.default, *option.former_defaults):
            continue
        if not any(option in mechanism.options for mechanism in installed):
            given = option.flag if value is True else f"{option.flag} {value!r}"
            names = ", ".join(sorted({mechanism.name for mechanism in installed}))
            raise ValueError(
                f"{given} is not allowed in a model of {names}, where nothing reads it; allowed with a mechanism that "
                f"does: {', '.join(readers)}"
            )
