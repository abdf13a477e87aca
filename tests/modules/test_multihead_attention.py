"""GPAMMultiheadAttention with daGPAM, T × B × C: outputs and every gradient against the formula in float64."""

import itertools

import pytest
import torch
from contract import layer_reference
from fairseq.modules import MultiheadAttention
from masks import make_masks, padding_mask
from quick import first
from reference import assert_same, dagpam_weights
from tiny import attention

from fairseq_gpam.attention import FUTURE

BACKENDS = ("auto", "reference", "fused")
BOTH_KEYS = {"add_bias_kv": True, "add_zero_attn": True}
CHANNELS, HEADS, BATCH = 8, 2, 3
SELF_MASKS = [
    *("nothing", "right", "left", "uint8, right", "uint8, left", "causal", "fairseq's future", "bias, scattered"),
    *("low numbers", "boolean", "causal, right", "causal, left", "uint8, left, fairseq's future"),
    *("bias, scattered, right", "low numbers, left"),
]
CROSS_MASKS = ["nothing", "right", "left", "uint8, right", "uint8, left", "bias, scattered, right"]


def formula(mechanism, q, k, v, x, bias, visible):
    weights = dagpam_weights(mechanism, q, k, x, bias, visible)
    return weights @ v, weights


def check(module, queries, keys, kind):
    """Compares output, head weights, and the gradients of every parameter and input with the reference."""
    module.double()
    masks = make_masks(kind, BATCH, queries, keys, dtype=torch.float64)
    query = torch.randn(queries, BATCH, CHANNELS, dtype=torch.float64, requires_grad=True)
    key = query
    if module.encoder_decoder_attention:
        key = torch.randn(keys, BATCH, CHANNELS, dtype=torch.float64, requires_grad=True)
    given = {"key_padding_mask": masks.padding, "attn_mask": masks.attn_mask}
    output, none = module(query, key, key, need_weights=False, **given)
    assert none is None
    added = torch.as_tensor(masks.added, dtype=torch.float64).expand(masks.visible.shape)
    expected, expected_weights = layer_reference(module, formula, (query, key), added, masks.visible)
    leaves = [query, *([] if key is query else [key]), *module.parameters()]
    assert_same(output, expected, leaves)
    again, weights = module(query, key, key, need_head_weights=True, **given)
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(weights.transpose(0, 1), expected_weights, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", first(1, [7, 1, 63]))
@pytest.mark.parametrize("kind", SELF_MASKS)
def test_self_attention_and_all_its_gradients(length, kind):
    for backend in BACKENDS:
        module = attention("decoder", CHANNELS, HEADS, backend=backend, negative_bias=True)
        check(module, length, length, kind)


@pytest.mark.parametrize(("queries", "keys"), first(1, [(3, 7), (1, 1), (1, 7), (7, 1), (7, 63), (63, 7)]))
def test_cross_attention_and_all_its_gradients(queries, keys):
    for backend, kind in itertools.product(BACKENDS, CROSS_MASKS):
        module = attention("cross", CHANNELS, HEADS, backend=backend, negative_bias=True)
        check(module, queries, keys, kind)


@pytest.mark.parametrize("kind", ["fixed", "trainable"])
@pytest.mark.parametrize("scope", ["model", "layer", "head"])
@pytest.mark.parametrize(("tied", "bound"), first(1, [(True, 2.5), (False, 2.5), (True, None), (False, None)]))
def test_every_value_of_every_option(kind, scope, tied, bound):
    for projection, bias, init in itertools.product(
        ("head", "shared"), (False, True), ("xavier", "zero", "minus-identity")
    ):
        chosen = {"lambda": kind, "lambda_scope": scope, "lambda_tied": tied, "lambda_max": bound}
        chosen |= {"lambda_plus": 0.3} if tied else {"lambda_plus": 0.3, "lambda_minus": 0.9}
        chosen |= {"negative_projection": projection, "negative_bias": bias, "negative_init": init}
        check(attention("decoder", CHANNELS, HEADS, **chosen), 7, 7, "causal, right")


@pytest.mark.parametrize("kwargs", [{"add_bias_kv": True}, {"add_zero_attn": True}, BOTH_KEYS], ids=" ".join)
@pytest.mark.parametrize("backend", first(1, BACKENDS))
def test_bias_kv_and_zero_attn_and_all_their_gradients(backend, kwargs):
    for kind in ("nothing", "right", "uint8, left, causal", "fairseq's future", "bias, scattered, right"):
        module = attention("encoder", CHANNELS, HEADS, backend=backend, kwargs=kwargs)
        check(module, 7, 7, kind)


def test_an_additive_mask_of_every_sentence_and_head():
    module = attention("encoder", CHANNELS, HEADS).double()
    mask, query = torch.randn(BATCH, HEADS, 7, 7).double(), torch.randn(7, BATCH, CHANNELS).double()
    expected, _ = layer_reference(module, formula, (query, query), mask, torch.ones_like(mask).bool())
    torch.testing.assert_close(module(query, query, query, attn_mask=mask)[0], expected)


def test_weights_have_stocks_shapes_and_sum_to_1_plus_minus():
    arguments = {"lambda": "fixed", "lambda_plus": 0.75, "lambda_minus": 0.5}
    module = attention("cross", CHANNELS, HEADS, **arguments)
    stock = MultiheadAttention(CHANNELS, HEADS, encoder_decoder_attention=True)
    query, key = torch.randn(4, BATCH, CHANNELS), torch.randn(6, BATCH, CHANNELS)
    hidden = padding_mask("right", BATCH, 6)
    for flags in ({"need_weights": True}, {"need_head_weights": True}, {"need_weights": False}):
        mine = module(query, key, key, hidden, static_kv=True, **flags)[1]
        theirs = stock(query, key, key, hidden, static_kv=True, **flags)[1]
        assert (mine is None) == (theirs is None) == (flags == {"need_weights": False})
        if mine is not None:
            assert mine.shape == theirs.shape
            assert torch.allclose(mine.sum(-1), torch.full(mine.shape[:-1], 1.25), atol=1e-5)
            columns = hidden[:, None, :].expand(BATCH, 4, 6)
            assert (mine[..., columns] == 0).all() if mine.dim() == 4 else (mine[columns] == 0).all()
    average = module(query, key, key, hidden, need_weights=True)[1]
    heads = module(query, key, key, hidden, need_head_weights=True)[1]
    assert heads.shape == (HEADS, BATCH, 4, 6)
    assert torch.allclose(average, heads.mean(0), atol=1e-6)


def test_dropout_that_is_kept_at_inference_is_in_force():
    module = attention("encoder", CHANNELS, HEADS, dropout=0.5).eval()
    query = torch.randn(5, BATCH, CHANNELS)
    quiet = module(query, query, query)[0]
    assert torch.equal(module(query, query, query)[0], quiet)
    module.dropout_module.apply_during_inference = True
    assert not torch.allclose(module(query, query, query)[0], quiet)


def test_weights_that_are_returned_are_those_before_dropout():
    module = attention("encoder", CHANNELS, HEADS, dropout=0.9).train()
    query = torch.randn(5, BATCH, CHANNELS)
    _, first = module(query, query, query)
    _, second = module(query, query, query)
    assert torch.equal(first, second)


@pytest.mark.parametrize(("left", "dtype"), [(False, torch.bool), (True, torch.uint8)])
def test_step_by_step_is_the_full_forward_with_padding_that_comes_and_goes(left, dtype):
    """fairseq passes the newest column of the padding mask, and only at the steps where something is padded."""
    module = attention("decoder", CHANNELS, HEADS).eval()
    query = torch.randn(7, BATCH, CHANNELS)
    hidden = padding_mask("left" if left else "right", BATCH, 7)
    full, _ = module(query, query, query, key_padding_mask=hidden, attn_mask=FUTURE)
    state, outputs = {}, []
    for t in range(7):
        column = hidden[:, t : t + 1]
        column = column.to(dtype) if column.any() else None
        now = query[t : t + 1]
        outputs.append(module(now, now, now, key_padding_mask=column, incremental_state=state)[0])
    stepwise = torch.cat(outputs)
    assert torch.isfinite(stepwise).all()
    assert torch.allclose(stepwise, full, atol=1e-5)


def test_several_steps_at_once_are_the_full_forward():
    """A prefix of several tokens, then single tokens; the prefix sees no future of its own."""
    module = attention("decoder", CHANNELS, HEADS).eval()
    query = torch.randn(7, BATCH, CHANNELS)
    full, _ = module(query, query, query, attn_mask=FUTURE)
    state = {}
    first = module(query[:4], query[:4], query[:4], incremental_state=state, attn_mask=FUTURE)[0]
    rest = [module(query[t : t + 1], None, None, incremental_state=state)[0] for t in range(4, 7)]
    assert torch.allclose(torch.cat([first, *rest]), full, atol=1e-5)


@pytest.mark.parametrize("steps_at_once", [1, 3])
def test_beams_that_share_their_keys_are_the_beams_that_repeat_them(steps_at_once):
    """They are projected once, and then read from the cache."""
    beam, sentences, projected = 4, 3, []
    module = attention("cross", CHANNELS, HEADS).eval()
    key, hidden = torch.randn(6, sentences, CHANNELS), padding_mask("right", BATCH, 6)
    query = torch.randn(steps_at_once, sentences * beam, CHANNELS)
    repeat = torch.arange(sentences).repeat_interleave(beam)
    long = module(query, key[:, repeat], key[:, repeat], hidden[repeat], static_kv=True, need_head_weights=True)
    module.set_beam_size(beam)
    module.k_proj.register_forward_hook(lambda *_: projected.append(1))
    for keys, pads in ((key, hidden), (key[:, repeat], hidden[repeat])):
        state = {}
        for _ in range(2):
            short = module(query, keys, keys, pads, incremental_state=state, static_kv=True, need_head_weights=True)
            assert torch.allclose(short[0], long[0], atol=1e-6)
            assert torch.allclose(short[1], long[1], atol=1e-6)
            assert module._get_input_buffer(state)["prev_key"].size(0) == sentences
            module.reorder_incremental_state(state, torch.arange(sentences * beam))
    assert len(projected) == 2


def test_finished_sentences_leave_a_shared_cache():
    beam = 2
    module = attention("cross", CHANNELS, HEADS).eval()
    key, hidden = torch.randn(6, 3, CHANNELS), padding_mask("right", BATCH, 6)
    module.set_beam_size(beam)
    state = {}
    module(torch.randn(1, 6, CHANNELS), key, key, hidden, incremental_state=state, static_kv=True)
    module.reorder_incremental_state(state, torch.tensor([5, 4, 1, 0]))
    query = torch.randn(1, 4, CHANNELS)
    mine, _ = module(query, None, None, incremental_state=state, static_kv=True)
    kept = torch.tensor([2, 2, 0, 0])
    module.set_beam_size(1)
    theirs, _ = module(query, key[:, kept], key[:, kept], hidden[kept], static_kv=True)
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_training_after_beam_search_uses_every_sentences_own_keys():
    """`set_beam_size` stays set; a batch that happens to be divisible by the beam must not share keys in training."""
    module = attention("cross", CHANNELS, HEADS)
    key = torch.randn(6, 4, CHANNELS)
    query = torch.randn(5, 4, CHANNELS)
    before, _ = module(query, key, key, static_kv=True)
    module.set_beam_size(2)
    after, _ = module(query, key, key, static_kv=True)
    assert torch.allclose(before, after, atol=1e-6)


def test_before_softmax_and_wrong_shapes_are_refused():
    module = attention("encoder", CHANNELS, HEADS)
    query = torch.randn(5, BATCH, CHANNELS)
    with pytest.raises(ValueError, match="before_softmax"):
        module(query, query, query, before_softmax=True)
    with pytest.raises(ValueError, match="9 channels"):
        module(torch.randn(5, BATCH, 9), query, query)


def test_calls_that_have_no_meaning_are_refused():
    query = torch.randn(1, BATCH, CHANNELS)
    own, cross = attention("decoder", CHANNELS, HEADS).eval(), attention("cross", CHANNELS, HEADS).eval()
    state = {}
    own(query, query, query, incremental_state=state)
    with pytest.raises(ValueError, match="static_kv=True is only allowed for encoder-decoder attention"):
        own(query, query, query, incremental_state=state, static_kv=True)
    with pytest.raises(ValueError, match="key and value are required"):
        cross(query, None, None)
    beams = torch.randn(1, 2 * BATCH, CHANNELS)
    keys = torch.randn(5, BATCH, CHANNELS)
    with pytest.raises(ValueError, match="attn_mask is not allowed if beams share their keys"):
        cross(beams, keys, keys, attn_mask=torch.zeros(1, 5))


def test_keys_and_values_may_come_from_different_sources():
    module = attention("cross", CHANNELS, HEADS, mechanism="softmax").double()
    module.encoder_decoder_attention = False
    query, key, value = (torch.randn(length, BATCH, CHANNELS, dtype=torch.float64) for length in (3, 5, 5))
    output, weights = module(query, key, value, need_head_weights=True)
    values = module.v_proj(value).view(5, BATCH, HEADS, -1)
    expected = torch.einsum("hbts,sbhd->tbhd", weights, values).reshape(3, BATCH, CHANNELS)
    torch.testing.assert_close(output, module.out_proj(expected))


@pytest.mark.slow
@pytest.mark.parametrize("static_kv", [False, True])
@pytest.mark.parametrize("kwargs", [{}, {"add_zero_attn": True}, {"add_bias_kv": True}], ids=" ".join)
def test_both_lambdas_zero_is_stocks_module(kwargs, static_kv):
    if static_kv and "add_bias_kv" in kwargs:
        pytest.skip("stock cannot do it with static_kv")
    site, role = ("cross", "encoder_decoder_attention") if static_kv else ("encoder", "self_attention")
    chosen = {"lambda": "fixed", "lambda_plus": 0, "lambda_minus": 0}
    module = attention(site, CHANNELS, HEADS, kwargs=kwargs, **chosen)
    stock = MultiheadAttention(CHANNELS, HEADS, **{role: True}, **kwargs)
    stock.load_state_dict({n: p for n, p in module.state_dict().items() if not n.startswith("mechanism.")})
    query = torch.randn(5, BATCH, CHANNELS)
    key = torch.randn(7, BATCH, CHANNELS) if static_kv else query
    for hidden in (None, padding_mask("right", BATCH, key.size(0))):
        results = (each(query, key, key, hidden, static_kv=static_kv) for each in (module, stock))
        torch.testing.assert_close(*results, rtol=0, atol=1e-6)
