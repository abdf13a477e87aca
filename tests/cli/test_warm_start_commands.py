"""Warm starts by the real commands: both ways to load a stock checkpoint keep its outputs, then training moves on."""

import pytest
import torch
import torch.nn.functional as F
from conftest import train_language_model, train_translation
from fairseq import checkpoint_utils
from quick import first
from tiny import logits, sentences, shifted

WAYS = {
    "finetune": ["--finetune-from-model"],
    "restore": [
        *("--reset-optimizer", "--reset-dataloader", "--reset-meters", "--reset-lr-scheduler"),
        "--restore-file",
    ],
}
WITHOUT_DROPOUT = ["--dropout", "0"]


@pytest.fixture(scope="module", params=first(1, ["translation", "language_modeling"]))
def trained(request, command, parallel, monolingual, folder):
    """Trains the task's model with the given flags, and the path of a stock checkpoint of it."""

    def train(name, *arguments):
        save_dir = folder / f"warm_{request.param}_{name}"
        if request.param == "translation":
            train_translation(command, parallel, save_dir, *WITHOUT_DROPOUT, "--disable-validation", *arguments)
        else:
            train_language_model(command, monolingual, save_dir, *WITHOUT_DROPOUT, "--disable-validation", *arguments)
        return save_dir / "checkpoint_last.pt"

    stock_architecture = {"translation": "transformer", "language_modeling": "transformer_lm"}[request.param]
    return train, stock_architecture, train("stock", "--arch", stock_architecture, "--max-update", "5")


def load(path):
    (model,), _ = checkpoint_utils.load_model_ensemble([str(path)])
    return model.double().eval()


def inputs_for(model):
    tokens = sentences((7, 4, 6), words=10)
    if not hasattr(model, "encoder"):
        return {"src_tokens": tokens}, tokens
    inputs = {"src_tokens": tokens, "src_lengths": torch.tensor([7, 4, 6]), "prev_output_tokens": shifted(tokens)}
    return inputs, tokens


def loss_of(path):
    """On the same sentences at every call."""
    torch.manual_seed(1)
    model = load(path)
    inputs, target = inputs_for(model)
    return F.cross_entropy(logits(model, inputs).flatten(0, 1), target.flatten()).item()


@pytest.mark.parametrize("way", list(WAYS))
def test_outputs_are_the_stock_models_before_the_first_update_that_moves_anything(trained, way):
    train, _, stock = trained
    started = train(way, *WAYS[way], stock, "--gpam-warm-start", "--lr", "0", "--max-update", "1")
    expected, found = load(stock), load(started)
    assert any(".mechanism." in name for name in found.state_dict())
    inputs, _ = inputs_for(expected)
    scores = logits(expected, inputs)
    # fairseq's softmax rounds to fp32, whatever the model's type.
    assert ((logits(found, inputs) - scores).abs() <= 1e-6 * scores.abs().clamp(min=1)).all()


def test_twenty_updates_later_it_is_another_model_than_the_stock_one(trained):
    train, stock_architecture, stock = trained
    twenty = [*WAYS["finetune"], stock, "--max-update", "20"]
    ours = train("ours20", *twenty, "--gpam-warm-start")
    theirs = train("stock20", *twenty, "--arch", stock_architecture)
    assert abs(loss_of(ours) - loss_of(theirs)) > 1e-4
    lambdas = [value for name, value in load(ours).state_dict().items() if name.endswith("theta")]
    assert lambdas and all((value != 0).all() for value in lambdas)
