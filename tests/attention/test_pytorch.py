"""The door for PyTorch: `dagpam_attention` and `MultiheadAttention` against PyTorch's own, on generated cases."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from quick import EXAMPLES
from reference import assert_same, row_softmax

from fairseq_gpam.attention import REGISTRY, MultiheadAttention, Site, dagpam_attention

PAGE = Path(__file__).parents[2] / "docs/pytorch.md"
examples = settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
NEUTRAL = ({"mechanism": "softmax"}, {"lambda_plus": 0.0, "lambda_minus": 0.0}, {"warm_start": True})
MASKS = (None, "bool", "float", "bool for each head", "float for each head", "sees nothing")


def made_mask(kind, bsz, heads, queries, keys):
    """PyTorch's attention mask, and which keys each query may see: B × H × T × S."""
    shape = (bsz * heads, queries, keys) if "each" in str(kind) else (queries, keys)
    hidden = torch.rand(shape) < 0.4
    hidden[..., 0] = False
    if kind == "sees nothing":
        hidden[0] = True
    mask = hidden if "float" not in str(kind) else torch.randn(shape).double().masked_fill(hidden, float("-inf"))
    visible = ~hidden.view(-1, heads if len(shape) == 3 else 1, queries, keys).expand(bsz, heads, queries, keys)
    return (None, torch.ones_like(visible)) if kind is None else (mask, visible)


@st.composite
def layers(draw):
    """Two layers with the same weights, PyTorch's and ours at its neutral setting; their inputs, and visible keys."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    heads, width, bsz = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([2, 3])), draw(st.integers(1, 3))
    queries, keys = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    channels, is_batched = heads * width, draw(st.booleans())
    bsz, kind = (bsz if is_batched else 1), draw(st.sampled_from(MASKS))
    shared = {name: draw(st.booleans()) for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    if draw(st.booleans()):
        shared |= {"kdim": 5, "vdim": 7}
    stock = torch.nn.MultiheadAttention(channels, heads, dtype=torch.float64, **shared)
    ours = MultiheadAttention(channels, heads, dtype=torch.float64, **shared, **draw(st.sampled_from(NEUTRAL)))
    ours.load_state_dict(stock.state_dict())
    inputs = [torch.randn(*shape).double() for shape in ((queries, bsz, channels), (keys, bsz, stock.kdim))]
    inputs.append(torch.randn(keys, bsz, stock.vdim).double())
    if "kdim" not in shared and draw(st.booleans()):
        inputs, keys = inputs[:1], queries
    inputs = [x[:, 0] if not is_batched else x.transpose(0, 1) if shared["batch_first"] else x for x in inputs]
    inputs = inputs * (3 // len(inputs))
    mask, visible = made_mask(kind, bsz, heads, queries, keys)
    arguments = {"attn_mask": mask}
    if draw(st.booleans()):
        padding = torch.rand(bsz, keys) < 0.4
        visible = visible & ~padding[:, None, None, :]
        added = torch.zeros(bsz, keys).double().masked_fill(padding, float("-inf"))
        chosen = draw(st.sampled_from([padding, added]))
        arguments["key_padding_mask"] = chosen if is_batched else chosen[0]
    return stock, ours, inputs, arguments, visible | (shared["add_bias_kv"] or shared["add_zero_attn"])


@given(layers(), st.booleans())
@examples
def test_at_the_neutral_setting_it_is_pytorchs_attention(case, averaged):
    stock, ours, inputs, arguments, visible = case
    places = [x.requires_grad_() for x in dict.fromkeys(inputs)]
    expected = stock(*inputs, need_weights=False, **arguments)[0]
    output = ours(*inputs, need_weights=False, **arguments)[0]
    assert_same(output, expected, places, rtol=0, atol=1e-10)
    if visible.any(-1).all():
        outputs = (layer(*inputs, average_attn_weights=averaged, **arguments) for layer in (ours, stock))
        for one, other in zip(*outputs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@given(layers(), st.booleans())
@examples
def test_is_causal_is_the_mask_that_hides_the_future(case, both):
    _, ours, inputs, arguments, _ = case
    length = 0 if inputs[0].dim() == 2 or not ours.batch_first else 1
    future = torch.ones(inputs[0].size(length), inputs[1].size(length), dtype=torch.bool).triu(1)
    del arguments["attn_mask"]
    expected, _ = ours(*inputs, attn_mask=future, **arguments)
    output, _ = ours(*inputs, attn_mask=future if both else None, is_causal=True, **arguments)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@st.composite
def heads_of_attention(draw):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    bsz, heads, queries, keys, width = (draw(st.integers(1, 4)) for _ in range(5))
    q, negative_q = torch.randn(2, bsz, heads, queries, width).double()
    k, v = torch.randn(bsz, heads, keys, width).double(), torch.randn(bsz, heads, keys, width + 1).double()
    mask, visible = made_mask(draw(st.sampled_from(MASKS)), bsz, heads, queries, keys)
    if mask is not None:
        mask = mask.view(bsz, heads, queries, keys) if mask.dim() == 3 else mask
        mask = ~mask if mask.dtype == torch.bool else mask
    return q, k, v, negative_q, mask, visible


@given(heads_of_attention(), st.booleans())
@examples
def test_without_lambdas_the_function_is_pytorchs(case, is_causal):
    q, k, v, negative_q, mask, _ = case
    if is_causal and mask is not None:
        mask = None
    expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)
    output = dagpam_attention(q, k, v, negative_q, 0.0, 0.0, mask, is_causal)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@given(heads_of_attention(), st.sampled_from([(), (1,), (0, 1, 1), (1, 0, 1, 1), (1, 0, 2, 1)]))
@examples
def test_the_function_is_the_formula(case, shape):
    q, k, v, negative_q, mask, visible = case
    sizes = [q.size(1) if n == 0 else q.size(2) if n == 2 else n for n in shape]
    plus, minus = torch.rand(2, *sizes).double().requires_grad_()
    added = torch.zeros_like(visible).double() if mask is None or mask.dtype == torch.bool else mask
    added = added.masked_fill(~visible, 0.0)

    def map_of(queries):
        return row_softmax(queries @ k.transpose(-1, -2) / q.size(-1) ** 0.5 + added, visible)

    expected = ((1 + plus) * map_of(q) - minus * map_of(negative_q)) @ v
    output = dagpam_attention(q, k, v, negative_q, plus, minus, mask)
    assert_same(output, expected, (plus, minus), rtol=0, atol=1e-10)


def test_dropout_acts_on_the_combined_weights():
    q, k, negative_q = torch.randn(3, 1, 1, 5, 4).double()
    dropped = dagpam_attention(q, k, torch.eye(5).double()[None, None], negative_q, dropout_p=0.5)
    whole = dagpam_attention(q, k, torch.eye(5).double()[None, None], negative_q)
    kept = dropped != 0
    assert 0 < kept.sum() < 25
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_mechanism_learns_and_no_future_leaks(name):
    site = next(site for site in ("decoder", "encoder") if site in REGISTRY[name].sites)
    options = {"cog": {"cog_everywhere": True}, "integral": {"integral_signals": 2}}.get(name, {})
    layer = MultiheadAttention(8, 2, mechanism=name, site=site, batch_first=True, **options).double()
    assert {name for name, _ in torch.nn.MultiheadAttention(8, 2).named_parameters()} <= set(layer.state_dict())
    x = torch.randn(2, 5, 8).double().requires_grad_()
    output, weights = layer(x, x, x, is_causal=site == "decoder")
    assert output.shape == x.shape and weights.shape == (2, 5, 5)
    (gradient,) = torch.autograd.grad(output[:, 1].square().sum(), x, retain_graph=True)
    assert site != "decoder" or gradient[:, 2:].abs().max() == 0
    output.square().sum().backward()
    assert all(
        each.grad is not None and each.grad.isfinite().all() for each in layer.parameters() if each.requires_grad
    )


@pytest.mark.parametrize("name", sorted(name for name, made in REGISTRY.items() if "encoder" in made.sites))
def test_is_causal_hides_the_future_also_where_the_site_is_the_encoder(name):
    options = {
        "cog": {"cog_everywhere": True},
        "integral": {"integral_signals": 2},
        "attn_scale": {"attn_scale_features": True},
    }.get(name, {})
    layer = MultiheadAttention(8, 2, mechanism=name, batch_first=True, **options).double().eval()
    if name == "attn_scale":
        torch.nn.init.ones_(layer.mechanism.features.mean_scale)
    x = torch.randn(2, 5, 8).double()
    moved = torch.cat([x[:, :4], x[:, 4:] + 1], dim=1)
    try:
        before, after = (layer(each, each, each, is_causal=True)[0] for each in (x, moved))
    except ValueError as refused:
        assert name in ("compressed", "dnas", "hnas") and "is_causal is not allowed with" in str(refused)
    else:
        torch.testing.assert_close(after[:, :4], before[:, :4], rtol=0, atol=1e-9)


def test_a_nested_tensor_is_refused_with_the_setting_that_avoids_it():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 1).eval()
    encoder.layers[0].self_attn = MultiheadAttention(8, 2, batch_first=True)
    x, padding = torch.randn(2, 3, 8), torch.tensor([[False] * 3, [False, False, True]])
    with torch.no_grad(), pytest.raises(ValueError, match="enable_nested_tensor=False"):
        encoder.eval()(x, src_key_padding_mask=padding)


@pytest.mark.parametrize("grad", [True, False])
def test_pytorchs_encoder_does_not_bypass_the_mechanism(grad):
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    stock = copy.deepcopy(layer)
    layer.self_attn = MultiheadAttention(8, 2, batch_first=True)
    layer.self_attn.load_state_dict(stock.self_attn.state_dict())
    encoder = torch.nn.TransformerEncoder(layer, 2)
    x, padding = torch.randn(2, 4, 8), torch.tensor([[False] * 4, [False, False, True, True]])
    with torch.set_grad_enabled(grad):
        outputs = [model.train(mode)(x, src_key_padding_mask=padding) for model in [encoder] for mode in (True, False)]
        plain = torch.nn.TransformerEncoder(stock, 2).eval()(x, src_key_padding_mask=padding)
    real = ~padding
    torch.testing.assert_close(outputs[0][real], outputs[1][real])
    assert not torch.allclose(outputs[1][0], plain[0])


def test_the_same_seed_gives_pytorchs_initial_weights():
    torch.manual_seed(1)
    stock = torch.nn.MultiheadAttention(8, 2).state_dict()
    torch.manual_seed(1)
    ours = MultiheadAttention(8, 2).state_dict()
    assert all(ours[name].equal(value) for name, value in stock.items())


def test_a_checkpoint_of_its_own_is_loaded_whole():
    first, second = MultiheadAttention(8, 2), MultiheadAttention(8, 2)
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 2, 8)
    torch.testing.assert_close(first(x, x, x)[0], second(x, x, x)[0], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="mechanism"):
        state = first.state_dict()
        second.load_state_dict({name: state[name] for name in state if name != "mechanism.lambda_plus.theta"})


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"mechanism": "nothing"}, ["nothing", "dagpam"]),
        ({"lambda_pls": 0.5}, ["lambda_pls", "0.5", "lambda_plus"]),
        ({"lambda_plus": "x"}, ["lambda", "plus", "x"]),
        ({"mechanism": "softmax", "lambda_plus": 0.5}, ["lambda_plus", "softmax"]),
        ({"backend": "fast"}, ["backend", "fast", "reference"]),
        ({"mechanism": "forgetting"}, ["forgetting", "encoder", "decoder"]),
        ({"site": Site("encoder", 0, 1, 4, 2, 2)}, ["site", "embed_dim"]),
    ],
)
def test_what_a_module_cannot_be_built_with_is_refused_by_name(keywords, named):
    with pytest.raises(ValueError) as refusal:
        MultiheadAttention(8, 2, **keywords)
    assert all(word in str(refusal.value) for word in named)


INPUTS = {name: torch.randn(2, 4, 8) for name in ("query", "key", "value")}
MODULE = {**INPUTS, "attn_mask": torch.zeros(4, 4, dtype=torch.bool), "key_padding_mask": torch.zeros(2, 4)}
FUNCTION = {name: torch.randn(2, 2, 4, 3) for name in ("q", "k", "v", "negative_q")}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, given[..., :3]) for name, given in MODULE.items()),
        *((name, MODULE[name].int()) for name in ("attn_mask", "key_padding_mask")),
        ("query", torch.randn(4, 8)),
    ],
)
def test_what_does_not_fit_the_module_is_refused_by_name(name, wrong):
    with pytest.raises(ValueError, match=name):
        MultiheadAttention(8, 2, batch_first=True)(**{**MODULE, name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, wrong) for name in FUNCTION for wrong in (torch.randn(2, 4, 3), torch.randn(2, 3, 4, 3))),
        *((name, given.int()) for name, given in FUNCTION.items()),
        *((name, torch.zeros(3, 4)) for name in ("attn_mask", "lambda_plus", "lambda_minus")),
        *(("dropout_p", wrong) for wrong in (-0.1, 1.5)),
    ],
)
def test_what_does_not_fit_the_function_is_refused_by_name(name, wrong):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        dagpam_attention(**{**FUNCTION, name: wrong})


def test_a_self_attention_mechanism_refuses_other_keys():
    layer = MultiheadAttention(8, 2, mechanism="local")
    with pytest.raises(ValueError, match="local"):
        layer(torch.randn(3, 1, 8), torch.randn(4, 1, 8), torch.randn(4, 1, 8))


def test_the_page_trains_a_model_and_changes_none_that_is_neutral(capsys):
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["losses"][-1] < 0.2 * names["losses"][0]
    assert float(re.search(r"largest change: (\S+)", capsys.readouterr().out)[1]) < 1e-5
