import argparse
import copy

import pytest
import tiny
import torch
from fairseq.logging import metrics
from tiny import model_of

from fairseq_gpam import options
from fairseq_gpam.analysis import probe
from fairseq_gpam.attention.core import measures
from fairseq_gpam.modules import attention_modules
from fairseq_gpam.modules.listener import AttentionCall
from fairseq_gpam.modules.training_log import AttentionLog

SITES = {"translation": ("encoder", "decoder", "cross"), "language_modeling": ("decoder",)}


def logged(aggregate):
    return {key: value for key, value in aggregate.get_smoothed_values().items() if key.startswith("gpam_")}


def update(model, inputs, number, clip=None, batches=1, new_root=True):
    """One update as fairseq's trainer makes it: train(), zero_grad, the batches, scaling, clipping."""
    with metrics.aggregate(new_root=new_root) as aggregate:
        model.train()
        model.zero_grad()
        for _ in range(batches):
            model.train()
            model.set_num_updates(number)
            model(**inputs)[0].float().square().sum().backward()
        for parameter in model.parameters():
            parameter.grad /= 8
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
        gradients = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    metrics.log_scalar("num_updates", number + 1, weight=0)
    metrics.log_scalar("gnorm", norm)
    return logged(aggregate), gradients, norm.item()


def test_without_the_flag_nothing_is_attached():
    model = model_of("translation")
    assert not any(isinstance(module, AttentionLog) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_flag():
    with pytest.raises(ValueError, match="--gpam-log-attention -1 is not allowed"):
        options.resolve(argparse.Namespace(gpam_log_attention=-1))
    model = model_of("language_modeling", "--gpam-log-attention", "7")
    assert "every 7 updates" in repr(model)
    assert model.state_dict().keys() == model_of("language_modeling").state_dict().keys()
    copy.deepcopy(model)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_it_logs_every_n_updates_and_has_no_hooks_in_between(task):
    model, inputs = model_of(task, "--gpam-log-attention", "3"), tiny.model_input(task)
    spoke = []
    for number in range(7):
        values, _, _ = update(model, inputs, number)
        spoke.append(any(key.endswith("row_sum") for key in values))
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert hooked == (number % 3 == 0)
    assert spoke == [True, False, False, True, False, False, True]
    model.eval()
    model.set_num_updates(9)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(attention.weights_hooks for attention in attention_modules(model))


@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_numbers_are_those_of_the_probe(task):
    model, inputs = model_of(task, "--gpam-log-attention", "1"), tiny.model_input(task)
    values, _, _ = update(model, inputs, 1)
    found = []
    with torch.no_grad(), probe.Probe(model.eval(), on_attention=found.append, on_states=found.append):
        model(**inputs)
    expected = {}
    for event in found:
        place = f"gpam_{event.site}{event.layer}"
        if isinstance(event, AttentionCall):
            for what in ("row_sum", "negative_mass", "entropy"):
                expected[f"{place}_{what}"] = getattr(measures, what)(event.weights, event.visible).mean().item()
            expected[f"{place}_lambda_plus"] = expected[f"{place}_lambda_minus"] = 0.5
        elif event.layer >= 0:
            ratio = measures.residual_ratio(event.states, event.tokens)
            expected[f"{place}_residual_ratio"] = ratio.nanmean().item()
    assert values == pytest.approx(expected, abs=1e-4)
    assert {key.split("_")[1].rstrip("01") for key in values} == set(SITES[task])


@pytest.mark.parametrize("batches", [1, 3])
def test_query_gradients_are_of_the_whole_update_before_clipping_and_divided_by_the_sample_size(batches):
    model, inputs = model_of("translation", "--gpam-log-attention", "2"), tiny.model_input("translation")
    first, gradients, norm = update(model, inputs, 2, clip=0.01, batches=batches)
    assert not any(key.endswith("query_gradient") for key in first)
    assert norm > 1
    values, _, _ = update(model, inputs, 3, batches=batches)
    unclipped = norm / 0.01
    for stack, site, attribute in (
        ("encoder", "encoder", "self_attn"),
        ("decoder", "decoder", "self_attn"),
        ("decoder", "cross", "encoder_attn"),
    ):
        for layer in (0, 1):
            expected = gradients[f"{stack}.layers.{layer}.{attribute}.q_proj.weight"] * unclipped
            assert values[f"gpam_{site}{layer}_query_gradient"] == pytest.approx(expected, rel=1e-3)
    assert len(values) == 6


def test_after_a_resumption_the_first_update_and_its_query_gradients_are_logged():
    model, inputs = model_of("language_modeling", "--gpam-log-attention", "2"), tiny.model_input("language_modeling")
    model.set_num_updates(4)  # as fairseq does while it loads a checkpoint
    metrics.load_state_dict(metrics.state_dict())
    assert any(key.endswith("row_sum") for key in update(model, inputs, 4, new_root=False)[0])
    assert any(key.endswith("query_gradient") for key in update(model, inputs, 5, new_root=False)[0])
    metrics.reset()


def test_only_the_first_batch_of_an_update_is_logged():
    model, inputs = model_of("language_modeling", "--gpam-log-attention", "1"), tiny.model_input("language_modeling")
    model.train()
    model.set_num_updates(4)
    with metrics.aggregate(new_root=True) as first:
        model(**inputs)
    model.train()
    model.set_num_updates(4)
    with metrics.aggregate(new_root=True) as second:
        model(**inputs)
    assert logged(first) and not logged(second)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_lambda_per_token_is_logged_as_its_mean_over_the_tokens(task):
    """A row of daGPAM sums to 1+λ⁺−λ⁻, so that the mean of the row sums gives the mean of λ⁻."""
    model = model_of(task, "--gpam-log-attention", "1", "--gpam-lambda-source", "token", "--gpam-lambda-plus", "0.25")
    values, _, _ = update(model, tiny.model_input(task), 1)
    strengths = {key: value for key, value in values.items() if key.endswith("lambda_minus")}
    assert len(strengths) == 2 * len(SITES[task]) and len(set(strengths.values())) == len(strengths)
    for key, value in strengths.items():
        row_sum = values[key.removesuffix("lambda_minus") + "row_sum"]
        assert value == pytest.approx(1.25 - row_sum, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--gpam-mechanism", "dagpam:1,softmax:1"), ("--gpam-lambda", "fixed")])
def test_other_settings(flags):
    model = model_of("translation", "--gpam-log-attention", "1", *flags)
    values, _, _ = update(model, tiny.model_input("translation"), 1)
    assert any("lambda_minus" in key for key in values)
