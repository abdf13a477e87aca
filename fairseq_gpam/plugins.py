"""Mechanisms from outside the package: of installed packages by an entry point, of a single file by --gpam-import."""

import argparse
import ast
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "fairseq_gpam.mechanisms"
IMPORT_FLAG = "--gpam-import"
IMPORT_VARIABLE = "GPAM_IMPORT"
"""The environment variable that names files, separated by colons, which a checkpoint's settings may run."""
TRUSTED: set[str] = set()
"""The files that a parsed `--gpam-import` has named in this process."""


def import_entry_points() -> None:
    """Imports the module that each installed package names under the entry point group `fairseq_gpam.mechanisms`.

    Raises ImportError that names the entry point and its package if one cannot be imported.
    """
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            importlib.import_module(entry_point.module)
        except Exception as error:
            package = entry_point.dist.name if entry_point.dist else "an unknown package"
            raise ImportError(
                f"the entry point {entry_point.name!r} ({ENTRY_POINT_GROUP}) of {package} names "
                f"{entry_point.module!r}, which cannot be imported ({error}); repair or uninstall {package}"
            ) from error


def import_file(path: str) -> str:
    """Runs a Python file that the caller trusts, once in a process, and returns its absolute path.

    Raises ValueError that names the flag and the file if there is no such file, or if it cannot be run.
    """
    file, name = _module(path)
    if name in sys.modules:
        return str(file)
    spec = importlib.util.spec_from_file_location(name, file) if file.suffix == ".py" and file.is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(
            f"{IMPORT_FLAG} {path}: no such Python file; allowed: the file that defines the model's mechanism. For a "
            f"checkpoint whose file has moved: --model-overrides \"{{'gpam_import': 'PATH'}}\""
        )
    logger.warning(f"{IMPORT_FLAG} runs the Python file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(f"{IMPORT_FLAG} {path}: the file ends with {type(error).__name__}: {error}") from error
    return str(file)


def import_setting(path: str) -> str:
    """Runs the file that a model's settings name, if this command line or GPAM_IMPORT names it too.

    Settings may come from a checkpoint, which must not choose what runs. Raises ValueError, which says how to name the
    file, if nothing else does, and as `import_file` does.
    """
    file, name = _module(path)
    if name not in sys.modules and file not in {_module(named)[0] for named in named_files(sys.argv[1:]) | TRUSTED}:
        raise ValueError(
            f"{IMPORT_FLAG} {path!r} is not allowed: only the model's settings name this file, and they may come from "
            "a checkpoint; allowed: the file that defines the model's mechanism, if you trust and name it yourself, by "
            f"{IMPORT_VARIABLE}={shlex.quote(str(file))} before the command, --model-overrides \"{{'gpam_import': "
            f"'{file}'}}\", or hub.from_pretrained(…, gpam_import={str(file)!r})"
        )
    return import_file(path)


def import_named_file(words: Sequence[str]) -> None:
    """Imports the file that `--gpam-import` names in the words of a command line, if it is there.

    The flags of its mechanisms can then be added to a parser that has yet to read the same words.
    """
    if (path := imported(words)) is not None:
        import_file(path)


def imported(words: Sequence[str]) -> str | None:
    """Returns the file that `--gpam-import` names in the words of a command line."""
    return _parse(words).gpam_import


def _module(path: str) -> tuple[Path, str]:
    """Returns the absolute path of a file and the name of the module that it becomes."""
    file = Path(path).expanduser().resolve()
    return file, f"gpam_import_{hashlib.sha256(os.fsencode(file)).hexdigest()[:12]}"


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(IMPORT_FLAG)
    parser.add_argument("--model-overrides", default="{}")
    return parser.parse_known_args(list(words))[0]


def named_files(words: Sequence[str]) -> set[str]:
    """Returns the files that the words of a command line, or the environment, name: also in hydra's form."""
    given = _parse(words)
    named = [given.gpam_import, *os.environ.get(IMPORT_VARIABLE, "").split(os.pathsep)]
    # The engine itself reports overrides that are no dictionary.
    with contextlib.suppress(ValueError, SyntaxError):
        overrides = ast.literal_eval(given.model_overrides)
        named.append(overrides.get("gpam_import") if isinstance(overrides, dict) else None)
    for word in words:
        key, _, value = word.partition("=")
        if key.lstrip("+") == "model.gpam_import":
            named.append(value)
    return {path for path in named if path and isinstance(path, str)}
