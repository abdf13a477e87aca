"""Mechanisms from outside the package: of installed packages by an entry point, of a single file by --gpam-import."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "fairseq_gpam.mechanisms"
IMPORT_FLAG = "--gpam-import"


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
    """Runs the Python file that `--gpam-import` names, once in a process, and returns its absolute path.

    Raises ValueError that names the flag and the file if there is no such file.
    """
    file = Path(path).expanduser().resolve()
    name = f"gpam_import_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return str(file)
    spec = importlib.util.spec_from_file_location(name, file) if file.suffix == ".py" and file.is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(
            f"{IMPORT_FLAG} {path!r} is not allowed: there is no such Python file; allowed: the file that defines the "
            f"model's mechanism. For a checkpoint whose file has moved: --model-overrides \"{{'gpam_import': 'PATH'}}\""
        )
    logger.warning(f"{IMPORT_FLAG} runs the Python file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return str(file)


def import_named_file(words: Sequence[str]) -> None:
    """Imports the file that `--gpam-import` names in the words of a command line, if it is there.

    The flags of its mechanisms can then be added to a parser that has yet to read the same words.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(IMPORT_FLAG)
    path = parser.parse_known_args(list(words))[0].gpam_import
    if path is not None:
        import_file(path)
