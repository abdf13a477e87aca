"""Registers a counterpart of each of fairseq's transformer architectures, with the same preset, for our models.

`--ddp-backend fully_sharded`, in which fairscale wraps each layer and cannot share parameters among them, is refused.
"""

import sys
from collections.abc import Callable
from typing import Any

from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    ARCH_MODEL_REGISTRY,
    register_model_architecture,
)

from fairseq_gpam import options

REFUSAL = (
    "--ddp-backend 'fully_sharded' is not allowed with --gpam-mechanism, whose layers may share parameters; "
    "allowed: c10d, legacy_ddp"
)


def check_wrapping() -> None:
    """Raises ValueError inside fairscale's wrapping, for callers such as hydra whose flags cannot be checked."""
    wrapping = sys.modules.get("fairscale.nn.wrap.auto_wrap")
    if wrapping is not None and wrapping.ConfigAutoWrap.in_autowrap_context:
        raise ValueError(REFUSAL)


def with_gpam_defaults(preset: Callable[[Any], None] = lambda args: None) -> Callable[[Any], None]:
    def architecture(args: Any) -> None:
        # Before fairseq asks to install fairscale.
        if getattr(args, "ddp_backend", None) == "fully_sharded":
            raise ValueError(REFUSAL)
        preset(args)
        options.fill_defaults(args)

    return architecture


def register_architectures(stock_model: str, our_model: str) -> None:
    """Registers our counterpart, such as `transformer_gpam_iwslt_de_en`, of every architecture that has none yet."""
    for name in list(ARCH_MODEL_INV_REGISTRY[stock_model]):
        ours = our_model + name.removeprefix(stock_model)
        if ours not in ARCH_MODEL_REGISTRY:
            register_model_architecture(our_model, ours)(with_gpam_defaults(ARCH_CONFIG_REGISTRY[name]))
