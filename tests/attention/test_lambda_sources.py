"""Where daGPAM's λ⁻ comes from."""

import re

import pytest
import torch
from contract import HEADS, WIDTH, settings
from tiny import OURS, build, logits, model_input, scramble

from fairseq_gpam import export
from fairseq_gpam.attention import Site, build_mechanism
from fairseq_gpam.attention.measures import mean_lambda


def mechanism(**chosen):
    return build_mechanism("dagpam", Site("decoder", 0, 2, HEADS * WIDTH, HEADS, WIDTH), settings(**chosen))


@pytest.mark.parametrize(
    ("name", "value", "given", "allowed"),
    [
        ("lambda", "fixed", "--gpam-lambda 'fixed'", "trainable; --gpam-lambda-plus-training 'fixed' fixes λ⁺ alone"),
        ("lambda_minus_training", "fixed", "--gpam-lambda-minus-training 'fixed'", "no --gpam-lambda-minus-training"),
        ("lambda_minus_training", "trainable", "--gpam-lambda-minus-training 'trainable'", "no --gpam-lambda-minus-"),
        ("lambda_minus", 0.0, "--gpam-lambda-minus 0.0", "no --gpam-lambda-minus"),
        ("lambda_max", 2.0, "--gpam-lambda-max 2.0", "no --gpam-lambda-max"),
        ("lambda_scope", "model", "--gpam-lambda-scope 'model'", "head"),
        ("lambda_scope", "layer", "--gpam-lambda-scope 'layer'", "head"),
        ("lambda_tied", True, "--gpam-lambda-tied", "no --gpam-lambda-tied"),
        ("warm_start", True, "--gpam-warm-start", "no --gpam-warm-start"),
    ],
)
def test_a_lambda_per_token_is_refused_what_only_a_number_can_have(name, value, given, allowed):
    refusal = f"{given} is not allowed with --gpam-lambda-source 'token'; allowed: {allowed}"
    with pytest.raises(ValueError, match=re.escape(refusal)):
        mechanism(lambda_source="token", **{name: value})


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="--gpam-lambda-source 'head' is not allowed; allowed: number, token"):
        settings(lambda_source="head")


def test_a_lambda_per_token_adds_one_vector_for_each_head_in_place_of_a_number():
    sizes = {
        source: {name: tuple(each.shape) for name, each in mechanism(lambda_source=source).named_parameters()}
        for source in ("number", "token")
    }
    assert sizes["number"].pop("lambda_minus.theta") == (HEADS,)
    assert sizes["token"].pop("lambda_minus.projection.weight") == (HEADS, HEADS * WIDTH)
    assert sizes["number"] == sizes["token"]


def test_a_lambda_per_token_is_near_one_half_at_the_start_and_reads_the_token_alone():
    module = mechanism(lambda_source="token").lambda_minus
    x = torch.randn(4, 9, HEADS * WIDTH)
    found = module(x)
    assert found.shape == (4, HEADS, 9, 1)
    torch.testing.assert_close(found[1:2, :, 3:4], module(x[1:2, 3:4]))
    assert 0.3 < found.mean() < 0.7


def test_the_mean_of_a_lambda_leaves_padding_out():
    values = torch.tensor([[[1.0, 2.0, 30.0]], [[4.0, 50.0, 60.0]], [[7.0, 8.0, 9.0]]]).unsqueeze(-1)
    tokens = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    found = mean_lambda(values, tokens)
    assert found[:2].flatten().tolist() == [1.5, 4.0] and found[2].isnan().all()


@pytest.mark.parametrize("task", ["translation", "language_modeling"])
def test_a_model_with_a_lambda_per_token_is_not_exported(task):
    ours = build(task, OURS[task], "--gpam-lambda-source", "token")
    with pytest.raises(export.ExportError, match=r"layer 0: mechanism 'dagpam' .*--gpam-lambda-source 'token'.*λ⁻ = 0"):
        export.fold(ours, ours.state_dict())


def test_a_group_of_heads_may_have_lambdas_per_token():
    flags = ("--gpam-mechanism", "dagpam:1,scaled_softmax:1", "--gpam-lambda-source", "token")
    model = scramble(build("translation", OURS["translation"], *flags))
    assert logits(model, model_input("translation")).isfinite().all()
    assert model.decoder.layers[0].encoder_attn.mechanism.groups["dagpam"].lambda_minus.projection.weight.size(0) == 1
