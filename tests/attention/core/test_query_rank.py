"""--gpam-query-rank: the width of queries and keys, free of that of the values."""

import pytest
import torch
from contract import Contract, layer_reference, settings
from learning import build_model, check_stepwise, train
from quick import first
from reference import assert_same
from tiny import STOCK, TASKS, build, logits, model_input, model_of, scramble

from fairseq_gpam.attention import FUTURE, REGISTRY, Site, build_mechanism
from fairseq_gpam.modules import GPAMMultiheadAttention, attention_modules

EMBED, HEADS, BATCH, LENGTH = 16, 2, 3, 5
HEAD_WIDTH = EMBED // HEADS


@pytest.mark.parametrize("task", first(1, TASKS))
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_mechanism_trains_and_decodes_with_narrow_queries(task, name):
    narrow = {"integral": {"integral_signals": 2}, "cog": {"cog_everywhere": True}}
    model = build_model(task, name, query_rank=4, **narrow.get(name, {}))
    if model is None:
        pytest.skip("no encoder in a language model")
    for attention in attention_modules(model):
        assert attention.q_proj.out_features == attention.k_proj.out_features == HEADS * 4
        assert attention.v_proj.out_features == EMBED
    train(model, task, updates=2)
    check_stepwise(scramble(model, 0.1), task)


def test_wide_queries_and_mixed_heads_and_layers():
    for spec in ("dagpam", "dagpam:1,gated_linear:1", "linear@0;differential_v2@1"):
        model = build_model("language_modeling", "dagpam", query_rank=20, decoder_mechanism=spec)
        assert all(attention.q_proj.out_features == HEADS * 20 for attention in attention_modules(model))
        train(model, "language_modeling", updates=2)
        check_stepwise(scramble(model, 0.1), "language_modeling")


def module_of(rank, site="encoder", **options):
    resolved = settings(mechanism="softmax", query_rank=rank)
    mechanism = build_mechanism("softmax", Site(site, 0, 1, EMBED, HEADS, HEAD_WIDTH, query_rank=rank), resolved)
    role = {"encoder_decoder_attention": True} if site == "cross" else {"self_attention": True}
    return scramble(GPAMMultiheadAttention(EMBED, HEADS, mechanism, **role, **options).double().eval())


def expected(module, x, keys, causal=False):
    """The layer in plain float64: scores are divided by √r."""
    visible = torch.ones(x.size(1), HEADS, x.size(0), keys.size(0), dtype=torch.bool)
    visible = visible.tril() if causal else visible
    return layer_reference(module, Contract().reference, (x, keys), torch.zeros(visible.shape), visible)[0]


@pytest.mark.parametrize("rank", [1, 3, HEAD_WIDTH, 11])
@pytest.mark.parametrize(("site", "causal"), [("encoder", False), ("decoder", True), ("cross", False)])
def test_the_formula_and_its_gradients(rank, site, causal):
    module = module_of(rank, site)
    x = torch.randn(LENGTH, BATCH, EMBED, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(7, BATCH, EMBED, dtype=torch.float64) if site == "cross" else x
    output, _ = module(x, keys, keys, attn_mask=FUTURE if causal else None)
    assert_same(
        output, expected(module, x, keys, causal), [x, module.q_proj.weight, module.k_proj.weight, module.v_proj.weight]
    )


def test_a_learned_key_has_the_queries_width():
    module = module_of(3, add_bias_kv=True, add_zero_attn=True)
    x = torch.randn(LENGTH, BATCH, EMBED, dtype=torch.float64)
    torch.testing.assert_close(module(x, x, x)[0], expected(module, x, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_loads_again_and_one_of_another_width_is_refused(task):
    flags = ["--gpam-query-rank", "3"]
    model, again = (model_of(task, *flags).eval() for _ in range(2))
    again.load_state_dict(model.state_dict(), strict=True)
    inputs = model_input(task)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    with pytest.raises(ValueError, match=r"--gpam-query-rank 3 is not allowed with this checkpoint.*; allowed: 8"):
        model.load_state_dict(build(task, STOCK[task]).state_dict(), strict=True)


@pytest.mark.parametrize("width_of_keys", [None, 192])
def test_narrow_projections_start_as_fairseqs_do(width_of_keys):
    """By Xavier, over √2 where queries, keys and values are read from states of one width."""
    embed, heads, rank = 128, 4, 16
    resolved = settings(mechanism="softmax", query_rank=rank)
    site = Site("cross", 0, 1, embed, heads, embed // heads, query_rank=rank)
    widths = {"kdim": width_of_keys, "vdim": width_of_keys}
    module = GPAMMultiheadAttention(
        embed, heads, build_mechanism("softmax", site, resolved), encoder_decoder_attention=True, **widths
    )
    for projection in (module.q_proj, module.k_proj):
        bound = (6 / (projection.in_features + heads * rank)) ** 0.5 / (2**0.5 if width_of_keys is None else 1)
        assert 0.98 * bound < projection.weight.abs().max() <= bound
