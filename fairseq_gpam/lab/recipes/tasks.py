"""Recipes of tasks: TOML files, checked when they are read; the package's own are in `standard/`.

A task is called by the name of its file in `standard/`, `TASK` or `TASK.VARIANT`, or by the path of a file of one's
own, `my-task.toml`. A file may name a task of the package as its `base`: its own keys replace those of the base, and
`train_more` is appended to the base's `train`. `${NAME}` in `data.files` and `data.options` refers to a key of
`data.variables`, which an environment variable of that name overrides.

A recipe of one's own has a table `text` with the paths of text files, seen from the folder of the recipe; without
`base` it is based on bible-de-en, or for one language on shakespeare-lm:

    source = "de"
    target = "en"
    [text]
    train = ["train.de", "train.en"]
    valid = ["valid.de", "valid.en"]
    test = ["test.de", "test.en"]
"""

import difflib
import os
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fairseq_gpam.lab import schema
from fairseq_gpam.lab.recipes.subwords import SPLITS
from fairseq_gpam.lab.schema import SchemaError as TaskError

FOLDER = Path(__file__).parent / "standard"
HELP = "a task, such as bible-de-en or iwslt14-de-en.prenorm, or the path of a recipe of your own, my-task.toml"
OWN = ".toml"
COPIES = "recipes"
"""The folder in the output folder that has a copy of each recipe of one's own whose data was prepared."""
OWN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
FLAGS = ("train", "budget", "full_budget", "evaluate")
JOINED = {"sentencepiece": "sentencepiece", "subword-nmt": "'@@ '", "words": "none"}
"""By which symbol fairseq makes words of each kind of subwords."""

Paths = Annotated[str | list[str], Meta(description="a path, or in a translation two: of the source and of the target")]


class File(schema.Strict, frozen=True):
    """A published file: at `url`, in a Python `package` of a given `version`, or only provided by the user."""

    file: str = ""
    checksum: str = ""
    url: str = ""
    package: str = ""
    version: str = ""


class TextTable(schema.Strict, frozen=True):
    """The text files of a recipe of one's own, with one sentence a line."""

    train: Paths
    valid: Paths
    test: Paths


class Data(schema.Strict, frozen=True):
    """How a corpus is prepared for fairseq.

    `tokenizer` "moses": the text is tokenised, and hypotheses are detokenised for scoring. `lowercase`: the text is
    lower-cased, and scores ignore case. `vocabulary`: the number of sentencepiece pieces or subword-nmt merges.
    `partial`: a folder of local files may lack some; the reader of the corpus raises an error if it needs them.
    """

    corpus: str
    name: str
    files: tuple[File, ...]
    subwords: Literal["sentencepiece", "subword-nmt", "bytes", "words", "prepared"] = "sentencepiece"
    vocabulary: Annotated[int, Meta(gt=0)] | None = None
    tokenizer: Literal["", "moses"] = ""
    lowercase: bool = False
    preprocess: tuple[str, ...] = ()
    partial: bool = False
    options: dict[str, int] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.subwords in ("sentencepiece", "subword-nmt") and self.vocabulary is None:
            raise ValueError(f"vocabulary is missing; allowed with subwords {self.subwords}: a whole number above 0")


class Task(schema.Strict, frozen=True):
    """A task's recipe.

    `keep_checkpoints` is how many checkpoints saved at update intervals are kept; with 0, checkpoints are saved by
    epoch, as set in `train`. `evaluate` holds flags of fairseq-generate or fairseq-eval-lm. `reference` is what `load`
    takes from any folder: the name, or the path of one's own file.
    """

    name: str
    reference: str
    kind: Literal["translation", "language_model"]
    arch: str
    train: tuple[str, ...]
    budget: tuple[str, ...]
    evaluate: tuple[str, ...]
    data: Data
    source: str = ""
    target: str = ""
    full_budget: tuple[str, ...] = ()
    keep_checkpoints: int = 1

    def __post_init__(self) -> None:
        if self.is_translation and not (self.source and self.target):
            raise ValueError("a translation needs the keys 'source' and 'target'")

    @property
    def is_translation(self) -> bool:
        return self.kind == "translation"

    @property
    def has_questions(self) -> bool:
        """Returns whether only answers count: the words after those that begin with a question mark."""
        return "answer_cross_entropy" in self.train

    @property
    def result_kind(self) -> str:
        """Returns the kind of results: "translation", or of a language model "answers", "characters" or "words"."""
        if self.is_translation:
            return "translation"
        if self.has_questions:
            return "answers"
        return "characters" if self.data.subwords == "bytes" else "words"

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Returns the suffixes of the prepared text files."""
        return tuple(sorted((self.source, self.target))) if self.is_translation else ("txt",)

    def text(self, out: Path) -> Path:
        """Returns the folder of the raw text."""
        return out / "data" / self.data.name

    def binarised_text(self, out: Path) -> Path:
        """Returns the folder of the text that is binarised; of words, that of the processed text if there is one."""
        text = self.text(out)
        if self.data.subwords != "words":
            return text / "subword"
        return text / "input" if (text / "input").is_dir() else text

    def data_bin(self, out: Path) -> Path:
        """Returns the folder of the binarised data."""
        return out / "data-bin" / self.data.name


def _in_a_file(kind: type[msgspec.Struct], computed: str = "", **written: Any) -> Any:
    """Returns a structure as files have it: keys may be left out for a base's, and these are `written` otherwise."""
    types = {field.name: field.type for field in msgspec.structs.fields(kind) if field.name not in computed.split()}
    fields = [(name, type_ | None, None) for name, type_ in {**types, **written}.items()]
    return msgspec.defstruct(kind.__name__, fields, bases=(schema.Strict,), frozen=True, omit_defaults=True)


DATA_TABLE = _in_a_file(Data, preprocess=str, files=list[File], options=dict[str, str | int], variables=dict[str, str])
RECIPE = _in_a_file(
    Task, "name reference", **dict.fromkeys(FLAGS, str), base=str, train_more=str, data=DATA_TABLE, text=TextTable
)


def names() -> list[str]:
    """Returns the names of the package's tasks."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Task:
    """Returns the task of a name, or of a path that ends in `.toml`.

    Raises TaskError, naming the file and the key, if there is no such task or its recipe is wrong.
    """
    path = _path(name)
    values = _read(name)
    text = values.pop("text", None)
    data = values.setdefault("data", {})
    if text is not None:
        data |= _data_of_text(path, text, values)
    for key in (*FLAGS, "preprocess"):
        table = data if key == "preprocess" else values
        if key in table:
            table[key] = _words(path, key, table[key])
    variables = {key: os.environ.get(key, value) for key, value in data.pop("variables", {}).items()}
    if "files" in data:
        data["files"] = [_file(path, entry, variables) for entry in data["files"]]
    options = {key: _fill(path, value, variables) for key, value in data.get("options", {}).items()}
    data["options"] = {key: int(value) if value.isdecimal() else value for key, value in options.items()}
    data.setdefault("name", path.stem.partition(".")[0])
    reference = str(path.resolve()) if name.endswith(OWN) else name
    return schema.check({**values, "name": path.stem, "reference": reference}, Task, str(path))


def of_runs(folder_name: str, out: Path | None = None) -> Task:
    """Returns the task of the runs in `OUT/runs/TASK` or, with the full budget, `OUT/runs/TASK-full`.

    A task of one's own is found in the output folder. Raises TaskError as `load` does, and if the task has no full
    budget.
    """
    name = folder_name.removesuffix("-full")
    copy = None if out is None else out / COPIES / f"{name}{OWN}"
    task = load(str(copy) if copy is not None and copy.is_file() else name)
    if folder_name.endswith("-full") and not task.full_budget:
        raise TaskError(f"{_path(task.reference)}: key 'full_budget' is missing, so there is no {folder_name}")
    return task


def _path(name: str) -> Path:
    return Path(name) if name.endswith(OWN) else FOLDER / f"{name}{OWN}"


def _read(name: str, based_on_it: Sequence[Path] = ()) -> dict[str, Any]:
    """Returns the keys of a recipe and its base."""
    path = _path(name)
    if path.resolve() in based_on_it:
        raise TaskError(f"'{name}' is not allowed: it is based on this recipe itself; allowed: another recipe")
    if name.endswith(OWN):
        _check_name(path)
    elif name not in (known := names()):
        near = [f"{name}{OWN}"] if Path(f"{name}{OWN}").is_file() else difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}, or the path of a recipe"
        raise TaskError(f"no recipe for task '{name}'; {hint}")
    values = msgspec.to_builtins(schema.read_toml(path, RECIPE))
    text = values.get("text")
    if not (base_name := values.pop("base", "")):
        if text is None:
            return values
        languages = [key for key in ("source", "target") if values.get(key)]
        if len(languages) == 1:
            raise TaskError(f"{path}: a translation needs the keys 'source' and 'target', not {languages[0]} alone")
        base_name = "bible-de-en" if languages else "shakespeare-lm"
    try:
        base = _read(base_name, [*based_on_it, path.resolve()])
    except TaskError as error:
        raise TaskError(f"{path}: base: {error}") from error
    more = values.pop("train_more", "")
    merged = {**base, **values, "data": {**base["data"], **values.get("data", {})}}
    kinds = [table.get("subwords", "sentencepiece") for table in (base["data"], merged["data"])]
    if kinds[0] != kinds[1] and kinds[1] in JOINED and merged["kind"] == "translation" and name.endswith(OWN):
        for key, flag in (("evaluate", "--remove-bpe"), ("train", "--eval-bleu-remove-bpe")):
            if key not in values and (key == "evaluate" or "--eval-bleu" in base[key]):
                merged[key] += f" {flag} {JOINED[kinds[1]]}"
    merged["train"] = f"{merged['train']} {more}"
    if text is not None:
        # What belongs to the base's own corpus stays behind.
        for key in base["data"].keys() & {"corpus", "name", "files", "options", "variables", "preprocess", "partial"}:
            merged["data"].pop(key)
        if "preprocess" in values.get("data", {}):
            merged["data"]["preprocess"] = values["data"]["preprocess"]
    return merged


def _check_name(path: Path) -> None:
    if path.stem in names():
        raise TaskError(f"{path}: a task of the package has this name; allowed: another name")
    if not OWN_NAME.fullmatch(path.stem) or path.stem.endswith("-full"):
        raise TaskError(f"{path}: the name is not allowed; allowed: letters, digits, '-' and '_', without '-full'")


def _data_of_text(path: Path, text: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the table `text` means as keys of `data`."""
    languages = [values["source"], values["target"]] if values["kind"] == "translation" else []
    if values["data"].get("subwords") in ("bytes", "prepared"):
        raise TaskError(
            f"{path}: data.subwords is {schema.show(values['data']['subwords'])}; allowed with a table text: "
            "sentencepiece, subword-nmt, words"
        )
    if languages and languages[0] == languages[1]:
        raise TaskError(f"{path}: target is {schema.show(languages[1])}; allowed: another name than that of the source")
    files = []
    for split in SPLITS:
        paths = [text[split]] if isinstance(text[split], str) else text[split]
        if len(paths) != (len(languages) or 1):
            allowed = "two paths, of the source and of the target" if languages else "one path"
            raise TaskError(f"{path}: text.{split} is {schema.show(text[split])}; allowed: {allowed}")
        files += [{"file": str((path.parent / each).resolve())} for each in paths]
    flags = f"--source-lang {languages[0]} --target-lang {languages[1]} --joined-dictionary" if languages else ""
    return {"corpus": "text", "files": files, "preprocess": values["data"].get("preprocess", flags or "--only-source")}


def _words(path: Path, key: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise TaskError(f"{path}: key '{key}' cannot be split into words: {error}") from error


def _fill(path: Path, text: str | int, variables: Mapping[str, str]) -> str:
    try:
        return string.Template(str(text)).substitute(variables)
    except (KeyError, ValueError) as error:
        raise TaskError(f"{path}: {error} in '{text}' is not a key of data.variables") from error


def _file(path: Path, entry: dict[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    filled = {key: _fill(path, value, variables) if variables else value for key, value in entry.items()}
    if not filled.get("file"):
        if not filled.get("url"):
            raise TaskError(f"{path}: each of data.files needs the key 'url' or 'file'")
        filled["file"] = filled["url"].rpartition("/")[2]
    return filled
