"""The attention mechanisms: pure PyTorch, one mechanism a file, listed in one registry."""

from fairseq_gpam.attention.base import (
    REGISTRY,
    SITES,
    AttentionMechanism,
    Option,
    Settings,
    Site,
    build_mechanism,
    register_mechanism,
)
from fairseq_gpam.attention.dagpam import DualGPAMAttention
from fairseq_gpam.attention.masks import FUTURE, AttentionMask, FutureMask
from fairseq_gpam.attention.softmax import ScaledSoftmaxAttention, SoftmaxAttention

__all__ = [
    "FUTURE",
    "REGISTRY",
    "SITES",
    "AttentionMask",
    "AttentionMechanism",
    "DualGPAMAttention",
    "FutureMask",
    "Option",
    "ScaledSoftmaxAttention",
    "Settings",
    "Site",
    "SoftmaxAttention",
    "build_mechanism",
    "register_mechanism",
]
