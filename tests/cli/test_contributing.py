"""The commands of CONTRIBUTING.md that lead to a mechanism of one's own, as they stand there."""

import os
import re
import shutil
from pathlib import Path

import pytest
from shell import bash

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
    commands = "".join(steps)
    for written, meant in (("bash scripts/test.sh", "python -m pytest"), ("source .venv/bin/activate", "")):
        assert commands.count(written) == 1
        commands = commands.replace(written, meant)
    path = f"{interpreter.parent}:{os.environ['PATH']}"
    shown = bash(commands, tmp_path, PYTHONPATH=str(REPOSITORY), PATH=path)
    assert re.search(r"\d\d passed", shown), shown
    assert "mine/tempered.py" in shown and "tempered" in shown.split("passed")[-1]
    assert re.search(r"\d,\d{3},\d{3}", shown.split("passed")[-1]), shown
