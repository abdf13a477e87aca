"""A decoding step after more and more tokens: what is kept for it."""

import pytest
import torch

from fairseq_gpam.lab.benchmark import growth


@pytest.mark.parametrize("spec", growth.SPECS)
def test_only_the_layers_that_keep_keys_grow(spec):
    layers = growth.attentions(spec)
    short, long = (growth.step_after(layers, length)[1] for length in (64, 70))
    keeping = sum(layer.mechanism.caches_keys for layer in layers)
    assert keeping == {"softmax": 4, "dagpam": 4, "linear": 0, "gated_linear": 0, "linear*3,softmax": 1}[spec]
    # Six tokens more: a key and a value of fp32 for each.
    assert long - short == keeping * 6 * 2 * growth.WIDTH * 4


def test_a_step_leaves_the_state_as_it_was():
    layers, seen = growth.attentions("linear*3,softmax"), []
    step, _ = growth.step_after(layers, 5)
    layers[-1].register_forward_hook(lambda module, args, output: seen.append(output[0]))
    step()
    step()
    assert torch.equal(seen[-1], seen[-2])
