"""`--optimizer gpam_adam`: trainable λ's are exempt from weight decay, and stock parameters are not."""

import pytest
import torch
from fairseq.optim import FP16Optimizer, build_optimizer
from fairseq.optim.adam import FairseqAdam
from omegaconf import OmegaConf
from tiny import OURS, TASKS, build, logits, model_input


def training_config(**common):
    defaults = {"fp16": True, "bf16": False, "tpu": False, "fp16_no_flatten_grads": True, "fp16_init_scale": 4}
    defaults |= {"fp16_scale_window": 128, "fp16_scale_tolerance": 0.0, "threshold_loss_scale": None}
    defaults |= {"min_loss_scale": 1e-4, "on_cpu_convert_precision": False}
    return OmegaConf.create(
        {
            "common": defaults | common,
            "optimizer": config(),
            "distributed_training": {"distributed_world_size": 1, "zero_sharding": "none"},
            "optimization": {"update_freq": [1]},
        }
    )


def config(optimizer="gpam_adam", **settings):
    values = {"_name": optimizer, "lr": [0.01], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "weight_decay": 0.1}
    values |= {"use_old_adam": False, "fp16_adam_stats": False, "tpu": False}
    return OmegaConf.create(values | settings)


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def is_lambda(name):
    return name.endswith("theta")


def decayed(optimizer):
    return {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("flags", [[], ["--gpam-lambda-scope", "model"], ["--gpam-lambda", "fixed"]])
def test_the_lambdas_and_nothing_else_are_exempt(task, flags):
    model = build(task, OURS[task], *flags)
    optimizer = build_optimizer(config(), trainable(model))
    assert isinstance(optimizer, FairseqAdam)
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed(optimizer)) != is_lambda(name), name
    assert len(optimizer.param_groups) == (1 if "fixed" in flags else 2)
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in trainable(model))


def test_without_weight_decay_it_is_adam():
    states = []
    for name in ("adam", "gpam_adam"):
        torch.manual_seed(0)
        model = build("language_modeling", OURS["language_modeling"])
        optimizer = build_optimizer(config(name, weight_decay=0.0), trainable(model))
        inputs = model_input("language_modeling")
        for _ in range(3):
            optimizer.zero_grad()
            logits(model, inputs).pow(2).mean().backward()
            optimizer.step()
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def trained(model, optimizer, steps):
    torch.manual_seed(7)
    inputs = model_input("language_modeling")
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.backward(logits(model, inputs).float().pow(2).mean())
        optimizer.step()


def test_a_saved_state_restores_both_groups():
    flags = ("language_modeling", OURS["language_modeling"])
    straight = build(*flags)
    resumed = build(*flags)
    resumed.load_state_dict(straight.state_dict())
    optimizer = build_optimizer(config(), trainable(straight))
    trained(straight, optimizer, 4)

    first = build_optimizer(config(), trainable(resumed))
    trained(resumed, first, 2)
    again = build(*flags)
    again.load_state_dict(resumed.state_dict())
    second = build_optimizer(config(), trainable(again))
    second.load_state_dict(first.state_dict(), optimizer_overrides={})
    assert [group["weight_decay"] for group in second.param_groups] == [0.1, 0.0]
    first_again = build_optimizer(config(), trainable(again))
    first_again.load_state_dict(first.state_dict(), optimizer_overrides={"weight_decay": 0.05})
    assert [group["weight_decay"] for group in first_again.param_groups] == [0.05, 0.0]
    trained(again, second, 2)
    for (name, mine), (_, theirs) in zip(again.named_parameters(), straight.named_parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-7), name


def test_flat_gradients_with_weight_decay_are_refused_and_the_flag_is_named():
    flat = [torch.nn.Parameter(torch.zeros(10))]
    with pytest.raises(ValueError, match="--fp16-no-flatten-grads"):
        build_optimizer(config(), flat)
    build_optimizer(config(weight_decay=0.0), flat)


@pytest.mark.slow
def test_a_step_without_gradient_shrinks_all_but_the_lambdas():
    model = build("language_modeling", OURS["language_modeling"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(config(), trainable(model))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if is_lambda(name) else 1 - 0.01 * 0.1
        assert torch.allclose(parameter, before[name] * factor, atol=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "common"), [(torch.float16, {}), (torch.bfloat16, {"fp16": False, "bf16": True})])
def test_half_precision_training_without_flat_gradients_exempts_the_lambdas(dtype, common):
    model = build("language_modeling", OURS["language_modeling"]).to(dtype)
    optimizer = FP16Optimizer.build_optimizer(training_config(**common), trainable(model))
    names = [name for name, _ in model.named_parameters()]
    copies = optimizer.fp32_params
    for name, copy in zip(names, copies, strict=True):
        assert (id(copy) in decayed(optimizer.fp32_optimizer)) != is_lambda(name), name
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model, optimizer, 2)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, before[name]), name
