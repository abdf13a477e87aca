"""Averaged checkpoints are the mean, and only of one model."""

import argparse

import pytest
import torch

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.recipes import averaging


def save(path, seed, **tensors):
    generator = torch.Generator().manual_seed(seed)
    model = {"weight": torch.randn(3, 4, generator=generator), "version": torch.tensor(3), **tensors}
    path.parent.mkdir(exist_ok=True)
    state = {"args": argparse.Namespace(seed=seed), "cfg": {"seed": seed}, "model": model, "optimizer_history": []}
    torch.save(state, path)
    return model


def test_mean_of_named_and_of_last_checkpoints(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    models = [save(folder / f"checkpoint_1_{number}.pt", number) for number in (5, 50, 500)]
    save(folder / "checkpoint_best.pt", 9)
    save(folder / "checkpoint7.pt", 10)
    assert main(["average", str(tmp_path), "--last", "2"]) == 0
    assert "checkpoint_1_50.pt, checkpoint_1_500.pt" in capsys.readouterr().out
    averaged = torch.load(folder / "checkpoint_average.pt", weights_only=True)
    expected = ((models[1]["weight"].double() + models[2]["weight"].double()) / 2).float()
    assert torch.equal(averaged["model"]["weight"], expected)
    assert averaged["model"]["version"] == 3
    assert averaged["args"].seed == 500

    names = [f"checkpoint_1_{number}.pt" for number in (5, 50, 500)]
    assert main(["average", str(tmp_path), *names, "--output", "mean.pt"]) == 0
    expected = (sum(model["weight"].double() for model in models) / 3).float()
    assert torch.equal(torch.load(folder / "mean.pt", weights_only=True)["model"]["weight"], expected)


def test_half_precision_keeps_its_type(tmp_path):
    for number in (1, 2):
        save(tmp_path / f"checkpoint{number}.pt", number, half=torch.full((2,), float(number), dtype=torch.float16))
    averaged = averaging.average(averaging.last_checkpoints(tmp_path, 2))["model"]["half"]
    assert averaged.dtype == torch.float16
    assert averaged.tolist() == [1.5, 1.5]


def test_too_few_or_other_or_broken_checkpoints_are_refused(tmp_path):
    folder = tmp_path / "checkpoints"
    with pytest.raises(SystemExit, match=r"no .*checkpoints; first run: fairseq-gpam train"):
        main(["average", str(tmp_path)])
    save(folder / "checkpoint_1_5.pt", 1)
    with pytest.raises(SystemExit, match="has 1 numbered checkpoints, not 2"):
        main(["average", str(tmp_path), "--last", "2"])
    save(folder / "checkpoint_1_6.pt", 2, more=torch.zeros(1))
    with pytest.raises(SystemExit, match=r"checkpoint_1_6\.pt is not of the same model"):
        main(["average", str(tmp_path), "--last", "2"])
    (folder / "checkpoint_1_6.pt").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"checkpoint_1_6\.pt is empty"):
        main(["average", str(tmp_path), "--last", "2"])
    assert not (folder / "checkpoint_average.pt").exists()


def test_a_full_disk_leaves_the_old_average_and_is_named(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder / "checkpoint_1_5.pt", 1)
    (folder / "checkpoint_average.pt").write_text("old")
    (folder / "checkpoint_average.pt.part").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match=r"checkpoint_average\.pt: No space left on device"):
        main(["average", str(tmp_path), "--last", "1"])
    assert (folder / "checkpoint_average.pt").read_text() == "old"
