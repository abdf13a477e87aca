"""Properties common to all mechanisms: dropout, backends, facts, initial values, and calls that are refused."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from contract import softmax_map
from tiny import mechanism_of

from fairseq_gpam.attention import REGISTRY, AttentionInput, AttentionMask, mechanisms, register_mechanism
from fairseq_gpam.attention.core import families
from fairseq_gpam.attention.core.affine import affine_attention
from fairseq_gpam.attention.core.families import MatrixMechanism

HEADS, LENGTH = 2, 6
TESTS = Path(__file__).parents[1] / "mechanisms"


def in_a_stack(name, **chosen):
    """A mechanism of width LENGTH in the middle of three layers, after a first layer that has run."""
    shared, chosen = {}, {"cog_everywhere": True, "integral_signals": 2, **chosen}
    place = {"site": REGISTRY[name].sites[0], "layers": 3, "heads": HEADS, "width": LENGTH, "shared": shared}
    return [mechanism_of(name, layer=layer, **place, **chosen).double() for layer in (0, 1)]


HIDDEN = {
    *("softmax_rmsnorm", "differential", "gated", "rela", "dint", "gated_linear", "compressed"),
    *("zeros", "gated_deltanet", "laser"),
}
PLAIN = {"nap": {"nap_output": "none"}, "non": {"non_output": "none"}}


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_dropout_drops_the_weights_themselves(name):
    """With the unit matrix as values the output is the dropped matrix: each weight is 0 or P/(1−p)."""
    q, k = torch.randn(2, 4, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    x = torch.randn(4, LENGTH, HEADS * LENGTH, dtype=torch.float64)
    eye = torch.eye(LENGTH, dtype=torch.float64).expand(4, HEADS, LENGTH, LENGTH)
    first, mechanism = in_a_stack(name, **PLAIN.get(name, {}))
    if name in HIDDEN:
        pytest.skip("what comes before or after the weighted sum hides the matrix, or dropout is refused")
    mask = AttentionMask(causal=REGISTRY[name].sites == ("decoder",))
    first(AttentionInput(q, k, eye, mask, x))
    output, weights = mechanism(AttentionInput(q, k, eye, mask, x, 0.5, True))
    # A diagonal value of `exclusive` is taken out, not dropped.
    kept = ~torch.eye(LENGTH, dtype=torch.bool) if name == "exclusive" else torch.ones(LENGTH, LENGTH).bool()
    dropped = (output == 0) & kept
    where = (weights.abs() > 1e-9) & kept
    assert 0.3 < (dropped & where).sum() / where.sum() < 0.7
    torch.testing.assert_close(output[~dropped & kept], 2 * weights[~dropped & kept], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("chosen", "grad", "call", "parts"),
    [
        ({}, False, {}, [2, 2, 2]),
        ({}, True, {}, [6]),
        ({}, False, {"dropout_p": 0.1}, [6]),
        ({}, False, {"need_weights": True}, [6]),
        ({"backend": "reference"}, False, {}, [6]),
    ],
)
def test_two_rows_at_a_time_with_the_keys_they_see_and_only_where_nothing_else_needs_all(
    chosen, grad, call, parts, causal, monkeypatch
):
    monkeypatch.setattr(families, "BLOCK", 2 * HEADS * LENGTH)
    mechanism = mechanism_of("rela", "decoder", heads=HEADS, width=LENGTH, **chosen).double()
    computed, weights = [], mechanism.weights

    def spy(inputs):
        computed.append(weights(inputs))
        return computed[-1]

    monkeypatch.setattr(mechanism, "weights", spy)
    q, k, v = torch.randn(3, 1, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        mechanism(AttentionInput(q, k, v, AttentionMask(causal=causal), q[:, 0].repeat(1, 1, HEADS), **call))
    keys = [2, 4, 6] if causal and len(parts) > 1 else [6] * len(parts)
    assert [each.shape for each in computed] == [(1, HEADS, *shape) for shape in zip(parts, keys, strict=True)]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_mechanism_is_one_file_and_one_test_and_says_what_it_is(name):
    module = importlib.import_module(REGISTRY[name].__module__)
    assert Path(module.__file__) == Path(mechanisms.__file__).parent / f"{name}.py"
    assert (TESTS / f"test_{name}.py").exists()
    mechanism = in_a_stack(name)[1]
    assert f"{name}, {mechanism.site.name} layer 1" in repr(mechanism)
    for fact in ("formula", "source", "row_sum", "cost", "__doc__"):
        assert getattr(REGISTRY[name], fact)


def takes_the_fused_backend(name):
    """Every mechanism either hands the backend to the shared core, or refuses it: both are tested below."""
    try:
        in_a_stack(name, backend="fused")
    except ValueError:
        return False
    return True


AFFINE = [name for name in sorted(REGISTRY) if takes_the_fused_backend(name)]


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_the_family_goes_through_the_shared_core(name, backend, monkeypatch):
    """Every member hands its terms and the chosen backend to `affine_attention`, and to nothing else."""
    seen = []

    def core(*arguments, **named):
        seen.append(arguments[-1])
        return affine_attention(*arguments, **named)

    for module in {inspect.getmodule(one) for one in REGISTRY[name].__mro__}:
        if hasattr(module, "affine_attention"):
            monkeypatch.setattr(module, "affine_attention", core)
    q = torch.randn(2, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    x = torch.randn(2, LENGTH, HEADS * LENGTH, dtype=torch.float64)
    for mechanism in in_a_stack(name, backend=backend):
        mechanism(AttentionInput(q, q, q, AttentionMask(), x))
    assert seen == [backend] * 2


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - set(AFFINE)))
def test_no_silent_fall_back_from_the_fused_backend(name):
    with pytest.raises(ValueError, match=f"--gpam-backend 'fused' is not allowed with mechanism '{name}'"):
        in_a_stack(name, backend="fused")


def test_unscaled_scores_fit_fp16():
    q = torch.full((1, 1, 2, 64), 60.0, dtype=torch.float16)
    mechanism = mechanism_of("nap", heads=1, width=64, nap_output="none").half()
    output, weights = mechanism(AttentionInput(q, q, q, AttentionMask(), q[:, 0], 0.0, True))
    assert output.isfinite().all() and weights.isfinite().all()


def test_two_mechanisms_of_one_name_are_refused_and_one_may_be_registered_again():
    register_mechanism(REGISTRY["softmax"])
    with pytest.raises(ValueError, match="two mechanisms are named 'softmax'"):
        register_mechanism(type("Other", (MatrixMechanism,), {"name": "softmax"}))


# Mechanism, options, parameter, its standard deviation and whether it is uniform: C = 512 channels in 8 heads.
STARTS = [
    ("dagpam", {"negative_projection": "head"}, "negative_projection.weight", (2 / 128) ** 0.5, True),
    ("dagpam", {"negative_projection": "shared"}, "negative_projection.weight", (2 / 128) ** 0.5, True),
    ("dagpam", {"negative_source": "input"}, "negative_projection.weight", (1 / 1024) ** 0.5, True),
    ("differential_v2", {}, "second_q_proj.weight", (1 / 1024) ** 0.5, True),
    ("differential_v2", {"differential_v2_init": "linear"}, "strength_proj.weight", (1 / 1536) ** 0.5, True),
    ("differential_v2", {"differential_v2_init": "xavier"}, "strength_proj.weight", (2 / 520) ** 0.5, True),
    ("forgetting", {}, "gate_proj.weight", 0.02, False),
    ("gated", {"gated_init": "normal"}, "gate_proj.weight", 0.02, False),
    ("gated", {"gated_init": "xavier"}, "gate_proj.weight", (2 / 1024) ** 0.5, True),
]


@pytest.mark.parametrize(("name", "chosen", "parameter", "deviation", "is_uniform"), STARTS)
def test_a_parameter_starts_with_the_spread_of_its_source(name, chosen, parameter, deviation, is_uniform):
    values = mechanism_of(name, "decoder", heads=8, width=64, **chosen).get_parameter(parameter)
    assert values.std().item() == pytest.approx(deviation, rel=0.03)
    assert (values.abs().max() <= 1.001 * 3**0.5 * deviation) == is_uniform


@pytest.mark.parametrize(
    ("name", "mixed"),
    [
        ("neutreno", lambda weights, v, first: weights @ v + 0.4 * (first - v)),
        ("value_residual", lambda weights, v, first: weights @ (v + first) / 2),
    ],
)
def test_layers_share_the_first_ones_values(name, mixed):
    shared = {}
    q, k, *values = torch.randn(5, 3, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    visible = torch.ones(LENGTH, LENGTH).tril().bool().expand(3, HEADS, LENGTH, LENGTH)
    weights = softmax_map(q, k, torch.zeros(visible.shape), visible)
    for layer, v in enumerate(values):
        mechanism = mechanism_of(name, "decoder", layer, 3, HEADS, LENGTH, shared)
        output = mechanism(AttentionInput(q, k, v, AttentionMask(causal=True), q))[0]
        torch.testing.assert_close(output, mixed(weights, v, values[0]), rtol=0, atol=1e-12)
    assert not shared


@pytest.mark.parametrize(
    ("name", "chosen", "shown"),
    [
        ("sink", {"sink_kind": "learned"}, ", s 0.000 0.000"),
        ("sink", {"sink_kind": "weight"}, ", weight 0.0"),
        ("sink", {"sink_kind": "off-by-one"}, ", off by one"),
        ("scalable_softmax", {"scalable_softmax_start": 0.7}, "s 0.700 0.700"),
        ("dagpam:1,sink:1", {}, "dagpam:1, sink:1"),
        ("dagpam", {"lambda": "fixed", "lambda_plus": 0.375}, "0.375"),
        ("dagpam", {"lambda_plus": 0.375, "lambda_max": 3}, "0.375, 0.375"),
        ("dagpam", {"row_sum": 0.8}, "row sum 0.8"),
    ],
)
def test_what_is_printed_of_a_mechanism(name, chosen, shown):
    assert shown in repr(mechanism_of(name, **chosen))


ONE_QUERY, BIAS = {"q": torch.zeros(1, HEADS, 1, LENGTH), "x": torch.zeros(1, 1, HEADS * LENGTH)}, torch.zeros(5, 5)
NO_FUTURE = (AttentionMask(), AttentionMask(hidden=torch.ones(5, 5).triu(1).bool()))
LINEAR = {"fastmax_form": "linear"}
REFUSED = [
    ("differential", {}, {"mask": AttentionMask(bias=torch.zeros(1, HEADS, 5, 5))}, "one matrix per head"),
    *(
        (name, {}, {"mask": mask}, f"--gpam-mechanism {name} is causal.*allowed: decoder self-attention")
        for name in ("forgetting", "selective", "stick_breaking")
        for mask in NO_FUTURE
    ),
    *(
        (name, {}, {**ONE_QUERY, "mask": AttentionMask(), "past": {}}, "no cached state for 4 earlier keys")
        for name in ("forgetting", "selective")
    ),
    ("gated_linear", {}, {"mask": AttentionMask(causal=True, bias=BIAS)}, "a bias in attn_mask is not allowed with"),
    ("gated_linear", {}, {**ONE_QUERY, "mask": AttentionMask()}, "5 keys for 1 queries; allowed: one key and value"),
    *(
        (name, {}, {"past": {}, "need_weights": True}, f"--gpam-mechanism {name} decodes.*allowed: a full forward pass")
        for name in ("gated_linear", "linear")
    ),
    *(
        ("compressed", {}, {"mask": mask}, "compressed is not allowed with an attn_mask.*; allowed: encoder")
        for mask in (AttentionMask(causal=True), AttentionMask(bias=BIAS))
    ),
    ("dnas", {}, {**ONE_QUERY, "mask": AttentionMask()}, "as many queries as keys"),
    ("laser", {}, {"dropout_p": 0.4}, r"--attention-dropout 0\.4 is not allowed.*logarithm.*allowed: 0"),
    ("fastmax", LINEAR, {"dropout_p": 0.1}, r"--attention-dropout 0\.1 .*--gpam-fastmax-form linear"),
    ("fastmax", LINEAR, {"mask": AttentionMask(bias=BIAS)}, "attn_mask as a matrix"),
    ("fastmax", LINEAR, {"past": {}, "need_weights": True}, "weights cannot be returned while --gpam-fastmax-form"),
]


@pytest.mark.parametrize(("name", "chosen", "call", "message"), REFUSED)
def test_a_call_that_a_mechanism_cannot_answer_is_refused(name, chosen, call, message):
    sites = REGISTRY[name].sites
    mechanism = mechanism_of(name, "decoder" if "decoder" in sites else sites[0], width=LENGTH, **chosen)
    q, x = torch.randn(1, HEADS, 5, LENGTH), torch.randn(1, 5, HEADS * LENGTH)
    given = {"q": q, "k": q, "v": q, "x": x, "mask": AttentionMask(causal=sites != ("encoder",)), **call}
    with pytest.raises(ValueError, match=message):
        mechanism(AttentionInput(**given))
