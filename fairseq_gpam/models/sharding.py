"""Refuses `--ddp-backend fully_sharded`, in which fairscale wraps each layer and cannot share parameters among them."""

import sys
from typing import Any

REFUSAL = (
    "--ddp-backend 'fully_sharded' is not allowed with --gpam-mechanism, whose layers may share parameters; "
    "allowed: c10d, legacy_ddp"
)


def check_backend(args: Any) -> None:
    """Raises ValueError if the parsed flags request it, before fairseq asks to install fairscale."""
    if getattr(args, "ddp_backend", None) == "fully_sharded":
        raise ValueError(REFUSAL)


def check_wrapping() -> None:
    """Raises ValueError inside fairscale's wrapping, for callers such as hydra whose flags cannot be checked."""
    wrapping = sys.modules.get("fairscale.nn.wrap.auto_wrap")
    if wrapping is not None and wrapping.ConfigAutoWrap.in_autowrap_context:
        raise ValueError(REFUSAL)
