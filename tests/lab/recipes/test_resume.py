"""A training that was killed and started again ends with the weights of an undisturbed one, bit for bit."""

import json
import random
import shlex
import shutil

import pytest
import sizes
import torch
from machine import wait_for

import fairseq_gpam
from fairseq_gpam.lab.recipes import run_folder, stage_results

UPDATES = 40
TRAIN = (
    f"""--task translation --arch transformer_gpam --dropout 0.1 --optimizer adam --lr 0.01 --max-tokens 150
--num-workers 0 --cpu --seed 1 --max-update {UPDATES} --log-interval 1 --save-interval-updates 3
--keep-interval-updates 3 --no-epoch-checkpoints --update-epoch-batch-itr True --required-batch-size-multiple 1
--no-progress-bar --log-format json""".split()
    + sizes.tiny("encoder", "decoder")
)


@pytest.fixture(scope="module")
def data(machine, tmp_path_factory):
    """Made sentence pairs, binarised; an epoch has about ten updates."""
    folder = tmp_path_factory.mktemp("resume")
    made = random.Random(1)
    for split, count in (("train", 200), ("valid", 10)):
        lines = [[f"w{made.randrange(20)}" for _ in range(made.randint(2, 9))] for _ in range(count)]
        (folder / f"{split}.a").write_text("".join(" ".join(line) + "\n" for line in lines))
        (folder / f"{split}.b").write_text("".join(" ".join(line).upper() + "\n" for line in lines))
    command = [machine.python.with_name("fairseq-preprocess"), "-s", "a", "-t", "b", "--destdir", "data-bin"]
    prefixes = ["--trainpref", "train", "--validpref", "valid"]
    assert machine.start(["env", "-C", folder, *command, *prefixes]).wait() == 0
    return folder / "data-bin"


def start(machine, data, folder):
    """Starts the runner on a machine that can be killed."""
    # The folder's name is no part of the command: all runs have the same one.
    command = ["fairseq-train", str(data), "--user-dir", fairseq_gpam.__path__[0], "--save-dir", "checkpoints", *TRAIN]
    code = "import sys; from pathlib import Path; from fairseq_gpam.lab.recipes.run_folder import Run, train\n"
    code += "train(Run(Path(sys.argv[1]), 'made', 'dagpam', 1), sys.argv[2:])"
    folder.mkdir(exist_ok=True)
    return machine.start(["env", "-C", folder, machine.python, "-c", code, folder, *command])


def finish(machine, data, folder):
    process = start(machine, data, folder)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    return text


def kill_when_logged(machine, process, log, text):
    """Kills the machine as soon as the log holds the text."""
    wait_for(lambda: log.exists() and text in log.read_text(), process, 120)
    machine.kill()


@pytest.fixture(scope="module")
def undisturbed(machine, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(machine, data, folder)
    return folder


def check_same(folder, undisturbed):
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        states = [torch.load(path / "checkpoints" / name, weights_only=True) for path in (folder, undisturbed)]
        assert states[0]["optimizer_history"][-1]["num_updates"] == states[1]["optimizer_history"][-1]["num_updates"]
        assert states[0]["model"].keys() == states[1]["model"].keys()
        for parameter, tensor in states[0]["model"].items():
            assert torch.equal(tensor, states[1]["model"][parameter]), parameter
    recorded = [json.loads((path / "results.json").read_text())["train"] for path in (folder, undisturbed)]
    for key in ("updates", "valid_loss", "best_update", "curve"):
        assert recorded[0][key] == recorded[1][key], key


def test_killed_in_the_third_epoch(machine, data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    kill_when_logged(machine, start(machine, data, folder), folder / "train.log", '"epoch": 3, "update": 2.')
    killed = (folder / "train.log").read_text()
    assert "done training" not in killed
    assert (folder / "checkpoints/checkpoint_last.pt").exists()
    finish(machine, data, folder)
    assert "Loaded checkpoint" in (folder / "train.log").read_text()
    check_same(folder, undisturbed)
    # What the whole training took is known only of the undisturbed one.
    assert "seconds" not in stage_results.read(folder)["train"]
    assert stage_results.read(undisturbed)["train"]["seconds"] > 0


@pytest.mark.slow
def test_a_full_disk_costs_no_more_than_the_updates_since_the_last_checkpoint(machine, data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    full = folder / "checkpoints/checkpoint_1_6.pt.tmp"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    process = start(machine, data, folder)
    text = process.communicate()[0]
    assert process.returncode == 1
    assert "No space left on device" in text
    assert not (folder / "results.json").exists()
    full.unlink()
    finish(machine, data, folder)
    log = (folder / "train.log").read_text()
    assert "checkpoint_last.pt (epoch 1 @ 3 updates)" in log
    check_same(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("record", [[], ["config.json"]])
def test_killed_between_the_end_and_the_record(machine, data, undisturbed, tmp_path, record):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    for name in {"results.json", "config.json"} - set(record):
        (folder / name).unlink()
    before = (folder / "train.log").read_text()
    assert "had ended before its results were recorded" in finish(machine, data, folder)
    assert (folder / "train.log").read_text() == before
    check_same(folder, undisturbed)
    assert (folder / "config.json").read_text() == (undisturbed / "config.json").read_text()


def test_a_run_that_stopped_early_is_not_trained_further(tmp_path):
    log = tmp_path / "train.log"
    assert not run_folder.has_ended(tmp_path, log, 10)
    torch.save({"cfg": {}, "model": {}, "optimizer_history": [{"num_updates": 6}]}, tmp_path / "checkpoint_last.pt")
    step = '2026-01-01 00:00:00 | INFO | train_inner | {"num_updates": "6"}\n'
    done = "2026-01-01 00:00:00 | INFO | fairseq_cli.train | done training in 1.0 seconds\n"
    for text, ended in ((step, False), (step + done, True), (step + done + step, False)):
        log.write_text(text)
        assert run_folder.has_ended(tmp_path, log, 10) is ended
    assert run_folder.has_ended(tmp_path, log, 6)


@pytest.mark.slow
def test_killed_after_the_last_checkpoint(machine, data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    log = folder / "train.log"
    kill_when_logged(machine, start(machine, data, folder), log, f"@ {UPDATES} updates, score")
    # If the engine was quick enough to end, this run is in the state of the next test; these lines undo that.
    lines = [line for line in log.read_text().splitlines(keepends=True) if "done training" not in line]
    log.write_text("".join(lines))
    for name in ("results.json", "config.json"):
        (folder / name).unlink(missing_ok=True)
    before = log.read_text()
    assert "had ended before its results were recorded" in finish(machine, data, folder)
    assert log.read_text() == before
    check_same(folder, undisturbed)


@pytest.mark.slow
def test_a_disk_too_full_to_record_the_results_costs_nothing(data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    (folder / "results.json").unlink()
    full = folder / "results.json.part"
    full.symlink_to("/dev/full")
    command = shlex.split((folder / "train.command").read_text())
    run = run_folder.Run(folder, "made", "dagpam", 1)
    with pytest.raises(run_folder.RunError, match=f"{folder}.*No space left on device"):
        run_folder.train(run, command)
    assert not (folder / "results.json").exists()
    full.unlink()
    before = (folder / "train.log").read_text()
    run_folder.train(run, command)
    assert (folder / "train.log").read_text() == before
    check_same(folder, undisturbed)
