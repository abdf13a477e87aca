"""The script that runs fairseq's own tests explains itself, and refuses a folder that is not a checkout of fairseq."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "test-upstream.sh"


@pytest.mark.parametrize(
    ("argument", "status", "said"),
    [
        ("--help", 0, "Usage: test-upstream.sh PATH"),
        ("/tmp", 2, "is no checkout of fairseq"),
        ("--sock", 2, "not known"),
    ],
)
def test_what_it_says(argument, status, said):
    done = subprocess.run(["bash", SCRIPT, argument], capture_output=True, text=True)
    assert done.returncode == status and said in done.stdout + done.stderr
