"""The commands of CONTRIBUTING.md that lead to a mechanism of one's own, as they stand there."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow  # runs the tests of a mechanism in another folder
def test_three_steps_lead_to_a_tested_mechanism(interpreter, tmp_path):
    """This process's environment takes the place of the one that scripts/test.sh makes."""
    section = TEXT[TEXT.index("## A mechanism of your own\n") : TEXT.index("## Contribute a mechanism\n")]
    steps = BLOCK.findall(section)
    assert len(steps) == 3
    for name in ("examples/your-own-mechanism", "tests"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    commands = "set -e\n" + "".join(steps)
    for written, meant in (("bash scripts/test.sh", "python -m pytest"), ("source .venv/bin/activate", "")):
        assert commands.count(written) == 1
        commands = commands.replace(written, meant)
    done = subprocess.run(
        ["bash", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": f"{interpreter.parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout), done.stdout
    assert "mine/tempered.py" in done.stdout
    assert re.search(r"tempered", done.stdout.split("passed")[-1])
    assert re.search(r"\d,\d{3},\d{3}", done.stdout.split("passed")[-1]), done.stdout
