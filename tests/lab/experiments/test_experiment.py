"""The smoke grid, its whole process tree killed twice, ends as an undisturbed one; a cluster gets the grid's flags."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from subprocess import PIPE, STDOUT

import psutil
import pytest
from machine import wait_for

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.experiments import experiment, grid

REPOSITORY = Path(__file__).parents[3]
SMOKE = REPOSITORY / "examples/studies/smoke/grid.toml"
RUNS = 4


def start(machine, out):
    """Starts the smoke grid, two jobs at a time."""
    command = [machine.python, "-m", "fairseq_gpam", "experiment", SMOKE, "--jobs", "2", "--out", out]
    return machine.start(command, PYTHONPATH=str(REPOSITORY))


def in_training(out):
    """One training has ended, and another is running."""
    running = [p for p in out.glob("runs/*/*/*/train.log") if not p.with_name("train.done").exists()]
    return list(out.glob("runs/*/*/*/train.done")) and any("train_inner" in p.read_text() for p in running)


def in_translation(out):
    """One run is scored, and another is being translated."""
    running = [p for p in out.glob("runs/*/*/*/generate.log") if not p.with_name("generate.done").exists()]
    return running and list(out.glob("runs/*/*/*/score.done"))


def finished_jobs(out):
    """What each job that has ended left behind: its marker, time and log, and what the run's folder records of it."""
    left = {}
    for marker in [*out.glob("prepared/*.done"), *out.glob("runs/*/*/*/*.done")]:
        stage = marker.with_suffix("")
        files = [marker, Path(f"{stage}.benchmark.tsv"), Path(f"{stage}.job.log")]
        files += [path for path in [Path(f"{stage}.log")] if path.exists()]
        left[str(stage)] = [(path.name, path.stat().st_mtime_ns, path.read_bytes()) for path in files]
        results = marker.parent / "results.json"
        if results.exists():
            left[str(stage)].append(json.loads(results.read_text())[stage.name])
    return left


def compared(out):
    """The comparison without its costs."""
    comparison = json.loads((out / "comparison/smoke/comparison.json").read_text())
    del comparison["costs"]
    return comparison


@pytest.mark.slow
def test_a_grid_that_is_killed_repeats_nothing_and_ends_as_an_undisturbed_one(machine, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said = {}
    for condition in (in_training, in_translation):
        wait_for(functools.partial(condition, killed), start(machine, killed))
        assert machine.kill() > 5
        said |= {log: log.read_text() for log in killed.glob("runs/*/*/*/*.job.log") if log.stat().st_size}
        before = finished_jobs(killed)
        assert before
        assert not (killed / "comparison").exists()

    process = start(machine, killed)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    after = finished_jobs(killed)
    assert len(after) == 1 + 3 * RUNS
    assert {name: after[name] for name in before} == before
    ended = Counter(re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", (killed / "snakemake.log").read_text()))
    assert set(ended.values()) == {1}
    for log in killed.glob("runs/*/*/*/train.log"):
        # None if the kill came after the last checkpoint and before this line; training does not go on then.
        assert log.read_text().count("done training in") <= 1
    # What a job said before it was interrupted is kept.
    assert said
    for log, text in said.items():
        assert log.read_text().startswith(text)

    process = start(machine, whole)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert f"{RUNS} of {RUNS} runs done" in text
    assert compared(killed) == compared(whole)


PREPARED_GRID = """
baseline = "stock"
seeds = [1]
[tasks.bible-de-en]
prepare = "sh -c '{prepare}'"
[arms]
stock = {{ mechanism = "stock" }}
[environment]
PATH = "{path}"
"""


def prepared_grid(folder, prepare, python):
    """A grid with this command to prepare, whose other jobs run the commands `python` of a shell."""
    (folder / "python").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "python").chmod(0o755)
    file = folder / "prepared.toml"
    file.write_text(PREPARED_GRID.format(prepare=prepare, path=f"{folder}:{os.environ['PATH']}"))
    return file


def test_a_grid_runs_in_a_folder_of_any_name_and_arms_whose_rules_have_one_name_are_two(tmp_path, capsys):
    folder = tmp_path / "a; b #c {d} 'e'"
    folder.mkdir()
    file, out = folder / "grid {1}.toml", folder / "{out} #; $HOME"
    text = prepared_grid(tmp_path, 'printf %s \\"$1\\" >where', "exit 1").read_text()
    text = text.replace("'\"\n[arms]", "' sh ${GRID}\"\n[arms]\na_b = ''\n'a.b' = ''")
    file.write_text(text)
    assert main(["experiment", str(file), "--jobs", "2", "--out", str(out)]) == 1
    assert (out / "where").read_text() == str(folder)
    said = capsys.readouterr().err
    assert said.count("failed: train of bible-de-en") == 3
    assert {path.parts[-3] for path in out.glob("runs/*/*/1/train.job.log")} == {"stock", "a_b", "a.b"}


def test_a_failing_job_is_retried_as_often_as_asked(tmp_path, capsys):
    prepare = "echo tried; test -e once || { touch once; exit 1; }"
    file, out = prepared_grid(tmp_path, prepare, "echo tried\nexit 1"), tmp_path / "out"
    assert main(["experiment", str(file), "--retries", "2", "--out", str(out)]) == 1
    prepared, trained = out / "prepared/bible-de-en", out / "runs/bible-de-en/stock/1/train"
    assert prepared.with_suffix(".done").exists()
    assert prepared.with_suffix(".job.log").read_text() == "tried\n" * 2
    assert trained.with_suffix(".job.log").read_text() == "tried\n" * 3
    said = capsys.readouterr().err
    assert said.count("failed: ") == said.count("failed: train of bible-de-en stock 1") == 1


@pytest.mark.slow
def test_an_experiment_that_is_terminated_ends_its_jobs_and_goes_on_with_the_same_command(tmp_path):
    prepare = "test -e once || { touch once; exec sleep 600; }"
    file, out = prepared_grid(tmp_path, prepare, "exit 1"), tmp_path / "out"
    command = [sys.executable, "-m", "fairseq_gpam", "experiment", file, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, stdout=PIPE, stderr=STDOUT, text=True)
    wait_for((out / "once").exists, process)
    started = psutil.Process(process.pid).children(recursive=True)
    assert int((out / "experiment.lock").read_text()) in [process.pid for process in started]
    assert "sleep" in [process.name() for process in started]
    process.terminate()
    assert "stopped; run the same command again to continue" in process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert not (out / "prepared/bible-de-en.done").exists()

    done = subprocess.run(command, env=environment, stdout=PIPE, stderr=STDOUT, text=True)
    assert done.returncode == 1, done.stdout
    assert (out / "prepared/bible-de-en.done").exists()
    assert "failed: train of bible-de-en stock 1" in done.stdout


def test_only_jobs_that_began_are_said_to_have_failed_and_snakemakes_log_is_always_named(tmp_path, capsys):
    chosen = grid.load(SMOKE)
    jobs = list(chosen.jobs())
    assert experiment.finish(chosen, jobs, tmp_path, 1, "smoke") == 1
    ended = f"Snakemake ended with status 1; see {tmp_path / 'snakemake.log'}\n"
    assert capsys.readouterr().err == ended
    log = tmp_path / jobs[0].log
    log.parent.mkdir()
    log.touch()
    assert experiment.finish(chosen, jobs, tmp_path, 1, "smoke") == 1
    assert capsys.readouterr().err == f"failed: {jobs[0].stage} of {jobs[0].label}; see {log}\n{ended}"


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "number"), [("--retries", "-1"), ("--jobs", "0")])
def test_a_wrong_number_is_refused(tmp_path, capsys, flag, number):
    with pytest.raises(SystemExit):
        main(["experiment", str(SMOKE), flag, number, "--out", str(tmp_path)])
    assert f"argument {flag}: {number} is not allowed; allowed: " in capsys.readouterr().err
