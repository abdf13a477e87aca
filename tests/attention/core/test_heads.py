"""Mixed heads."""

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, masks
from learning import check_stepwise, train
from tiny import OURS, build, mechanism_of

from fairseq_gpam.attention import REGISTRY, AttentionInput


def inputs(heads=HEADS):
    q, k, v = torch.randn(3, 3, heads, LENGTH, WIDTH, dtype=torch.float64)
    return q, k, v, torch.randn(3, LENGTH, heads * WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_mixture_of_one_group_is_that_mechanism(name):
    causal = REGISTRY[name].sites == ("decoder",)
    place = {"site": "decoder" if causal else "encoder", "layers": 3, "integral_signals": WIDTH}
    place["layer"] = 0 if REGISTRY[name].needs_every_layer else 1
    torch.manual_seed(3)
    alone = mechanism_of(name, **place).double()
    torch.manual_seed(3)
    mixed = mechanism_of(f"{name}:{HEADS}", **place).double()
    q, k, v, x = inputs()
    mask = masks("causal, a sentence of padding" if causal else "a sentence of padding", LENGTH)[0]
    call = AttentionInput(q, k, v, mask, x, need_weights=True)
    for one, other in zip(alone(call), mixed(call), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["nothing", "causal, left", "bias for each head"])
def test_each_group_attends_by_itself(kind):
    mixed = mechanism_of("dagpam:1,sink:2,softmax:1", heads=4).double()
    q, k, v, x = inputs(4)
    mask = masks(kind, LENGTH, heads=4)[0]
    output, weights = mixed(AttentionInput(q, k, v, mask, x, 0.0, True))
    for name, start, stop in (("dagpam", 0, 1), ("sink", 1, 3), ("softmax", 3, 4)):
        part = slice(start, stop)
        expected, expected_weights = mixed.groups[name](
            AttentionInput(q[:, part], k[:, part], v[:, part], mask.heads(start, stop), x, 0.0, True)
        )
        torch.testing.assert_close(output[:, part], expected)
        torch.testing.assert_close(weights[:, part], expected_weights)
    assert mixed(AttentionInput(q, k, v, mask, x))[1] is None


@pytest.mark.parametrize(
    ("task", "spec"), [("translation", "dagpam:1,softmax:1"), ("language_modeling", "neutreno:1,softmax:1")]
)
def test_learns_and_decodes_at_every_site(task, spec):
    model = build(task, OURS[task], "--gpam-mechanism", spec, words=12)
    first, last = train(model, task)
    assert last < 0.8 * first
    check_stepwise(model, task)


def test_heads_that_share_a_map_count_once_wherever_their_group_begins():
    assert mechanism_of("softmax:1,dagpam:2", heads=3, width=4).distinct_heads() == [0, 1, 2]
    assert mechanism_of("softmax:3,differential:4", heads=7, width=4).distinct_heads() == [0, 1, 2, 3, 5]
