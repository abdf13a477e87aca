"""Mixed heads."""

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, masks, settings
from learning import check_stepwise, train
from tiny import OURS, build

from fairseq_gpam.attention import REGISTRY, AttentionInput, Site, build_mechanism


def site(name="encoder", heads=HEADS, layer=1):
    return Site(name, layer, 3, heads * WIDTH, heads, WIDTH)


def inputs(heads=HEADS):
    q, k, v = torch.randn(3, 3, heads, LENGTH, WIDTH, dtype=torch.float64)
    return q, k, v, torch.randn(3, LENGTH, heads * WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_mixture_of_one_group_is_that_mechanism(name):
    causal = REGISTRY[name].sites == ("decoder",)
    place = site("decoder" if causal else "encoder", layer=0 if REGISTRY[name].needs_every_layer else 1)
    chosen = settings(integral_signals=WIDTH)
    torch.manual_seed(3)
    alone = build_mechanism(name, place, chosen).double()
    torch.manual_seed(3)
    mixed = build_mechanism(f"{name}:{HEADS}", place, chosen).double()
    q, k, v, x = inputs()
    mask = masks("causal, a sentence of padding" if causal else "a sentence of padding", LENGTH)[0]
    call = AttentionInput(q, k, v, mask, x, need_weights=True)
    for one, other in zip(alone(call), mixed(call), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["nothing", "causal, left", "bias for each head"])
def test_each_group_attends_by_itself(kind):
    mixed = build_mechanism("dagpam:1,sink:2,softmax:1", site(heads=4), settings()).double()
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


@pytest.mark.parametrize("task", ["translation", "language_modeling"])
def test_learns_and_decodes_at_every_site(task):
    heads = ("--encoder-attention-heads", "4") if task == "translation" else ()
    model = build(
        task, OURS[task], *heads, "--decoder-attention-heads", "4", "--gpam-mechanism", "dagpam:2,softmax:2", words=12
    )
    first, last = train(model, task)
    assert last < 0.8 * first
    check_stepwise(model, task)


def test_neutreno_in_a_mixture():
    model = build("language_modeling", OURS["language_modeling"], "--gpam-mechanism", "neutreno:1,softmax:1", words=12)
    first, last = train(model, "language_modeling")
    assert last < 0.8 * first
    check_stepwise(model, "language_modeling")
    with pytest.raises(ValueError, match="--decoder-layerdrop"):
        build(
            "language_modeling",
            OURS["language_modeling"],
            *("--gpam-mechanism", "neutreno:1,softmax:1", "--decoder-layerdrop", "0.1"),
        )


def test_what_the_model_prints_names_the_groups():
    assert "dagpam:1, sink:1" in build_mechanism("dagpam:1,sink:1", site(), settings()).extra_repr()
