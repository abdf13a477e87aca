"""Exported checkpoints in fairseq without --user-dir, in CTranslate2, and under torch's safe loading."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BIN, ENVIRONMENT, USER_DIR, generate, hypotheses, train_language_model, train_translation
from test_language_model import evaluate, loss

from fairseq_gpam.__main__ import main

FOLDED = [
    *("--gpam-encoder-mechanism", "dagpam", "--gpam-decoder-mechanism", "scaled_softmax"),
    *("--gpam-cross-mechanism", "softmax:1,scaled_softmax:1", "--gpam-lambda", "fixed"),
    *("--gpam-lambda-plus", "0.4", "--gpam-lambda-minus", "0", "--optimizer", "gpam_adam"),
]
SAFE_GLOBALS = "import torch; torch.load(__import__('sys').argv[1], weights_only=True)"


def greedy(command, parallel, path, **kwargs):
    return hypotheses(generate(command, parallel, path, "--gen-subset", "train", "--beam", "1", **kwargs).stdout)


@pytest.fixture(scope="module")
def folded(command, parallel, folder):
    """A translation model whose mechanisms fold, as it was trained and as it was exported."""
    save_dir = folder / "folded"
    epochs = ["--max-epoch", "25", "--validate-interval", "25", "--no-epoch-checkpoints", "--lr", "0.02"]
    train_translation(command, parallel, save_dir, *epochs, *FOLDED)
    trained, exported = save_dir / "checkpoint_last.pt", save_dir / "exported.pt"
    assert main(["export", str(trained), "--out", str(exported)]) == 0
    return trained, exported


def test_unmodified_fairseq_generate_gives_the_same_translations(command, parallel, folded):
    trained, exported = folded
    expected = greedy(command, parallel, trained)
    found = greedy(command, parallel, exported, user_dir=False)
    assert len(expected) >= 100 and len(set(expected.values())) > 10
    assert found == expected


def test_the_exported_checkpoint_names_nothing_of_this_package_and_loads_safely_anywhere(folded):
    trained, exported = folded
    subprocess.run([sys.executable, "-c", SAFE_GLOBALS, exported], env=ENVIRONMENT, check=True)
    state = torch.load(exported, weights_only=True)
    assert vars(state["args"])["arch"] == "transformer"
    assert not any(name.startswith("gpam_") for name in vars(state["args"]))
    assert str(USER_DIR) not in str({name: value for name, value in state.items() if name != "fairseq_gpam"})
    assert state["fairseq_gpam"]["exported_from"]["gpam_lambda_plus"] == 0.4
    names = torch.load(trained, weights_only=True)["model"].keys()
    assert state["model"].keys() == {name for name in names if ".mechanism." not in name}


@pytest.mark.slow
def test_the_commands_of_the_page_lead_from_a_checkpoint_to_ctranslate2(parallel, folded, tmp_path):
    pytest.importorskip("ctranslate2")
    text = (Path(__file__).parents[2] / "examples/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.M | re.S)
    assert len(blocks) == 2
    (tmp_path / "checkpoint.pt").symlink_to(folded[0])
    (tmp_path / "data-bin").symlink_to(parallel)
    environment = {**ENVIRONMENT, "PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", "".join(blocks)], check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "ct2" / "model.bin").is_file()


@pytest.mark.slow
def test_ctranslate2_gives_the_same_greedy_translations(command, parallel, folded, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    argv = [BIN / "ct2-fairseq-converter", "--model_path", folded[1], "--data_dir", parallel]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    subprocess.run([*argv, "--output_dir", tmp_path / "ct2"], check=True, env=environment, cwd=tmp_path)
    expected = greedy(command, parallel, folded[0])
    source = (parallel.parent / "train.a").read_text().splitlines()
    translator = ctranslate2.Translator(str(tmp_path / "ct2"), inter_threads=1, intra_threads=1)
    results = translator.translate_batch([line.split() for line in source], beam_size=1, max_decoding_length=200)
    found = {number: " ".join(result.hypotheses[0]) for number, result in enumerate(results)}
    assert len(found) >= 100
    assert found == expected


def test_an_exported_language_model_has_the_same_perplexity_without_user_dir(command, monolingual, folder):
    save_dir = folder / "folded_language_model"
    train_language_model(command, monolingual, save_dir, "--max-update", "5", "--gpam-mechanism", "scaled_softmax")
    trained, exported = save_dir / "checkpoint_last.pt", save_dir / "exported.pt"
    assert main(["export", str(trained), "--out", str(exported)]) == 0
    # Beside numpy 2 an unmodified fairseq cannot break samples at sentences.
    ours = evaluate(command, monolingual, trained, "--sample-break-mode", "none")
    stock = evaluate(command, monolingual, exported, "--sample-break-mode", "none", user_dir=False)
    assert loss(ours.text) == loss(stock.text)


def test_a_checkpoint_that_does_not_fold_is_refused_and_nothing_is_written(language_model, tmp_path, capsys):
    trained = language_model[0] / "checkpoint_last.pt"
    with pytest.raises(SystemExit) as refusal:
        main(["export", str(trained), "--out", str(tmp_path / "out.pt")])
    error = capsys.readouterr().err
    assert refusal.value.code == 2
    assert "decoder layer 0: mechanism 'dagpam' cannot be exported" in error
    assert os.listdir(tmp_path) == []
    with pytest.raises(SystemExit, match="give another name"):
        main(["export", str(trained), "--out", str(trained)])
