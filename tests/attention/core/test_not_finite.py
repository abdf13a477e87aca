"""Every mechanism returns NaN for a query, key or value that is not finite, so that a diverged run is noticed."""

import itertools

import pytest
import torch
from quick import first
from tiny import attention

from fairseq_gpam.attention import FUTURE, REGISTRY, SITES, AttentionInput, AttentionMask
from fairseq_gpam.attention.core.families import AffineMechanism, MatrixMechanism

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 6, 4
BAD = 2  # the position that is not finite, in the first head of the first sentence
NAN, INF = float("nan"), float("inf")
CASES = {
    "a query is NaN": ("q", NAN),
    "a query is infinite": ("q", INF),
    "a key is NaN": ("k", NAN),
    "a value is NaN": ("v", NAN),
    "a value is infinite": ("v", INF),
}
PADDING = torch.tensor([[0] * LENGTH, [0] * (LENGTH - 2) + [1, 1]]).bool()


def built(name, site, backend):
    torch.manual_seed(0)
    small = {"cog_everywhere": True, "integral_signals": 2}  # needed with two layers and narrow heads
    return attention(site, HEADS * WIDTH, HEADS, mechanism=name, backend=backend, **small).eval()


SITES_OF = {**{name: REGISTRY[name].sites for name in sorted(REGISTRY)}, "dagpam:2,sparsemax:2": SITES}
PLACES = [(name, site) for name, sites in SITES_OF.items() for site in sites]


def backends(name):
    """`auto`, and for members of the affine family the other two, which take other ways there."""
    is_affine = issubclass(REGISTRY.get(name, MatrixMechanism), AffineMechanism) and name != "sink"
    return first(1, ("auto", "reference", "fused") if is_affine else ("auto",))


@pytest.mark.parametrize(
    ("name", "site", "backend"),
    [
        pytest.param(name, site, *backend.values, marks=backend.marks)
        for name, site in PLACES
        for backend in backends(name)
    ],
)
def test_a_value_that_is_not_finite_makes_only_its_own_rows_nan(name, site, backend):
    for case in CASES.values():
        check_rows(built(name, site, backend).mechanism, name, site, *case)


def check_rows(mechanism, name, site, place, value):
    # With stick_breaking a query does not see its own key.
    first = BAD + 1 if name == "stick_breaking" and place != "q" else BAD
    rows = range(BAD, BAD + 1) if place == "q" else range(first if site == "decoder" else 0, LENGTH)
    for padding, gradients, need_weights in itertools.product((None, PADDING), (True, False), (True, False)):
        drawn = {each: torch.randn(BATCH, HEADS, LENGTH, WIDTH) for each in "qkv"}
        x = torch.randn(BATCH, LENGTH, HEADS * WIDTH)
        mask = AttentionMask(padding, causal=site == "decoder")

        def attend(x=x, mask=mask, drawn=drawn, gradients=gradients, need_weights=need_weights):
            given = {each: tensor.clone().requires_grad_(gradients) for each, tensor in drawn.items()}
            with torch.set_grad_enabled(gradients):
                return mechanism(AttentionInput(**given, mask=mask, x=x, need_weights=need_weights))[0].detach()

        expected = attend()
        drawn[place][0, 0, BAD] = value
        found = attend()
        for row in rows:
            assert not found[0, :, row].isfinite().any(-1).all(), f"row {row} is finite: {mechanism.backend}, {place}"
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", first(1, [NAN, INF]))
@pytest.mark.parametrize(("name", "site"), PLACES)
def test_a_token_that_is_not_finite_makes_the_layers_output_nan(name, site, value):
    """In training with dropout, in evaluation and, in a decoder, step by step, there also in the steps that follow."""
    layer = built(name, site, "auto")
    x = torch.randn(LENGTH, BATCH, HEADS * WIDTH)
    source = torch.randn(LENGTH, BATCH, HEADS * WIDTH) if site == "cross" else None
    x[BAD, 0] = value

    def attend(query, state=None, future=None):
        keys = query if source is None else source
        return layer(query, keys, keys, incremental_state=state, attn_mask=future, need_weights=False)[0].detach()

    future = FUTURE if site == "decoder" else None
    for training in (True, False):
        layer.train(training)
        layer.dropout_module.p = 0.1 if training and name not in ("fastmax", "laser") else 0.0
        output = attend(x, future=future)
        assert not output[BAD, 0].isfinite().any()
        assert output[:, 1].isfinite().all()
    if site == "decoder":
        state = {}
        with torch.no_grad():
            steps = torch.cat([attend(x[i : i + 1], state) for i in range(LENGTH)])
        assert steps[:BAD].isfinite().all() and steps[:, 1].isfinite().all()
        assert not steps[BAD, 0].isfinite().any()
        later = steps[BAD + 1 :, 0]
        assert not later.isfinite().any()
