"""--gpam-position and --gpam-qk-norm: what they compute, with any mechanism, full and step by step."""

import math

import pytest
import torch
from learning import build_model, check_stepwise
from quick import first
from tiny import (
    OURS,
    TASKS,
    attention,
    build,
    logits,
    model_input,
    model_of,
    pair,
    settings,
    translation_input,
)

from fairseq_gpam.attention import FUTURE, REGISTRY, AttentionInput, AttentionMask, Site, build_mechanism
from fairseq_gpam.attention.core.positions import rotation
from fairseq_gpam.modules.listener import Listener

BATCH, HEADS, LENGTH, WIDTH = 3, 2, 6, 4
LEFT = torch.tensor([[1, 1, 0, 0, 0, 0], [0] * 6, [1, 0, 0, 0, 0, 0]]).bool()
CASES = [
    (name, position)
    for name in ("softmax", "dagpam", "sigmoid", "linear", *sorted(set(REGISTRY) - {"softmax", "dagpam", "sigmoid"}))
    for position in REGISTRY[name].positions
    if "decoder" in REGISTRY[name].sites
]


def formed(site="decoder", position="none", qk_norm=False, **chosen):
    module = attention(site, HEADS * WIDTH, HEADS, **chosen).double().eval()
    module.set_form(position, qk_norm)
    for norm in (module.q_norm, module.k_norm):
        if norm is not None:
            torch.nn.init.normal_(norm.weight)
    return module.double()


def projected(module, x):
    return [layer(x).view(LENGTH, BATCH, HEADS, WIDTH).permute(1, 2, 0, 3) for layer in (module.q_proj, module.k_proj)]


def turned(vectors, positions):
    """Channels j and j + D/2 as a complex number, times exp(i·p·10000^(−2j/D))."""
    result = torch.zeros_like(vectors)
    half = WIDTH // 2
    for j in range(half):
        angle = positions * 10000 ** (-2 * j / WIDTH)
        number = torch.complex(vectors[..., j], vectors[..., j + half]) * torch.polar(torch.ones_like(angle), angle)
        result[..., j], result[..., j + half] = number.real, number.imag
    return result


def distances(padding):
    positions = (~padding).cumsum(1).double() - 1
    return positions[:, None, :, None] - positions[:, None, None, :]


@pytest.mark.parametrize("site", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_the_formulas(site, name, position):
    module = formed(site, position, mechanism=name)
    x = torch.randn(LENGTH, BATCH, HEADS * WIDTH, dtype=torch.float64)
    q, k = projected(module, x)
    positions = ((~LEFT).cumsum(1) - 1).clamp(min=0).double()[:, None]
    if position == "rotary":
        scores = turned(q, positions) @ turned(k, positions).mT / math.sqrt(WIDTH)
    else:
        slopes = torch.tensor([2.0**-4, 2.0**-8]).double().view(-1, 1, 1)
        scores = q @ k.mT / math.sqrt(WIDTH) - slopes * distances(LEFT).abs()
    hidden = LEFT[:, None, None]
    if site == "decoder":
        hidden = hidden | torch.ones(LENGTH, LENGTH).triu(1).bool()
    count = (~hidden).sum(-1, keepdim=True)
    masked = scores.masked_fill(hidden, -torch.inf)
    expected = torch.softmax(masked, -1) if name == "softmax" else torch.sigmoid(masked - count.double().log())
    future = FUTURE if site == "decoder" else None
    _, weights = module(x, x, x, key_padding_mask=LEFT, attn_mask=future, need_head_weights=True)
    weights = weights.transpose(0, 1)
    rows = ~LEFT[:, None, :, None].expand_as(weights)
    torch.testing.assert_close(weights[rows], expected[rows], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["differential", "dint"])
def test_the_two_heads_of_a_pair_have_one_slope(name):
    """The slopes are those of half as many heads: with four, the second and the fourth of softmax's."""
    x = torch.randn(LENGTH, BATCH, 16, dtype=torch.float64)
    module = attention("encoder", 16, 4, mechanism=name).double().eval()
    module.set_form("alibi", False)
    q, k = (layer(x).view(LENGTH, BATCH, 4, 4).permute(1, 2, 0, 3) for layer in (module.q_proj, module.k_proj))
    slopes = torch.tensor([2.0**-4, 2.0**-4, 2.0**-8, 2.0**-8]).double().view(-1, 1, 1)
    scores = q @ k.mT / 2 - slopes * distances(LEFT).abs()
    maps = torch.softmax(scores.masked_fill(LEFT[:, None, None], -torch.inf), -1)
    strength = module.mechanism.strength().detach()
    first, second = maps[:, ::2], maps[:, 1::2]
    expected = first - strength * second
    if name == "dint":
        rows = ~LEFT[:, None, :, None]
        expected = expected + strength * (first * rows).sum(-2, keepdim=True) / rows.sum(-2, keepdim=True)
    _, weights = module(x, x, x, key_padding_mask=LEFT, need_head_weights=True)
    torch.testing.assert_close(weights.transpose(0, 1), expected.repeat_interleave(2, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("site", ["decoder", "cross"])
def test_the_norm_of_queries_and_keys(site):
    module = formed(site, "none", True, mechanism="softmax")
    x = torch.randn(LENGTH, BATCH, HEADS * WIDTH, dtype=torch.float64)
    q, k = projected(module, x)
    q, k = (
        part / torch.sqrt((part**2).mean(-1, keepdim=True) + 1e-6) * norm.weight
        for part, norm in ((q, module.q_norm), (k, module.k_norm))
    )
    _, weights = module(x, x, x, need_head_weights=True)
    expected = torch.softmax(q @ k.mT / math.sqrt(WIDTH), -1)
    torch.testing.assert_close(weights.transpose(0, 1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "position"), first(12, CASES))
def test_a_full_forward_is_step_by_step(name, position):
    chosen = {"cog_everywhere": True} if name == "cog" else {}
    model = build_model("language_modeling", name, position=position, qk_norm=True, **chosen)
    check_stepwise(model, "language_modeling")


@pytest.mark.parametrize(
    ("name", "position"),
    [
        *((name, "rotary") for name in ("softmax", "linear", "forgetting", "threshold_differential")),
        *((name, "alibi") for name in ("softmax", "sigmoid", "forgetting", "threshold_differential", "differential")),
        *(("linear:1,dagpam:1", "rotary"), ("sigmoid:1,dagpam:1", "alibi")),
    ],
)
def test_padding_on_the_left_and_reordered_beams(name, position):
    module = formed(position=position, qk_norm=True, decoder_mechanism=name)
    x = torch.randn(LENGTH, BATCH, HEADS * WIDTH, dtype=torch.float64)
    full, _ = module(x, x, x, key_padding_mask=LEFT, attn_mask=FUTURE, need_weights=False)
    state, order = {}, torch.tensor([2, 0, 1])
    for i in range(LENGTH):
        step, padding, wanted = x[i : i + 1], LEFT[:, i : i + 1], full[i]
        if i == 3:
            module.reorder_incremental_state(state, order)
        if i >= 3:
            step, padding, wanted = step[:, order], padding[order], wanted[order]
        found, _ = module(step, step, step, padding, state, need_weights=False)
        torch.testing.assert_close(found[0], wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "chosen",
    [
        *(
            {"mechanism": name}
            for name in ("softmax", "dagpam", "differential_v2", "threshold_differential", "sigmoid")
        ),
        {"mechanism": "dagpam", "negative_source": "input"},
    ],
    ids=str,
)
def test_rotated_weights_depend_on_distances_only(chosen):
    """That of further queries and keys, which a mechanism makes by itself, too."""
    resolved = settings(**chosen)
    mechanism = build_mechanism(chosen["mechanism"], Site("decoder", 0, 1, 8, HEADS, WIDTH), resolved).double()
    q, k, v = torch.randn(3, BATCH, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    x = torch.randn(BATCH, LENGTH, 8, dtype=torch.float64)
    module, outputs = formed(position="rotary"), []
    for before in (0, 9):
        form = module.form(q, None, {"tokens": torch.full((BATCH,), before)})
        inputs = AttentionInput(form.query(q), form.key(k), v, AttentionMask(causal=True), x, form=form)
        outputs.append(mechanism(inputs)[0])
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(outputs[0], mechanism(AttentionInput(q, k, v, AttentionMask(causal=True), x))[0])


def test_a_rotation_is_exact_in_half_precision_at_late_positions():
    q = torch.ones(1, 1, 1, WIDTH, dtype=torch.float16)
    turn, count = rotation(None, torch.tensor([4000]), q)
    assert count.item() == 4001
    expected = turned(q.double(), torch.tensor([[[4000.0]]]).double())
    torch.testing.assert_close(turn.turn(q).double(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("position", ["rotary", "alibi"])
@pytest.mark.parametrize("task", TASKS)
def test_a_sentence_alone_is_the_sentence_in_a_batch(task, position):
    model = model_of(task, "--gpam-position", position, "--gpam-qk-norm").double().eval()
    inputs = model_input(task)
    together = logits(model, inputs)
    for row in range(together.size(0)):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        width = {name: int((value != 1).sum()) for name, value in alone.items() if name != "src_lengths"}
        if task == "translation":
            alone["src_tokens"] = alone["src_tokens"][:, -width["src_tokens"] :]
        last = list(width)[-1]
        alone[last] = alone[last][:, : width[last]]
        torch.testing.assert_close(logits(model, alone)[0], together[row, : width[last]], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("position", ["rotary", "alibi"])
@pytest.mark.parametrize("task", TASKS)
def test_positions_of_fairseq_are_off_and_inputs_may_be_longer_than_in_training(task, position):
    limits = ["--max-target-positions", "8"] + ["--max-source-positions", "8"] * (task == "translation")
    model = build(task, OURS[task], "--gpam-position", position, *limits).eval()
    assert model.decoder.embed_positions is None
    assert min(model.max_positions() if task == "translation" else [model.max_positions()]) >= 512
    inputs = {"src_tokens": torch.randint(4, 20, (1, 40))}
    if task == "translation":
        assert model.encoder.embed_positions is None
        inputs |= {"src_lengths": torch.tensor([40]), "prev_output_tokens": torch.randint(4, 20, (1, 40))}
    assert logits(model, inputs).isfinite().all()


def test_hooks_see_the_probabilities_that_are_used():
    model = model_of("translation", "--gpam-mechanism", "softmax", "--gpam-position", "alibi", "--gpam-qk-norm").eval()
    calls = []
    with Listener(model, on_attention=calls.append):
        logits(model, translation_input())
    for call in calls:
        seen = call.visible.expand_as(call.weights)
        torch.testing.assert_close(call.probabilities()[seen], call.weights[seen].detach())


def test_hooks_see_the_maps_of_pairs_of_heads():
    words = "--gpam-mechanism differential --gpam-position alibi --decoder-attention-heads 4"
    model = model_of("language_modeling", *words.split()).double().eval()
    calls = []
    with Listener(model, on_attention=calls.append):
        logits(model, model_input("language_modeling"))
    for call in calls:
        first, second = call.probabilities().unflatten(1, (-1, 2)).unbind(2)
        layers = model.decoder.layers
        expected = first - layers[call.layer].self_attn.mechanism.strength().detach() * second
        seen = call.visible.expand_as(call.weights)
        torch.testing.assert_close(expected.repeat_interleave(2, 1)[seen], call.weights[seen].detach())
    assert len(calls) == len(layers)


def test_a_stock_checkpoint_is_completed():
    stock, _ = pair("translation", "--no-token-positional-embeddings", ours=["--gpam-mechanism", "softmax"])
    model = build("translation", OURS["translation"], "--gpam-mechanism", "softmax", "--gpam-qk-norm")
    state = {name: value for name, value in stock.state_dict().items() if "_positions" not in name}
    model.load_state_dict({**model.state_dict(), **state})
    model.upgrade_state_dict(state)
    assert any(name.endswith("q_norm.weight") for name in state)
