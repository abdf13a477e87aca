"""What the commands of a run's stages accept, and where they find its task."""

from argparse import Namespace

import pytest

from fairseq_gpam.lab.recipes import stages
from fairseq_gpam.lab.recipes.run_folder import RunError


def test_only_a_training_asks_whether_a_mechanism_is_known(tmp_path, monkeypatch):
    monkeypatch.delenv("GPAM_IMPORT", raising=False)
    words = {"task": "bible-de-en", "mechanism": "mine", "seed": 1, "stock": False, "full": False, "name": None}
    run = stages.settings(Namespace(**words, out=tmp_path, further_flags=[]))
    with pytest.raises(RunError, match="no data"):
        stages.generate(run)
    with pytest.raises(RunError, match="'mine'"):
        stages.train(run)
    for flags in (["--gpam-import", "mine.py"], ["--gpam-import=mine.py"]):
        stages.check_mechanism("mine", flags)
    monkeypatch.setenv("GPAM_IMPORT", "mine.py")
    stages.check_mechanism("mine", [])


def test_runs_may_lie_on_another_disk(tmp_path):
    (tmp_path / "disk/runs/bible-de-en/stock/1").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/runs").symlink_to(tmp_path / "disk/runs")
    (tmp_path / "one").symlink_to(tmp_path / "disk/runs/bible-de-en/stock/1")
    for folder, out in (("out/runs/bible-de-en/stock/1", "out"), ("out/runs/../runs/bible-de-en/stock/1", "out")):
        found, task = stages.run_of(tmp_path / folder)
        assert (found, task.name) == (tmp_path / out, "bible-de-en")
    assert stages.run_of(tmp_path / "one")[0] == tmp_path / "disk"
