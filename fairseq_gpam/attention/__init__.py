"""The attention mechanisms: pure PyTorch, one file for each mechanism, all listed in one registry."""

from fairseq_gpam.attention import mechanisms  # noqa: F401
from fairseq_gpam.attention.core.base import (
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
from fairseq_gpam.attention.core.build import build_mechanism
from fairseq_gpam.attention.core.masks import FUTURE, AttentionMask, FutureMask
from fairseq_gpam.attention.functional import dagpam_attention
from fairseq_gpam.attention.multihead import MultiheadAttention

__all__ = [
    "FUTURE",
    "REGISTRY",
    "SITES",
    "AttentionInput",
    "AttentionMask",
    "AttentionMechanism",
    "FutureMask",
    "MultiheadAttention",
    "Option",
    "Settings",
    "Site",
    "build_mechanism",
    "dagpam_attention",
    "on_registration",
    "register_mechanism",
]
