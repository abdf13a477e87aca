"""Mechanisms work with the other features of fairseq's transformers."""

import pytest
import torch
from fairseq.models.transformer import TransformerConfig
from fairseq.modules import MultiheadAttention
from quick import first
from tiny import (
    BASE,
    NEUTRAL,
    OURS,
    STOCK,
    TASKS,
    attention,
    build,
    build_from,
    logits,
    model_config,
    model_input,
    model_of,
    pair,
    translation_input,
)

from fairseq_gpam.attention import FUTURE
from fairseq_gpam.modules import GPAMMultiheadAttention, attention_modules, register_attention_hook

COMBINATIONS = [
    [],
    ["--gpam-lambda", "fixed", *NEUTRAL, "--gpam-backend", "reference"],
    ["--gpam-lambda-scope", "model", "--gpam-negative-projection", "shared", "--gpam-negative-bias"],
    ["--gpam-lambda-scope", "layer", "--gpam-lambda-tied", "--gpam-lambda-max", "1"],
    ["--gpam-negative-init", "zero", *NEUTRAL],
    ["--gpam-negative-init", "minus-identity", "--gpam-decoder-mechanism", "softmax*1,dagpam"],
    ["--gpam-backend", "fused", "--gpam-lambda-plus", "-1", "--gpam-lambda-minus", "0"],
]


@pytest.mark.parametrize("flags", COMBINATIONS)
@pytest.mark.parametrize("task", first(1, TASKS))
def test_every_trainable_parameter_gets_a_gradient(task, flags):
    """Otherwise distributed training ends with "Expected to have finished reduction"."""
    model = model_of(task, *flags).train()
    logits(model, model_input(task)).pow(2).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("flags", [(), ("--attention-dropout", "0.3")], ids=["plain", "attention dropout"])
def test_checkpointed_activations_give_the_same_gradients(task, flags):
    plain = build(task, OURS[task], *flags)
    checkpointed = build(task, OURS[task], "--checkpoint-activations", *flags)
    checkpointed.load_state_dict(plain.state_dict())
    for model in (plain, checkpointed):
        torch.manual_seed(11)
        logits(model.train(), model_input(task)).pow(2).mean().backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-7), name


@pytest.mark.parametrize("task", TASKS)
def test_layerdrop_trains_and_installs_in_every_layer(task):
    flags = ["--decoder-layerdrop", "0.5"]
    flags += ["--encoder-layerdrop", "0.5"] if task == "translation" else []
    model = model_of(task, *flags)
    assert len(list(attention_modules(model))) == (6 if task == "translation" else 2)
    for stack in (getattr(model, "encoder", None), model.decoder):
        for layer in [] if stack is None else stack.layers.children():
            assert isinstance(layer.self_attn, GPAMMultiheadAttention)
    model.train()
    inputs = model_input(task)
    outputs = torch.stack([logits(model, inputs).detach() for _ in range(8)])
    assert torch.isfinite(outputs).all()
    assert len({output.sum().item() for output in outputs}) > 1
    model.eval()
    assert torch.equal(logits(model, inputs), logits(model, inputs))


def test_layers_to_keep_keeps_each_layers_own_mechanism():
    model = model_of("translation", "--encoder-layers", "3", "--decoder-layers", "3")
    config = model_config("translation", OURS["translation"], *BASE["translation"])
    config.encoder_layers_to_keep, config.decoder_layers_to_keep = "0,2", "0,2"
    config.encoder_layers = config.decoder_layers = 3
    pruned = build_from(config)
    pruned.load_state_dict(model.state_dict(), strict=True, model_cfg=config)
    for stack in ("encoder", "decoder"):
        kept = getattr(pruned, stack).layers
        assert len(kept) == 2
        for new, old in ((0, 0), (1, 2)):
            mine = kept[new].self_attn.state_dict()
            theirs = getattr(model, stack).layers[old].self_attn.state_dict()
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "mechanism", ["differential", "dint", "cog", "neutreno", "softmax*1,centered", "gated:1,cog:1"]
)
def test_layers_to_keep_is_refused_where_a_layers_place_decides_what_it_computes(mechanism):
    flags = ["--gpam-decoder-mechanism", mechanism, "--gpam-mechanism", "softmax"]
    config = model_config("translation", OURS["translation"], *BASE["translation"], *flags)
    config.encoder_layers = config.decoder_layers = 4
    config.encoder_layers_to_keep = "0,2"
    build_from(config)
    config.encoder_layers, config.decoder_layers_to_keep = 4, "0,2,3"
    with pytest.raises(ValueError, match=r"--decoder-layers-to-keep 0,2,3 is not allowed with .*; allowed: all layers"):
        build_from(config)


def test_quant_noise_leaves_weights_that_are_not_trained_as_they_are():
    model = model_of("translation", "--quant-noise-pq", "0.5", "--gpam-mechanism", "signed_dual").train()
    frozen = [module.mechanism.negative_projection.weight for module in attention_modules(model)]
    before = [weight.clone() for weight in frozen]
    logits(model, model_input("translation"))
    assert all(map(torch.equal, frozen, before))


@pytest.mark.parametrize("projection", ["head", "shared"])
@pytest.mark.parametrize("task", TASKS)
def test_quant_noise_reaches_the_negative_projection_as_it_reaches_the_stock_ones(task, projection):
    model = model_of(
        task,
        *("--quant-noise-pq", "0.5", "--quant-noise-pq-block-size", "4"),
        *("--gpam-negative-projection", projection),
    )

    def dropped(module):
        blocks = module.weight.detach().view(module.weight.size(0), -1, 4)
        return ((blocks == 0).all(-1)).float().mean().item()

    modules = list(attention_modules(model))
    assert all(dropped(m.mechanism.negative_projection) == 0 for m in modules)
    model.eval()
    logits(model, model_input(task))
    assert all(dropped(m.mechanism.negative_projection) == 0 for m in modules)
    model.train()
    logits(model, model_input(task))
    for module in modules:
        for projected in (module.q_proj, module.mechanism.negative_projection):
            assert 0.1 < dropped(projected) < 0.9


@pytest.mark.parametrize("task", TASKS)
def test_attention_hook_gets_signed_weights_of_every_layer_and_can_be_removed(task):
    model = model_of(task, "--gpam-lambda", "fixed", "--gpam-lambda-plus", "0.25", "--gpam-lambda-minus", "0.5").eval()
    inputs = model_input(task)
    before = logits(model, inputs)
    seen = {}
    handle = register_attention_hook(model, lambda layer, site, weights: seen.setdefault((site, layer), weights))
    assert torch.allclose(logits(model, inputs), before, atol=1e-6)
    sites = ("encoder", "decoder", "cross") if task == "translation" else ("decoder",)
    assert set(seen) == {(site, layer) for site in sites for layer in range(2)}
    for (site, _), weights in seen.items():
        assert weights.shape[:2] == (3, 2)
        sums = weights.sum(-1)
        # A query that is padding may see nothing; every other row has the mechanism's total.
        assert (torch.isclose(sums, torch.tensor(0.75), atol=1e-5) | (sums == 0)).all()
        if site == "decoder":
            assert (weights.triu(1) == 0).all()
    handle.remove()
    seen.clear()
    logits(model, inputs)
    assert not seen


def test_hooking_a_model_of_stock_attention_is_refused():
    with pytest.raises(ValueError, match="no attention of fairseq_gpam"):
        register_attention_hook(torch.nn.Linear(2, 2), lambda *_: None)


def test_the_model_scope_is_saved_loaded_and_warm_started_as_one():
    model = model_of("translation", "--gpam-lambda-scope", "model")
    with torch.no_grad():
        next(attention_modules(model)).mechanism.lambda_plus.theta.fill_(0.875)
    again = build("translation", OURS["translation"], "--gpam-lambda-scope", "model")
    again.load_state_dict(model.state_dict(), strict=True)
    assert all(m.mechanism.lambda_plus.theta.item() == 0.875 for m in attention_modules(again))
    again.load_state_dict(build("translation", STOCK["translation"]).state_dict(), strict=True)


def test_head_pruning_is_refused_and_says_why():
    model = build("translation", OURS["translation"])
    module = model.encoder.layers[0].self_attn
    for prune in (lambda: module._get_reserve_head_index(1), lambda: module._adaptive_prune_heads([(0, 8)])):
        with pytest.raises(ValueError, match=r"pruned.*dagpam.*--gpam-mechanism"):
            prune()


def test_xformers_attention_is_refused_and_names_the_flags():
    mechanism = attention().mechanism
    refusal = r"--encoder-xformers-att-config.*--decoder-xformers-att-config.*not allowed"
    with pytest.raises(ValueError, match=refusal):
        GPAMMultiheadAttention(8, 2, mechanism, self_attention=True, xformers_att_config="{'name': 'linformer'}")
    stock = MultiheadAttention(8, 2, self_attention=True)
    stock.use_xformers = True
    with pytest.raises(ValueError, match=refusal):
        GPAMMultiheadAttention.from_stock(stock, mechanism)


def test_the_decoder_keeps_no_matrix_of_the_future():
    assert model_of("language_modeling").decoder.buffered_future_mask(torch.zeros(5, 1)) is FUTURE


def test_building_a_model_leaves_the_processwide_default_configuration_alone():
    """The engines' dataclass defaults are shared objects: a model that writes to them changes every later model."""
    before = (TransformerConfig().encoder.layers, TransformerConfig().decoder.attention_heads)
    for task in TASKS:
        build(task, OURS[task], "--decoder-layers", "1", "--decoder-attention-heads", "4")
    assert (TransformerConfig().encoder.layers, TransformerConfig().decoder.attention_heads) == before
    assert not any(name.startswith("gpam") for name in vars(TransformerConfig()))


def test_full_context_alignment_lets_the_decoder_see_everything():
    stock, ours = (model.eval() for model in pair("translation"))
    inputs = translation_input()
    encoder_out = stock.encoder(inputs["src_tokens"], inputs["src_lengths"])
    arguments = {"encoder_out": encoder_out, "full_context_alignment": True, "alignment_layer": 0}
    theirs, their_extra = stock.decoder(inputs["prev_output_tokens"], **arguments)
    mine, my_extra = ours.decoder(inputs["prev_output_tokens"], **arguments)
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert torch.allclose(my_extra["attn"][0], their_extra["attn"][0], atol=1e-6)
