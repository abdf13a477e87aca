"""Every mechanism computes on a GPU what it computes on the CPU: outputs, gradients, decoding, half precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import OURS, build, encoded, logits, needed, scramble, sentences, stepwise, translation_input

from fairseq_gpam.attention import REGISTRY

CASES = [("translation", name) for name in sorted(REGISTRY)] + [
    ("language_modeling", name) for name in sorted(REGISTRY) if "decoder" in REGISTRY[name].sites
]
# The second is beyond the length at which attention is computed in blocks on the CPU.
LENGTHS = {"short": (5, 3, 7), "long": (230, 201)}
pytestmark = pytest.mark.gpu


def model_of(task, name, *flags):
    sites = [site for site in REGISTRY[name].sites if task == "translation" or site == "decoder"]
    chosen = [word for site in sites for word in (f"--gpam-{site}-mechanism", name)]
    return build(task, OURS[task], "--gpam-mechanism", "softmax", *chosen, *needed(name), *flags)


def input_of(task, lengths):
    if task == "translation":
        return translation_input(lengths, lengths)
    return {"src_tokens": sentences(lengths)}


def on_gpu(inputs):
    return {name: tensor.to("cuda") for name, tensor in inputs.items()}


def tokens_of(inputs):
    return inputs.get("prev_output_tokens", inputs["src_tokens"])


def step(model, inputs):
    """The log-probabilities of a training step where there is no padding, and the gradients of all parameters."""
    kept = F.log_softmax(logits(model, inputs), dim=-1, dtype=torch.float64)[tokens_of(inputs) != 1]
    model.zero_grad()
    kept.square().mean().backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return kept.detach(), torch.cat(gradients)


def difference(one, other):
    one, other = one.cpu().double(), other.cpu().double()
    return ((one - other).norm() / one.norm()).item()


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_training_step_gives_what_the_cpu_gives(task, name, dtype, tolerance, lengths):
    model = scramble(model_of(task, name), 0.2).to(dtype)
    inputs = input_of(task, LENGTHS[lengths])
    expected = step(copy.deepcopy(model), inputs)
    found = step(model.to("cuda"), on_gpu(inputs))
    for one, other in zip(expected, found, strict=True):
        assert difference(one, other) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("task", "name"), CASES)
def test_half_precision_is_close_to_full_precision(task, name, dtype):
    model = model_of(task, name)
    inputs = input_of(task, LENGTHS["long"])
    expected, _ = step(copy.deepcopy(model), inputs)
    found, gradients = step(model.to("cuda").to(dtype), on_gpu(inputs))
    assert difference(expected, found) <= 0.03
    assert gradients.isfinite().all()


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "amp"])
@pytest.mark.parametrize(("task", "name"), CASES)
def test_dropout_of_attention_leaves_gradients_finite(task, name, autocast):
    model = model_of(task, name, "--attention-dropout", "0.3").to("cuda").train()
    inputs = on_gpu(input_of(task, LENGTHS["long"]))
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        first, gradients = step(model, inputs)
        second, _ = step(model, inputs)
    assert gradients.isfinite().all()
    assert difference(first, second) > 0


@pytest.mark.parametrize(("task", "name"), CASES)
def test_step_by_step_decoding_is_the_full_forward(task, name):
    model = scramble(model_of(task, name), 0.2).double().to("cuda").eval()
    inputs = on_gpu(input_of(task, LENGTHS["short"]))
    with torch.no_grad():
        encoder_out, tokens = encoded(model, inputs)
        full = model.decoder(tokens, encoder_out=encoder_out)[0]
        steps = stepwise(model, encoder_out, tokens)
    kept = tokens != 1
    assert difference(full[kept], steps[kept]) <= 1e-9
