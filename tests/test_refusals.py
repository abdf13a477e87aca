"""Flags that do not go together are refused, with the flag, its value and what is allowed.

Everything goes through fairseq's parser and builder. Values that are wrong by themselves are in test_options.py.
"""

import pytest
from tiny import BASE, OURS, build, build_from, model_config, unlist

from fairseq_gpam.attention import Option, register_mechanism
from fairseq_gpam.attention.core.lambdas import LAMBDA_PLUS_OPTIONS
from fairseq_gpam.attention.mechanisms.softmax import SoftmaxAttention

TRANSLATION, LANGUAGE_MODEL = "translation", "language_modeling"
MECHANISM, ROW_SUM, TOKEN = "--gpam-mechanism", "--gpam-row-sum 0.5", "--gpam-lambda-source token"
WARM = "--gpam-warm-start"

# The other flags given, the flag that is refused, its value, and what is allowed.
IN_A_LANGUAGE_MODEL = [
    # λ's
    ("--gpam-lambda-max 1", "--gpam-lambda-plus", "2", "a number between 0 and 1.0, both excluded"),
    ("--gpam-lambda fixed --gpam-lambda-max 1", "--gpam-lambda-minus", "1.5", "0 … 1.0"),
    ("--gpam-lambda-tied", "--gpam-lambda-minus-training", "fixed", "--gpam-lambda-plus-training"),
    ("", "--gpam-lambda-ratio", "0.2", "--gpam-row-sum with a number > 0"),
    (ROW_SUM, "--gpam-lambda", "fixed", "trainable"),
    (ROW_SUM, "--gpam-lambda-plus-training", "fixed", "no --gpam-lambda-plus-training"),
    (ROW_SUM, "--gpam-lambda-minus-training", "trainable", "no --gpam-lambda-minus-training"),
    (ROW_SUM, "--gpam-lambda-plus", "0.3", "--gpam-lambda-ratio sets the initial r"),
    (ROW_SUM, "--gpam-lambda-minus", "0.3", "--gpam-lambda-ratio sets the initial r"),
    (ROW_SUM, "--gpam-lambda-max", "2.0", "no --gpam-lambda-max"),
    (ROW_SUM, "--gpam-lambda-tied", "", "--gpam-row-sum 1 makes λ⁺ = λ⁻"),
    (ROW_SUM, "--gpam-lambda-source", "token", "number"),
    (ROW_SUM, WARM, "", "no --gpam-warm-start"),
    (TOKEN, "--gpam-lambda", "fixed", "--gpam-lambda-plus-training 'fixed' fixes λ⁺ alone"),
    (TOKEN, "--gpam-lambda-minus-training", "fixed", "no --gpam-lambda-minus-training"),
    (TOKEN, "--gpam-lambda-minus", "0.3", "no --gpam-lambda-minus"),
    (TOKEN, "--gpam-lambda-max", "2.0", "no --gpam-lambda-max"),
    (TOKEN, "--gpam-lambda-scope", "model", "head"),
    (TOKEN, "--gpam-lambda-tied", "", "no --gpam-lambda-tied"),
    (TOKEN, WARM, "", "no --gpam-warm-start"),
    # W_Q⁻
    ("--gpam-negative-source input", "--gpam-negative-projection", "shared", "head"),
    ("--gpam-negative-source input", "--gpam-negative-init", "minus-identity", "xavier, zero"),
    # warm start
    (WARM, "--gpam-lambda", "fixed", "trainable"),
    (WARM, "--gpam-lambda-plus", "0.25", "0.0"),
    (WARM, "--gpam-query-rank", "3", "8"),
    (WARM, "--gpam-skip-weight", "0.5", "1"),
    (WARM, "--gpam-layer-fusion", "max", "none, concat"),
    (WARM, "--gpam-layer-fusion", "gate", "none, concat"),
    (f"{WARM} --gpam-lambda-plus-training fixed", "--gpam-lambda-minus-training", "fixed", "one of them trainable"),
    (WARM, "--gpam-lambda-minus", "0.25", "0.0"),
    (WARM, "--gpam-lambda-max", "4", "None"),
    (f"{WARM} --gpam-mechanism attn_scale", "--gpam-attn-scale-start", "1", "0.0"),
    (f"{WARM} --gpam-mechanism shaped", "--gpam-shaped-alpha", "0.5", "0.0"),
    (f"{WARM} --gpam-mechanism sink", "--gpam-sink-kind", "off-by-one", "'weight'"),
    (f"{WARM} --gpam-mechanism gated", "--gpam-gated-gain", "3", "2.0"),
    (WARM, MECHANISM, "sparsemax", "softmax"),
    (WARM, MECHANISM, "local", "softmax"),
    # a preset
    ("--gpam-mechanism signed_dual", "--gpam-lambda-minus", "0.7", "1.0"),
    ("--gpam-mechanism signed_dual", WARM, "", "dagpam"),
    # sites, layers and heads
    ("", MECHANISM, "compressed", "encoder"),
    ("", MECHANISM, "dnas", "encoder"),
    ("", MECHANISM, "cog", "--gpam-cog-everywhere"),
    ("--decoder-attention-heads 1", MECHANISM, "differential", "an even number"),
    ("", MECHANISM, "dagpam:1,dagpam:1", "each once"),
    ("", MECHANISM, "dagpam:2,softmax", "mechanism:heads, as in dagpam:4"),
    ("", MECHANISM, "dagpam:1,nothing:1", "softmax"),
    ("", MECHANISM, "dagpam:0,softmax:2", "mechanism:heads"),
    ("", MECHANISM, "softmax@0;value_residual@1", "value_residual"),
    # options of one mechanism
    ("--gpam-mechanism fastmax --gpam-fastmax-degree 1", "--gpam-fastmax-norm", "1.5", "norm² ≤ temperature"),
    ("--gpam-mechanism fastmax --gpam-query-rank 2", "--gpam-fastmax-degree", "1", "-temperature above 1"),
    ("--gpam-mechanism integral", "--gpam-integral-signals", "3", "a number that divides 8"),
    ("--gpam-mechanism entmax", "--gpam-entmax-alpha", "2.5", "a number between 1.01 and 2, both excluded"),
    ("--gpam-mechanism sink --gpam-sink-kind weight", "--gpam-sink-start", "2.0", "learned"),
    ("--gpam-mechanism sink --gpam-sink-kind off-by-one", "--gpam-sink-start", "2.0", "learned"),
    ("--gpam-mechanism sink", "--gpam-backend", "fused", "auto, reference"),
    ("--gpam-mechanism sparsemax", "--gpam-backend", "fused", "auto, reference"),
    ("--gpam-mechanism talking_heads", "--gpam-backend", "fused", "auto, reference"),
    # options of mechanisms that the model does not have
    ("--gpam-mechanism softmax", "--gpam-row-sum", "1.0", "dagpam"),
    ("--gpam-mechanism softmax", "--gpam-negative-frozen", "", "dagpam"),
    ("--gpam-mechanism softmax", "--gpam-lambda-plus", "0.25", "dagpam, scaled_softmax"),
    ("--gpam-mechanism scaled_softmax", "--gpam-lambda-minus", "0.25", "dagpam"),
    ("--gpam-mechanism scaled_softmax", "--gpam-lambda-minus-training", "fixed", "dagpam"),
    ("--gpam-mechanism scaled_softmax", "--gpam-lambda-source", "token", "dagpam"),
    ("--gpam-mechanism differential_v2", "--gpam-negative-source", "input", "dagpam"),
    ("--gpam-mechanism attn_scale", "--gpam-lambda-plus-training", "fixed", "dagpam, scaled_softmax"),
    ("--gpam-mechanism gated:1,softmax:1", "--gpam-sink-start", "0.5", "sink"),
    ("--gpam-mechanism gated@0;softmax@1", "--gpam-sink-start", "0.5", "sink"),
    ("", "--gpam-encoder-mechanism", "local", "--gpam-mechanism, --gpam-decoder-mechanism"),
    ("--gpam-mechanism dagpam", "--gpam-cross-mechanism", "softmax", "--gpam-mechanism, --gpam-decoder-mechanism"),
    (f"{WARM} --gpam-mechanism scaled_softmax", "--gpam-lambda-plus-training", "fixed", "trainable"),
    # positions
    ("--gpam-mechanism linear", "--gpam-position", "alibi", "none, rotary"),
    ("--gpam-mechanism linear:1,softmax:1", "--gpam-position", "alibi", "none, rotary"),
    (
        *("--gpam-mechanism differential:2,softmax:2 --decoder-attention-heads 4", "--gpam-position", "alibi"),
        "none, rotary",
    ),
    ("--gpam-mechanism gated_deltanet", "--gpam-position", "rotary", "none"),
    ("--gpam-query-rank 3", "--gpam-position", "rotary", "an even number"),
    (WARM, "--gpam-qk-norm", "", "training without it"),
    (WARM, "--gpam-position", "alibi", "none"),
    # fairseq's own flags
    ("--gpam-layer-fusion concat", "--decoder-layerdrop", "0.1", "0"),
    ("--gpam-mechanism neutreno", "--decoder-layerdrop", "0.1", "0"),
    ("--gpam-mechanism value_residual", "--checkpoint-activations", "", "without it"),
    ("--gpam-mechanism affine_scaled", "--checkpoint-activations", "", "without it"),
]
IN_TRANSLATION = [
    ("--gpam-layer-fusion gate", "--encoder-layerdrop", "0.1", "0"),
    ("--gpam-mechanism value_residual --gpam-cross-mechanism softmax", "--encoder-layerdrop", "0.1", "0"),
    ("", "--quant-noise-scalar", "0.5", "--gpam-negative-projection shared"),
    ("", "--gpam-encoder-mechanism", "stick_breaking", "decoder"),
    ("", "--gpam-encoder-mechanism", "forgetting", "decoder"),
    ("", "--gpam-cross-mechanism", "selective", "decoder"),
    ("", "--gpam-cross-mechanism", "dint", "encoder, decoder"),
    ("", "--gpam-cross-mechanism", "hnas", "encoder"),
    ("", "--gpam-cross-mechanism", "shaped", "encoder, decoder"),
    ("", "--gpam-cross-mechanism", "local", "encoder, decoder"),
    ("--gpam-encoder-mechanism compressed --gpam-compressed-kernel 3", "--gpam-compressed-stride", "4", "at most 3"),
    ("--gpam-encoder-mechanism compressed", "--gpam-compressed-kernel", "5@0", "each of the layers 0 to 1"),
    ("--gpam-mechanism attn_scale", "--gpam-attn-scale-features", "", "encoder, decoder"),
]
COMBINATIONS = [
    *((LANGUAGE_MODEL, *each) for each in IN_A_LANGUAGE_MODEL),
    *((TRANSLATION, *each) for each in IN_TRANSLATION),
]


@pytest.mark.parametrize(("task", "given", "flag", "value", "allowed"), COMBINATIONS)
def test_what_does_not_go_together_is_refused_with_flag_value_and_what_is_allowed(task, given, flag, value, allowed):
    refused = [flag, value] if value else [flag]
    with pytest.raises(ValueError, match="allowed") as refusal:
        build(task, OURS[task], *given.split(), *refused)
    message = str(refusal.value)
    assert flag in message and value in message
    assert "allowed" in message and allowed in message.rpartition("allowed")[2]


def test_each_flag_alone_is_allowed():
    """So that it is the combination that is refused."""
    for _, flag, value, _ in IN_A_LANGUAGE_MODEL[:2] + IN_A_LANGUAGE_MODEL[4:10]:
        build(LANGUAGE_MODEL, OURS[LANGUAGE_MODEL], flag, value)


@pytest.mark.parametrize(
    "flags",
    [
        "--gpam-mechanism gated:1,sink:1 --gpam-sink-start 0.5",
        "--gpam-mechanism gated@0;softmax:1,sink:1@1 --gpam-sink-start 0.5",
        "--gpam-mechanism softmax --gpam-sink-start 0 --gpam-lambda-plus 0.5",
        "--gpam-mechanism softmax --gpam-log-attention 5 --gpam-query-rank 3",
    ],
)
def test_one_reader_is_enough_and_a_default_or_a_general_option_needs_none(flags):
    build(LANGUAGE_MODEL, OURS[LANGUAGE_MODEL], *flags.split())


def test_one_site_that_reads_an_option_is_enough():
    flags = ["--gpam-mechanism", "softmax", "--gpam-cross-mechanism", "dagpam", "--gpam-row-sum", "1"]
    build(TRANSLATION, OURS[TRANSLATION], *flags)


@pytest.mark.parametrize("task", [LANGUAGE_MODEL, TRANSLATION])
def test_a_checkpoint_of_an_earlier_version_carries_the_defaults_of_that_time(task):
    config = model_config(task, OURS[task], *BASE[task], "--gpam-mechanism", "softmax")
    config.gpam_neutreno_lambda, config.gpam_entmax_alpha, config.gpam_nap_output = 0.6, 1.5, "layernorm-gelu"
    build_from(config)
    config.gpam_neutreno_lambda = 0.7
    with pytest.raises(ValueError, match=r"--gpam-neutreno-lambda 0.7 is not allowed.*: neutreno"):
        build_from(config)


class Borrowing(SoftmaxAttention):
    """A mechanism of someone else, with an option of its own and one of daGPAM's."""

    name = "borrowing"
    options = (Option("borrowing_size", int, 1, "a size"), next(o for o in LAMBDA_PLUS_OPTIONS if o.name == "lambda"))


def test_a_mechanism_from_outside_reads_the_options_that_it_lists():
    register_mechanism(Borrowing)
    try:
        flags = ["--gpam-borrowing-size", "3", "--gpam-lambda", "fixed"]
        build(LANGUAGE_MODEL, OURS[LANGUAGE_MODEL], "--gpam-mechanism", "borrowing", *flags)
        for own, readers in ((flags[:2], "borrowing"), (flags[2:], "borrowing, dagpam, scaled_softmax")):
            with pytest.raises(
                ValueError, match=f"{own[0]} .*{own[1]}.* is not allowed in a model of sink.*: {readers}$"
            ):
                build(LANGUAGE_MODEL, OURS[LANGUAGE_MODEL], "--gpam-mechanism", "sink", *own)
    finally:
        unlist("borrowing")
