"""Every stock architecture has a counterpart with the same preset; registering twice is harmless."""

import dataclasses
import importlib
import typing
from argparse import Namespace

import fairseq.utils
import pytest
from fairseq.models import (
    ARCH_MODEL_INV_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_REGISTRY,
)
from fairseq.optim import OPTIMIZER_REGISTRY
from hydra.core.config_store import ConfigStore
from tiny import OURS, STOCK, TASKS, parse

import fairseq_gpam
from fairseq_gpam.attention import REGISTRY

ARCHITECTURES = [(task, name) for task in TASKS for name in ARCH_MODEL_INV_REGISTRY[STOCK[task]]]


def twin_of(task, name):
    assert name.startswith(STOCK[task])
    return OURS[task] + name[len(STOCK[task]) :]


@pytest.mark.parametrize(("task", "name"), ARCHITECTURES)
def test_twin_has_the_stock_presets_settings(task, name):
    stock = vars(parse(task, name))
    twin = vars(parse(task, twin_of(task, name)))
    ours = {key: value for key, value in twin.items() if key.startswith("gpam_")}
    assert {key: value for key, value in twin.items() if key not in ours} == stock | {"arch": twin_of(task, name)}


@pytest.mark.parametrize(("task", "name"), ARCHITECTURES)
def test_twin_builds_our_model(task, name):
    assert ARCH_MODEL_REGISTRY[twin_of(task, name)] is MODEL_REGISTRY[OURS[task]]
    assert MODEL_REGISTRY[OURS[task]].__module__.startswith("fairseq_gpam.")


def registered():
    return (
        dict(MODEL_REGISTRY),
        dict(ARCH_MODEL_REGISTRY),
        {name: list(architectures) for name, architectures in ARCH_MODEL_INV_REGISTRY.items()},
        dict(OPTIMIZER_REGISTRY),
        dict(REGISTRY),
    )


def test_importing_again_changes_nothing():
    before = registered()
    importlib.reload(fairseq_gpam)
    importlib.reload(fairseq_gpam.models)
    assert registered() == before


def test_user_dir_twice_changes_nothing():
    before = registered()
    folder = fairseq_gpam.__path__[0]
    for _ in range(2):
        fairseq.utils.import_user_module(Namespace(user_dir=folder))
    assert registered() == before


def test_hydras_configuration_has_flat_scalar_fields_only():
    config = getattr(ARCH_MODEL_REGISTRY[OURS["language_modeling"]], "__dataclass")
    fields = [field for field in dataclasses.fields(config) if field.name.startswith("gpam_")]
    assert len(fields) > 10
    for field in fields:
        kinds = set(typing.get_args(field.type)) - {type(None)} or {field.type}
        assert kinds <= {str, int, float, bool}, field.name
        assert field.metadata["help"]
    assert "transformer_lm_gpam.yaml" in ConfigStore.instance().repo["model"]


@pytest.mark.slow
def test_no_stock_model_or_architecture_is_touched():
    for task in TASKS:
        assert MODEL_REGISTRY[STOCK[task]].__module__.startswith("fairseq.")
        for name in ARCH_MODEL_INV_REGISTRY[STOCK[task]]:
            assert not any(key.startswith("gpam") for key in vars(parse(task, name)))
