"""Stages are claimed, locked, repaired and reported so that they can be killed and started again."""

import subprocess
import sys
import time
import zipfile

import pytest

from fairseq_gpam.experiments import results, runs


def test_a_changed_command_is_refused_with_both_lines(tmp_path):
    runs.claim(tmp_path, "train", ["fairseq-train", "--lr", "0.1"])
    runs.claim(tmp_path, "train", ["fairseq-train", "--lr", "0.1"])
    runs.claim(tmp_path, "generate", ["fairseq-generate"])
    with pytest.raises(runs.RunError, match=r"(?s)there: fairseq-train --lr 0.1\n.*now:   fairseq-train --lr 0.2"):
        runs.claim(tmp_path, "train", ["fairseq-train", "--lr", "0.2"])


def test_a_torn_last_checkpoint_is_replaced_by_the_newest_complete_one(tmp_path):
    assert runs.repair_last_checkpoint(tmp_path) is None
    for name, content in (("checkpoint_1_100.pt", "old"), ("checkpoint_1_200.pt", "new")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("data", content)
        time.sleep(0.02)
    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes((tmp_path / "checkpoint_1_200.pt").read_bytes()[:-30])
    (tmp_path / "checkpoint_best.pt").write_bytes(b"torn too")
    assert runs.repair_last_checkpoint(tmp_path) == tmp_path / "checkpoint_1_200.pt"
    assert zipfile.ZipFile(last).read("data") == b"new"
    assert runs.repair_last_checkpoint(tmp_path) is None


def test_a_torn_checkpoint_without_another_is_an_error(tmp_path):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"torn")
    with pytest.raises(runs.RunError, match="no complete checkpoint"):
        runs.repair_last_checkpoint(tmp_path)


def test_a_failed_command_shows_the_end_of_its_log(tmp_path):
    seen = []
    command = [sys.executable, "-c", "print('why it failed'); raise SystemExit(3)"]
    with runs.exclusive(tmp_path) as lock, pytest.raises(runs.RunError, match=r"(?s)status 3.*why it failed"):
        runs.execute(command, tmp_path / "log", lock, report=seen.append)
    assert seen == ["why it failed"]


def test_only_new_lines_of_an_old_log_are_reported(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    seen = []
    with runs.exclusive(tmp_path) as lock:
        runs.execute([sys.executable, "-c", "print('after')"], log, lock, report=seen.append)
    assert seen == ["after"]
    assert log.read_text() == "before\nafter\n"


def test_a_folder_is_locked_until_the_engine_ends(tmp_path):
    with runs.exclusive(tmp_path) as lock:
        engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"], pass_fds=(lock,))
    begun = time.monotonic()
    with runs.exclusive(tmp_path):
        assert time.monotonic() - begun > 0.5
    assert engine.wait() == 0


def test_an_unfinished_training_is_not_evaluated(tmp_path):
    run = runs.Run(tmp_path, "made", "dagpam", 1)
    with pytest.raises(runs.RunError, match="training has not ended"):
        runs.generate(run, ["fairseq-generate"])
    with pytest.raises(runs.RunError, match="training has not ended"):
        runs.evaluate(run, ["fairseq-eval-lm"], tmp_path / "text", tmp_path / "subword")
    run.record("train", ["fairseq-train", "a b"], {"valid_loss": 1.0})
    recorded = results.read(tmp_path)
    assert recorded["train"]["command"] == "fairseq-train 'a b'"
    assert set(recorded["train"]["environment"]) == {"versions", "machine", "commit"}


def test_progress_lines(capsys):
    progress = runs.Progress("made dagpam 1", 100)
    prefix = "2026-01-01 00:00:00 | INFO |"
    progress(f'{prefix} train_inner | {{"num_updates": "25", "loss": "9.5", "wps": "1234.5"}}')
    progress(f'{prefix} train_inner | {{"num_updates": "50", "loss": "8.5", "wps": "1234.5"}}')
    progress(f'{prefix} valid | {{"valid_num_updates": "50", "valid_loss": "8"}}')
    progress("some other line")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[made dagpam 1] update 25/100: loss 9.5, 1,234 tokens/s"
    assert lines[1].startswith("[made dagpam 1] update 50/100: loss 8.5, 1,234 tokens/s, 0.0 min left")
    assert lines[2:] == ["[made dagpam 1] update 50: valid loss 8"]


def test_last_flag_wins():
    assert runs.last_flag(["--max-update", "1", "--lr", "2", "--max-update", "3"], "--max-update") == "3"
    assert runs.last_flag(["--lr", "2"], "--max-update") is None
