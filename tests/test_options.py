"""The --gpam flags: the same for both models, defaults below presets below explicit flags, wrong values refused."""

import copy
import functools
import pickle
from argparse import Namespace

import pytest
from fairseq import options as fairseq_options
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    register_model_architecture,
)
from omegaconf import DictConfig
from tiny import BASE, OURS, TASKS, build_from, model_config, unlist

from fairseq_gpam import options
from fairseq_gpam.attention import REGISTRY, Option, Settings, register_mechanism
from fairseq_gpam.modules import attention_modules

PROMISED = {
    "--gpam-mechanism": "dagpam",
    "--gpam-encoder-mechanism": None,
    "--gpam-decoder-mechanism": None,
    "--gpam-cross-mechanism": None,
    "--gpam-lambda": "trainable",
    "--gpam-lambda-plus": 0.5,
    "--gpam-lambda-minus": 0.5,
    "--gpam-lambda-scope": "head",
    "--gpam-lambda-tied": False,
    "--gpam-lambda-max": None,
    "--gpam-negative-projection": "head",
    "--gpam-negative-bias": False,
    "--gpam-negative-init": "xavier",
    "--gpam-negative-activation": "relu",
    "--gpam-negative-frozen": False,
    "--gpam-negative-source": "query",
    "--gpam-query-rank": None,
    "--gpam-layer-fusion": "none",
    "--gpam-skip-weight": None,
    "--gpam-spectrum-penalty": 0.0,
    "--gpam-backend": "auto",
    "--gpam-log-attention": 0,
}


def dest(flag):
    return flag.removeprefix("--").replace("-", "_")


def parser_of(task):
    parser = fairseq_options.get_training_parser(task)
    group = parser.add_argument_group("model")
    ARCH_MODEL_REGISTRY[OURS[task]].add_args(group)
    return parser


def built(task, *flags):
    """The model that fairseq-train would build, its settings passed through fairseq's own conversion."""
    return build_from(model_config(task, OURS[task], *BASE[task], *flags))


def mechanisms(model):
    return [attention.mechanism for attention in attention_modules(model)]


@functools.cache
def defaults(task):
    return mechanisms(built(task))


@pytest.mark.parametrize("task", TASKS)
def test_every_promised_flag_exists_says_what_it_does_and_has_its_default(task):
    parser, config = parser_of(task), model_config(task, OURS[task], *BASE[task])
    actions = {name: action for action in parser._actions for name in action.option_strings}
    for flag, default in PROMISED.items():
        assert len(actions[flag].help) > 15, flag
        assert not default or str(default) in actions[flag].help, flag
        assert getattr(config, dest(flag)) == default, flag
    assert "--gpam-lambda-plus" in parser.format_help()
    # The forms that the engine gives the two models.
    assert isinstance(config, Namespace if task == "translation" else DictConfig)


def kind_of_lambda(mechanism):
    return "fixed" if mechanism.lambda_plus.theta is None else "trainable"


def trained(mechanism):
    """Which of λ⁺ and λ⁻ are trained."""
    return mechanism.lambda_plus.theta is not None, mechanism.lambda_minus.theta is not None


REACHES = [
    (["--gpam-lambda-plus-training", "fixed"], lambda m: trained(m) == (False, True)),
    (["--gpam-lambda-minus-training", "fixed"], lambda m: trained(m) == (True, False)),
    (["--gpam-lambda", "fixed", "--gpam-lambda-minus-training", "trainable"], lambda m: trained(m) == (False, True)),
    (["--gpam-lambda-plus-training", "fixed", "--gpam-lambda-tied"], lambda m: trained(m) == (False, False)),
    (["--gpam-mechanism", "softmax"], lambda m: m.name == "softmax"),
    (["--gpam-decoder-mechanism", "softmax"], lambda m: (m.name == "softmax") == (m.site.name == "decoder")),
    (["--gpam-lambda", "fixed"], lambda m: kind_of_lambda(m) == "fixed"),
    (["--gpam-lambda-plus", "0.125"], lambda m: m.lambda_plus().mean() == 0.125),
    (["--gpam-lambda-plus", "-0.25"], lambda m: m.lambda_plus().mean() == -0.25),
    (["--gpam-lambda-minus", "0.125"], lambda m: m.lambda_minus().mean() == 0.125),
    (["--gpam-lambda-scope", "head"], lambda m: m.lambda_plus.theta.numel() == 2),
    (["--gpam-lambda-scope", "layer"], lambda m: m.lambda_plus.theta.numel() == 1),
    (["--gpam-lambda-scope", "model"], lambda m: m.lambda_plus.theta.numel() == 1),
    (["--gpam-lambda-tied"], lambda m: m.lambda_plus.theta is m.lambda_minus.theta),
    (["--gpam-lambda-max", "4"], lambda m: m.lambda_plus.bound == 4),
    (["--gpam-negative-projection", "shared"], lambda m: m.negative_projection.weight.shape == (8, 8)),
    (["--gpam-negative-projection", "head"], lambda m: m.negative_projection.weight.shape == (16, 8)),
    (["--gpam-negative-bias"], lambda m: m.negative_projection.bias is not None),
    (["--gpam-negative-init", "zero"], lambda m: (m.negative_projection.weight == 0).all()),
    (["--gpam-negative-activation", "none"], lambda m: not m.activates),
    (["--gpam-negative-source", "input"], lambda m: m.negative_projection.weight.shape == (16, 16)),
    (["--gpam-negative-frozen"], lambda m: not m.negative_projection.weight.requires_grad),
    (["--gpam-query-rank", "3"], lambda m: m.site.query_dim == 3),
    (["--gpam-backend", "reference"], lambda m: m.backend == "reference"),
    (["--gpam-backend", "fused"], lambda m: m.backend == "fused"),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("flags", "holds"), REACHES, ids=[" ".join(flags) for flags, _ in REACHES])
def test_the_flag_reaches_every_attention_of_both_models(task, flags, holds):
    found = mechanisms(built(task, *flags))
    assert len(found) == (6 if task == "translation" else 2)
    assert all(holds(mechanism) for mechanism in found)
    name = flags[0]
    if flags[1:] not in (["head"],) and name != "--gpam-mechanism":
        assert not all(holds(mechanism) for mechanism in defaults(task))


@pytest.fixture(params=TASKS)
def preset(request):
    """An architecture of someone else that sets one of our flags, as fairseq's own presets set theirs."""
    task, name = request.param, OURS[request.param] + "_of_a_test"
    base = ARCH_CONFIG_REGISTRY[OURS[task]]

    @register_model_architecture(OURS[task], name)
    def architecture(args):
        args.gpam_lambda_plus = getattr(args, "gpam_lambda_plus", 0.25)
        args.gpam_negative_projection = getattr(args, "gpam_negative_projection", "shared")
        base(args)

    yield task, name
    for registry in (ARCH_MODEL_REGISTRY, ARCH_MODEL_NAME_REGISTRY, ARCH_CONFIG_REGISTRY):
        registry.pop(name, None)
    ARCH_MODEL_INV_REGISTRY[OURS[task]].remove(name)


def test_a_preset_beats_the_default_and_an_explicit_flag_beats_the_preset(preset):
    task, name = preset
    by_preset = mechanisms(build_from(model_config(task, name, *BASE[task])))
    assert all(m.lambda_plus().mean() == 0.25 for m in by_preset)
    assert all(m.lambda_minus().mean() == 0.5 for m in by_preset)
    assert all(m.negative_projection.weight.shape == (8, 8) for m in by_preset)
    explicit = ["--gpam-lambda-plus", "0.75", "--gpam-negative-projection", "head"]
    by_flag = mechanisms(build_from(model_config(task, name, *BASE[task], *explicit)))
    assert all(m.lambda_plus().mean() == 0.75 for m in by_flag)
    assert all(m.negative_projection.weight.shape == (16, 8) for m in by_flag)


def test_an_explicit_flag_that_equals_the_default_beats_a_preset(preset):
    task, name = preset
    found = mechanisms(build_from(model_config(task, name, *BASE[task], "--gpam-lambda-plus", "0.5")))
    assert all(m.lambda_plus().mean() == 0.5 for m in found)


REFUSED = [
    ("--gpam-mechanism", "sotfmax", "dagpam"),
    ("--gpam-cross-mechanism", "sotfmax", "dagpam"),
    ("--gpam-lambda", "free", "fixed, trainable"),
    ("--gpam-lambda-plus", "much", "a finite number"),
    ("--gpam-lambda-plus", "nan", "a finite number"),
    ("--gpam-lambda-minus", "inf", "a finite number"),
    ("--gpam-lambda-scope", "heads", "model, layer, head"),
    ("--gpam-lambda-max", "0", "a number > 0"),
    ("--gpam-lambda-max", "-1", "a number > 0"),
    ("--gpam-negative-projection", "full", "head, shared"),
    ("--gpam-negative-init", "identity", "xavier, zero, minus-identity"),
    ("--gpam-negative-source", "key", "query, input"),
    ("--gpam-negative-activation", "gelu", "relu, none"),
    ("--gpam-backend", "flash", "reference"),
    ("--gpam-lambda-plus-training", "free", "fixed, trainable"),
    ("--gpam-lambda-minus-training", "free", "fixed, trainable"),
    ("--gpam-import", "nowhere.py", "the file that defines"),
    ("--gpam-query-rank", "0", "a whole number > 0"),
    ("--gpam-spectrum-penalty", "-1", "0 (off) or a number > 0"),
    ("--gpam-layer-fusion", "mean", "none, concat, max, gate"),
    ("--gpam-skip-weight", "-0.5", "0 (no skip connection) or a number > 0"),
    ("--gpam-query-rank", "2.5", "a whole number > 0"),
    ("--gpam-lambda-source", "head", "number, token"),
    ("--gpam-row-sum", "0", "a number > 0"),
    ("--gpam-lambda-ratio", "1.0", "a number between 0 and 1"),
    ("--gpam-local-window", "-1", "0 or a whole number"),
    ("--gpam-sigmoid-length", "-1", "0 or"),
    ("--gpam-hnas-share", "1.0", "a number between 0 and 1"),
    ("--gpam-entmax-alpha", "1.0", "a number > 1.01"),
    ("--gpam-fastmax-degree", "3", "1 or 2"),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("flag", "value", "allowed"), REFUSED)
def test_a_wrong_value_on_the_command_line_is_refused_with_flag_value_and_what_is_allowed(
    task, flag, value, allowed, capsys
):
    with pytest.raises((SystemExit, ValueError)) as refusal:
        built(task, f"{flag}={value}")
    message = str(refusal.value) if isinstance(refusal.value, ValueError) else capsys.readouterr().err.splitlines()[-1]
    assert flag in message
    assert value in message
    assert "allowed: " in message and allowed in message


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("flag", "value", "allowed"), REFUSED)
def test_a_wrong_value_in_a_checkpoint_or_override_is_refused_likewise(task, flag, value, allowed):
    config = model_config(task, OURS[task], *BASE[task])
    with pytest.raises(Exception, match=r"allowed|could not be converted") as refusal:
        setattr(config, dest(flag), value)
        build_from(config)
    if isinstance(refusal.value, ValueError) and "allowed" in str(refusal.value):
        assert flag in str(refusal.value) and value in str(refusal.value) and allowed in str(refusal.value)
    else:
        assert dest(flag) in str(refusal.value) and value in str(refusal.value)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            ["--gpam-lambda-tied", "--gpam-lambda-minus-training", "fixed"],
            "--gpam-lambda-minus-training 'fixed' is not",
        ),
        (
            ["--gpam-warm-start", "--gpam-lambda-plus-training=fixed", "--gpam-lambda-minus-training=fixed"],
            "is not allowed with --gpam-warm-start",
        ),
    ],
)
def test_training_of_one_lambda_is_refused_where_it_has_no_meaning(flags, why):
    with pytest.raises(ValueError, match=why) as refusal:
        built("translation", *flags)
    assert "; allowed: " in str(refusal.value)


@pytest.mark.parametrize("flag", ["--gpam-lambda-tied", "--gpam-negative-bias", "--gpam-negative-frozen"])
def test_a_switch_takes_booleans_and_their_names_and_refuses_the_rest(flag):
    name = dest(flag).removeprefix("gpam_")
    for value, expected in ((True, True), ("true", True), ("False", False), (0, False), (None, False)):
        assert options.resolve(Namespace(**{dest(flag): value}))[name] is expected
    with pytest.raises(ValueError, match=f"{flag} 'maybe' is not allowed"):
        options.resolve(Namespace(**{dest(flag): "maybe"}))


def test_a_misspelt_setting_is_refused_and_the_known_ones_are_named():
    with pytest.raises(ValueError, match=r"gpam_lamda_plus.*gpam_lambda_plus"):
        options.resolve(Namespace(gpam_lamda_plus=0.5))


def test_a_namespace_without_our_settings_has_the_defaults():
    """A checkpoint that is older than a flag."""
    settings = options.resolve(Namespace())
    assert isinstance(settings, Settings)
    for flag, default in PROMISED.items():
        name = dest(flag).removeprefix("gpam_")
        if not name.endswith("_mechanism"):
            assert settings[name] == default, flag


def test_settings_cannot_be_changed_and_name_what_is_missing():
    settings = options.resolve(Namespace())
    with pytest.raises(TypeError):
        settings["backend"] = "fused"
    with pytest.raises(AttributeError, match="no_such_option"):
        _ = settings.no_such_option


def test_settings_are_a_mapping_that_survives_copies():
    settings = options.resolve(Namespace())
    assert len(settings) == len(options.all_options())
    assert dict(copy.deepcopy(settings)) == dict(settings) == dict(pickle.loads(pickle.dumps(settings)))
    assert "'lambda_plus': 0.5" in repr(settings)


@pytest.mark.parametrize(("value", "read"), [(3, 3), (3.0, 3), ("3", 3)])
def test_a_whole_number_may_be_written_as_a_float(value, read):
    found = options.resolve(Namespace(gpam_log_attention=value)).log_attention
    assert found == read and isinstance(found, int)
    with pytest.raises(ValueError, match=r"--gpam-log-attention 2\.5 is not allowed"):
        options.resolve(Namespace(gpam_log_attention=2.5))


def test_two_different_options_of_one_name_are_refused():
    class Second(REGISTRY["softmax"]):
        name = "second_lambda"
        options = (Option("lambda_plus", float, 1.0, "another λ"),)

    try:
        with pytest.raises(ValueError, match="two different options are named --gpam-lambda-plus"):
            register_mechanism(Second)
    finally:
        unlist(Second.name)


def test_site_mechanisms_default_to_the_general_one():
    settings = options.resolve(Namespace(gpam_mechanism="softmax", gpam_cross_mechanism="dagpam"))
    assert (settings.encoder_mechanism, settings.decoder_mechanism) == ("softmax", "softmax")
    assert settings.cross_mechanism == "dagpam"


def test_hydras_fields_have_the_flags_names_and_defaults():
    config = getattr(ARCH_MODEL_REGISTRY[OURS["language_modeling"]], "__dataclass")()
    for flag, default in PROMISED.items():
        assert getattr(config, dest(flag)) == default


def test_model_overrides_change_both_forms_of_settings():
    from fairseq.dataclass.utils import overwrite_args_by_name
    from omegaconf import OmegaConf, open_dict

    for task in TASKS:
        model = model_config(task, OURS[task], *BASE[task])
        config = OmegaConf.create({}, flags={"allow_objects": True})
        with open_dict(config):
            config.model = model
        site = "cross" if task == "translation" else "decoder"
        overrides = {"gpam_lambda_plus": 0.125, f"gpam_{site}_mechanism": "softmax*1,dagpam"}
        overwrite_args_by_name(config, overrides)
        for mechanism in mechanisms(build_from(config.model)):
            if mechanism.site.name == site and mechanism.site.layer == 0:
                assert mechanism.name == "softmax"
            else:
                assert mechanism.lambda_plus().mean() == 0.125
