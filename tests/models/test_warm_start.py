"""--gpam-warm-start: the stock model exactly at step 0, another one after training; refused where it is impossible."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from quick import first
from tiny import OURS, STOCK, TASKS, build, logits, model_input, scramble

from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.attention.core.base import AttentionMechanism, describe_neutral
from fairseq_gpam.modules import attention_modules

EXPECTED = {"dagpam", "attn_scale", "scaled_softmax", "talking_heads", "gated", "sink", "shaped", "softmax"}


NEUTRAL = sorted(name for name, mechanism in REGISTRY.items() if mechanism.neutral is not None)
OTHERS = sorted(set(REGISTRY) - set(NEUTRAL))


def chosen(name, task="language_modeling"):
    flags = ["--gpam-warm-start", "--gpam-mechanism", name]
    if task == "translation" and "cross" not in REGISTRY[name].sites:
        flags += ["--gpam-cross-mechanism", "softmax"]
    return flags


def warm_pair(task, *flags):
    """A stock model in float64, and ours after loading the stock checkpoint."""
    stock = scramble(build(task, STOCK[task]))
    ours = build(task, OURS[task], *flags)
    ours.load_state_dict(copy.deepcopy(stock.state_dict()), strict=True)
    return stock.double().eval(), ours.double().eval()


def train(model, inputs, target, updates=20):
    """The loss after plain Adam's updates at fixed data, without dropout."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(updates):
        optimiser.zero_grad()
        F.cross_entropy(logits(model, inputs).flatten(0, 1), target).backward()
        optimiser.step()
    return F.cross_entropy(logits(model, inputs).flatten(0, 1), target).item()


@pytest.mark.parametrize("task", first(1, TASKS))
@pytest.mark.parametrize("name", NEUTRAL)
def test_the_outputs_are_the_stock_models_and_training_moves_away(task, name):
    stock, ours = warm_pair(task, *chosen(name, task))
    inputs = model_input(task)
    expected = logits(stock, inputs)
    difference = (logits(ours, inputs) - expected).abs()
    assert (difference <= 1e-6 * expected.abs().clamp(min=1)).all()
    target = torch.randint(4, 20, (expected.size(0) * expected.size(1),))
    ends = train(stock, inputs, target), train(ours, inputs, target)
    assert (abs(ends[0] - ends[1]) > 1e-6) == (name != "softmax")


@pytest.mark.parametrize("name", [name for name in NEUTRAL if name != "softmax"])
def test_every_parameter_that_a_mechanism_adds_is_reached_within_two_updates(name):
    """λ⁻ = 0 hides W_Q⁻ for one update only."""
    _, ours = warm_pair("language_modeling", *chosen(name))
    own = {key: value.clone() for key, value in ours.named_parameters() if ".mechanism." in key}
    inputs = model_input("language_modeling")
    target = torch.randint(4, 20, (inputs["src_tokens"].numel(),))
    train(ours, inputs, target, updates=2)
    moved = dict(ours.named_parameters())
    assert own
    assert all((moved[key] != value).any() for key, value in own.items())


@pytest.mark.parametrize("name", OTHERS)
def test_a_mechanism_without_a_neutral_setting_is_refused_with_the_reason(name):
    flags = [f"--gpam-{site}-mechanism" for site in ("encoder", "decoder", "cross") if site not in REGISTRY[name].sites]
    flags = [word for flag in flags for word in (flag, "softmax")]
    reason = REGISTRY[name].why_never_neutral
    assert reason != AttentionMechanism.why_never_neutral
    refusal = f"--gpam-warm-start is not allowed with --gpam-mechanism '{name}': {reason}; allowed with: "
    with pytest.raises(ValueError, match=re.escape(refusal)):
        build("translation", OURS["translation"], "--gpam-mechanism", name, "--gpam-warm-start", *flags)
    assert describe_neutral(REGISTRY[name]) == f"none: {reason}"


def test_warm_heads_and_layers():
    for spec in ("dagpam:1,sink:1", "dagpam@0;talking_heads@1", "gated*1,shaped"):
        stock, ours = warm_pair("language_modeling", "--gpam-warm-start", "--gpam-mechanism", spec)
        inputs = model_input("language_modeling")
        torch.testing.assert_close(logits(ours, inputs), logits(stock, inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_a_stock_checkpoint_without_it_warns_once_and_names_the_neutral_setting(task, caplog):
    stock = build(task, STOCK[task])
    build(task, OURS[task]).load_state_dict(stock.state_dict(), strict=True)
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert "--gpam-warm-start chooses (dagpam: --gpam-lambda-plus 0 --gpam-lambda-minus 0)" in warning
    caplog.clear()
    build(task, OURS[task], "--gpam-warm-start").load_state_dict(stock.state_dict(), strict=True)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.slow
def test_the_promised_mechanisms_have_a_neutral_setting():
    assert set(NEUTRAL) >= EXPECTED


@pytest.mark.slow
def test_a_trained_checkpoint_of_a_warm_start_is_itself_again():
    _, ours = warm_pair("language_modeling", *chosen("dagpam"))
    with torch.no_grad():
        for attention in attention_modules(ours):
            attention.mechanism.lambda_plus.theta.fill_(0.7)
    again = build("language_modeling", OURS["language_modeling"], *chosen("dagpam")).double().eval()
    again.load_state_dict(ours.state_dict(), strict=True)
    inputs = model_input("language_modeling")
    torch.testing.assert_close(logits(again, inputs), logits(ours, inputs), rtol=0, atol=0)
