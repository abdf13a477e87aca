"""Stages are claimed, locked and reported so that they can be killed and started again."""

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.recipes import engine_process, logs, run_folder, stage_results
from fairseq_gpam.lab.recipes.engine_process import EngineFailure, GenerationProgress, Progress, execute
from fairseq_gpam.lab.recipes.logs import CountMismatchError


@pytest.fixture
def open_folder(monkeypatch):
    """A folder that everybody may read; pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.chdir(folder)
        yield folder
        monkeypatch.undo()


@contextlib.contextmanager
def without_privileges():
    """Root may write to read-only folders; the user `nobody` may not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_changed_command_is_refused_by_the_flag_that_differs(tmp_path):
    command = ["fairseq-train", "data", "--lr", "0.1", "--cpu", "--adam-betas", "(0.9, 0.98)"]
    assert run_folder.claim(tmp_path, command)
    assert not run_folder.claim(tmp_path, command)
    # The last value of a flag counts, as it does for the engine.
    assert not run_folder.claim(tmp_path, [*command[:2], "--lr", "5", *command[2:]])
    # A grid logs attention, which changes no loss; a quickstart into the same folder does not.
    assert not run_folder.claim(
        tmp_path, [*command, "--gpam-log-attention", "100", "--user-dir", "elsewhere", "--num-workers", "2"]
    )
    with pytest.raises(run_folder.RunError) as raised:
        run_folder.claim(tmp_path, ["fairseq-train", "data", "--lr", "0.2", "--cpu", "--fp16", "--adam-betas=x"])
    message = str(raised.value)
    assert "--lr (there: 0.1; now: 0.2)" in message
    assert "--fp16 (there: not given; now: given)" in message
    assert "--adam-betas (there: '(0.9, 0.98)'; now: x)" in message
    assert "--cpu" not in message
    assert f"start afresh: rm -r {tmp_path}" in message


def failing(folder, *, checkpoint):
    code = "import pathlib, sys; print('usage: made')"
    if checkpoint:
        code += "; pathlib.Path('checkpoints').mkdir(); pathlib.Path('checkpoints/checkpoint_last.pt').touch()"
    return [sys.executable, "-c", f"{code}; sys.exit(2)", "--arguments"]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_command_that_failed_before_its_first_checkpoint_leaves_the_folder_to_the_next(
    tmp_path, monkeypatch, checkpoint
):
    monkeypatch.chdir(tmp_path)
    run = run_folder.Run(tmp_path, "made", "dagpam", 1)
    with pytest.raises(EngineFailure, match=r"(?s)status 2.*usage: made"):
        run_folder.train(run, failing(tmp_path, checkpoint=checkpoint))
    assert (tmp_path / "train.command").exists() is checkpoint
    assert (tmp_path / "train.log").exists() is checkpoint
    assert (tmp_path / "train.failed.log").exists() is not checkpoint


def test_a_command_that_was_stopped_before_its_first_checkpoint_leaves_the_folder_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "execute", lambda command, log, *_, **__: (log.touch(), sys.exit(143)))
    run = run_folder.Run(tmp_path, "made", "dagpam", 1)
    for flags in ("--lr 1", "--lr 2"):
        with pytest.raises(SystemExit):
            run_folder.train(run, ["fairseq-train", *flags.split()])
    assert not (tmp_path / "train.command").exists()


def test_only_new_lines_of_a_log_are_reported_and_a_failed_command_shows_its_end(tmp_path):
    log, seen = tmp_path / "log", []
    log.write_text("before\n")
    command = [sys.executable, "-c", "print('why it failed'); raise SystemExit(3)"]
    with run_folder.exclusive(tmp_path) as lock, pytest.raises(EngineFailure, match=r"(?s)status 3.*why it failed"):
        execute(command, log, lock, report=seen.append)
    assert seen == ["why it failed"]
    assert log.read_text() == "before\nwhy it failed\n"


@pytest.mark.slow  # two processes that import PyTorch
def test_a_folder_is_locked_until_the_engine_ends_and_says_by_whom(tmp_path, capsys):
    log = tmp_path / "train.log"
    log.write_text('2026-01-01 00:00:00 | INFO | train_inner | {"num_updates": "25", "loss": "9.5", "wps": "1234.5"}\n')
    code = """
import os, signal, sys, threading, time
from pathlib import Path
from fairseq_gpam.lab.recipes import engine_process, run_folder
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
folder = Path(sys.argv[1])
with run_folder.exclusive(folder) as lock:
    engine_process.execute([sys.executable, "-c", "import time; time.sleep(2.5)"], folder / "train.log", lock)
"""
    script = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert script.returncode == -signal.SIGKILL
    begun = time.monotonic()
    engine = (tmp_path / "lock").read_text().split()[0]
    with run_folder.exclusive(tmp_path):
        assert time.monotonic() - begun > 0.5
        assert (tmp_path / "lock").read_text().split() == [str(os.getpid())]
    waiting = capsys.readouterr().out
    assert (
        f"waiting for process {engine}, which still uses this folder (update 25: loss 9.5, 1,234 tokens/s)" in waiting
    )
    assert f"to stop it: kill {engine}" in waiting


TRAINED = {"parameters": 1, "updates": 1, "valid_loss": 1.0, "curve": {"valid": [[1, 1.0]]}}


def test_an_unfinished_training_is_not_evaluated(tmp_path):
    run = run_folder.Run(tmp_path, "made", "dagpam", 1)
    with pytest.raises(run_folder.RunError, match="training has not ended"):
        run_folder.generate(run, ["fairseq-generate"])
    with pytest.raises(run_folder.RunError, match="training has not ended"):
        run_folder.evaluate(run, ["fairseq-eval-lm"], logs.parse_evaluation_log)
    run.record("train", ["fairseq-train", "a b"], TRAINED)
    stages = stage_results.read(tmp_path)
    assert stages["train"]["command"] == "fairseq-train 'a b'"
    assert set(stages["train"]["environment"]) == {"versions", "machine", "commit"}


TRANSLATION = """H-1\t-0.5\t{0} two
H-0\t-0.5\t{0} one
Translated 2 sentences (4 tokens) in 1.0s (2.00 sentences/s, 4.00 tokens/s)"""
EVALUATION = "Evaluated {} tokens in 1.0s (3.00 tokens/s)\nLoss (base 2): 2.0000, Perplexity: 4.00"


@pytest.fixture
def trained(tmp_path):
    """A run that is trained, with an averaged checkpoint."""
    run = run_folder.Run(tmp_path / "run", "made", "dagpam", 1)
    run.folder.mkdir()
    run.record("train", ["fairseq-train"], TRAINED)
    average(run, 5)
    return run


def average(run, value):
    state = {"cfg": {}, "model": {"weight": torch.full((2,), float(value))}, "optimizer_history": []}
    torch.save(state, run.folder / "average.pt")


def printing(run, text, *flags):
    """A command that prints the text in place of an evaluation."""
    return [sys.executable, "-c", f"print({text!r})", "--path", str(run.folder / "average.pt"), *flags]


def of_text(path):
    return lambda log: logs.of_text(logs.parse_evaluation_log(log), path, path)


def hypotheses(run):
    return (run.folder / "hypotheses.txt").read_text()


def test_a_translation_is_repeated_if_its_checkpoint_has_changed_and_its_score_is_dropped(trained, capsys):
    log = trained.folder / "generate.log"
    # The same command line every time, as the translation is read from a file.
    (trained.folder / "text").write_text(TRANSLATION.format("first"))
    command = [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(trained.folder / "text")]
    command += ["--path", str(trained.folder / "average.pt")]
    run_folder.generate(trained, command)
    stage_results.update(trained.folder, {"score": {"bleu": 1.0}})
    before = log.stat()
    run_folder.generate(trained, command)
    assert "translated already" in capsys.readouterr().out
    assert log.stat() == before

    average(trained, 10)
    (trained.folder / "text").write_text(TRANSLATION.format("second"))
    run_folder.generate(trained, command)
    assert "not known to be of this checkpoint" in capsys.readouterr().out
    assert hypotheses(trained) == "second one\nsecond two\n"
    assert stage_results.read(trained.folder).keys() >= {"train", "generate"}
    assert "score" not in stage_results.read(trained.folder)
    run_folder.generate(trained, command)
    assert "translated already" in capsys.readouterr().out


def test_another_evaluation_is_refused_without_advice_to_delete_the_model_and_overwrites_if_asked(trained):
    run_folder.generate(trained, printing(trained, TRANSLATION.format("narrow"), "--beam", "4"))
    wide = printing(trained, TRANSLATION.format("wide"), "--beam", "10")
    # The command line that was recorded counts, not the file that a user may delete.
    (trained.folder / "generate.command").unlink()
    with pytest.raises(run_folder.RunError, match=r"--beam \(there: 4; now: 10\)") as raised:
        run_folder.generate(trained, wide)
    assert "add --overwrite" in str(raised.value)
    assert "rm -r" not in str(raised.value)
    assert hypotheses(trained) == "narrow one\nnarrow two\n"
    run_folder.generate(trained, wide, overwrite=True)
    assert hypotheses(trained) == "wide one\nwide two\n"
    assert "--beam 10" in (trained.folder / "generate.command").read_text()
    # A try that fails leaves the result that is there.
    with pytest.raises(EngineFailure):
        run_folder.generate(trained, [*wide[:1], "-c", "raise SystemExit(2)", *wide[3:]], overwrite=True)
    assert hypotheses(trained) == "wide one\nwide two\n"
    assert stage_results.read(trained.folder)["generate"]["sentences"] == 2


@pytest.mark.parametrize("command", ["generate", "eval-lm"])
def test_overwrite_reaches_the_stage(command, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("fairseq_gpam.lab.recipes.stages.need_data", lambda this: None)
    monkeypatch.setattr(run_folder, "generate", lambda *arguments: seen.append(arguments[-1]))
    monkeypatch.setattr(run_folder, "evaluate", lambda *arguments: seen.append(arguments[-1]) or {})
    task = "bible-de-en" if command == "generate" else "ptb-lm"
    for flags in ([], ["--overwrite"]):
        assert main([command, task, "dagpam", "--out", str(tmp_path), *flags]) == 0
    assert seen == [False, True]


def test_a_translation_without_its_hypotheses_is_no_success(trained):
    closing = TRANSLATION.splitlines()[-1]
    with pytest.raises(CountMismatchError, match=r"0 hypotheses, but 2 sentences were translated.*--quiet"):
        run_folder.generate(trained, printing(trained, closing, "--quiet"))
    assert "generate" not in stage_results.read(trained.folder)
    assert not (trained.folder / "hypotheses.txt").exists()
    run_folder.generate(trained, printing(trained, TRANSLATION.format("right")))
    assert hypotheses(trained) == "right one\nright two\n"


def test_a_wrong_evaluation_does_not_block_the_right_one_which_says_when_it_is_not_repeated(trained, tmp_path, capsys):
    (tmp_path / "text").write_text("one two\n")
    evaluate = functools.partial(run_folder.evaluate, trained, measure=of_text(tmp_path / "text"))
    with pytest.raises(CountMismatchError, match="4 tokens evaluated, but the test text has 3"):
        evaluate(command=printing(trained, EVALUATION.format(4), "--gen-subset", "valid"))
    right = printing(trained, EVALUATION.format(3), "--gen-subset", "test")
    evaluate(command=right)
    assert "already" not in capsys.readouterr().out
    assert evaluate(command=right)["perplexity_subword"] == 4
    assert "evaluated already" in capsys.readouterr().out


TORCHRUN = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "WORLD_SIZE": "4"}
PORT = ["--distributed-world-size", "4", "--distributed-port", "29500"]


@pytest.mark.parametrize(
    ("variables", "flags", "rank"),
    [
        ({}, [], 0),
        ({"SLURM_PROCID": "0"}, PORT, 0),
        ({"SLURM_PROCID": "1"}, PORT, 1),
        ({"RANK": "2", **TORCHRUN}, [], 2),
        ({"RANK": "0", **TORCHRUN, "SLURM_PROCID": "1"}, [], 0),  # torchrun, started by srun on the second machine
        ({"SLURM_PROCID": "3"}, ["--distributed-init-method", "tcp://localhost:29500", "--distributed-rank", "1"], 1),
        ({"SLURM_PROCID": "1"}, [], 0),  # seeds side by side, one task each
        ({"RANK": "1"}, [], 0),  # not torchrun's, which sets the other variables too
    ],
)
def test_in_a_distributed_training_only_process_0_writes_to_the_folder(tmp_path, monkeypatch, variables, flags, rank):
    for name in ("SLURM_PROCID", "RANK", *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    command = [sys.executable, "-c", "print('started'); raise SystemExit(7)", "--max-update", "1", *flags]
    with pytest.raises(EngineFailure, match=r"(?s)status 7.*started"):
        run_folder.train(run_folder.Run(folder, "made", "dagpam", 1), command)
    written = ["lock", "train.failed.log"] if rank == 0 else [f"train.rank-{rank}.log"]
    assert sorted(path.name for path in folder.iterdir()) == written


@pytest.mark.parametrize("flag", ["--max-update", "--distributed-rank", "--distributed-port"])
@pytest.mark.parametrize("value", ["one", "1.5", "-2", "", "$RANK"])
def test_a_flag_that_is_read_before_the_engine_runs_must_be_a_number(tmp_path, flag, value):
    with pytest.raises(
        run_folder.RunError, match=f"{flag} {re.escape(value)} is not allowed; allowed: a whole number from"
    ):
        run_folder.train(run_folder.Run(tmp_path, "made", "dagpam", 1), ["fairseq-train", flag, value])


def test_process_1_does_not_train_what_has_been_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    run = run_folder.Run(tmp_path, "made", "dagpam", 1)
    run.record("train", ["fairseq-train"], TRAINED)
    run_folder.train(run, [sys.executable, "-c", "raise SystemExit('trained again')", *PORT])
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("command", ["train", "generate", "eval-lm", "prepare", "average", "score", "quickstart"])
def test_every_command_ends_in_one_sentence_where_no_folder_can_be_made(command, tmp_path, monkeypatch):
    monkeypatch.setattr("fairseq_gpam.lab.recipes.stages.need_data", lambda this: None)
    (tmp_path / "file").touch()
    task = "bible-de-en" if command != "eval-lm" else "ptb-lm"
    for out in (Path("/proc/made"), tmp_path / "file/below"):
        arguments = {"average": [out / "run"], "score": [out / "run"], "prepare": ["ngram-lm"], "quickstart": []}
        given = arguments.get(command, [task, "dagpam"])
        if command not in ("average", "score"):
            given += ["--out", out]
        with pytest.raises(SystemExit, match=f"{out}") as raised:
            main([command, *map(str, given)])
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("most", "ended"), [(None, False), (0, False), (1, True), (3, True), (4, False)])
def test_a_training_has_ended_at_its_number_of_updates_of_which_0_is_no_limit(tmp_path, most, ended):
    state = {"cfg": {}, "model": {"weight": torch.zeros(2)}, "optimizer_history": [{"num_updates": 3}]}
    torch.save(state, tmp_path / "checkpoint_last.pt")
    assert run_folder.has_ended(tmp_path, tmp_path / "train.log", most) is ended


@pytest.mark.parametrize("given", [["--log-format", "simple"], ["--log-format=tqdm"], ["--log-format", "none"]])
def test_a_log_from_which_no_results_can_be_read_is_refused(tmp_path, given):
    command = ["fairseq-train", "--log-format", "json", *given]
    with pytest.raises(run_folder.RunError, match=r"--log-format \w+ is not allowed; allowed: json"):
        run_folder.train(run_folder.Run(tmp_path / "run", "made", "dagpam", 1), command)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "record",
    [
        'train_inner | {"num_updates": "25", "loss": "9.5", "wps": "1234.5"}',
        'valid | {"valid_num_updates": "50", "valid_loss": "8"}',
        'fairseq_cli.generate | {"wps": "1234.5", "loss": "8"}',
    ],
)
def test_a_line_that_is_no_whole_record_is_skipped(capsys, record):
    line = f"2026-01-01 00:00:00 | INFO | {record}"
    start = line.index("{")
    cuts = [line[:end] for end in range(len(line))]
    damaged = [line[:start] + text for text in ("loss=9.5, wps=5", "7", "null", "{}", '{"num_updates": "x"}', "[]")]
    translating = GenerationProgress("made")
    translating.printed = -100.0
    for each in (*cuts, *damaged):
        Progress("made", 100)(each)
        translating(each)
    assert capsys.readouterr().out == ""


def test_a_log_whose_path_is_not_utf8_is_named_to_those_who_wait(tmp_path):
    folder = tmp_path / os.fsdecode(b"r\xffn")
    with run_folder.exclusive(folder) as lock:
        execute([sys.executable, "-c", ""], folder / "train.log", lock)
        assert os.fsencode(folder / "train.log") in (folder / "lock").read_bytes()
        assert run_folder._holder(lock).startswith("process ")


def test_the_command_is_stopped_if_its_lock_cannot_be_written(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        engine_process, "start", lambda *words, **how: started.append(subprocess.Popen(*words, **how)) or started[-1]
    )
    with run_folder.exclusive(tmp_path / "run") as lock:
        monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            execute([sys.executable, "-c", "import time; time.sleep(100)"], tmp_path / "train.log", lock)
    assert started[0].poll() == -signal.SIGTERM


@pytest.mark.slow
def test_progress_lines(capsys):
    progress = Progress("made dagpam 1", 100)
    prefix = "2026-01-01 00:00:00 | INFO |"
    progress(f'{prefix} train_inner | {{"num_updates": "25", "loss": "9.5", "wps": "1234.5"}}')
    progress(f'{prefix} train_inner | {{"num_updates": "50", "loss": "8.5", "wps": "1234.5"}}')
    progress(f'{prefix} valid | {{"valid_num_updates": "50", "valid_loss": "8"}}')
    progress("some other line")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[made dagpam 1] update 25/100: loss 9.5, 1,234 tokens/s"
    assert lines[1].startswith("[made dagpam 1] update 50/100: loss 8.5, 1,234 tokens/s, 0.0 min left")
    assert lines[2:] == ["[made dagpam 1] update 50: valid loss 8"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("place", ["runs", "runs/run"])
@pytest.mark.parametrize(
    ("is_file", "reasons"), [(False, "Permission denied|Permission denied"), (True, "Not a directory|File exists")]
)
def test_a_folder_that_cannot_be_written_is_named_with_the_reason(
    open_folder, monkeypatch, place, is_file, reasons, rank
):
    """In the place of the run's folder, or of the one above it, is a read-only folder or a file."""
    monkeypatch.setenv("SLURM_PROCID", rank)
    blocked, folder = open_folder / place, open_folder / "runs/run"
    blocked.parent.mkdir(exist_ok=True)
    blocked.touch() if is_file else blocked.mkdir(0o555)
    reason = reasons.split("|")[blocked == folder]
    with without_privileges(), pytest.raises(run_folder.RunError, match=f"(?s){folder}.*{reason}") as raised:
        command = [sys.executable, "-c", "print('started')", *PORT]
        run_folder.train(run_folder.Run(folder, "made", "dagpam", 1), command)
    assert "\n" not in str(raised.value)
