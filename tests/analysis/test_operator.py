import pytest
import tiny
import torch

from fairseq_gpam.analysis.attribution import describe_deletions, operator_maps
from fairseq_gpam.analysis.operator import NOT_WEIGHTS_TIMES_VALUES, FrozenModel, OperatorError, deletion_losses
from fairseq_gpam.attention import REGISTRY


def model_of(task, arch, *flags):
    return tiny.scramble(tiny.build(task, arch[task], *flags)).double().eval()


def sentence(task):
    if task == "translation":
        return tiny.translation_input((6,), (5,))
    return {"src_tokens": tiny.sentences((6,))}


def probabilities_in_float64(monkeypatch):
    # fairseq's own softmax rounds to float32, also in a model of float64.
    from fairseq import utils

    monkeypatch.setattr(utils, "softmax", lambda x, dim, onnx_trace=False: x.softmax(dim=dim))


@pytest.mark.parametrize("task", tiny.TASKS)
@pytest.mark.parametrize("arch", [tiny.STOCK, tiny.OURS])
@pytest.mark.parametrize("norm", [(), ("--decoder-normalize-before",), ("--activation-fn", "gelu")])
def test_operator_times_embeddings_plus_offset_is_the_models_output(task, arch, norm, monkeypatch):
    probabilities_in_float64(monkeypatch)
    model, inputs = model_of(task, arch, *norm), sentence(task)
    expected = {"decoder": model(**inputs, features_only=True)[0]}
    if task == "translation":
        encoded = model.encoder(inputs["src_tokens"], inputs["src_lengths"])
        expected["encoder"] = encoded["encoder_out"][0].transpose(0, 1)
    frozen = FrozenModel(model, inputs)
    zeros = {name: torch.zeros_like(value) for name, value in frozen.embeddings.items()}
    offset = frozen(zeros)
    # The operator written out, column by column, from its action on unit vectors.
    found = {stack: value.clone() for stack, value in offset.items()}
    for name, embedding in frozen.embeddings.items():
        length, channels = embedding.shape[1:]
        units = torch.eye(length * channels, dtype=torch.float64).view(-1, length, channels)
        images = frozen({**{other: value.expand(len(units), -1, -1) for other, value in zeros.items()}, name: units})
        for stack, image in images.items():
            operator = (image - offset[stack]).flatten(1).T
            found[stack] += (operator @ embedding.flatten()).view_as(found[stack])
            norms = operator.view(-1, channels, length, channels).norm(dim=(1, 3))
            assert torch.allclose(frozen.block_norms(stack, name, chunk=7), norms, atol=1e-12)
    for stack, output in expected.items():
        assert (found[stack] - output).abs().max() < 1e-9
    # The model is left as it was.
    assert torch.equal(model(**inputs, features_only=True)[0], expected["decoder"])


def test_the_future_and_the_targets_do_not_reach_where_they_must_not():
    frozen = FrozenModel(model_of("translation", tiny.OURS), sentence("translation"))
    assert frozen.block_norms("decoder", "decoder").triu(1).abs().max() < 1e-12
    assert frozen.block_norms("encoder", "decoder").abs().max() < 1e-12
    assert frozen.block_norms("decoder", "encoder").min() > 0


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_mechanism_that_does_more_than_weights_times_values_is_refused_and_no_other(name):
    sites = [word for site in REGISTRY[name].sites for word in (f"--gpam-{site}-mechanism", name)]
    model = model_of("translation", tiny.OURS, "--gpam-mechanism", "softmax", *sites, *tiny.needed(name))
    if name not in NOT_WEIGHTS_TIMES_VALUES:
        assert FrozenModel(model, sentence("translation")).block_norms("decoder", "encoder").isfinite().all()
        return
    with pytest.raises(OperatorError, match=f"{name} computes more than that.*allowed: stock attention, affine_scaled"):
        FrozenModel(model, sentence("translation"))


def test_deletion_ranks_maps_by_what_their_tokens_are_worth():
    worth = torch.tensor([0.0, 5.0, 1.0, 3.0])
    scores = {"right": worth, "wrong": -worth}
    found = deletion_losses(lambda stays: float(worth[~stays].sum()), scores, count=2, draws=200)
    assert found["right"] == 8 and found["wrong"] == 1
    assert found["random"] == pytest.approx(worth.mean().item() * 2, rel=0.15)


@pytest.mark.slow
def test_the_maps_of_both_stacks_of_a_translation_model_and_the_one_of_a_language_model():
    for task, expected in (
        ("translation", [("decoder", "encoder"), ("encoder", "encoder"), ("decoder", "decoder")]),
        ("language_modeling", [("decoder", "decoder")]),
    ):
        model, inputs = model_of(task, tiny.OURS), sentence(task)
        maps, frozen = operator_maps(model, {"net_input": inputs}), FrozenModel(model, inputs)
        assert list(maps) == ["operator", "encoder operator", "decoder operator"][: len(expected)]
        for found, (output, given) in zip(maps.values(), expected, strict=True):
            assert torch.equal(found, frozen.block_norms(output, given))


@pytest.mark.slow
def test_deletions_are_summed_up_as_a_mean_for_each_map():
    rows = [
        {"sample": sample, "map": name, "increase": increase}
        for name, increases in {"operator": (1.0, 2.0), "random": (-0.5, 0.25)}.items()
        for sample, increase in enumerate(increases)
    ]
    assert describe_deletions(rows).endswith("highest: operator +1.500, random -0.125 (mean; sentences: 2)")
