"""The attention mechanisms: pure PyTorch, one file for each mechanism, all listed in one registry.

Importing a mechanism's file registers it, so a new mechanism needs one line in the first list below.
"""

from fairseq_gpam.attention import (  # noqa: F401
    attn_scale,
    centered,
    coda,
    cog,
    compressed,
    dagpam,
    differential,
    differential_v2,
    dint,
    dnas,
    entmax,
    entmax15,
    exclusive,
    fastmax,
    forgetting,
    gated,
    gated_linear,
    hnas,
    integral,
    linear,
    local,
    nap,
    neutreno,
    non,
    rela,
    scalable_softmax,
    scaled_softmax,
    selective,
    shaped,
    sigmoid,
    sink,
    softmax,
    softmax_rmsnorm,
    softpick,
    sparsemax,
    stick_breaking,
    talking_heads,
    value_residual,
)
from fairseq_gpam.attention.base import (
    REGISTRY,
    SITES,
    AttentionInput,
    AttentionMechanism,
    Option,
    Settings,
    Site,
    on_registration,
    register_mechanism,
)
from fairseq_gpam.attention.masks import FUTURE, AttentionMask, FutureMask
from fairseq_gpam.attention.mixed import build_mechanism

__all__ = [
    "FUTURE",
    "REGISTRY",
    "SITES",
    "AttentionInput",
    "AttentionMask",
    "AttentionMechanism",
    "FutureMask",
    "Option",
    "Settings",
    "Site",
    "build_mechanism",
    "on_registration",
    "register_mechanism",
]
