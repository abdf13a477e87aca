"""Prints the --gpam flags with their values, defaults and meanings: all of them, or those that a mechanism reads.

They are flags of fairseq-train for the architectures of this package (`--arch transformer_gpam…`), which fairseq's own
--help does not show.
"""

import argparse
import shutil
import textwrap

from fairseq_gpam import engine, options, plugins
from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.attention.core.base import Option
from fairseq_gpam.attention.core.presets import PRESETS, check_known


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mechanism", nargs="?", metavar="MECHANISM", help="only what this mechanism reads")
    parser.add_argument(plugins.IMPORT_FLAG, metavar="FILE", help="a Python file that registers a mechanism")


def run(arguments: argparse.Namespace) -> int:
    plugins.import_entry_points()
    if arguments.gpam_import:
        plugins.import_file(arguments.gpam_import)
    if arguments.mechanism not in (None, "stock"):
        check_known(arguments.mechanism, arguments.mechanism)
    print(text(arguments.mechanism))
    return 0


def text(mechanism: str | None) -> str:
    """Returns the flags of a mechanism, of stock (none), or of all, as paragraphs of the terminal's width."""
    width = min(shutil.get_terminal_size().columns, 120)
    if mechanism == "stock":
        return _fill(f"stock reads no --gpam flag. {engine.STOCK}", width)
    parts = []
    if mechanism is None:
        for name, group in options.grouped().items():
            parts += [f"{name or 'every model'}:", *(_entry(option, width) for option in group), ""]
    else:
        if mechanism in PRESETS:
            parts += [_fill(f"{mechanism} is a preset: {PRESETS[mechanism].flags()}", width), ""]
            mechanism = PRESETS[mechanism].mechanism
        chosen = REGISTRY[mechanism]
        parts += [f"{mechanism}: {chosen.formula}", *(_entry(option, width) for option in chosen.options), ""]
        general = ", ".join(option.flag for option in options.GENERAL_OPTIONS)
        parts += [_fill(f"Every model also reads {general}; `flags` without a name explains them.", width), ""]
    return "\n".join([*parts, _fill(engine.STOCK, width)])


def _entry(option: Option, width: int) -> str:
    value = "" if option.type is bool else f" {option.type.__name__.upper()}"
    return f"  {option.flag}{value}\n" + _fill(options.help_text(option).replace("%%", "%"), width, " " * 6)


def _fill(words: str, width: int, indent: str = "") -> str:
    return textwrap.fill(words, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
