"""The example of a mechanism in a file of the user's, through fairseq's own commands, in both model families."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, SMALL_LM, TRAIN, generate, train_language_model_with_hydra
from quick import first
from test_language_model import evaluate, loss

EXAMPLE = Path(__file__).parents[2] / "examples" / "your-own-mechanism" / "tempered.py"


def train(command, data, save_dir, file, *arguments, **kwargs):
    own = ["--gpam-import", file, "--gpam-mechanism", "tempered", "--gpam-tempered-tau", "4"]
    short = ["--optimizer", "adam", "--max-tokens", "256", "--max-update", "2", "--save-dir", save_dir]
    return command("fairseq-train", data, *TRAIN, *short, *arguments, *own, **kwargs)


def settings(save_dir, name="checkpoint_last.pt"):
    model = torch.load(save_dir / name, weights_only=True)["cfg"]["model"]
    return model if isinstance(model, dict) else vars(model)


@pytest.fixture
def file(tmp_path):
    return Path(shutil.copy(EXAMPLE, tmp_path / "tempered.py"))


def test_translation_generates_with_the_file_that_it_was_trained_with_if_it_is_named_again(
    command, parallel, tmp_path, file
):
    save_dir = tmp_path / "translation"
    result = train(command, parallel, save_dir, file.name, "--arch", "transformer_gpam", *SMALL, cwd=tmp_path)
    assert f"--gpam-import runs the Python file {file}" in result.text
    assert settings(save_dir)["gpam_import"] == str(file)
    assert settings(save_dir)["gpam_tempered_tau"] == 4.0
    trained = save_dir / "checkpoint_last.pt"
    unnamed = generate(command, parallel, trained, ok=False)
    assert f"--gpam-import '{file}' is not allowed: only the model's settings name this file" in unnamed.text
    plain = generate(command, parallel, trained, "--model-overrides", f"{{'gpam_import': '{file}'}}")
    assert f"--gpam-import runs the Python file {file}" in plain.text

    moved = file.rename(tmp_path / "moved.py")
    missing = generate(command, parallel, trained, "--model-overrides", f"{{'gpam_import': '{file}'}}", ok=False)
    assert f"--gpam-import {file}: no such Python file" in missing.text
    override = ["--model-overrides", f"{{'gpam_import': '{moved}'}}"]
    again = generate(command, parallel, trained, *override)
    assert [line for line in again.stdout.splitlines() if line.startswith("H-")] == [
        line for line in plain.stdout.splitlines() if line.startswith("H-")
    ]


def test_hydra_takes_the_file_and_its_flags(command, monolingual, tmp_path, file):
    flags = [f"import={file}", "mechanism=tempered", "tempered_tau=4"]
    train_language_model_with_hydra(command, monolingual, tmp_path / "hydra", *flags)
    assert settings(tmp_path / "hydra")["gpam_tempered_tau"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("arch", first(1, ["transformer_lm_gpam_gpt", "transformer_lm_gpam"]))
def test_a_language_model_evaluates_with_the_temperature_it_was_trained_with(
    command, monolingual, tmp_path, file, arch
):
    save_dir = tmp_path / "language_model"
    task = ["--task", "language_modeling", "--arch", arch, *SMALL_LM]
    train(command, monolingual, save_dir, file, *task)
    assert settings(save_dir)["gpam_tempered_tau"] == 4.0

    def evaluated(**overrides):
        given = repr({"gpam_import": str(file), **overrides})
        return loss(evaluate(command, monolingual, save_dir / "checkpoint_last.pt", "--model-overrides", given).text)

    plain = evaluated()
    assert evaluated(gpam_tempered_tau=4.0) == plain
    assert evaluated(gpam_tempered_tau=0.01) != plain
