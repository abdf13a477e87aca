"""Folding mechanisms into stock attention: which fold, which are refused, and that a wrong fold is noticed."""

import pytest
import torch
from tiny import OURS, STOCK, TASKS, build, logits, model_input, needed, scramble

from fairseq_gpam import export
from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.modules import attention_modules

FOLDING = {
    "softmax": ["--gpam-mechanism", "softmax"],
    "scaled softmax": ["--gpam-mechanism", "scaled_softmax"],
    "one λ for the model": ["--gpam-mechanism", "scaled_softmax", "--gpam-lambda-scope", "model"],
    "bounded λ": ["--gpam-mechanism", "scaled_softmax", "--gpam-lambda-max", "2"],
    "daGPAM": ["--gpam-lambda", "fixed", "--gpam-lambda-minus", "0"],
    "mixture": ["--gpam-mechanism", "softmax:1,scaled_softmax:1"],
}


def model_of(task, *flags):
    model = scramble(build(task, OURS[task], *flags)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("theta"):
                parameter.uniform_(-0.5, 1.5)
    return model


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", FOLDING)
def test_the_stock_model_with_folded_weights_computes_the_same(task, name):
    ours = model_of(task, *FOLDING[name])
    stock = build(task, STOCK[task]).eval()
    stock.load_state_dict(export.fold(ours, ours.state_dict()), strict=True)
    inputs = model_input(task)
    expected = logits(ours, inputs)
    assert (logits(stock, inputs) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    assert export.compare_logits(ours, stock) <= export.TOLERANCE


def test_every_other_mechanism_is_refused_with_its_layer_and_site():
    for mechanism in sorted(set(REGISTRY) - {"softmax", "scaled_softmax"}):
        site = REGISTRY[mechanism].sites[0]
        flags = ["--gpam-mechanism", "softmax", f"--gpam-{site}-mechanism", mechanism, *needed(mechanism)]
        ours = build("translation", OURS["translation"], *flags)
        with pytest.raises(export.ExportError, match=f"{site} layer 0: mechanism '{mechanism}' cannot be exported"):
            export.fold(ours, ours.state_dict())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--gpam-mechanism softmax:1,attn_scale:1", "decoder layer 0: mechanism 'attn_scale'"),
        ("--gpam-lambda-source token", "layer 0: mechanism 'dagpam' cannot be exported"),
        ("--gpam-row-sum 0.5", "layer 0: mechanism 'dagpam' cannot be exported"),
        ("--gpam-mechanism softmax --gpam-query-rank 3", "--gpam-query-rank 3 cannot be exported"),
        ("--gpam-mechanism softmax --gpam-skip-weight 0", "--gpam-skip-weight 0 cannot be exported; only 1 can"),
        ("--gpam-mechanism softmax --gpam-qk-norm", "--gpam-position and --gpam-qk-norm cannot be exported"),
        ("--gpam-mechanism softmax --gpam-layer-fusion gate", "--gpam-layer-fusion cannot be exported"),
    ],
)
def test_what_stock_attention_does_not_have_is_refused(flags, message):
    ours = build("language_modeling", OURS["language_modeling"], *flags.split())
    with pytest.raises(export.ExportError, match=message):
        export.fold(ours, ours.state_dict())


def test_stock_weights_stay_bit_for_bit_where_there_is_nothing_to_fold():
    ours = model_of("translation", "--gpam-mechanism", "softmax")
    weights = ours.state_dict()
    folded = export.fold(ours, weights)
    assert folded.keys() == weights.keys()
    assert all(torch.equal(folded[name], weights[name]) for name in weights)


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_computes_something_else_is_noticed(task):
    ours = model_of(task, "--gpam-mechanism", "scaled_softmax")
    weights = export.fold(ours, ours.state_dict())
    (attention, *_) = attention_modules(ours)
    name = next(name for name, module in ours.named_modules() if module is attention)
    weights[f"{name}.out_proj.weight"] = weights[f"{name}.out_proj.weight"] * 1.01
    stock = build(task, STOCK[task]).eval()
    stock.load_state_dict(weights)
    with pytest.raises(export.ExportError, match="logits differ"):
        export.compare_logits(ours, stock)


@pytest.mark.parametrize("arch", ["transformer_gpam_iwslt_de_en", "transformer_lm_gpam_wiki103", "transformer_tiny"])
def test_the_architecture_becomes_the_stock_one_of_its_preset(arch):
    values = export.stock_settings({"arch": arch, "gpam_backend": "auto", "user_dir": "here", "dropout": 0.1})
    assert values == {"arch": arch.replace("_gpam", ""), "dropout": 0.1}


def test_other_architectures_are_refused():
    with pytest.raises(export.ExportError, match="'lstm' is not allowed; allowed: those of transformer_gpam"):
        export.stock_settings({"arch": "lstm"})
