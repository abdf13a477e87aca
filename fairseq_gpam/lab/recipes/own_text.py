"""The text of a recipe of one's own: its files, one sentence a line, become the splits of the task."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from fairseq_gpam.errors import InputError
from fairseq_gpam.lab.recipes.subwords import MosesTokenize, map_lines, read_lines, write_lines
from fairseq_gpam.lab.recipes.tasks import SPLITS, Task


class TextError(ValueError):
    """A text file is missing or does not fit; the message names the file and what to do."""


def prepare_text(task: Task, files: Sequence[Path], out: Path, workers: int = 1) -> None:
    """Writes the files, those of each split together, as `out/SPLIT.LANGUAGE`, or for one language `out/SPLIT.txt`.

    Lines of training and validation whose source or target is empty are left out. A carriage return inside a line, at
    which fairseq would split it, becomes a space. Text that is lower-cased or tokenised before it is encoded is in
    `out/input`. Raises TextError if a file is missing, not UTF-8 or empty, or a source and its target differ in their
    number of lines.
    """
    suffixes = [task.source, task.target] if task.is_translation else ["txt"]
    changes = bool(task.data.tokenizer or task.data.lowercase)
    if changes:
        (out / "input").mkdir()
    for number, split in enumerate(SPLITS):
        paths = files[number * len(suffixes) : (number + 1) * len(suffixes)]
        lines = [_lines(path) for path in paths]
        if len({len(each) for each in lines}) > 1:
            counts = " and ".join(f"{path} has {len(each):,}" for path, each in zip(paths, lines, strict=True))
            raise TextError(f"{counts} lines; allowed: the same number, line by line translations of each other")
        rows = list(zip(*lines, strict=True))
        has_text = [row for row in rows if all(map(str.strip, row))]
        kept = has_text if task.is_translation and split != "test" else rows
        if not has_text:
            raise TextError(f"{' and '.join(map(str, paths))}: no line with text; allowed: one sentence a line")
        for column, suffix in enumerate(suffixes):
            name = f"{split}.{suffix}"
            write_lines(out / name, (row[column] for row in kept))
            if changes:
                tokenize = MosesTokenize(suffix) if task.data.tokenizer == "moses" else None
                change = functools.partial(_change, lowercase=task.data.lowercase, tokenize=tokenize)
                write_lines(out / "input" / name, map_lines(change, read_lines(out / name), workers))
        dropped = f"; {len(rows) - len(kept):,} with an empty side left out" if len(kept) < len(rows) else ""
        print(f"{split}: {len(kept):,} {'sentence pairs' if task.is_translation else 'lines'}{dropped}", flush=True)


def _change(line: str, lowercase: bool, tokenize: Callable[[str], str] | None) -> str:
    line = line.lower() if lowercase else line
    return line if tokenize is None else tokenize(line)


def _lines(path: Path) -> list[str]:
    try:
        return [line.removesuffix("\r").replace("\r", " ") for line in read_lines(path)]
    except OSError as error:
        raise TextError(f"{path}: cannot be read: {error.strerror}") from error
    except InputError as error:
        raise TextError(str(error)) from error
