"""Presets: a name for a mechanism with certain values of its options."""

import pytest
import torch
from contract import HEADS, WIDTH, softmax_map
from tiny import OURS, TASKS, build, mechanism_of, model_input

from fairseq_gpam.attention import AttentionInput, AttentionMask
from fairseq_gpam.attention.core.presets import PRESETS
from fairseq_gpam.flags import text
from fairseq_gpam.lab.recipes.stages import check_mechanism


def made(spec, heads=HEADS, **chosen):
    return mechanism_of(spec, layer=1, layers=3, heads=heads, **chosen).double()


def weights(mechanism, bias=None, heads=HEADS):
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 2, heads, 5, WIDTH, dtype=torch.float64)
    x = torch.randn(2, 5, heads * WIDTH, dtype=torch.float64)
    return q, k, mechanism(AttentionInput(q, k, v, AttentionMask(bias=bias), x, need_weights=True))[1]


def test_signed_dual_is_the_difference_of_a_softmax_and_that_of_the_negative_scores():
    bias = torch.randn(5, 5, dtype=torch.float64)
    mechanism = made("signed_dual")
    q, k, found = weights(mechanism, bias)
    visible = torch.ones(2, HEADS, 5, 5, dtype=torch.bool)
    bias = bias.expand(2, HEADS, 5, 5)
    expected = softmax_map(q, k, bias, visible) - softmax_map(-q, k, bias, visible)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert not any(parameter.requires_grad for parameter in mechanism.parameters())


def test_a_preset_and_its_mechanism_share_nothing_in_one_layer():
    mixed = made("signed_dual:1,dagpam:1", lambda_scope="model")
    both = weights(mixed)[2]
    for head, name in enumerate(("signed_dual", "dagpam")):
        group = mixed.groups[name]
        assert group.lambda_minus.initial == (1.0 if name == "signed_dual" else 0.5)
        assert both[:, head].sum(-1).sub(0.0 if head == 0 else 1.0).abs().max() < 1e-10


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("task", TASKS)
def test_a_preset_is_its_flags(name, task):
    outputs = []
    for flags in (f"--gpam-mechanism {name}", PRESETS[name].flags()):
        torch.manual_seed(0)
        model = build(task, OURS[task], *flags.split()).eval()
        torch.manual_seed(0)
        outputs.append(model(**model_input(task))[0])
    assert torch.equal(*outputs)
    assert PRESETS[name].flags() in " ".join(text(name).split())
    check_mechanism(f"{name}:1,softmax:1", [])
