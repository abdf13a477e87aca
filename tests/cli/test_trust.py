"""A checkpoint whose settings would run, or whose content is foreign, is refused by every command that loads it."""

import pytest
import torch
from conftest import SMALL, TRAIN, USER_DIR
from foreign import Foreign
from quick import first

from fairseq_gpam.__main__ import main
from fairseq_gpam.checkpoints import CheckpointError
from fairseq_gpam.hub import from_pretrained


@pytest.fixture(scope="module")
def marker(tmp_path_factory):
    return tmp_path_factory.mktemp("marker") / "executed"


@pytest.fixture(scope="module", params=first(1, ["a setting that runs", "a foreign object", "a damaged file"]))
def checkpoint(request, translation, marker, tmp_path_factory):
    """A translation model's checkpoint that must not be loaded, and why not."""
    path = tmp_path_factory.mktemp("untrusted") / "checkpoint.pt"
    state = torch.load(translation[0] / "checkpoint_last.pt", weights_only=True)
    reason = "adaptive_softmax_cutoff"
    if request.param == "a setting that runs":
        state["cfg"]["model"].adaptive_softmax_cutoff = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    elif request.param == "a foreign object":
        state["foreign"], reason = Foreign(marker), "could run code"
    torch.save(state, path)
    if request.param == "a damaged file":
        content, reason = bytearray(path.read_bytes()), "is damaged"
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    return path, reason


def test_no_command_of_fairseq_runs_it(command, parallel, monolingual, checkpoint, marker, monkeypatch, tmp_path):
    path, reason = checkpoint
    monkeypatch.setitem(command.environment, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    translating = ["--arch", "transformer_gpam", *SMALL, *TRAIN, "--max-tokens", "400", "--save-dir", tmp_path]
    modelling = ["task=language_modeling", f"task.data={monolingual}", "model=transformer_lm", "optimizer=adam"]
    modelling += ["model._name=transformer_lm_gpam", "criterion=cross_entropy", "lr_scheduler=fixed"]
    modelling += [
        "dataset.max_tokens=256",
        f"common.user_dir={USER_DIR}",
        f"checkpoint.save_dir={tmp_path}",
        f"hydra.run.dir={tmp_path}",
    ]
    for name, *words in (
        ("fairseq-generate", parallel, "--path", path),
        ("fairseq-interactive", parallel, "--path", path),
        ("fairseq-validate", parallel, "--task", "translation", "--max-tokens", "400", "--path", path),
        ("fairseq-eval-lm", monolingual, "--path", path),
        ("fairseq-train", parallel, *translating, "--restore-file", path),
        ("fairseq-train", parallel, *translating, "--finetune-from-model", path),
        ("fairseq-hydra-train", *modelling, "common.cpu=true", f"checkpoint.restore_file={path}"),
    ):
        hydra = name == "fairseq-hydra-train"
        result = command(name, *words, *(() if hydra else ("--cpu",)), ok=False, user_dir=not hydra)
        assert reason in result.text, name
    assert not marker.exists()


def test_no_command_of_the_package_runs_it(parallel, checkpoint, marker, tmp_path, capsys):
    path, reason = checkpoint
    with pytest.raises(CheckpointError, match=reason):
        from_pretrained(path, parallel)
    for words in (
        ["export", path, "--out", tmp_path / "stock.pt"],
        ["analyze", path, "--data", parallel, "--out", tmp_path],
    ):
        with pytest.raises(SystemExit, match=reason) as refusal:
            main(list(map(str, words)))
        assert refusal.value.code == 2
        message = capsys.readouterr().err
        assert reason in message.splitlines()[-1] and "Traceback" not in message
    assert not marker.exists()
