"""--gpam-layer-fusion: the output made from all layers, in the encoder or the language model's decoder."""

import copy

import pytest
import torch
import torch.nn.functional as F
from learning import train
from quick import first
from tiny import (
    BASE,
    OURS,
    STOCK,
    TASKS,
    build,
    build_from,
    logits,
    model_config,
    model_input,
    scramble,
    sentences,
    translation_input,
)

from fairseq_gpam.__main__ import main
from fairseq_gpam.analysis.operator import FrozenModel

KINDS = ("concat", "max", "gate")
LAYERS, WIDTH = 2, 16


def fused_model(task, kind, *flags, **options):
    """Sets the --gpam flags on a copy of parsed settings, because parsing takes longer than the tests."""
    config = model_config(task, OURS[task], *BASE[task], *flags)
    for name, value in {**options, "layer_fusion": kind}.items():
        setattr(config, f"gpam_{name}", value)
    return build_from(config)


def model_of(task, kind, *flags, **options):
    """A float64 model with random weights and the same model without fusion."""
    fused, plain = (fused_model(task, one, *flags, **options).double().eval() for one in (kind, "none"))
    scramble(fused)
    state = {name: value for name, value in fused.state_dict().items() if ".layer_fusion." not in name}
    plain.load_state_dict(state, strict=True)
    return fused, plain


def stack_of(model, task):
    return model.encoder if task == "translation" else model.decoder


def mixed(kind, states, fusion):
    """The formulas, token by token, in plain float64."""
    parameters = {name: value.detach() for name, value in fusion.named_parameters()}
    result = torch.empty_like(states[0])
    for t in range(result.size(0)):
        for b in range(result.size(1)):
            own = [state[t, b] for state in states]
            if kind == "concat":
                result[t, b] = parameters["projection.weight"] @ torch.cat(own) + parameters["projection.bias"]
            elif kind == "max":
                result[t, b] = torch.stack([max(one[c] for one in own) for c in range(WIDTH)])
            else:
                powers = [
                    torch.exp(weight @ one + bias)
                    for weight, bias, one in zip(parameters["weight"], parameters["bias"], own, strict=True)
                ]
                result[t, b] = sum(power * one for power, one in zip(powers, own, strict=True)) / sum(powers)
    return result


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_the_output_is_the_formula_of_all_layers_states(task, kind, norm):
    flags = []
    if norm == "pre":
        flags = ["--decoder-normalize-before"] + (["--encoder-normalize-before"] if task == "translation" else [])
    fused, plain = model_of(task, kind, *flags)
    inputs = model_input(task)
    if task == "translation":
        source = (inputs["src_tokens"], inputs["src_lengths"])
        states = plain.encoder(*source, return_all_hiddens=True)["encoder_states"][1:]
        found = fused.encoder(*source)["encoder_out"][0]
    else:
        states = plain.decoder.extract_features(inputs["src_tokens"], None)[1]["inner_states"][1:]
        found = fused.decoder.extract_features(inputs["src_tokens"], None)[0].transpose(0, 1)
    assert len(states) == LAYERS
    expected = mixed(kind, states, stack_of(fused, task).layer_fusion)
    if stack_of(plain, task).layer_norm is not None:
        expected = stack_of(plain, task).layer_norm(expected)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_language_model_decodes_step_by_step_and_with_reordered_beams(kind):
    model, _ = model_of("language_modeling", kind)
    tokens = sentences((7, 7, 7))
    full = logits(model, {"src_tokens": tokens})
    state, order = {}, torch.tensor([2, 0, 0])
    for step in range(1, 8):
        if step == 4:
            model.decoder.reorder_incremental_state_scripting(state, order)
            tokens = tokens[order]
            full = logits(model, {"src_tokens": tokens})
        found = model.decoder(tokens[:, :step], incremental_state=state)[0]
        torch.testing.assert_close(found[:, 0], full[:, step - 1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", first(1, TASKS))
def test_it_learns_and_every_parameter_has_a_gradient(task, kind):
    first_loss, last = train(fused_model(task, kind, *(["--checkpoint-activations"] if kind == "gate" else [])), task)
    assert last < 0.8 * first_loss


@pytest.mark.parametrize("task", TASKS)
def test_concat_starts_as_the_stock_model_that_it_is_loaded_from(task, caplog):
    stock = scramble(build(task, STOCK[task])).double().eval()
    ours = fused_model(task, "concat", mechanism="softmax", warm_start=True).double().eval()
    ours.load_state_dict(copy.deepcopy(stock.state_dict()), strict=True)
    inputs = model_input(task)
    torch.testing.assert_close(logits(ours, inputs), logits(stock, inputs), rtol=1e-6, atol=1e-6)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    gated = fused_model(task, "gate", mechanism="softmax").double()
    gated.load_state_dict(copy.deepcopy(stock.state_dict()), strict=True)
    assert any("not in the checkpoint" in record.message for record in caplog.records)
    partial = {name: value for name, value in gated.state_dict().items() if not name.endswith("layer_fusion.bias")}
    with pytest.raises(RuntimeError, match="Missing key"):
        gated.load_state_dict(partial, strict=True)


def test_the_operator_of_a_gate_is_refused():
    fused, _ = model_of("language_modeling", "gate", mechanism="softmax")
    with pytest.raises(ValueError, match="--operator is not allowed with --gpam-layer-fusion 'gate'"):
        FrozenModel(fused, {"src_tokens": sentences((5,))})
    linear, _ = model_of("language_modeling", "concat", mechanism="softmax")
    FrozenModel(linear, {"src_tokens": sentences((5,))})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["max", "gate"])
@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_one_layer_is_its_own_maximum_and_its_own_mean(task, kind):
    fused, plain = model_of(task, kind, f"--{'encoder' if task == 'translation' else 'decoder'}-layers", "1")
    inputs = model_input(task)
    torch.testing.assert_close(logits(fused, inputs), logits(plain, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_of_the_encoder_does_not_matter_and_the_decoder_follows(kind):
    model, _ = model_of("translation", kind)
    inputs = translation_input((5,), (4,))
    padded = {**inputs, "src_tokens": F.pad(inputs["src_tokens"], (3, 0), value=1)}
    expected = logits(model, inputs)
    torch.testing.assert_close(logits(model, padded), expected, rtol=1e-9, atol=1e-10)
    encoded = model.encoder(inputs["src_tokens"], inputs["src_lengths"])
    state = {}
    for step in range(1, 5):
        previous = inputs["prev_output_tokens"][:, :step]
        found = model.decoder(previous, encoder_out=encoded, incremental_state=state)[0]
        torch.testing.assert_close(found[:, 0], expected[:, step - 1], rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "expected"), [("concat", 12 * 768**2 + 768), ("gate", 12 * 769), ("max", 0)])
def test_info_counts_it(kind, expected, capsys):
    arch = ["--arch", "transformer_lm_gpam_gpt", "--gpam-mechanism", "softmax", "--gpam-layer-fusion", kind]
    assert main(["info", *arch]) == 0
    out = capsys.readouterr().out
    assert f"overhead        {expected:+,}" in out
    assert (f"(--gpam-layer-fusion): {expected:+,}" in out) == (expected > 0)
