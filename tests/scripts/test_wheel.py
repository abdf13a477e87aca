"""A built wheel works alone: in an empty folder, without the repository, from the data to a page of verdicts."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from page_of_own_text import TINY, blocks, write_recipe, write_text

from fairseq_gpam import __version__
from fairseq_gpam.lab.recipes import tasks

REPOSITORY = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
SHORT = [*TINY.split(), "--save-interval-updates", "2", "--validate-interval-updates", "2"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, REPOSITORY], check=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory, script_environment):
    """Calls the installed `fairseq-gpam` in a folder, and returns what it prints."""
    installed = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--quiet", "--no-deps", "--target", installed, wheel], check=True)
    # As a virtual environment in a project of the user's, whose commit says nothing about this package.
    subprocess.run(["git", "init", "--quiet", installed], check=True)
    # Coverage counts the files of the repository, not their copies.
    kept = {name: value for name, value in script_environment.items() if not name.startswith("COV")}
    environment = {**kept, "PYTHONPATH": str(installed)}

    def run(folder, *words):
        line = [installed / "bin/fairseq-gpam", *words]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run(installed.parent, "path") == f"{installed / 'fairseq_gpam'}\n"
    return run


@pytest.mark.slow
def test_the_wheel_has_what_the_package_reads(wheel):
    there = set(zipfile.ZipFile(wheel).namelist())
    package = REPOSITORY / "fairseq_gpam"
    needed = {path for pattern in ("*.py", "*.toml", "*.j2", "Snakefile") for path in package.rglob(pattern)}
    assert {path.relative_to(REPOSITORY).as_posix() for path in needed} <= there
    assert not [name for name in there if name.startswith(("tests/", "scripts/"))]


@pytest.mark.slow
@pytest.mark.timeout(2400)  # some thirty processes that import PyTorch
def test_in_an_empty_folder_the_wheel_leads_from_an_archive_to_verdicts(command, bible_wheel, tmp_path):
    assert command(tmp_path, "--version") == f"fairseq-gpam {__version__}\n"
    (tmp_path / "out/downloads").mkdir(parents=True)
    os.symlink(bible_wheel, tmp_path / "out/downloads" / tasks.load("bible-de-en").data.files[0].file)
    assert "| stock" in command(tmp_path, "quickstart", "--", *SHORT)
    write_text(tmp_path)
    task = write_recipe(tmp_path).name
    command(tmp_path, "prepare", task)
    command(tmp_path, "train", task, "dagpam")
    command(tmp_path, "generate", task, "dagpam")
    run = f"out/runs/{Path(task).stem}/dagpam/1"
    assert "BLEU" in command(tmp_path, "score", run)
    recorded = json.loads((tmp_path / run / "results.json").read_text(encoding="utf-8"))
    assert recorded["train"]["environment"]["commit"] == "unknown"
    (tmp_path / "grid.toml").write_text(blocks("toml")[1].replace("[1, 2, 3, 4, 5, 6, 7, 8]", "[1, 2]"))
    command(tmp_path, "experiment", "grid.toml", "--jobs", "2")
    (page,) = (tmp_path / "out/comparison").rglob("*.html")
    assert "dagpam" in page.read_text(encoding="utf-8")
    runs = sorted((tmp_path / "out/runs" / Path(task).stem).glob("*/*"))
    command(tmp_path, "compare", *runs, "--baseline", "stock", "--out", "again")
    assert list((tmp_path / "again").glob("*.html"))
