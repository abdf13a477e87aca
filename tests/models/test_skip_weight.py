"""--gpam-skip-weight: the skip connection around self-attention, weighted or left out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from learning import check_stepwise, train
from tiny import OURS, STOCK, TASKS, build, logits, model_input, pair, scramble, translation_input

from fairseq_gpam.analysis.operator import FrozenModel
from fairseq_gpam.analysis.probe import Probe

NORMS = ("post", "pre")


def weighted(task, weight, *flags):
    return build(task, OURS[task], "--gpam-skip-weight", str(weight), *flags)


def normalised(x, norm):
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def block(layer, x, weight, is_pre_norm, attend):
    """One layer in plain float64: each of `attend` maps a sublayer's input to its branch, self-attention first."""

    def feed_forward(x):
        hidden = torch.relu(F.linear(x, layer.fc1.weight, layer.fc1.bias))
        return F.linear(hidden, layer.fc2.weight, layer.fc2.bias)

    norms = [layer.self_attn_layer_norm, *([layer.encoder_attn_layer_norm] if len(attend) == 2 else [])]
    for number, (branch, norm) in enumerate(
        zip([*attend, feed_forward], [*norms, layer.final_layer_norm], strict=True)
    ):
        factor = weight if number == 0 else 1.0
        x = factor * x + branch(normalised(x, norm)) if is_pre_norm else normalised(factor * x + branch(x), norm)
    return x


@pytest.mark.parametrize("task", TASKS)
def test_weight_1_is_the_stock_model_bit_by_bit(task):
    stock, ours = pair(task, ours=["--gpam-mechanism", "softmax", "--gpam-skip-weight", "1"])
    plain = build(task, OURS[task], "--gpam-mechanism", "softmax")
    plain.load_state_dict(stock.state_dict())
    inputs = model_input(task)
    assert torch.equal(logits(ours.eval(), inputs), logits(plain.eval(), inputs))
    torch.testing.assert_close(logits(ours, inputs), logits(stock.eval(), inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [0, 0.25])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mechanism", ["shaped", "softmax"])
def test_a_layer_is_the_block_written_by_hand(mechanism, norm, weight):
    pre = ["--encoder-normalize-before", "--decoder-normalize-before"] if norm == "pre" else []
    flags = ["--gpam-mechanism", mechanism, "--gpam-cross-mechanism", "softmax", *pre]
    model = scramble(weighted("translation", weight, *flags)).double().eval()
    x, source = torch.randn(5, 3, 16).double(), torch.randn(6, 3, 16).double()
    layer = model.encoder.layers[0]
    made = block(layer, x, weight, norm == "pre", [lambda x: layer.self_attn(x, x, x)[0]])
    torch.testing.assert_close(layer(x, None), made, rtol=1e-10, atol=1e-10)
    layer = model.decoder.layers[1]
    future = torch.full((5, 5), float("-inf")).triu(1)

    def attend(x):
        return layer.self_attn(x, x, x, attn_mask=future)[0]

    def cross(x):
        return layer.encoder_attn(x, source, source)[0]

    made = block(layer, x, weight, norm == "pre", [attend, cross])
    found = layer(x, source, None, self_attn_mask=future)[0]
    torch.testing.assert_close(found, made, rtol=1e-10, atol=1e-10)


def test_a_layer_of_shaped_attention_has_no_skip_connection_unless_the_flag_or_a_warm_start_gives_it_one():
    def weights(*flags):
        model = build("translation", OURS["translation"], "--gpam-cross-mechanism", "softmax", *flags)
        layers = [*model.encoder.layers, *model.decoder.layers]
        return [layer.skip_weight.weight if hasattr(layer, "skip_weight") else 1 for layer in layers]

    shaped = ["--gpam-mechanism", "shaped"]
    assert weights(*shaped) == weights("--gpam-mechanism", "shaped:2") == [0, 0, 0, 0]
    assert weights(*shaped, "--gpam-skip-weight", "1") == weights(*shaped, "--gpam-warm-start") == [1, 1, 1, 1]
    assert weights(*shaped, "--gpam-skip-weight", "0.5") == [0.5, 0.5, 0.5, 0.5]
    assert weights("--gpam-mechanism", "shaped@0;softmax@1") == [0, 1, 0, 1]
    assert weights("--gpam-mechanism", "shaped:1,softmax:1") == weights("--gpam-mechanism", "dagpam") == [1, 1, 1, 1]


@pytest.mark.parametrize("task", TASKS)
def test_its_state_is_the_stock_models_and_copies_have_layers_of_their_own(task):
    model = scramble(weighted(task, 0.5, "--gpam-mechanism", "softmax")).eval()
    assert model.state_dict().keys() == build(task, STOCK[task]).state_dict().keys()
    assert repr(model).count("0.5 at self-attention") == len(model.decoder.layers) * (2 if task == "translation" else 1)
    twin = copy.deepcopy(model)
    inputs = model_input(task)
    expected = logits(model, inputs)
    for module in model.modules():
        if hasattr(module, "skip_weight"):
            module.skip_weight.weight = 3.0
    assert torch.equal(logits(twin, inputs), expected)
    assert not torch.equal(logits(model, inputs), expected)


def test_analysis_reads_the_weighted_model_and_leaves_it_so():
    model = scramble(weighted("translation", 0.25, "--gpam-mechanism", "dagpam")).double().eval()
    inputs = translation_input((6,), (5,))
    expected = logits(model, inputs)
    frozen = FrozenModel(model, inputs)
    assert frozen.block_norms("decoder", "encoder").min() > 0
    with Probe(model, without=["skips"]):
        skipless = logits(model, inputs)
    assert not torch.allclose(skipless, expected)
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_skipless_model_learns_and_decodes_step_by_step(task):
    flags = ["--gpam-mechanism", "shaped", *(["--gpam-cross-mechanism", "softmax"] if task == "translation" else [])]
    first, last = train(model := build(task, OURS[task], "--gpam-skip-weight", "0", *flags, words=12), task)
    assert last < 0.8 * first
    check_stepwise(model, task)


@pytest.mark.slow
def test_recomputed_layers_give_the_same_gradients():
    found = []
    for flags in ([], ["--checkpoint-activations"]):
        torch.manual_seed(3)
        model = scramble(weighted("translation", 0.25, *flags)).double().train()
        torch.manual_seed(4)
        logits(model, translation_input()).square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
