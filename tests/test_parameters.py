"""Counting parameters, and models with as many."""

import re
import shlex

import pytest
from tiny import BASE, OURS, STOCK, build

from fairseq_gpam.__main__ import main
from fairseq_gpam.parameters import Model, count, match, without_gpam
from fairseq_gpam.parameters import build as build_on_meta

VOCABULARY = 24


def model(task, *flags):
    return Model(OURS[task], (*BASE[task], *flags), VOCABULARY)


@pytest.mark.parametrize("task", list(OURS))
def test_the_count_is_that_of_a_real_model(task):
    flags = ("--gpam-mechanism", "dagpam:1,gated:1", "--gpam-lambda-scope", "model")
    assert count(build_on_meta(model(task, *flags))) == sum(
        parameter.numel() for parameter in build(task, OURS[task], *flags).parameters()
    )
    assert count(build_on_meta(model(task, *flags).stock())) == sum(
        parameter.numel() for parameter in build(task, STOCK[task]).parameters()
    )


@pytest.mark.parametrize("vocabulary", [10_000, 2**32])
def test_a_preset_counts_as_its_stock_preset_and_the_mechanism(vocabulary):
    ours = Model("transformer_gpam_iwslt_de_en", ("--gpam-mechanism", "dagpam"), vocabulary)
    assert ours.stock() == Model("transformer_iwslt_de_en", (), vocabulary)
    width = 512 // 4
    assert count(build_on_meta(ours)) - count(build_on_meta(ours.stock())) == 18 * (4 * width**2 + 2 * 4)


def test_gpam_flags_go_with_their_values():
    flags = ("--dropout", "0.1", "--gpam-lambda-plus", "-0.5", "--gpam-lambda-tied", "--encoder-layers", "2")
    assert without_gpam(flags) == ("--dropout", "0.1", "--encoder-layers", "2")


@pytest.mark.parametrize("task", list(OURS))
@pytest.mark.parametrize("mechanism", ["differential_v2", "gated", "softmax"])
def test_controls_have_as_many_parameters(task, mechanism):
    ours = model(task, "--gpam-mechanism", mechanism)
    wanted, stock = count(build_on_meta(ours)), count(build_on_meta(ours.stock()))
    arms = {arm.name: arm for arm in match(ours)}
    assert list(arms) == ["wider FFN", "more heads", "same parameters"]
    # One channel of a tiny FFN holds 33 numbers in each of two layers.
    for name, goal in (("wider FFN", wanted), ("more heads", wanted), ("same parameters", stock)):
        arm = arms[name]
        assert arm.wanted == goal
        assert abs(arm.parameters - goal) <= 33
        assert arm.parameters == count(build_on_meta(arm.model))
    assert arms["wider FFN"].model.arch == arms["more heads"].model.arch == STOCK[task]
    assert arms["same parameters"].model.arch == OURS[task]
    assert "--decoder-attention-heads 4" in arms["more heads"].model.command()


def test_a_mechanism_too_large_for_its_budget_is_refused():
    with pytest.raises(ValueError, match=r"no --encoder-ffn-embed-dim makes .* as small as"):
        match(model("translation", "--gpam-mechanism", "gated", "--encoder-ffn-embed-dim", "4"))


def run(capsys, *words):
    try:
        status = main(["info", *words])
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_info_prints_count_overhead_and_controls(capsys):
    ours = model("language_modeling", "--gpam-mechanism", "gated")
    words = shlex.split(ours.command())
    status, out, _ = run(capsys, *words, "--vocabulary", str(VOCABULARY), "--match")
    wanted, stock = count(build_on_meta(ours)), count(build_on_meta(ours.stock()))
    assert status == 0
    assert f"parameters      {wanted:,}\n" in out
    assert f"overhead        +{wanted - stock:,}  {(wanted - stock) / stock:+.4%} of stock" in out
    assert "decoder  gated                  2 attentions  +512" in out
    assert "vocabulary      24 entries, the same for source and target" in out
    for name in ("wider FFN", "more heads", "same parameters"):
        line = next(line for line in out.splitlines() if line.startswith(name))
        assert "--arch transformer_lm" in line


# What two attentions of C = 16 channels, H = 2 heads and D = 8 channels a head add, worked out from the formulas.
NONE = ("softpick", "sigmoid", "integral", "exclusive", "stick_breaking", "selective", "linear", "local")
ADDED = {name: (name, 0) for name in NONE} | {
    "λ a head, s and t a channel": ("attn_scale --gpam-attn-scale-features", 2 * (2 + 2 * 16)),
    "one s a head": ("scalable_softmax", 2 * 2),
    "λ_q1, λ_k1, λ_q2, λ_k2 of D, a norm of 2D": ("dint", 2 * (4 * 8 + 2 * 8)),
    "W_Q⁻ a head and two λ's": ("dagpam", 2 * (2 * 8**2 + 4)),
    "one W_Q⁻": ("dagpam --gpam-negative-projection shared", 2 * (8**2 + 4)),
    "W_Q⁻ of C and two λ's": ("dagpam --gpam-negative-source input", 2 * (16**2 + 4)),
    "W_Q⁻, λ⁺ and w of C": ("dagpam --gpam-lambda-source token", 2 * (2 * 8**2 + 2 + 2 * 16)),
    "W_Q⁻ and a ratio": ("dagpam --gpam-row-sum 1", 2 * (2 * 8**2 + 2)),
    "four vectors of D, a norm of 2D": ("differential", 2 * (4 * 8 + 2 * 8)),
    "two fixed factors": ("value_residual", 0),
    "two factors in the second layer": ("value_residual --gpam-value-residual-learned", 2),
    "w of C and b for each head": ("forgetting", 2 * (2 * 16 + 2)),
    "C → 16 → C with b, C → C, a norm of D": ("gated_linear", 2 * (16 * 16 + 16 * 16 + 16 + 16 * 16 + 8)),
}


@pytest.mark.parametrize(("flags", "added"), ADDED.values(), ids=ADDED)
def test_info_counts_what_a_mechanism_adds(capsys, flags, added):
    words = shlex.split(model("language_modeling", "--gpam-mechanism", *flags.split()).command())
    status, out, _ = run(capsys, *words, "--vocabulary", str(VOCABULARY))
    assert status == 0
    assert re.search(rf"^overhead        \+{added:,}  ", out, re.MULTILINE)
    assert re.search(rf"^  decoder +{flags.split()[0]} +2 attentions  \+{added:,}$", out, re.MULTILINE)
    projection = "shared (--gpam-negative-projection)" if "shared" in flags else "head (--gpam-negative-projection)"
    if "--gpam-negative-source input" in flags:
        projection = "from the layer's input to all heads (--gpam-negative-source input)"
    assert (f"  W_Q⁻ of daGPAM: {projection}\n" in out) == flags.startswith("dagpam")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--arch", "transformer"], r"--arch 'transformer' is not allowed .*; allowed: .*transformer_gpam_iwslt_de_en"),
        (["--match"], "--arch is required with --match"),
        (["--gpam-mechanism", "softmax"], "--arch is required with --gpam-mechanism softmax"),
        (["--mechanism", "softmax", "--gpam-lambda", "fixed"], "--arch is required with --gpam-lambda fixed"),
        (["--mechanism", "softmx"], "did you mean 'softmax'"),
        (["--mechanism", "softmax", "--length", "0"], "--length 0 is not allowed; allowed: 1 or more"),
        (["--arch", "transformer_gpam", "--vocabulary", "3"], "--vocabulary 3 is not allowed; allowed: 5 or more"),
        (["--arch", "transformer_lm_gpam_wiki103"], "--vocabulary 10000 is not allowed with .*last cutoff.*60000"),
        (["--arch", "transformer_gpam", "--gpam-mechanism", "dnas"], "cannot be used for decoder"),
        (["--arch", "transformer_gpam", "--encoder-attention-heads", "3"], r"-heads 3 cannot be built: .*num_heads\n$"),
        (["--arch", "transformer_gpam", "--decoder-attention-heads", "0"], r"-heads 0 cannot be built: .*zero\n$"),
    ],
)
def test_refusals(capsys, words, why):
    status, _, err = run(capsys, *words)
    assert status == 2
    assert re.search(why, err)


@pytest.mark.slow
def test_other_commands_refuse_unknown_flags(capsys):
    with pytest.raises(SystemExit):
        main(["path", "--match"])
    assert "unrecognized arguments: --match" in capsys.readouterr().err
