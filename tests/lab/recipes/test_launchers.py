"""What surrounds a training: several processes under torchrun, broken downloads, local archives."""

import json
import sys
from pathlib import Path

import archives
import pytest
import torch
from shell import run
from test_readmes import REPOSITORY, flags

from fairseq_gpam.lab.recipes import logs

pytestmark = pytest.mark.recipes


@pytest.fixture
def prepared(interpreter, tmp_path):
    """A folder with the synthetic Penn Treebank prepared, and the environment for the next commands."""
    (tmp_path / "made").mkdir()
    environment = archives.ptb(tmp_path / "made")
    run(["bash", f"{REPOSITORY}/scripts/prepare-ptb.sh"], tmp_path, PYTHON=str(interpreter), **environment)
    return tmp_path, environment


def test_torchrun_trains_with_two_processes_what_one_trains_with_twice_the_batches(prepared, interpreter):
    folder, environment = prepared
    # Each process has its own dropout. Two batches an update, from one process or from two, are the same two.
    same = f"{flags('train.sh', 'ptb-lm')} --max-update 5 --dropout 0 --attention-dropout 0 --update-freq"
    script = f"bash {REPOSITORY}/scripts/train.sh ptb-lm dagpam 1"
    distributed = "--cpu --distributed-backend gloo --ddp-backend legacy_ddp --distributed-world-size 2"
    distributed += " --distributed-init-method env:// --distributed-no-spawn --distributed-rank $RANK"
    launch = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2"]
    launch += ["--master-port", "29517", "bash", "-c", f"{script} --name two {same} 1 {distributed}"]
    alone = ["bash", "-c", f"{script} --name alone {same} 2"]
    for command, python in ((launch, sys.executable), (alone, interpreter)):
        run(command, folder, PYTHON=str(python), **environment)

    two, one = folder / "out/runs/ptb-lm/two/1", folder / "out/runs/ptb-lm/alone/1"
    assert json.loads((two / "results.json").read_text())["train"]["updates"] == 5
    log, other = (two / "train.log").read_text(), (two / "train.rank-1.log").read_text()
    assert "training on 2 devices" in log
    assert other
    updates = [int(record["num_updates"]) for record in logs.records(log, "train_inner")]
    assert updates == [1, 2, 3, 4, 5]
    assert not list(logs.records(other, "train_inner"))
    expected = (one / "train.log").read_text()
    for name, loss in (("train_inner", "loss"), ("valid", "valid_loss")):
        ours, theirs = ([float(record[loss]) for record in logs.records(text, name)] for text in (log, expected))
        assert len(ours) == 5
        # The log has three decimals.
        assert ours == pytest.approx(theirs, abs=0.0011)
    ours, theirs = (torch.load(run / "checkpoints/checkpoint_last.pt", weights_only=True) for run in (two, one))
    for name, weights in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], weights, rtol=1e-4, atol=1e-5)

    # Resumed by fairseq's own command, both processes go on where they were.
    command = (two / "train.command").read_text().strip()
    command = f"exec {Path(sys.executable).parent}/{command} --distributed-rank $RANK --max-update 7"
    said = run([*launch[:-1], command], folder, **environment)
    assert "@ 5 updates)" in said
    assert [int(record["num_updates"]) for record in logs.records(said, "train_inner")] == [6, 7]


def test_a_broken_download_is_resumed(interpreter, tmp_path):
    (tmp_path / "made").mkdir()
    environment = {"PYTHON": str(interpreter), **archives.enwik8(tmp_path / "made")}
    whole = (tmp_path / "made/enwik8.zip").read_bytes()
    (tmp_path / "out/downloads").mkdir(parents=True)
    (tmp_path / "out/downloads/enwik8.zip.part").write_bytes(whole[:1000])
    prepare = ["bash", f"{REPOSITORY}/scripts/prepare-enwik8.sh"]
    run(prepare, tmp_path, **environment)
    assert (tmp_path / "out/downloads/enwik8.zip").read_bytes() == whole

    missing = {**environment, "ENWIK8_URL": (tmp_path / "made/nowhere.zip").as_uri()}
    assert "run again to resume, or fetch it yourself and pass --archive" in run(prepare, tmp_path, 2, **missing)


@pytest.mark.slow
def test_an_unknown_checksum_is_reported_and_a_local_archive_is_used(interpreter, tmp_path):
    (tmp_path / "made").mkdir()
    made = archives.iwslt14(tmp_path / "made")
    environment = {"PYTHON": str(interpreter), "IWSLT14_URL": "file:///nowhere/de-en.tgz"}
    prepare = ["bash", f"{REPOSITORY}/scripts/prepare-iwslt14.sh", "--archive", str(tmp_path / "made/de-en.tgz")]
    said = run(prepare, tmp_path, **environment)
    assert f"no published checksum is known for {prepare[-1]}; it has sha256 {made['IWSLT14_SHA256']}" in said
    assert "IWSLT14" not in (tmp_path / "out/data/iwslt14/stamp").read_text()
    assert not (tmp_path / "out/downloads").exists()
