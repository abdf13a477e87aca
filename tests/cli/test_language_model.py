"""fairseq's language-model commands with our architecture's name: preprocess → train → resume → eval-lm."""

import re

import pytest
import torch
from conftest import train_language_model, train_language_model_with_hydra


def load(path):
    return torch.load(path, weights_only=True)


def evaluate(command, monolingual, path, *arguments, **kwargs):
    return command(
        "fairseq-eval-lm",
        *(monolingual, "--path", path, "--cpu", "--sample-break-mode", "eos", "--tokens-per-sample", "16"),
        *("--required-batch-size-multiple", "1", "--gen-subset", "valid", *arguments),
        **kwargs,
    )


def loss(text):
    return float(re.search(r"Loss \(base 2\): ([\d.]+)", text).group(1))


def test_training_resumes(language_model):
    save_dir, _, second = language_model
    assert re.search(r"Loaded checkpoint .*checkpoint_last\.pt \(epoch 1 @ 5 updates\)", second)
    assert load(save_dir / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 10


def test_flags_and_both_groups_of_the_optimizer_are_stored_in_the_checkpoint(language_model):
    state = load(language_model[0] / "checkpoint_last.pt")
    settings = state["cfg"]["model"]
    assert settings["_name"] == "transformer_lm_gpam"
    assert settings["gpam_lambda"] == "trainable"
    assert settings["gpam_lambda_plus"] == 0.5
    groups = state["last_optimizer_state"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert [len(group["params"]) for group in groups][1] == 2


def test_the_lambdas_have_been_trained(language_model):
    model = load(language_model[0] / "checkpoint_last.pt")["model"]
    thetas = [value for name, value in model.items() if name.endswith("theta")]
    assert len(thetas) == 2
    assert all((theta != 0.5).all() for theta in thetas)


def test_eval_lm_gives_the_loss_that_training_gave(command, monolingual, language_model):
    result = evaluate(command, monolingual, language_model[0] / "checkpoint_last.pt")
    training = float(re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", language_model[2])[-1])
    assert abs(loss(result.text) - training) < 0.002
    words = sum(len(line.split()) + 1 for line in (monolingual.parent / "valid.a").read_text().splitlines())
    assert f"Evaluated {words} tokens" in result.text


def test_hydra_trains_a_language_model_and_model_overrides_change_its_fixed_lambda(command, monolingual, folder):
    save_dir = folder / "hydra_language_model"
    flags = ["lambda=fixed", "lambda_plus=0.125", "negative_bias=true"]
    train_language_model_with_hydra(command, monolingual, save_dir, *flags)
    state = load(save_dir / "checkpoint_last.pt")
    assert state["cfg"]["model"]["gpam_lambda_plus"] == 0.125
    assert any(name.endswith("negative_projection.bias") for name in state["model"])
    assert not any(name.endswith("theta") for name in state["model"])
    path = save_dir / "checkpoint_last.pt"
    plain = evaluate(command, monolingual, path)
    changed = evaluate(command, monolingual, path, "--model-overrides", "{'gpam_lambda_plus': 3.0}")
    assert loss(plain.text) != loss(changed.text)


def test_fp16_with_weight_decay_trains_on_a_cpu(command, monolingual, tmp_path):
    save_dir = tmp_path / "fp16"
    flags = ["--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", "4", "--max-update", "3"]
    result = train_language_model(command, monolingual, save_dir, *flags)
    assert "loss_scale" in result.text
    state = load(save_dir / "checkpoint_last.pt")
    assert all(torch.isfinite(value.float()).all() for value in state["model"].values())
    assert [group["weight_decay"] for group in state["last_optimizer_state"]["param_groups"]] == [0.01, 0.0]


@pytest.mark.parametrize("position", [pytest.param("rotary"), pytest.param("alibi", marks=pytest.mark.slow)])
def test_a_model_trained_on_128_positions_is_evaluated_on_512(command, monolingual, tmp_path, position):
    flags = [*("--gpam-position", position, "--gpam-qk-norm"), *("--tokens-per-sample", "128"), *("--max-update", "3")]
    train_language_model(command, monolingual, tmp_path, "--sample-break-mode", "none", *flags)
    words = sum(len(line.split()) + 1 for line in (monolingual.parent / "train.a").read_text().splitlines())
    assert words > 512
    longer = ["--gen-subset", "train", "--sample-break-mode", "none", "--tokens-per-sample", "512"]
    result = evaluate(command, monolingual, tmp_path / "checkpoint_last.pt", *longer)
    # Blocks that a model does not take would be left out.
    assert f"Evaluated {words:,} tokens" in result.text
    assert 0 < loss(result.text) < 20


@pytest.mark.slow
def test_forgetting_user_dir_at_eval_lm_fails_with_the_message_of_the_readme(command, monolingual, language_model):
    result = evaluate(command, monolingual, language_model[0] / "checkpoint_last.pt", user_dir=False, ok=False)
    assert "KeyError: \"'_name'\"" in result.stderr
