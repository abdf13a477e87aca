"""Registers a counterpart of each of fairseq's transformer architectures, with the same preset, for our models."""

from collections.abc import Callable
from typing import Any

from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    ARCH_MODEL_REGISTRY,
    register_model_architecture,
)

from fairseq_gpam import options
from fairseq_gpam.models.sharding import check_backend


def our_name(architecture: str, stock_model: str, our_model: str) -> str:
    """Returns `transformer_gpam_iwslt_de_en` for `transformer_iwslt_de_en`."""
    return our_model + architecture.removeprefix(stock_model)


def with_gpam_defaults(preset: Callable[[Any], None] = lambda args: None) -> Callable[[Any], None]:
    def architecture(args: Any) -> None:
        check_backend(args)
        preset(args)
        options.fill_defaults(args)

    return architecture


def register_architectures(stock_model: str, our_model: str) -> None:
    """Registers our counterpart of every architecture of `stock_model` that has none yet."""
    for name in list(ARCH_MODEL_INV_REGISTRY[stock_model]):
        ours = our_name(name, stock_model, our_model)
        if ours not in ARCH_MODEL_REGISTRY:
            register_model_architecture(our_model, ours)(with_gpam_defaults(ARCH_CONFIG_REGISTRY[name]))
