"""Grids and trainings on a SLURM cluster of one node, without accounting, which the tests start and stop."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from subprocess import PIPE, STDOUT

import psutil
import pytest
import slurm
from machine import send, wait_for
from test_experiment import REPOSITORY, SMOKE, compared, prepared_grid

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.experiments import experiment
from fairseq_gpam.lab.experiments import slurm as jobs_on_slurm


def stand_in(folder, monkeypatch, **commands):
    """Puts commands, each a line of a shell, in the place of SLURM's."""
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name, line in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("left", "said", "returned", "expected"),
    [
        ("0\n", "", 1, "success"),
        ("143\n", "RUNNING", 0, "failed"),
        ("", "RUNNING", 0, "running"),
        (None, "PENDING", 0, "running"),
        (None, "", 0, "running"),
        (None, "COMPLETED", 0, "success"),
        (None, "TIMEOUT", 0, "failed"),
        (None, "OUT_OF_MEMORY", 0, "failed"),
        (None, "slurm_load_jobs error: Unable to contact slurm controller", 1, "running"),
        (None, "slurm_load_jobs error: Invalid job id specified", 1, "failed"),
    ],
)
def test_a_job_that_left_no_status_is_asked_about_and_no_answer_is_no_failure(
    tmp_path, monkeypatch, left, said, returned, expected
):
    stand_in(tmp_path, monkeypatch, squeue=f"echo '{said}' >&{2 if returned else 1}; exit {returned}")
    (tmp_path / "slurm").mkdir()
    if left is not None:
        (tmp_path / "slurm/7.exit").write_text(left)
    monkeypatch.chdir(tmp_path)
    assert jobs_on_slurm.status("7") == expected


def test_jobs_that_cannot_be_cancelled_are_named_however_snakemake_has_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs_on_slurm, "PATIENCE", 0)
    ended = subprocess.Popen(["false"])
    ended.wait()
    stand_in(tmp_path, monkeypatch, squeue=f"echo '7 {tmp_path}'; echo '8 /other'; echo '9 {tmp_path}'", scancel="")
    experiment.stop(ended, tmp_path)
    assert capsys.readouterr().err == "jobs that still run, although cancelled: 7 9\n"
    stand_in(tmp_path, monkeypatch, squeue="echo no controller >&2; exit 1")
    experiment.stop(ended, tmp_path)
    assert f"jobs in {tmp_path} may still be running on the cluster: SLURM does not answer" in capsys.readouterr().err


def test_a_machine_without_slurm_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="--executor is slurm, but there is no sbatch here"):
        main(arguments(SMOKE, tmp_path / "out"))


@pytest.fixture(scope="module")
def cluster():
    if not slurm.is_installed():
        pytest.skip("needs Debian's slurm-wlm and munge")
    with slurm.running() as started:
        yield started


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    yield cluster
    cluster.wait_until(lambda: not queue(cluster))


def queue(cluster):
    return cluster.run("squeue", "--noheader", "--format=%A", check=False).stdout.split()


def arguments(file, out, *more):
    return ["experiment", str(file), "--executor", "slurm", "--jobs", "2", "--out", str(out), *more]


def start(file, out, *wrapper):
    command = [*wrapper, sys.executable, "-m", "fairseq_gpam", *arguments(file, out)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, stdout=PIPE, stderr=STDOUT, text=True)


def kill(process):
    """Kills a driver and Snakemake; what runs on the cluster is no child of theirs."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in tree:
        send(member.kill)
    psutil.wait_procs(tree, timeout=60)
    process.communicate()


def flagged(file, flags):
    file.write_text(f"{file.read_text()}[slurm]\nflags = {json.dumps(flags)}\n")
    return file


@pytest.mark.slurm
def test_failing_jobs_get_the_flags_are_retried_and_named(on_cluster, tmp_path, capsys):
    show = "scontrol show job $SLURM_JOB_ID | grep -e TimeLimit -e Comment -e JobName; echo tried"
    file, out = (
        prepared_grid(tmp_path, f"{show}; test -e once || {{ touch once; exit 1; }}", "echo tried; exit 1"),
        tmp_path / "out",
    )
    flagged(file, "--partition debug --time 7:00 --comment 'two {words}'")
    assert main(arguments(file, out, "--retries", "1")) == 1
    said = (out / "prepared/bible-de-en.job.log").read_text()
    assert said.count("tried") == 2
    assert "JobName=prepare_bible_de_en" in said and "TimeLimit=00:07:00" in said and "Comment=two {words}" in said
    assert (out / "runs/bible-de-en/stock/1/train.job.log").read_text() == "tried\n" * 2
    named = capsys.readouterr().err
    assert named.count("failed: ") == named.count("failed: train of bible-de-en stock 1") == 1


@pytest.mark.slurm
def test_a_job_that_is_cancelled_has_failed_and_the_same_command_goes_on(on_cluster, tmp_path):
    file, out = prepared_grid(tmp_path, "test -e once || { touch once; exec sleep 600; }", "exit 1"), tmp_path / "out"
    process = start(file, out)
    wait_for((out / "once").exists, process)
    on_cluster.run("scancel", *queue(on_cluster))
    assert "failed: prepare of bible-de-en" in process.communicate(timeout=600)[0]
    again = start(file, out)
    assert "failed: train of bible-de-en stock 1" in again.communicate(timeout=600)[0]
    assert (out / "prepared/bible-de-en.done").exists()


@pytest.mark.slurm
def test_a_controller_that_does_not_answer_for_a_while_is_waited_for(on_cluster, tmp_path):
    file, out = prepared_grid(tmp_path, "touch begun; until test -e go; do sleep 1; done", "exit 1"), tmp_path / "out"
    process = start(file, out)
    wait_for((out / "begun").exists, process)
    on_cluster.stop_daemon("slurmctld.pid")
    wait_for(lambda: "SLURM did not answer" in (out / "snakemake.log").read_text(), process)
    on_cluster.start_controller()
    (out / "go").touch()
    said = process.communicate(timeout=600)[0]
    assert (out / "prepared/bible-de-en.done").exists(), said
    assert "failed: train of bible-de-en stock 1" in said


@pytest.mark.slurm
@pytest.mark.parametrize("ignoring", [False, True])
def test_a_grid_that_is_terminated_leaves_no_job_even_from_a_script_in_the_background(on_cluster, tmp_path, ignoring):
    file, out = prepared_grid(tmp_path, "touch begun; exec sleep 600", "exit 1"), tmp_path / "out"
    # A shell without job control ignores SIGINT in what it starts with `&`.
    wrapper = ("sh", "-c", "trap '' INT; exec nohup \"$@\"", "sh") if ignoring else ()
    process = start(file, out, *wrapper)
    wait_for((out / "begun").exists, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=600)[0]
    assert "stopped; run the same command again to continue" in said and "still run" not in said
    assert queue(on_cluster) == []


@pytest.mark.slurm
def test_jobs_that_outlive_a_killed_driver_are_cancelled_by_the_same_command_which_goes_on(on_cluster, tmp_path):
    file, out = prepared_grid(tmp_path, "test -e once || { touch once; exec sleep 600; }", "exit 1"), tmp_path / "out"
    process = start(file, out)
    wait_for((out / "once").exists, process)
    kill(process)
    assert queue(on_cluster)
    assert "failed: train of bible-de-en stock 1" in start(file, out).communicate(timeout=600)[0]
    assert (out / "prepared/bible-de-en.done").exists()


@pytest.mark.slurm
@pytest.mark.slow
def test_a_grid_killed_three_times_ends_with_the_same_table(on_cluster, machine, tmp_path):
    shutil.copytree(SMOKE.parent, tmp_path / "smoke")
    file, killed, whole = tmp_path / "smoke/grid.toml", tmp_path / "killed", tmp_path / "whole"
    text = file.read_text().replace("seeds = [1, 2]", "seeds = [1]").replace("--max-update 10", "--max-update 4")
    file.write_text(text.replace("-updates 5", "-updates 2"))
    for left in ("train.job.log", "train.done", "generate.job.log"):
        process = start(file, killed)
        wait_for(lambda left=left: any(killed.glob(f"runs/*/*/*/{left}")), process)
        kill(process)
        assert not (killed / "comparison").exists()
    said = start(file, killed).communicate(timeout=600)[0]
    assert "2 of 2 runs done" in said, said
    command = [machine.python, "-m", "fairseq_gpam", "experiment", file, "--jobs", "2", "--out", whole]
    said = machine.start(command, PYTHONPATH=str(REPOSITORY)).communicate(timeout=600)[0]
    assert "2 of 2 runs done" in said, said
    assert compared(killed) == compared(whole)


@pytest.mark.slurm
@pytest.mark.slow
def test_two_tasks_of_srun_train_one_model_with_ranks_and_two_models_without(on_cluster, tmp_path):
    prepare = [sys.executable, SMOKE.with_name("made_bible.py"), "--out", tmp_path]
    subprocess.run(prepare, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=True)
    small = "--max-update 4 --save-interval-updates 2 --validate-interval-updates 2 --log-interval 1 --max-tokens 256"
    for stack in ("encoder", "decoder"):
        small += f" --{stack}-layers 1 --{stack}-embed-dim 16 --{stack}-ffn-embed-dim 16 --{stack}-attention-heads 2"
    train = f"bash {REPOSITORY}/scripts/train.sh bible-de-en dagpam"
    # On a machine without GPUs the engine cannot take its rank from SLURM's variables.
    joined = "--cpu --distributed-backend gloo --ddp-backend legacy_ddp --distributed-world-size 2"
    joined += f" --distributed-init-method tcp://127.0.0.1:{slurm.free_ports(1)[0]} --distributed-no-spawn"
    joined += " --distributed-rank $SLURM_PROCID"
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for script in (
        f"{train} 1 --name joined --out {tmp_path} -- {small} {joined}",
        f"{train} $((SLURM_PROCID + 1)) --name apart --out {tmp_path} -- {small}",
    ):
        command = ["srun", "--ntasks", "2", "bash", "-c", script]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    runs = tmp_path / "runs/bible-de-en"
    for run in ("joined/1", "apart/1", "apart/2"):
        assert json.loads((runs / run / "results.json").read_text())["train"]["updates"] == 4
    assert (runs / "joined/1/train.rank-1.log").exists()
    assert "training on 2 devices" in (runs / "joined/1/train.log").read_text()
    assert not list(runs.glob("apart/*/train.rank-*"))
