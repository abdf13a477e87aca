"""Recipes of tasks: the TOML files in `standard/`, checked when they are read.

The name of a task is that of its file: `TASK`, or `TASK.VARIANT`. A file may name another task as its `base`: its own
keys replace those of the base, and `train_more` is appended to the base's `train`. `${NAME}` in `data.files` and
`data.options` refers to a key of `data.variables`, which an environment variable of that name overrides.
"""

from __future__ import annotations

import difflib
import os
import shlex
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "standard"
HELP = "a task, such as bible-de-en or iwslt14-de-en.prenorm"

KEYS: dict[str, type] = {
    "kind": str,
    "source": str,
    "target": str,
    "arch": str,
    "train": str,
    "train_more": str,
    "budget": str,
    "full_budget": str,
    "keep_checkpoints": int,
    "evaluate": str,
    "base": str,
    "data": dict,
}
DATA_KEYS: dict[str, type] = {
    "corpus": str,
    "name": str,
    "subwords": str,
    "vocabulary": int,
    "tokenizer": str,
    "lowercase": bool,
    "preprocess": str,
    "partial": bool,
    "options": dict,
    "variables": dict,
    "files": list,
}
FILE_KEYS: dict[str, type] = dict.fromkeys(("url", "checksum", "file", "package", "version"), str)
CHOICES = {
    "kind": ("translation", "language_model"),
    "data.subwords": ("sentencepiece", "subword-nmt", "bytes", "words", "prepared"),
    "data.tokenizer": ("", "moses"),
}
REQUIRED = ("kind", "arch", "train", "budget", "evaluate", "data", "data.corpus", "data.files")
TYPE_NAMES = {str: "text", int: "a whole number", bool: "true or false", dict: "a table", list: "a list of tables"}


class TaskError(ValueError):
    """A recipe is missing, or a key in its file is wrong; the message names the file and the key."""


@dataclass(frozen=True)
class File:
    """A published file: at `url`, in a Python `package` of a given `version`, or only provided by the user."""

    file: str
    checksum: str = ""
    url: str = ""
    package: str = ""
    version: str = ""


@dataclass(frozen=True)
class Data:
    """How a corpus is prepared for fairseq.

    `tokenizer` "moses": the text is tokenised, and hypotheses are detokenised for scoring. `lowercase`: the text is
    lower-cased, and scores ignore case. `vocabulary`: the number of sentencepiece pieces or subword-nmt merges.
    `partial`: a folder of local files may lack some; the reader of the corpus raises an error if it needs them.
    """

    corpus: str
    name: str
    files: tuple[File, ...]
    subwords: str = "sentencepiece"
    vocabulary: int | None = None
    tokenizer: str = ""
    lowercase: bool = False
    preprocess: tuple[str, ...] = ()
    partial: bool = False
    options: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task's recipe.

    `keep_checkpoints` is how many checkpoints saved at update intervals are kept; with 0, checkpoints are saved by
    epoch, as set in `train`. `evaluate` holds flags of fairseq-generate or fairseq-eval-lm.
    """

    name: str
    kind: str
    arch: str
    train: tuple[str, ...]
    budget: tuple[str, ...]
    evaluate: tuple[str, ...]
    data: Data
    source: str = ""
    target: str = ""
    full_budget: tuple[str, ...] = ()
    keep_checkpoints: int = 1

    @property
    def is_translation(self) -> bool:
        return self.kind == "translation"

    @property
    def result_kind(self) -> str:
        """Returns the kind of results: "translation", or for a language model "words" or "characters" (bytes)."""
        if self.is_translation:
            return "translation"
        return "characters" if self.data.subwords == "bytes" else "words"

    @cached_property
    def suffixes(self) -> tuple[str, ...]:
        """Returns the suffixes of the prepared text files."""
        return tuple(sorted((self.source, self.target))) if self.is_translation else ("txt",)

    def text(self, out: Path) -> Path:
        """Returns the folder of the raw text."""
        return out / "data" / self.data.name

    def binarised_text(self, out: Path) -> Path:
        """Returns the folder of the text that is binarised."""
        return self.text(out) if self.data.subwords == "words" else self.text(out) / "subword"

    def data_bin(self, out: Path) -> Path:
        """Returns the folder of the binarised data."""
        return out / "data-bin" / self.data.name


def names() -> list[str]:
    """Returns the names of all tasks."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Task:
    """Returns a task.

    Raises TaskError, naming the file and the key, if there is no such task or its recipe is wrong.
    """
    values = _read(name)
    path = _path(name)
    data = values.get("data", {})
    for key in REQUIRED:
        table, _, inner = key.rpartition(".")
        if inner not in (data if table else values):
            raise TaskError(f"{path}: key '{key}' is missing")
    if values["kind"] == "translation" and not (values.get("source") and values.get("target")):
        raise TaskError(f"{path}: a translation needs the keys 'source' and 'target'")
    subwords = data.get("subwords", Data.subwords)
    if subwords in ("sentencepiece", "subword-nmt") and data.get("vocabulary", 0) <= 0:
        raise TaskError(f"{path}: key 'data.vocabulary' must be a whole number above 0 for subwords '{subwords}'")
    try:
        for key in ("train", "budget", "full_budget", "evaluate"):
            values[key] = tuple(shlex.split(values.get(key, "")))
        data["preprocess"] = tuple(shlex.split(data.get("preprocess", "")))
    except ValueError as error:
        raise TaskError(f"{path}: key '{key}' cannot be split into words: {error}") from error
    variables = {key: os.environ.get(key, value) for key, value in data.pop("variables", {}).items()}
    data["files"] = tuple(_file(path, entry, variables) for entry in data["files"])
    options = data.get("options", {})
    data["options"] = {key: _whole_number(path, key, _fill(path, value, variables)) for key, value in options.items()}
    data.setdefault("name", name.partition(".")[0])
    values["data"] = Data(**data)
    return Task(name=name, **values)


def of_runs(folder_name: str) -> Task:
    """Returns the task of the runs in `OUT/runs/TASK` or, with the full budget, `OUT/runs/TASK-full`.

    Raises TaskError as `load` does, and if the task has no full budget.
    """
    task = load(folder_name.removesuffix("-full"))
    if folder_name.endswith("-full") and not task.full_budget:
        raise TaskError(f"{_path(task.name)}: key 'full_budget' is missing, so there is no {folder_name}")
    return task


def _path(name: str) -> Path:
    return FOLDER / f"{name}.toml"


def _read(name: str) -> dict[str, Any]:
    path = _path(name)
    if name not in (known := names()):
        near = "".join(f"; did you mean {one}?" for one in difflib.get_close_matches(name, known, 1))
        raise TaskError(f"no recipe for task '{name}'{near or '; there are: ' + ' '.join(known)}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"{path}: {error}") from error
    _check(path, values, KEYS)
    _check(path, values.get("data", {}), DATA_KEYS, "data.")
    for entry in values.get("data", {}).get("files", []):
        _check(path, entry, FILE_KEYS, "data.files.")
    if "base" not in values:
        return values
    base = _read(values.pop("base"))
    more = values.pop("train_more", "")
    merged = {**base, **values, "data": {**base["data"], **values.get("data", {})}}
    merged["train"] = f"{merged['train']} {more}"
    return merged


def _check(path: Path, values: dict[str, Any], keys: dict[str, type], prefix: str = "") -> None:
    for key, value in values.items():
        if key not in keys:
            raise TaskError(f"{path}: unknown key '{prefix}{key}'; allowed: {', '.join(keys)}")
        if type(value) is not keys[key]:
            raise TaskError(f"{path}: key '{prefix}{key}' must be {TYPE_NAMES[keys[key]]}, not {value!r}")
        allowed = CHOICES.get(prefix + key)
        if allowed and value not in allowed:
            raise TaskError(f"{path}: key '{prefix}{key}' must be one of {', '.join(allowed)}, not {value!r}")


def _fill(path: Path, text: str, variables: Mapping[str, str]) -> str:
    try:
        return string.Template(str(text)).substitute(variables)
    except (KeyError, ValueError) as error:
        raise TaskError(f"{path}: {error} in '{text}' is not a key of data.variables") from error


def _whole_number(path: Path, key: str, value: str) -> int:
    if not value.isdecimal():
        raise TaskError(f"{path}: key 'data.options.{key}' must be a whole number, not '{value}'")
    return int(value)


def _file(path: Path, entry: dict[str, str], variables: Mapping[str, str]) -> File:
    filled = {key: _fill(path, value, variables) for key, value in entry.items()}
    if "file" not in filled and not filled.get("url"):
        raise TaskError(f"{path}: each of data.files needs the key 'url' or 'file'")
    filled.setdefault("file", filled.get("url", "").rpartition("/")[2])
    return File(**filled)
