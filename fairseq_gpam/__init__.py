"""daGPAM attention for fairseq, with the mechanisms it is compared with: the package that `--user-dir` points to.

Importing it beside an installed fairseq checks that one, makes its loading of checkpoints safe, arranges a clean end of
distributed training, and registers models, architectures, the optimiser, a criterion and the mechanisms of installed
packages. Importing it again is harmless. Without fairseq, `fairseq_gpam.attention` works with PyTorch alone.
"""

import functools
import importlib.util
import sys
from pathlib import PurePath
from typing import Any

from fairseq_gpam import engine

__version__ = "0.1.0"
__all__ = ["__version__", "engine", "register", "register_attention_hook"]


@functools.cache
def register() -> None:
    """Registers everything with fairseq, once; raises EngineError if no usable fairseq is installed."""
    engine.prepare()
    from fairseq_gpam import answers, checkpoints, initial_weights, models, optim, plugins  # noqa: F401

    checkpoints.guard_engine()
    initial_weights.log_when_built()
    plugins.import_entry_points()


def _starts_command() -> bool:
    """Returns whether Python is starting this package's own command, which registers when it has to: help is fast."""
    words = getattr(sys, "argv", [])
    if words[:1] == ["-m"]:
        return sys.orig_argv[-len(words)].endswith("fairseq_gpam")
    return bool(words) and PurePath(words[0]).stem == "fairseq-gpam"


def __getattr__(name: str) -> Any:
    if name == "register_attention_hook":
        from fairseq_gpam.modules import register_attention_hook

        return register_attention_hook
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not _starts_command() and importlib.util.find_spec("fairseq") is not None:
    register()
