"""The files of a run, damaged at random: one sentence with the file, or what can be recovered is."""

import json
import random

import pytest
from quick import EXAMPLES
from runs import made_run, write_run

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.experiments import run_results
from fairseq_gpam.lab.recipes import dictionaries, logs, stage_results
from fairseq_gpam.lab.recipes.stage_results import RESULTS
from fairseq_gpam.lab.schema import SchemaError

LOG = "".join(
    f'2026-11-29 10:00 | INFO | train_inner | {{"num_updates": "{n}", "loss": "{9 - n}", "wpb": "9", "wps": "5"}}\n'
    f'2026-11-29 10:00 | INFO | valid | {{"valid_num_updates": "{n}", "valid_loss": "{9 - n / 10}"}}\n'
    for n in range(1, 9)
)
SCORE = {"sentences": 3, "bleu": 1.0, "bleu_signature": "a", "chrf": 2.0, "chrf_signature": "b"}
SCORE["answers"] = {"test": {"loss": 1.0, "accuracy": 0.5}}
GENERATE = {"command": "fairseq-generate data", "sentences": 3, "seconds": 1.5}
ANALYSIS = {
    "runs": [{"variant": "full model"}],
    "records": [
        {"variant": "full model", "metric": "residual_ratio", "site": "encoder", "layer": 1, "head": None, "mean": 0.5}
    ],
}


@pytest.fixture
def run(tmp_path):
    made = made_run(task="bible-de-en")
    folder = write_run(tmp_path / "out/runs/bible-de-en/stock/1", made, generate=GENERATE, score=SCORE)
    (folder / "analysis").mkdir()
    (folder / "analysis/results.json").write_text(json.dumps(ANALYSIS))
    (folder / "train.log").write_text(LOG)
    (folder / "train.command").write_text("fairseq-train data --max-update 8\n")
    (folder / "train.benchmark.tsv").write_text("s\tmax_rss\n10.5\t100\n")
    (folder / "hypotheses.txt").write_text("a cat\n\nein Öl\n")
    (folder / "dictionaries.json").write_text(json.dumps({"dict.de.txt": "ab12", "dict.en.txt": "cd34"}))
    return folder


def damage(made, content):
    place = made.randrange(len(content))
    kind = made.choice(["cut", "byte", "byte", "text", "line"])
    if kind == "cut":
        return content[:place]
    if kind == "byte":
        return content[:place] + made.choice([b"\xff", b"\x00", b'"', b"{", b"9"]) + content[place + 1 :]
    if kind == "line":
        return content[:place] + b"\n" + content[place:]
    return made.choice([b"", b"{", b"null", b"[1]", b"\xff\xfe", b"{}", b'{"train": 1}', b'{"train": {}}', b"'"])


def wrong_type(made, content):
    """Valid JSON in which one value, wherever it lies, has another type."""
    values = json.loads(content)
    places = []

    def collect(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                collect(node[key])

    collect(values)
    node, key = made.choice(places)
    node[key] = made.choice([None, "x", [], {}, [[1]], True, -1, 1e400])
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    "name",
    [
        *(RESULTS, "analysis/results.json", "train.log", "train.command"),
        *("train.benchmark.tsv", "dictionaries.json", "hypotheses.txt"),
    ],
)
def test_a_damaged_file_is_named_or_recovered(run, name, capsys):
    made, path = random.Random(name), run / name
    intact = path.read_bytes()
    (run.parent / "references").write_text("a cat\na dog\nein Öl\n")
    assert main(["results", "table", str(run)]) == 0
    for _ in range(EXAMPLES):
        content = wrong_type(made, intact) if name.endswith(".json") and made.random() < 0.5 else damage(made, intact)
        path.write_bytes(content)
        for read in (
            lambda: run_results.read(run),
            lambda: stage_results.read_command(run / "train.command"),
            lambda: dictionaries.changed(run, ["fairseq-generate", str(run)]),
            lambda: logs.measured(run / "train.benchmark.tsv"),
        ):
            try:
                read()
            except (SchemaError, FileNotFoundError) as error:
                assert str(run) in str(error) and "\n" not in str(error), content
        scoring = [["score", "--references", str(run.parent / "references")]] * (name in ("hypotheses.txt", RESULTS))
        for words in (["results", "table"], *scoring):
            try:
                status = main([*words, str(run)])
            except SystemExit as end:
                status = end.code
            message = capsys.readouterr().err
            assert status in (0, 2) and "Traceback" not in message, (content, message)


@pytest.mark.parametrize("command", ["compare RUN --baseline stock --out", "results report RUN --out"])
def test_a_place_that_cannot_be_written_is_named(run, tmp_path, command, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "full").symlink_to("/dev/full")
    words = [str(run) if word == "RUN" else word for word in command.split()]
    assert main([*words, str(tmp_path / "written")]) == 0
    for place in ("file/below", "full/below", "/proc/nothing/below", "long" * 100):
        with pytest.raises(SystemExit) as end:
            main([*words, str(tmp_path / place)])
        message = capsys.readouterr().err
        assert end.value.code == 2 and str((tmp_path / place).parts[-2]) in message and "Traceback" not in message


def test_a_log_with_foreign_bytes_gives_all_other_records(run):
    log = run / "train.log"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"\xff\xfe".join(lines[:4]) + b'| INFO | valid | {"valid_num_updates": 3\n' + b"".join(lines[4:]))
    measured = logs.parse_training_log(logs.read(log))
    assert measured["updates"] == 8 and len(measured["curve"]["valid"]) >= 7


@pytest.mark.slow
def test_an_empty_log_is_a_sentence(run):
    for text in ("", "no record\n"):
        with pytest.raises(ValueError, match="holds no validation"):
            logs.parse_training_log(text)
