"""The commands of every page that users read, as they stand there.

A comment above a block, or one for its whole page, names what runs it: these tests, with a small synthetic corpus, a
small model, or flags that shorten the command; or another file of tests. If a command needs a GPU or a corpus, the
comment says so.
"""

import os
import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import SMALL, SMALL_LM, USER_DIR
from shell import bash
from tiny import build, model_input

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    *(REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "examples").rglob("*.md")),
]
OF_PAGE = re.compile(r"^<!-- commands of this page: (.*?) -->$", re.MULTILINE)
BLOCK = re.compile(
    r"^(?: *<!-- ([^\n]*?) -->\n)? *```([^\n]*)\n(.*?)^ *```$(?:(?=\n\n```\n(.*?)^```$))?", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(r"^ *(?:\$ )?(?:bash|ct2-\S+|fairseq-\S+|pip|python3?|srun|torchrun) ", re.MULTILINE)
LANGUAGES = ("bash", "console", "python", "sh", "shell")
ON_A_CORPUS = r"run by the tests: (translation|language model)"
IN_A_SHELL = r"run by the tests: (?:as it stands|with( --.+))"
ON_A_MODEL = r"run by the tests: on a small model"
ELSEWHERE = r"run by (\S+)"
NOT_RUN = r"not run by the tests: (?:installs|needs .*\b(?:corpus|GPUs?)\b.*)"
CORPORA = {"translation": (SMALL, "parallel"), "language model": (SMALL_LM, "monolingual")}


class Block(NamedTuple):
    page: Path
    mark: str | None
    language: str
    content: str
    output: str


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    of_page = OF_PAGE.search(text)
    for mark, language, content, output in BLOCK.findall(text):
        if (language in LANGUAGES and not content.startswith("--8<--")) or (not language and COMMAND.search(content)):
            yield Block(page, mark or (of_page and of_page[1]), language, textwrap.dedent(content), output)


BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(REPOSITORY)}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks_of(page))
]


def marked(pattern):
    return [each for each in BLOCKS if re.fullmatch(pattern, each.values[0].mark or "")]


def to_run(pattern):
    """The blocks to run here; all but the first of each kind are slow."""
    cases, kinds = [], set()
    for case in marked(pattern):
        kind = case.values[0].mark.partition(" with ")[0]
        cases.append(pytest.param(*case.values, id=case.id, marks=[pytest.mark.slow] if kind in kinds else []))
        kinds.add(kind)
    return cases


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_names_the_test_that_runs_it(block):
    assert block.mark, f"say above it what runs:\n{block.content}"
    assert re.fullmatch("|".join((ON_A_CORPUS, IN_A_SHELL, ON_A_MODEL, ELSEWHERE, NOT_RUN)), block.mark)
    assert block.language in ("bash", "python")


@pytest.mark.parametrize("block", marked(ELSEWHERE))
def test_what_runs_a_block_elsewhere_names_its_page_or_the_command(block):
    text = (REPOSITORY / re.fullmatch(ELSEWHERE, block.mark)[1]).read_text(encoding="utf-8")
    name = block.page.parent.name if block.page.name == "README.md" else block.page.name
    assert f'{name}"' in text or block.content.strip() in text


def commands(block):
    """Returns the words of each command, without the flag that names the plugin: the runner gives it."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.replace('--user-dir "$(python -m fairseq_gpam)"', ""), comments=True) for line in lines]
    return [command for command in words if command]


@pytest.fixture
def folder_of_a_user(tmp_path):
    for name in ("examples", "scripts"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


@pytest.mark.parametrize("block", to_run(ON_A_CORPUS))
def test_a_block_runs_on_a_small_corpus(block, command, request, folder_of_a_user):
    model, data = CORPORA[re.fullmatch(ON_A_CORPUS, block.mark)[1]]
    data_bin = str(request.getfixturevalue(data))
    for name, *arguments in commands(block.content):
        arguments = [data_bin if word == "data-bin" else word for word in arguments]
        if name == "fairseq-train":
            # Training keeps the page's own sequence length, which the page gives to evaluation too.
            length = model.index("--tokens-per-sample") if "--tokens-per-sample" in model else len(model)
            arguments += [*model[:length], "--max-update", "2", "--cpu"]
        else:
            arguments += ["--cpu"]
        shown = command(name, *arguments, cwd=folder_of_a_user)
        if name == "fairseq-generate":
            assert "Translated 41 sentences" in shown.text
        if name == "fairseq-eval-lm":
            assert int(re.search(r"Evaluated ([\d,]+) tokens", shown.text)[1].replace(",", "")) > 0


@pytest.mark.parametrize("block", to_run(IN_A_SHELL))
def test_a_block_runs_and_gives_the_output_shown(block, interpreter, folder_of_a_user):
    flags = re.fullmatch(IN_A_SHELL, block.mark)[1] or ""
    places = {"PYTHONPATH": str(USER_DIR.parent), "PATH": f"{interpreter.parent}:{os.environ['PATH']}"}
    shown = bash(block.content.rstrip() + flags, folder_of_a_user, **places)
    assert set(block.output.splitlines()) <= set(shown.splitlines())


@pytest.mark.parametrize("block", to_run(ON_A_MODEL))
def test_a_block_runs_on_a_small_model(block, capsys):
    names = {"model": build("translation", "transformer_gpam"), "batch": {"net_input": model_input("translation")}}
    exec(compile(block.content, str(block.page), "exec"), names)
    assert capsys.readouterr().out


@pytest.mark.slow
def test_every_training_command_ends():
    named = [block.values[0] for block in BLOCKS if "fairseq-train " in block.values[0].content]
    trainings = [words for block in named for words in commands(block.content) if words[0] == "fairseq-train"]
    assert trainings
    for words in trainings:
        assert {"--max-update", "--max-epoch", "--patience"} & set(words), words


@pytest.mark.slow
def test_the_front_pages_are_short_and_installing_comes_before_results():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 110
    assert readme.index("## Install") < readme.index("## Try it") < readme.index("## What came out")
    assert len((REPOSITORY / "docs/comparing.md").read_text(encoding="utf-8").splitlines()) <= 120
    assert len((REPOSITORY / "docs/speed.md").read_text(encoding="utf-8").split()) <= 1200
