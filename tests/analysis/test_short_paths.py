import itertools

import pytest
import tiny
import torch

from fairseq_gpam.analysis.operator import FrozenModel
from fairseq_gpam.analysis.short_paths import path_losses, truncated_outputs
from fairseq_gpam.modules.listener import find_attentions


def frozen_model(task, arch, *flags):
    model = tiny.scramble(tiny.build(task, arch[task], *flags)).double().eval()
    inputs = tiny.translation_input((6,), (5,)) if task == "translation" else {"src_tokens": tiny.sentences((6,))}
    return FrozenModel(model, inputs)


def with_only(frozen, kept):
    """Returns the frozen model's output with the attentions outside `kept` taken out, by their output weights."""
    modules = [
        place.module.out_proj for number, place in enumerate(find_attentions(frozen.model)) if number not in kept
    ]
    before = [(parameter, parameter.clone()) for module in modules for parameter in module.parameters()]
    with torch.no_grad():
        for parameter, _ in before:
            parameter.zero_()
        found = frozen(frozen.embeddings)["decoder"]
        for parameter, value in before:
            parameter.copy_(value)
    return found


@pytest.mark.parametrize("task", tiny.TASKS)
@pytest.mark.parametrize("arch", [tiny.STOCK, tiny.OURS])
@pytest.mark.parametrize("norm", [(), ("--decoder-normalize-before",)])
def test_short_paths_against_sets_of_attentions(task, arch, norm):
    frozen = frozen_model(task, arch, *norm)
    found = truncated_outputs(frozen)
    attentions = range(len(find_attentions(frozen.model)))
    sets = [kept for size in range(len(attentions) + 1) for kept in itertools.combinations(attentions, size)]
    whole = {kept: with_only(frozen, kept) for kept in sets}
    # Paths through exactly one set of attentions, by inclusion and exclusion.
    exact = {
        kept: sum((-1) ** (len(kept) - len(part)) * whole[part] for part in sets if set(part) <= set(kept))
        for kept in sets
    }
    for length in range(len(found)):
        expected = sum(exact[kept] for kept in sets if len(kept) <= length)
        assert torch.allclose(found[length], expected[0], atol=1e-10)
    # There is no longer path.
    assert all(exact[kept].abs().max() < 1e-10 for kept in sets if len(kept) >= len(found))
    assert torch.allclose(found[-1], frozen.outputs["decoder"][0], atol=1e-10)


def test_the_loss_of_all_paths_is_the_models():
    model = tiny.scramble(tiny.build("translation", tiny.OURS["translation"])).double().eval()
    inputs = tiny.translation_input((6,), (5,))
    targets = torch.randint(4, 10, (1, 5))
    losses, right = path_losses(model, {"net_input": inputs, "target": targets})
    probabilities = model(**inputs)[0].log_softmax(dim=-1)[0]
    assert losses[-1].item() == pytest.approx(-probabilities[range(5), targets[0]].mean().item(), abs=1e-9)
    assert right[-1].item() == (probabilities.argmax(dim=-1) == targets[0]).double().mean().item()
    assert len(losses) == 1 + len(model.encoder.layers) + len(model.decoder.layers)
    assert losses.unique().numel() == len(losses)
