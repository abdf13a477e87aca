"""The front door: what answers at once, what works without fairseq, what a wrong name is answered with."""

import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest

from fairseq_gpam import engine, options
from fairseq_gpam.__main__ import COMMANDS, main
from fairseq_gpam.attention import REGISTRY

REGISTERED = "from fairseq.models import ARCH_MODEL_REGISTRY as known; print('transformer_gpam' in known, len(known))"


REPOSITORY = Path(__file__).parents[2]
HEAVY = {"torch", "fairseq"}


def python(*words, cwd=None, **environment):
    """The finished process of this interpreter with these words."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("words", [[], ["path"], ["--help"], ["--version"], ["pth"]], ids=" ".join)
def test_path_and_help_import_neither_torch_nor_fairseq(words, tmp_path):
    done = python("-X", "importtime", "-m", "fairseq_gpam", *words, cwd=tmp_path)
    imported = set(re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "fairseq_gpam" in imported and not imported & HEAVY
    assert done.returncode == (2 if words == ["pth"] else 0)


HELP = """
import sys
sys.argv = ["/some/where/fairseq-gpam"]
from fairseq_gpam.__main__ import COMMANDS, main
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert end.code == 0, command
    assert "fairseq" not in sys.modules, command
"""


@pytest.mark.slow  # It imports PyTorch and what the commands need in a process of its own.
def test_the_help_of_every_command_does_without_fairseq():
    done = python("-c", HELP)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: fairseq-gpam {command} " in done.stdout for command in COMMANDS)


@pytest.fixture(scope="module")
def without_fairseq(tmp_path_factory):
    """The environment of an interpreter that has every installed package but fairseq."""
    folder = tmp_path_factory.mktemp("packages")
    (installed,) = site.getsitepackages()
    for path in Path(installed).iterdir():
        if "fairseq" not in path.name and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return {"PYTHONPATH": os.pathsep.join(map(str, (folder, REPOSITORY, REPOSITORY / "scripts/upkeep")))}


@pytest.mark.slow
def test_every_mechanism_works_without_fairseq(without_fairseq):
    code = "import sys, fairseq_gpam.attention as attention; from mechanisms import example_weights; "
    code += "print(*(n for n in attention.REGISTRY if example_weights(n).isfinite().all()), 'fairseq' in sys.modules)"
    done = python("-S", "-c", code, **without_fairseq)
    assert done.stdout.split() == [*REGISTRY, "False"], done.stderr


REFUSED = """
import sys
from fairseq_gpam.__main__ import main
for words in ("train bible-de-en dagpam", "info --arch transformer_gpam", "export a --out b"):
    try:
        status = main(words.split())
    except SystemExit as end:
        status = end.code
    assert status == 2, words
sys.exit(main(["info"]))
"""


@pytest.mark.slow  # It imports PyTorch in a process of its own, as do the others below.
def test_without_fairseq_what_needs_it_says_so_in_a_sentence_and_info_shows_the_rest(without_fairseq):
    done = python("-S", "-c", REFUSED, **without_fairseq)
    assert done.returncode == 0 and "engine not installed" in done.stdout and engine.INSTALL in done.stdout
    assert all(name in done.stdout for name in REGISTRY)
    assert done.stderr.count("\n") == done.stderr.count(engine.INSTALL) == 3


def test_flags_prints_each_flag_with_its_choices_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["flags"]) == 0
    blocks = re.findall(r"^  (--\S+).*\n((?:      .*\n)+)", capsys.readouterr().out, re.MULTILINE)
    shown = {flag: " ".join(words.split()) for flag, words in blocks}
    for option in options.all_options():
        found = shown[option.flag]
        assert all(choice in found for choice in option.choices or ()), option.flag
        assert option.default in (None, False) or f"default: {option.default}" in found, option.flag


@pytest.mark.parametrize("name", ["dagpam", "softmax", "sink"])
def test_flags_of_a_mechanism_are_those_that_it_reads(name, capsys):
    assert main(["flags", name]) == 0
    shown = re.findall(r"^  (--gpam-[\w-]+)", capsys.readouterr().out, re.MULTILINE)
    assert shown == [option.flag for option in REGISTRY[name].options]


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["trian"], "train"),
        (["flags", "dagpm"], "dagpam"),
        (["train", "bible-de-em", "dagpam"], "bible-de-en"),
        (["train", "bible-de-en", "dagpm"], "dagpam"),
        (["train", "bible-de-en", "sotfmax:2,dagpam:2"], "softmax"),
        (["info", "--arch", "transformer_gpam", "--gpam-lambda", "fixd"], "fixed"),
        (["info", "--arch", "transformer_gpam", "--gpam-mechanism", "sofmax"], "softmax"),
        (["info", "--arch", "transfomer_gpam"], "transformer_gpam"),
    ],
    ids=" ".join,
)
def test_a_wrong_name_is_answered_with_the_nearest(words, near, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        assert main(words) != 0
        message = capsys.readouterr().err
    except SystemExit as end:
        message = f"{capsys.readouterr().err}{end}"
    assert re.search(rf"did you mean '?{near}'?\?", message)


@pytest.mark.slow
def test_importing_registers_the_models_once_also_from_a_module_that_is_run(tmp_path):
    code = f"import importlib, fairseq_gpam\n{REGISTERED}\nimportlib.reload(fairseq_gpam)\n{REGISTERED}\n"
    (tmp_path / "own").mkdir()
    (tmp_path / "own/__init__.py").write_text(code)
    (tmp_path / "own/__main__.py").touch()
    done = python("-m", "own", cwd=tmp_path)
    first, second = done.stdout.splitlines()
    assert first == second and first.startswith("True"), done.stderr


@pytest.mark.slow
def test_where_mechanisms_are_chosen_stock_is_told_from_softmax(capsys):
    for words in (["info"], ["flags", "softmax"], ["flags", "stock"]):
        assert main(words) == 0
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert " ".join(capsys.readouterr().out.split()).count(engine.STOCK) == 4
