"""A training that diverges ends with that word, once, and is named; a changed dictionary is refused."""

import json
import math
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given
from quick import first

from fairseq_gpam.lab.experiments import experiment, grid
from fairseq_gpam.lab.recipes import logs, run_folder, stage_results

LOSSES = st.floats(min_value=0, max_value=100).map(str) | st.sampled_from(["nan", "inf"])
CRASHES = {
    "FloatingPointError: gradients are Nan/Inf\n\nDuring handling of the above exception\n\nStopIteration": "gradients",
    "FloatingPointError: Minimum loss scale reached (0.0001). Your loss is probably exploding.": "Minimum loss scale",
    "FloatingPointError: Fatal error: gradients are inconsistent between workers.": None,
    "RuntimeError: no space left": None,
    "StopIteration": None,
}


def training_log(losses, crash=""):
    record = "2026-01-01 00:00:00 | INFO | {} | {}"
    lines = ["2026-01-01 00:00:00 | INFO | fairseq_cli.train | num. shared model params: 1,000 (num. trained: 1,000)"]
    for update, (loss, valid) in enumerate(losses, start=1):
        values = {"num_updates": str(update), "loss": loss, "wpb": "10", "wps": "5"}
        lines.append(record.format("train_inner", json.dumps(values)))
        if valid is not None:
            values = {"valid_num_updates": str(update), "valid_loss": valid, "valid_nll_loss": valid}
            lines.append(record.format("valid", json.dumps(values)))
    return "\n".join([*lines, *crash.splitlines()]) + "\n"


@given(st.lists(st.tuples(LOSSES, st.none() | LOSSES), min_size=1, max_size=5), st.sampled_from(["", *CRASHES]))
def test_a_training_has_diverged_if_its_last_losses_are_not_finite_or_the_engine_says_so(losses, crash):
    log = training_log(losses, crash)
    last = [losses[-1][0], *[valid for _, valid in losses if valid is not None][-1:]]
    expected = bool(CRASHES.get(crash)) or not all(math.isfinite(float(loss)) for loss in last)
    diverged = logs.divergence(log, bool(crash))
    assert bool(diverged) is expected
    if not expected and all(valid is None for _, valid in losses):
        with pytest.raises(ValueError, match="no validation"):
            logs.parse_training_log(log, diverged)
        return
    measured = logs.parse_training_log(log, diverged)
    curves = measured["curve"]
    assert all(math.isfinite(loss) for _, loss in [*curves["train"], *curves["valid"]])
    assert math.isfinite(measured["valid_nll_loss"]) is not expected
    assert measured["parameters"] == 1000
    if expected:
        assert measured["diverged"]["update"] == len(losses)


def diverging(tmp_path, crash):
    """A run and the command of a training that diverges; the command writes into `starts` each time."""
    log = training_log([("9.5", "9.4"), ("nan", None)], crash)
    code = f"import sys; open('{tmp_path}/starts', 'a').write('x'); sys.stderr.write({log!r}); sys.exit({bool(crash)})"
    return run_folder.Run(tmp_path / "runs/made/dagpam/1", "made", "dagpam", 1), [sys.executable, "-c", code]


@pytest.mark.parametrize("crash", [next(iter(CRASHES)), ""])
def test_a_diverged_training_is_recorded_once_and_has_no_model_to_evaluate(tmp_path, crash):
    run, command = diverging(tmp_path, crash)
    for _ in range(2):
        with pytest.raises(
            run_folder.RunError, match=r"diverged at update 2: (gradients are Nan|the training loss is nan)"
        ):
            run_folder.train(run, command)
    assert (tmp_path / "starts").read_text() == "x"
    assert stage_results.read(run.folder)["train"]["diverged"]["update"] == 2
    with pytest.raises(run_folder.RunError, match="diverged"):
        run_folder.generate(run, ["fairseq-generate", "data", "--path", "checkpoint"])


GRID = """
baseline = "stock"
seeds = [1, 2]
[tasks.bible-de-en]
[arms]
stock = {mechanism = "stock"}
wild = ""
"""


def finished_run(folder, name, seed, diverged):
    log = training_log([("9.0", str(8.0 + seed / 10))])
    reason = {"update": 7, "reason": "gradients are Nan/Inf"} if diverged else {}
    entry = {"command": "fairseq-train", **logs.parse_training_log(log, reason)}
    folder.mkdir(parents=True)
    stage_results.update(folder, {"task": "bible-de-en", "name": name, "seed": seed, "train": entry})
    (folder / "train.job.log").touch()
    for stage in () if diverged else ("train", "generate", "score"):
        (folder / f"{stage}.done").touch()


@pytest.mark.parametrize("wild", first(1, [{("wild", 1)}, {("wild", 1), ("wild", 2)}, {("stock", 1), ("stock", 2)}]))
def test_a_grid_and_its_comparison_name_what_diverged(tmp_path, capsys, wild):
    file, out = tmp_path / "wild.toml", tmp_path / "out"
    file.write_text(GRID)
    chosen = grid.load(file)
    for run in chosen.runs():
        name, seed = run.name, run.seed
        finished_run(out / run.folder, name, seed, (name, seed) in wild)
    (out / "prepared").mkdir()
    (out / "prepared/bible-de-en.done").touch()
    assert experiment.finish(chosen, list(chosen.jobs()), out, 1, "wild") == 1
    said = capsys.readouterr().err
    assert "failed: " not in said
    page = (out / "comparison/wild/comparison.md").read_text()
    for name, seed in wild:
        assert f"diverged: bible-de-en {name} {seed} at update 7, gradients are Nan/Inf; see " in said
        assert f"{name} seed {seed}" in page.partition("Diverged")[2]
    assert "Not run" not in page


def test_a_dictionary_that_changed_since_training_is_refused(tmp_path):
    data, run = tmp_path / "data", run_folder.Run(tmp_path / "run", "made", "dagpam", 1)
    data.mkdir()
    for name in ("dict.de.txt", "dict.en.txt"):
        (data / name).write_text("a 3\nb 2\n")
    run.folder.mkdir()
    command = [sys.executable, str(data), "--max-update", "1"]
    run_folder.dictionaries.record(run.folder, command)
    run_folder.claim(run.folder, command)
    run.record("train", ["false"], logs.parse_training_log(training_log([("9.0", "8.0")])))
    generate = ["false", f"{data}:elsewhere", "--path", ""]
    for text, error, said in (
        ("a 3\nb 2\n", run_folder.EngineFailure, "status 1"),
        ("b 2\na 3\n", run_folder.RunError, r"dict\.en\.txt has changed"),
    ):
        (data / "dict.en.txt").write_text(text)
        with pytest.raises(error, match=said):
            run_folder.generate(run, generate)
    with pytest.raises(run_folder.RunError, match=r"dict\.en\.txt has changed"):
        run_folder.train(run, command)
    # A run of a former version, which has no sums.
    (run.folder / "dictionaries.json").unlink()
    with pytest.raises(run_folder.EngineFailure):
        run_folder.generate(run, generate)


@pytest.mark.slow
def test_another_failure_is_not_taken_for_divergence(tmp_path):
    run, command = diverging(tmp_path, "RuntimeError: no space left")
    command[2] = command[2].replace('"nan"', '"2.0"')
    with pytest.raises(run_folder.EngineFailure, match="no space left"):
        run_folder.train(run, command)
    assert stage_results.read(run.folder) == {}
