import pytest
import tiny
import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention

from fairseq_gpam.analysis.probe import SWITCHES, Probe
from fairseq_gpam.modules.listener import find_attentions, find_layers

MODELS = [
    ("translation", "stock"),
    ("translation", "ours"),
    ("language_modeling", "stock"),
    ("language_modeling", "ours"),
]


def model_of(task, kind, *flags):
    arch = (tiny.STOCK if kind == "stock" else tiny.OURS)[task]
    torch.manual_seed(3)
    return tiny.scramble(tiny.build(task, arch, *flags)).eval()


def attended(model, inputs, **kwargs):
    events = []
    with Probe(model, on_attention=events.append, **kwargs):
        model(**inputs)
    return {(event.site, event.layer): event for event in events}


def states(model, inputs, **kwargs):
    events = []
    with Probe(model, on_states=events.append, **kwargs):
        model(**inputs)
    return {(event.site, event.layer): event for event in events}


@pytest.mark.parametrize(("task", "kind"), MODELS)
@pytest.mark.parametrize("norm", [(), ("--decoder-normalize-before",)])
def test_the_probe_changes_nothing(task, kind, norm):
    model, inputs = model_of(task, kind, *norm), tiny.model_input(task)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()
    }
    expected = model(**inputs)[0]
    with Probe(model, on_attention=lambda event: None, on_states=lambda event: None):
        assert torch.allclose(model(**inputs)[0], expected, atol=1e-5)
    with pytest.raises(RuntimeError, match="inside"), Probe(model, SWITCHES, lambda event: None, lambda event: None):
        raise RuntimeError("inside")
    assert torch.equal(model(**inputs)[0], expected)
    for name, module in model.named_modules():
        assert len(module._forward_hooks) + len(module._forward_pre_hooks) == hooks[name]
        assert vars(module).keys() == before[name].keys()
        assert vars(module).get("skip_embed_dim_check") == before[name].get("skip_embed_dim_check")


def test_ours_gives_the_same_as_stock_in_the_neutral_setting():
    for task in tiny.TASKS:
        stock, ours = (model.eval() for model in tiny.pair(task))
        inputs = tiny.model_input(task)
        theirs, mine = attended(stock, inputs), attended(ours, inputs)
        assert theirs.keys() == mine.keys()
        for key, event in theirs.items():
            rows = event.tokens[:, None, :, None]
            assert torch.allclose(mine[key].weights * rows, event.weights * rows, atol=1e-6)
            assert torch.equal(mine[key].visible.expand_as(event.weights), event.visible.expand_as(event.weights))
            assert torch.allclose((mine[key].probabilities() * rows).nan_to_num(), event.weights * rows, atol=1e-6)
            # the sum over the keys of P V W_O is the attention's output
            assert torch.allclose(
                mine[key].output * event.tokens[..., None], event.output * event.tokens[..., None], atol=1e-5
            )


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_visible_keys_and_tokens_with_padding_on_either_side(kind):
    model = model_of("translation", kind)
    inputs = tiny.translation_input((5, 3), (2, 4), left=True)
    events = attended(model, inputs)
    source, target = inputs["src_tokens"] != 1, inputs["prev_output_tokens"] != 1
    future = torch.ones(4, 4, dtype=torch.bool).tril()
    expected = {
        "encoder": source[:, :, None] & source[:, None],
        "decoder": target[:, :, None] & target[:, None] & future,
        "cross": target[:, :, None] & source[:, None],
    }
    for (site, _), event in events.items():
        assert torch.equal(event.visible[:, 0], expected[site])
        assert torch.equal(event.tokens, source if site == "encoder" else target)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_weights_have_the_gradient_of_the_output(task):
    inputs, gradients = tiny.model_input(task), []
    for model in tiny.pair(task):
        events = []
        with Probe(model.eval(), on_attention=events.append):
            output = model(**inputs)[0]
        gradients.append(torch.autograd.grad(output.square().mean(), [event.weights for event in events]))
    for stock, ours, event in zip(*gradients, events, strict=True):
        assert stock.abs().sum() > 0
        assert torch.allclose(stock * event.visible, ours * event.visible, atol=1e-5)


def test_the_gradient_of_weights_is_that_of_moving_them():
    model, inputs = model_of("language_modeling", "stock").double(), {"src_tokens": tiny.sentences((5,))}
    place = find_attentions(model)[-1]
    events = []
    with Probe(model, on_attention=events.append):
        output = model(**inputs)[0].square().mean()
    gradient = torch.autograd.grad(output, events[-1].weights)[0]
    moved = torch.zeros(2, 5, 5, dtype=torch.float64)
    moved[1, 3, 2] = 1e-6
    losses = []
    for sign in (1, -1):
        hook = place.module.dropout_module.register_forward_hook(lambda *call, sign=sign: call[2] + sign * moved)
        with Probe(model, on_attention=lambda event: None):
            losses.append(model(**inputs)[0].square().mean())
        hook.remove()
    assert ((losses[0] - losses[1]) / 2e-6).item() == pytest.approx(gradient[0, 1, 3, 2].item(), rel=1e-4)


@pytest.mark.parametrize(("task", "kind"), MODELS)
def test_hidden_states_are_those_of_the_layers(task, kind):
    model, inputs = model_of(task, kind), tiny.model_input(task)
    found = states(model, inputs)
    depth = len(find_layers(model)) // (2 if task == "translation" else 1)
    inner = model(**inputs)[1]["inner_states"]
    assert len(inner) == depth + 1
    for layer, expected in enumerate(inner, start=-1):
        assert torch.allclose(found["decoder", layer].states, expected.transpose(0, 1), atol=1e-5)
    if task == "translation":
        encoded = model.encoder(inputs["src_tokens"], inputs["src_lengths"], return_all_hiddens=True)
        for layer, expected in enumerate(encoded["encoder_states"], start=-1):
            assert torch.allclose(found["encoder", layer].states, expected.transpose(0, 1), atol=1e-5)


@pytest.mark.parametrize("kind", ["stock", "ours"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_switches_against_the_layer_written_out(kind, pre_norm):
    model = model_of("translation", kind, *(["--encoder-normalize-before"] if pre_norm else []))
    inputs = tiny.translation_input((4, 4), (3, 3))
    layer = model.encoder.layers[0]
    for without in ((), ("skips",), ("mlps",), ("skips", "mlps"), SWITCHES):
        found = states(model, inputs, without=without)
        x = found["encoder", -1].states.transpose(0, 1)
        skip = 0.0 if "skips" in without else 1.0

        def norm(module, value, without=without):
            return value if "layer-norms" in without else module(value)

        def attend(value):
            return MultiheadAttention.__call__(layer.self_attn, value, value, value, need_weights=False)[0]

        def mlp(value):
            return layer.fc2(layer.activation_fn(layer.fc1(value)))

        if pre_norm:
            x = attend(norm(layer.self_attn_layer_norm, x)) + skip * x
            if "mlps" not in without:
                x = mlp(norm(layer.final_layer_norm, x)) + skip * x
        else:
            x = norm(layer.self_attn_layer_norm, attend(x) + skip * x)
            x = norm(layer.final_layer_norm, x if "mlps" in without else mlp(x) + skip * x)
        assert torch.allclose(found["encoder", 0].states, x.transpose(0, 1), atol=1e-5), without


def test_decoder_switches_take_each_sublayer_by_itself():
    model = model_of("translation", "ours", "--decoder-normalize-before")
    inputs = tiny.translation_input((4, 4), (3, 3))
    events = {}
    with Probe(
        model,
        ("skips", "mlps"),
        on_attention=lambda event: events.__setitem__((event.site, event.layer), event),
        on_states=lambda event: events.__setitem__(("states", event.site, event.layer), event),
    ):
        model(**inputs)
    # without skips and MLP what leaves a decoder layer is its cross-attention's output
    assert torch.equal(events["states", "decoder", 0].states, events["cross", 0].output)


def test_refusals():
    model = model_of("language_modeling", "ours")
    with pytest.raises(ValueError, match="without everything is not allowed; allowed: skips, mlps, layer-norms"):
        Probe(model, ["everything"])
    with pytest.raises(ValueError, match="no fairseq transformer layers"):
        Probe(torch.nn.Linear(2, 2))
    for kind in ("stock", "ours"):
        model = model_of("translation", kind, "--no-cross-attention", "--cross-self-attention")
        with pytest.raises(ValueError, match=r"not possible with --cross-self-attention, .*; allowed: models"):
            Probe(model)


@pytest.mark.slow
@pytest.mark.parametrize("task", tiny.TASKS)
def test_stock_weights_against_an_independent_computation(task):
    model, inputs = model_of(task, "stock"), tiny.model_input(task)
    calls = {}
    handles = [
        place.module.register_forward_pre_hook(
            lambda module, args, kwargs, place=place: calls.__setitem__((place.site, place.layer), kwargs),
            with_kwargs=True,
        )
        for place in find_attentions(model)
    ]
    events = attended(model, inputs)
    for handle in handles:
        handle.remove()
    assert events.keys() == calls.keys()
    for place in find_attentions(model):
        module, call, event = place.module, calls[place.site, place.layer], events[place.site, place.layer]
        q, k = (
            projection(call[name]).unflatten(-1, (module.num_heads, -1)).permute(1, 2, 0, 3)
            for name, projection in (("query", module.q_proj), ("key", module.k_proj))
        )
        mask = torch.zeros(q.size(2), k.size(2)) if call.get("attn_mask") is None else call["attn_mask"]
        mask = mask.expand(q.size(0), 1, -1, -1)
        if call.get("key_padding_mask") is not None:
            mask = mask.masked_fill(call["key_padding_mask"].bool()[:, None, None], -torch.inf)
        # With the identity for values the output is the matrix of weights.
        eye = torch.eye(k.size(2)).expand(*k.shape[:2], -1, -1)
        expected = F.scaled_dot_product_attention(q, k, eye, mask)
        assert torch.allclose(event.weights, expected, atol=1e-6)
        assert torch.allclose(event.weights * ~event.visible * event.tokens[:, None, :, None], torch.zeros(()))
