"""What a user can cause ends with one sentence and status 2; a bug of the package shows its traceback."""

import errno
import importlib.metadata
import io
import os
import random
import re
import sys

import pytest
from quick import EXAMPLES

from fairseq_gpam import __main__, errors
from fairseq_gpam.__main__ import main
from fairseq_gpam.attention import Option


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """Files and folders that no command can use, or write to."""
    folder = tmp_path_factory.mktemp("nasty")
    (folder / "empty").touch()
    (folder / "text").write_text("no such format\n")
    (folder / "bytes").write_bytes(b"\xff\xfe\x00PK\x03\x04")
    (folder / "brace.json").write_text("{")
    (folder / "null.json").write_text("null")
    (folder / "list.json").write_text("[1]")
    (folder / "folder").mkdir()
    (folder / "full").symlink_to("/dev/full")
    beneath = [folder / "text" / "below", folder / "text" / "below" / "deeper", folder / ("long" * 100)]
    names = ["empty", "text", "bytes", "brace.json", "null.json", "list.json", "folder", "missing", "a\udcffb"]
    return [*map(str, beneath), *(str(folder / name) for name in names)]


def unwritable(nasty):
    return [path for path in nasty if "below" in path or "long" in path or path.endswith(("empty", "text"))]


COMMANDS = [
    "export FILE --out OUT",
    "analyze FILE --data FILE --out OUT",
    "analyze --data FILE --out OUT --arch transformer_lm_gpam --task language_modeling",
    "analyze FILE --data FILE --samples WORD",
    "score FILE",
    "score FILE FILE",
    "score FILE --references FILE",
    "average FILE",
    "average FILE --last WORD",
    "train WORD dagpam --out OUT",
    "train shakespeare-lm WORD WORD --out OUT",
    "train shakespeare-lm dagpam --out OUT",
    "generate bible-de-en dagpam 1 --out OUT",
    "generate bible-de-en dagpam WORD --out OUT",
    "eval-lm shakespeare-lm dagpam 1 --out OUT",
    "prepare shakespeare-lm --vocabulary WORD --out OUT",
    "ngrams --out OUT --train 2 --valid 2 --test 2",
    "ngrams --out OUT --order WORD --seed WORD --concentration WORD",
    "compare FILE --baseline stock --out OUT",
    "compare --json FILE --out OUT",
    "results table FILE",
    "results report FILE --out OUT",
    "experiment FILE --dry-run --out OUT",
    "experiment FILE --jobs WORD",
    "info --arch WORD",
    "info --arch transformer_gpam_iwslt_de_en --vocabulary WORD",
    "info --arch transformer_gpam_iwslt_de_en --encoder-attention-heads WORD",
    "info --arch transformer_gpam_iwslt_de_en --gpam-import FILE",
    "WORD FILE",
    "flags WORD",
]
WORDS = ["0", "-1", "3", "4294967296", "nan", "inf", "1e400", "nonsense", "ä\udcff", "", "[1]", "dagpam:3", "softmax@9"]


def refused(words, capsys):
    """The status and messages of a command."""
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code if end.code is not None else 0
    return status, capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_answers_a_user_with_a_traceback(command, nasty, capsys, monkeypatch, tmp_path):
    """Every command with files, folders and values that it cannot use."""
    monkeypatch.chdir(tmp_path)
    made = random.Random(command)
    pools = {"FILE": nasty, "OUT": unwritable(nasty), "WORD": WORDS}
    for _ in range(EXAMPLES // 10):
        words = [made.choice(pools[word]) if word in pools else word for word in command.split()]
        status, message = refused(words, capsys)
        assert "Traceback" not in message and "bug of fairseq_gpam" not in message, (words, message)
        assert status in (0, 2), (words, status, message)
        assert status == 0 or message.strip(), words


def test_a_bug_shows_its_traceback_and_says_what_it_is(monkeypatch, capsys):
    for bug in (lambda _: {}["nothing"], lambda _: int("x"), lambda _: [].pop(), lambda _: 1 // 0):
        monkeypatch.setattr(__main__, "dispatch", bug)
        status, message = refused(["info"], capsys)
        assert status == 1
        assert message.startswith("Traceback") and "bug of fairseq_gpam" in message.splitlines()[-1]


@pytest.mark.parametrize(
    "error, sentence",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results.json"), "results.json: No space left on device"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "nope.pt"), "nope.pt: no such file or folder"),
        (MemoryError(), "there is not enough memory"),
        (errors.InputError("a file: a reason"), "a file: a reason"),
    ],
)
def test_what_a_user_can_cause_is_one_sentence(monkeypatch, capsys, error, sentence):
    def fail(_):
        raise error

    monkeypatch.setattr(__main__, "dispatch", fail)
    assert refused([], capsys) == (2, f"{sentence}\n")


def test_every_library_of_an_extra_is_known():
    named = {name: set() for name in errors.EXTRAS}
    for requirement in importlib.metadata.requires("fairseq-gpam"):
        parts = re.fullmatch(r"""([\w-]+).*extra == ["'](\w+)["']""", requirement)
        if parts and parts[2] in named and "fairseq" not in parts[1] and "plugin" not in parts[1]:
            named[parts[2]].add(parts[1].replace("-", "_"))
    known = set()
    for extra, modules in errors.EXTRAS.items():
        assert {*modules} <= named[extra]
        known |= {*modules}
    assert set.union(*named.values()) == known


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("quickstart --out OUT", "matplotlib", "analysis"),
        ("quickstart --out OUT", "tabulate", "analysis"),
        ("experiment GRID --out OUT", "snakemake", "experiments"),
        ("experiment GRID --out OUT", "statsmodels", "experiments"),
        ("prepare iwslt14-de-en --out OUT", "sacremoses", "recipes"),
        ("prepare iwslt14-de-en --out OUT", "subword_nmt", "recipes"),
        ("benchmark --picture ratios.svg", "matplotlib", "analysis"),
        ("analyze CHECKPOINT --data BIN --out OUT", "jinja2", "analysis"),
    ],
)
def test_a_missing_library_is_named_with_its_extra_before_any_work(
    command, module, extra, capsys, monkeypatch, tmp_path
):
    (tmp_path / "GRID").write_text(
        'baseline = "stock"\nseeds = [1]\n[tasks.shakespeare-lm]\n[arms]\nstock = { mechanism = "stock" }\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    status, message = refused(command.split(), capsys)
    assert (status, message) == (2, f"{module} is not installed: pip install 'fairseq-gpam[{extra}]'\n")
    assert [path.name for path in tmp_path.iterdir()] == ["GRID"]


def test_the_quickstart_refuses_a_mechanism_before_any_work(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, message = refused(["quickstart", "--runs", "stock dagmap"], capsys)
    assert status == 2 and "'dagmap'" in message and len(message.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_a_value_that_the_package_refuses_is_a_sentence_wherever_it_is_raised(monkeypatch, capsys):
    option = Option("size", int, 1, "a size", check=lambda size: size > 0, allowed="a whole number > 0")
    monkeypatch.setattr(__main__, "dispatch", lambda _: option.parse("-3"))
    status, message = refused([], capsys)
    assert status == 2 and "-3" in message and len(message.splitlines()) == 1


def test_an_interruption_ends_with_its_own_status(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "dispatch", interrupt)
    assert refused([], capsys) == (130, "interrupted\n")


def test_output_to_a_stream_that_is_not_utf_8(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    assert main(["info"]) == 0
    assert b"\\u03bb" in shown.getvalue()


def test_output_to_a_full_disk_or_to_a_program_that_has_ended(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert refused(["info"], capsys) == (2, "No space left on device\n")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert refused(["info"], capsys) == (141, "")
