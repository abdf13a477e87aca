"""The --gpam flags: the same for both models, defaults below presets below explicit flags, wrong values refused."""

import contextlib
import copy
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


def dest(flag):
    return flag.removeprefix("--").replace("-", "_")


def built(task, *flags):
    """The model that fairseq-train would build, its settings passed through fairseq's own conversion."""
    return build_from(model_config(task, OURS[task], *BASE[task], *flags))


def mechanisms(model):
    return [attention.mechanism for attention in attention_modules(model)]


def another_value(option):
    """A value that is allowed and is not the default, as on a command line."""
    for value in (*(option.choices or ()), "true", "softmax", "2", "1", "0.5", "0.25", "1.5"):
        with contextlib.suppress(ValueError):
            if option.parse(value) not in (option.default, None):
                return value
    raise AssertionError(option.flag)


@pytest.mark.parametrize("task", TASKS)
def test_every_flag_of_both_models_has_its_help_its_default_and_its_value(task):
    parser = fairseq_options.get_training_parser(task)
    ARCH_MODEL_REGISTRY[OURS[task]].add_args(parser.add_argument_group("model"))
    actions = {name: action for action in parser._actions for name in action.option_strings}
    values = {option: another_value(option) for option in options.all_options() if option.name != "import"}
    words = []
    for option, value in values.items():
        words += [option.flag] if option.type is bool else [option.flag, value]
    plain, changed = (model_config(task, OURS[task], *BASE[task], *flags) for flags in ((), words))
    for option, value in values.items():
        assert len(actions[option.flag].help) > 15, option.flag
        assert not option.default or str(option.default) in actions[option.flag].help, option.flag
        assert getattr(plain, option.dest) == option.default, option.flag
        assert getattr(changed, option.dest) == option.parse(value), option.flag
    assert "--gpam-lambda-plus" in parser.format_help()
    # The forms that the engine gives the two models.
    assert isinstance(plain, Namespace if task == "translation" else DictConfig)


REACHES = [
    (["--gpam-decoder-mechanism", "softmax"], lambda m: (m.name == "softmax") == (m.site.name == "decoder")),
    (["--gpam-lambda-plus", "-0.25"], lambda m: m.lambda_plus().mean() == -0.25),
    (["--gpam-lambda-plus-training", "fixed", "--gpam-lambda-tied"], lambda m: m.lambda_minus.theta is None),
    (["--gpam-negative-bias"], lambda m: m.negative_projection.bias is not None),
    (["--gpam-query-rank", "3"], lambda m: m.site.query_dim == 3),
    (["--gpam-backend", "fused"], lambda m: m.backend == "fused"),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("flags", "holds"), REACHES, ids=[" ".join(flags) for flags, _ in REACHES])
def test_the_flag_reaches_every_attention_of_both_models(task, flags, holds):
    found = mechanisms(built(task, *flags))
    assert len(found) == (6 if task == "translation" else 2)
    assert all(holds(mechanism) for mechanism in found)
    assert not all(holds(mechanism) for mechanism in mechanisms(built(task)))


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
    ("--gpam-lambda-plus", "much", "a finite number"),
    ("--gpam-lambda-plus", "nan", "a finite number"),
    ("--gpam-lambda-minus", "inf", "a finite number"),
    ("--gpam-lambda-max", "0", "a number > 0"),
    ("--gpam-lambda-max", "-1", "a number > 0"),
    ("--gpam-backend", "flash", "reference"),
    ("--gpam-import", "nowhere.py", "the file that defines"),
    ("--gpam-query-rank", "0", "a whole number > 0"),
    ("--gpam-spectrum-penalty", "-1", "0 (off) or a number > 0"),
    ("--gpam-skip-weight", "-0.5", "0 (no skip connection) or a number > 0"),
    ("--gpam-query-rank", "2.5", "a whole number > 0"),
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
def test_a_wrong_value_is_refused_on_the_command_line_and_in_a_checkpoint(task, flag, value, allowed, capsys):
    with pytest.raises((SystemExit, ValueError)) as refusal:
        built(task, f"{flag}={value}")
    message = str(refusal.value) if isinstance(refusal.value, ValueError) else capsys.readouterr().err.splitlines()[-1]
    assert flag in message and value in message and allowed in message.partition("allowed: ")[2]
    config = model_config(task, OURS[task], *BASE[task])
    with pytest.raises(Exception, match=r"allowed|could not be converted") as refusal:
        setattr(config, dest(flag), value)
        build_from(config)
    message = str(refusal.value)
    assert value in message and (dest(flag) in message or (flag in message and allowed in message))


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
    for option in options.all_options():
        assert option.name.endswith("_mechanism") or settings[option.name] == option.default, option.flag


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
