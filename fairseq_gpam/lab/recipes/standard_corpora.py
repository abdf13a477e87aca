"""IWSLT14, WMT14, PTB, WikiText-103 and enwik8, split and cleaned as fairseq's own recipes do.

Each function reads published archives and writes to a folder `test.LANG` (raw references) and
`input/SPLIT.LANG` (what subwords are learned on) for translation, `SPLIT.txt` for language
models. Sources: fairseq's `examples/translation/prepare-iwslt14.sh` and
`prepare-wmt14en2de.sh`, `examples/language_model/README.md`.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from fairseq_gpam.lab.recipes import archives as archive_files
from fairseq_gpam.lab.recipes.archives import ArchiveError, unpack
from fairseq_gpam.lab.recipes.subwords import (
    SPLITS,
    MosesTokenize,
    bytes_as_tokens,
    keep_lengths,
    map_lines,
    read_lines,
    write_lines,
    write_split,
)

LANGUAGES = ("de", "en")

IWSLT14_TESTS = (
    "IWSLT14.TED.dev2010",
    "IWSLT14.TEDX.dev2012",
    "IWSLT14.TED.tst2010",
    "IWSLT14.TED.tst2011",
    "IWSLT14.TED.tst2012",
)
IWSLT14_LONGEST = 175
IWSLT14_VALID_EVERY = 23

WMT14_TRAINING = ("europarl-v7.de-en", "commoncrawl.de-en", "news-commentary-v9.de-en")
WMT14_LONGEST = 250
WMT14_VALID_EVERY = 100
NEWSTEST2014 = {"de": "newstest2014-deen-ref.de.sgm", "en": "newstest2014-deen-src.en.sgm"}

_IWSLT14_DROPPED = re.compile(r"<url>|<talkid>|<keywords>")
_IWSLT14_TAGS = re.compile(r"</?(?:title|description)>")
_SEGMENT = re.compile(r"<seg id=\"[0-9]*\">\s*(.*?)\s*</seg>")


def segments(path: Path) -> list[str]:
    """Returns the text of every `<seg>` of an SGML or XML test set; raises ArchiveError if there is none."""
    sentences = [match[1] for line in read_lines(path) if (match := _SEGMENT.search(line))]
    if not sentences:
        raise ArchiveError(f'{path.name} holds no sentence; expected a test set with <seg id="1"> and so on')
    return sentences


@contextmanager
def _writing(paths: Sequence[Path]) -> Iterator[list[IO[str]]]:
    """Opens several files at once, to be written line by line."""
    with ExitStack() as stack:
        yield [stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in paths]


def same_number(german: int, english: int, what: str) -> None:
    """Raises ArchiveError if the sides of a corpus differ in their number of lines."""
    if german != english:
        raise ArchiveError(f"{what}: {german} German lines, but {english} English ones")


def _report(folder: Path) -> None:
    for split in SPLITS:
        count = sum(1 for _ in read_lines(folder / f"{split}.{LANGUAGES[0]}"))
        print(f"{split}: {count:,} sentence pairs", flush=True)


def prepare_iwslt14(archives: Sequence[Path], out: Path, moses: bool = True, workers: int = 1) -> None:
    """Writes IWSLT14 German–English from `de-en.tgz`.

    Pairs of 1 to 175 Moses tokens with a length ratio of at most 1.5 are kept and lower-cased. Every
    23rd pair is validation; the test set joins the TED and TEDx sets of 2010 to 2012. With `moses`
    the text is tokenised, else it is plain lower-cased text of the same pairs.
    """
    names = [f"train.tags.de-en.{language}" for language in LANGUAGES]
    names += [f"{test}.de-en.{language}.xml" for test in IWSLT14_TESTS for language in LANGUAGES]
    source_text: dict[str, list[str]] = {}
    tokenised: dict[str, list[str]] = {}
    (out / "input").mkdir()
    with tempfile.TemporaryDirectory() as folder:
        files = unpack(archives, names, Path(folder))
        for language in LANGUAGES:
            tokenize = MosesTokenize(language)
            lines = read_lines(files[f"train.tags.de-en.{language}"])
            source_text[language] = [_IWSLT14_TAGS.sub("", line) for line in lines if not _IWSLT14_DROPPED.search(line)]
            tokenised[language] = list(map_lines(tokenize, source_text[language], workers))
            tests = [line for test in IWSLT14_TESTS for line in segments(files[f"{test}.de-en.{language}.xml"])]
            write_lines(out / f"test.{language}", tests)
            straight = (line.replace("’", "'") for line in tests)
            inputs = map(tokenize, straight) if moses else straight
            write_lines(out / f"input/test.{language}", (line.lower() for line in inputs))
    same_number(len(tokenised["de"]), len(tokenised["en"]), "train.tags")
    pairs = zip(tokenised["de"], tokenised["en"], strict=True)
    kept = [number for number, (de, en) in enumerate(pairs) if keep_lengths(de, en, IWSLT14_LONGEST)]
    for language in LANGUAGES:
        text = tokenised[language] if moses else source_text[language]
        chosen = [" ".join(text[number].lower().split()) for number in kept]
        write_lines(out / f"input/valid.{language}", chosen[IWSLT14_VALID_EVERY - 1 :: IWSLT14_VALID_EVERY])
        del chosen[IWSLT14_VALID_EVERY - 1 :: IWSLT14_VALID_EVERY]
        write_lines(out / f"input/train.{language}", chosen)
    _report(out / "input")


def prepare_wmt14(archives: Sequence[Path], out: Path, moses: bool = True, workers: int = 1) -> None:
    """Writes WMT14 German–English: Europarl v7, Common Crawl and News Commentary v9.

    Every 100th pair is validation, newstest2014 (full) is the test set. Pairs are filtered by their
    length in subwords later, by `clean_wmt14`.
    """
    names = [f"{corpus}.{language}" for corpus in WMT14_TRAINING for language in LANGUAGES]
    (out / "input").mkdir()
    with tempfile.TemporaryDirectory(dir=out) as folder:
        files = unpack(archives, [*names, *NEWSTEST2014.values()], Path(folder))
        counts: dict[str, list[int]] = {}
        for language in LANGUAGES:
            tokenize = MosesTokenize(language, dashes=True)
            normalize = MosesTokenize(language, dashes=True, normalize=True)
            text = segments(files[NEWSTEST2014[language]])
            write_lines(out / f"test.{language}", text)
            straight = (line.replace("’", "'") for line in text)
            write_lines(out / f"input/test.{language}", map(tokenize, straight) if moses else straight)
            corpora = [files[f"{corpus}.{language}"] for corpus in WMT14_TRAINING]
            counts[language] = [sum(1 for _ in read_lines(corpus)) for corpus in corpora]
            lines: Iterable[str] = (line.strip() for corpus in corpora for line in read_lines(corpus))
            if moses:
                lines = map_lines(normalize, lines, workers)
            with _writing([out / f"input/{split}.{language}" for split in ("train", "valid")]) as (train, valid):
                for number, line in enumerate(lines, start=1):
                    (train if number % WMT14_VALID_EVERY else valid).write(line + "\n")
        for corpus, german, english in zip(WMT14_TRAINING, *counts.values(), strict=True):
            same_number(german, english, corpus)
    _report(out / "input")


def prepare_wmt16(archives: Sequence[Path], out: Path) -> None:
    """Writes WMT16 English–German as Google preprocessed it; newstest2013 and newstest2014 are held out.

    `archives` are `wmt16_en_de.tar.gz`, tokenised and in 32,000 joint BPE merges, and WMT14's
    `test-full.tgz` with the raw references.
    """
    sources = {"train": "train.tok.clean", "valid": "newstest2013.tok", "test": "newstest2014.tok"}
    names = [f"{source}.bpe.32000.{language}" for source in sources.values() for language in LANGUAGES]
    (out / "subword").mkdir()
    (out / "input").mkdir()
    files = unpack(archives, [*names, *NEWSTEST2014.values()], out / "subword")
    for language in LANGUAGES:
        write_lines(out / f"test.{language}", segments(files[NEWSTEST2014[language]]))
        files[NEWSTEST2014[language]].unlink()
        for split, source in sources.items():
            files[f"{source}.bpe.32000.{language}"].rename(out / f"subword/{split}.{language}")
        words = (line.replace("@@ ", "") for line in read_lines(out / f"subword/test.{language}"))
        write_lines(out / f"input/test.{language}", words)
    _report(out / "subword")


def clean_wmt14(subword: Path) -> None:
    """Keeps training and validation pairs of 1 to 250 subwords with a length ratio of at most 1.5."""
    for split in ("train", "valid"):
        paths = [subword / f"{split}.{language}" for language in LANGUAGES]
        parts = [path.with_name(path.name + ".part") for path in paths]
        with _writing(parts) as outs:
            kept = 0
            for pair in zip(*map(read_lines, paths), strict=True):
                if keep_lengths(pair[0], pair[1], WMT14_LONGEST):
                    kept += 1
                    for out, line in zip(outs, pair, strict=True):
                        out.write(line + "\n")
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
        print(f"{split}: {kept:,} sentence pairs after cleaning", flush=True)


def unpack_ptb(archive: Path, downloads: Path) -> Path:
    """Extracts the three texts from `simple-examples.tgz`; returns their folder."""
    folder = downloads / "ptb"
    folder.mkdir(parents=True, exist_ok=True)
    unpack([archive], [f"ptb.{split}.txt" for split in SPLITS], folder)
    return folder


def prepare_ptb(files: Sequence[Path], out: Path) -> None:
    """Writes the Penn Treebank (10,000 words, rare ones `<unk>`) from its three text files."""
    by_name = {path.name: path for path in files}
    for split in SPLITS:
        name = f"ptb.{split}.txt"
        if name not in by_name:
            raise ArchiveError(f"missing: {name}")
        write_split(out, split, archive_files.read_lines(by_name[name]))


def prepare_wikitext103(archives: Sequence[Path], out: Path) -> None:
    """Writes WikiText-103 (words, rare ones `<unk>`) from `wikitext-103-v1.zip`."""
    (path,) = archives
    for split in SPLITS:
        name = f"wiki.{split}.tokens"
        with archive_files.zip_member(path, name) as member:
            write_split(out, split, archive_files.lines_of(member, f"{path}: {name}"))


def prepare_enwik8(archives: Sequence[Path], out: Path, held_out: int) -> None:
    """Writes enwik8's bytes unchanged to `SPLIT.txt` and as tokens to `subword/SPLIT.txt`.

    The last `held_out` bytes are the test set, those before it the validation set.
    """
    (path,) = archives
    with archive_files.zip_member(path, "enwik8") as member:
        content = archive_files.read(member, f"{path}: enwik8")
    if len(content) <= 2 * held_out:
        raise ArchiveError(f"{path}: {len(content):,} bytes are too few to hold out two times {held_out:,}")
    (out / "subword").mkdir()
    parts = (content[: -2 * held_out], content[-2 * held_out : -held_out], content[-held_out:])
    for split, part in zip(SPLITS, parts, strict=True):
        (out / f"{split}.txt").write_bytes(part)
        (out / f"subword/{split}.txt").write_text(bytes_as_tokens(part), encoding="ascii", newline="\n")
        print(f"{split}: {len(part):,} bytes", flush=True)
