"""The script that runs fairseq's own tests explains itself, and refuses a folder that is not a checkout of fairseq."""

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "test-upstream.sh"


def run(*arguments):
    return subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True)


def test_help():
    assert run("--help").stdout.startswith("Usage: test-upstream.sh PATH")


def test_another_folder_is_refused(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} is no checkout of fairseq" in done.stderr


def test_an_unknown_flag_is_refused():
    done = run("--sock")
    assert done.returncode == 2
    assert "--sock is not known" in done.stderr
