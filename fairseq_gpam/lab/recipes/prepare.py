"""Prepares a task's data: fetches its files, writes text and subwords, binarises them for fairseq.

Complete folders are reused. Interrupted ones are made again, because a folder gets its name only when it is complete.
"""

import argparse
import contextlib
import io
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from fairseq_gpam.arguments import add_output_folder, positive
from fairseq_gpam.errors import InputError, read_text, require
from fairseq_gpam.lab.recipes import corpora, downloads, ngrams, standard_corpora, subwords, synthetic, tasks
from fairseq_gpam.lab.recipes.archives import ArchiveError
from fairseq_gpam.lab.recipes.multi30k import prepare_multi30k
from fairseq_gpam.lab.recipes.own_text import TextError, prepare_text
from fairseq_gpam.lab.recipes.run_folder import exclusive
from fairseq_gpam.lab.recipes.stage_results import write_atomically
from fairseq_gpam.lab.recipes.tasks import Task

LEARNED = ("sentencepiece", "subword-nmt")
"""Subwords that are learned on the training set, `vocabulary` of them."""


class PrepareError(RuntimeError):
    """The data cannot be prepared; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help=tasks.HELP)
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="PATH",
        help="use this file, or the files in this folder, instead of downloading; checksums are verified too",
    )
    parser.add_argument("--sentencepiece", action="store_true", help="prepare the task's variant of that name")
    parser.add_argument("--vocabulary", type=int, metavar="N", help="another number of pieces or merges")
    parser.add_argument("--wmt16", type=Path, metavar="FILE", help="WMT14: prepare the variant wmt16 from this file")
    add_output_folder(parser)
    parser.epilog = "Environment: WORKERS, processes to use (default: 1); the variables in the recipe's data.variables."


def run(arguments: argparse.Namespace) -> int:
    name = arguments.task
    if arguments.sentencepiece:
        name += ".sentencepiece"
    if arguments.wmt16:
        name += ".wmt16"
    task = tasks.load(name)
    if arguments.vocabulary is not None:
        task = with_vocabulary(task, arguments.vocabulary)
    out = arguments.out.resolve()
    prepare(task, fetch(task, out, arguments.archive, arguments.wmt16), out)
    return 0


def with_vocabulary(task: Task, size: int) -> Task:
    """Returns the task with another number of subwords; raises PrepareError if it learns no subwords."""
    if size <= 0:
        raise PrepareError(f"--vocabulary must be a whole number above 0, not {size}")
    if task.data.subwords not in LEARNED:
        raise PrepareError(f"{task.name} learns no subwords; leave out --vocabulary")
    return replace(task, data=replace(task.data, vocabulary=size))


def fetch(task: Task, out: Path, archive: Path | None = None, given: Path | None = None) -> list[Path]:
    """Returns the task's files, in the recipe's order; `given` replaces the first one.

    Raises ModuleNotFoundError first if a tokeniser is missing that the task needs.
    """
    if task.data.tokenizer == "moses":
        require("sacremoses")
    if task.data.subwords == "subword-nmt":
        require("subword_nmt")
    folder = out / "downloads"
    data = task.data
    if data.corpus == "text":
        for path in (paths := [Path(each.file) for each in data.files]):
            if not path.is_file():
                raise TextError(f"{task.reference}: text has {path}; allowed: a file that exists")
        return paths
    paths = []
    if given is not None:
        if not given.is_file():
            raise downloads.DownloadError(f"no such file: {given}")
        downloads.check_sum(given, data.files[0].checksum)
        paths = [given]
        data = replace(data, files=data.files[1:])
    if task.data.corpus == "ptb" and archive is not None and archive.is_file():
        archive = standard_corpora.unpack_ptb(archive, folder)
    if archive is not None:
        # The folder of Google's WMT16 file also contains the test set.
        if given is not None:
            archive = archive / data.files[0].file
        return paths + downloads.local_files(data, archive)
    return paths + [downloads.fetch(file, folder) for file in data.files]


def workers_wanted() -> int:
    """Returns the number of processes to use; raises PrepareError if WORKERS is not a number above 0."""
    try:
        return positive(os.environ.get("WORKERS", "1"))
    except argparse.ArgumentTypeError as error:
        raise PrepareError(f"WORKERS {error}") from error


def prepare(task: Task, files: Sequence[Path], out: Path) -> None:
    """Writes the splits as text and subwords to `out/data`, and binarised to `out/data-bin`.

    Raises PrepareError if the folders were made with other settings, WORKERS is wrong or fairseq-preprocess fails,
    ArchiveError if a file is not the published one.
    """
    data, workers = task.data, workers_wanted()
    learned = data.subwords in LEARNED
    known = [""] * len(files) if data.partial else [file.checksum for file in data.files]
    sums = [checksum or downloads.digest(path) for checksum, path in zip(known, files, strict=True)]
    parts = [" ".join([data.corpus, *sums]), f"{data.subwords} {data.vocabulary}" if learned else data.subwords]
    parts += [f"--{key.replace('_', '-')} {value}" for key, value in data.options.items()]
    if data.corpus == "text":
        parts += [f"{task.source} to {task.target}"] * task.is_translation
        parts += [f"tokenizer {data.tokenizer or 'none'}", f"lowercase {str(data.lowercase).lower()}"]
    stamp = ", ".join(parts)
    with build_once(task.text(out), stamp) as part:
        if part is not None:
            if files:
                print(f"reading {' '.join(map(str, files))}", flush=True)
            read_corpus(task, files, part, workers)
    stamp += f", fairseq-preprocess {' '.join(data.preprocess)}"
    with build_once(task.data_bin(out), stamp) as part:
        if part is not None:
            print("binarising", flush=True)
            binarise(task, task.binarised_text(out), part, workers)
    if task.reference != task.name:
        (out / tasks.COPIES).mkdir(exist_ok=True)
        copy = out / tasks.COPIES / f"{task.name}{tasks.OWN}"
        if copy != Path(task.reference):
            write_atomically(copy, Path(task.reference).read_text(encoding="utf-8"))
    print(f"data ready in {task.data_bin(out)}", flush=True)


@contextlib.contextmanager
def build_once(folder: Path, stamp: str) -> Iterator[Path | None]:
    """Yields a new folder that is renamed to `folder` when complete, or None if that already exists.

    Raises PrepareError if it was made with another stamp, RunError if its parent cannot be used.
    """
    if not folder.is_dir():
        with exclusive(folder.parent, f"{folder.name}.lock"):
            # Another process may have completed it in the meantime.
            if not folder.is_dir():
                part = folder.with_name(f"{folder.name}.part")
                if part.exists():
                    shutil.rmtree(part)
                part.mkdir()
                yield part
                (part / "stamp").write_text(stamp + "\n", encoding="utf-8")
                part.rename(folder)
                return
    there = read_text(folder / "stamp").strip()
    if there != stamp:
        raise PrepareError(
            f"{folder} was made with other settings.\n  there: {there}\n  now:   {stamp}\n"
            "Remove it, or choose another folder with --out."
        )
    yield None


def read_corpus(task: Task, files: Sequence[Path], out: Path, workers: int = 1) -> None:
    """Writes the splits of the task's corpus to `out`, and the text to binarise to `out/subword` if it differs."""
    data = task.data
    moses = data.tokenizer == "moses"
    try:
        match data.corpus:
            case "bible":
                corpora.prepare_bible(files[0], out)
            case "shakespeare":
                corpora.prepare_shakespeare(files[0], out)
            case "multi30k":
                prepare_multi30k(files, out, workers)
            case "iwslt14":
                standard_corpora.prepare_iwslt14(files, out, moses, workers)
            case "wmt14":
                standard_corpora.prepare_wmt14(files, out, moses, workers)
            case "wmt16":
                standard_corpora.prepare_wmt16(files, out)
            case "ptb":
                standard_corpora.prepare_ptb(files, out)
            case "wikitext-103":
                standard_corpora.prepare_wikitext103(files, out)
            case "enwik8":
                standard_corpora.prepare_enwik8(files, out, data.options["held_out"])
            case "text":
                prepare_text(task, files, out, workers)
            case "ngrams":
                ngrams.write(data.options, out)
            case corpus if corpus in synthetic.GENERATORS:
                synthetic.write(corpus, data.options, out)
            case _:
                raise PrepareError(f"{task.name}: no reader for the corpus '{data.corpus}'")
    except (UnicodeDecodeError, InputError) as error:
        raise ArchiveError(f"{' '.join(map(str, files))} hold text that is not UTF-8: {error}") from error
    if data.subwords in LEARNED:
        assert data.vocabulary is not None
        source = out / "input" if (out / "input").is_dir() else out
        try:
            subwords.encode_splits(source, out / "subword", task.suffixes, data.subwords, data.vocabulary, workers)
        except RuntimeError as error:
            raise PrepareError(f"{task.name}: no {data.vocabulary:,} subwords (data.vocabulary): {error}") from error
    if data.corpus == "wmt14":
        standard_corpora.clean_wmt14(out / "subword")


def binarise(task: Task, text: Path, out: Path, workers: int = 1) -> None:
    """Runs fairseq-preprocess on `text` in this process; raises PrepareError with its messages if it fails."""
    from fairseq import options

    suffix = "" if task.is_translation else f".{task.suffixes[0]}"
    further = sorted(path.stem for path in text.glob(f"test[0-9]{suffix}")) if suffix else []
    arguments: list[str] = []
    for split in tasks.SPLITS:
        names = ["test", *further] if split == "test" else [split]
        arguments += [f"--{split}pref", ",".join(str(text / f"{name}{suffix}") for name in names)]
    arguments += ["--destdir", str(out), *task.data.preprocess, "--workers", str(workers)]
    messages = io.StringIO()
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [logging.StreamHandler(messages)]
    try:
        with contextlib.redirect_stdout(messages), contextlib.redirect_stderr(messages):
            from fairseq_cli import preprocess

            preprocess.main(options.get_preprocessing_parser().parse_args(arguments))
    except (Exception, SystemExit) as error:
        raise PrepareError(f"{messages.getvalue()}fairseq-preprocess failed: {error}") from error
    finally:
        root.handlers = handlers
