"""The commands of the README and of the documentation's pages, as they stand there, on small made corpora."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import SMALL, SMALL_LM

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")], key=lambda path: (path.parent.name, path.name)
)
BLOCK = re.compile(r"^(?:<!-- ([^\n]*?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = "run by the tests: "
SETTINGS = {
    "translation": (SMALL, "parallel"),
    "language model": (SMALL_LM, "monolingual"),
}
BLOCKS = [
    pytest.param(match[1], match[3], id=f"{path.name}-{number}")
    for path in PAGES
    for number, match in enumerate(BLOCK.finditer(path.read_text(encoding="utf-8")))
    if match[2] == "bash"
]


def commands(block):
    """Returns the words of each command, without the flag that names the plugin: the runner gives it."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.replace('--user-dir "$(python -m fairseq_gpam)"', ""), comments=True) for line in lines]
    return [command for command in words if command]


@pytest.mark.parametrize(("comment", "block"), BLOCKS)
def test_a_block_says_whether_the_tests_run_it(comment, block):
    assert comment is not None, f"say above it whether the tests run:\n{block}"
    assert comment.startswith((RUN, "not run by the tests: ", "not run by the tests in full: ")), comment


@pytest.mark.parametrize(("comment", "block"), [each for each in BLOCKS if (each.values[0] or "").startswith(RUN)])
def test_a_block_runs(comment, block, command, request, tmp_path):
    model, data = SETTINGS[comment.removeprefix(RUN)]
    data_bin = str(request.getfixturevalue(data))
    for name, *arguments in commands(block):
        arguments = [data_bin if word == "data-bin" else word for word in arguments]
        if name == "fairseq-train":
            # The length of training stays the page's own: evaluation is given the same.
            length = model.index("--tokens-per-sample") if "--tokens-per-sample" in model else len(model)
            arguments += [*model[:length], "--max-update", "2", "--cpu"]
        else:
            arguments += ["--cpu"]
        shown = command(name, *arguments, cwd=tmp_path)
        if name == "fairseq-generate":
            assert "Translated 41 sentences" in shown.text
        if name == "fairseq-eval-lm":
            assert int(re.search(r"Evaluated ([\d,]+) tokens", shown.text)[1].replace(",", "")) > 0
