"""Averaged checkpoints are the mean, and only of one model."""

import argparse

import pytest
import torch

from fairseq_gpam.experiments import averaging


def save(path, seed, **tensors):
    generator = torch.Generator().manual_seed(seed)
    model = {"weight": torch.randn(3, 4, generator=generator), "version": torch.tensor(3), **tensors}
    torch.save({"args": argparse.Namespace(seed=seed), "cfg": {"seed": seed}, "model": model}, path)
    return model


def test_mean_of_named_and_of_last_checkpoints(tmp_path, capsys):
    models = [save(tmp_path / f"checkpoint_1_{number}.pt", number) for number in (5, 50, 500)]
    save(tmp_path / "checkpoint_best.pt", 9)
    save(tmp_path / "checkpoint7.pt", 10)
    out = tmp_path / "average.pt"
    averaging.main([str(tmp_path), "--last", "2", "--output", str(out)])
    assert "checkpoint_1_50.pt, checkpoint_1_500.pt" in capsys.readouterr().out
    averaged = torch.load(out, weights_only=True)
    expected = ((models[1]["weight"].double() + models[2]["weight"].double()) / 2).float()
    assert torch.equal(averaged["model"]["weight"], expected)
    assert averaged["model"]["version"] == 3
    assert averaged["args"].seed == 500

    paths = [str(tmp_path / f"checkpoint_1_{number}.pt") for number in (5, 50, 500)]
    averaging.main([*paths, "--output", str(out)])
    expected = (sum(model["weight"].double() for model in models) / 3).float()
    assert torch.equal(torch.load(out, weights_only=True)["model"]["weight"], expected)


def test_half_precision_keeps_its_type(tmp_path):
    for number in (1, 2):
        save(tmp_path / f"checkpoint{number}.pt", number, half=torch.full((2,), float(number), dtype=torch.float16))
    averaged = averaging.average(averaging.last_checkpoints(tmp_path, 2))["model"]["half"]
    assert averaged.dtype == torch.float16
    assert averaged.tolist() == [1.5, 1.5]


def test_too_few_or_other_checkpoints_are_refused(tmp_path):
    save(tmp_path / "checkpoint_1_5.pt", 1)
    with pytest.raises(SystemExit, match="has 1 numbered checkpoints, not 2"):
        averaging.main([str(tmp_path), "--last", "2", "--output", str(tmp_path / "out.pt")])
    save(tmp_path / "checkpoint_1_6.pt", 2, more=torch.zeros(1))
    with pytest.raises(SystemExit, match=r"checkpoint_1_6\.pt is not of the same model"):
        averaging.main([str(tmp_path), "--last", "2", "--output", str(tmp_path / "out.pt")])
    assert not (tmp_path / "out.pt").exists()
