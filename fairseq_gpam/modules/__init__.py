"""Connects the mechanisms to fairseq: projections, heads, cache, beams, and the replacement of a model's attentions."""

from fairseq_gpam.modules.install import install_attention
from fairseq_gpam.modules.listener import attention_modules, register_attention_hook
from fairseq_gpam.modules.multihead_attention import GPAMMultiheadAttention

__all__ = ["GPAMMultiheadAttention", "attention_modules", "install_attention", "register_attention_hook"]
