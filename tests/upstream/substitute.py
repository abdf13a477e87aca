"""A pytest plugin for fairseq's own tests: this package's attention and architectures replace fairseq's.

Wherever a test builds fairseq's MultiheadAttention it gets ours with softmax, which must give the same numbers;
wherever it names an architecture of `transformer` or `transformer_lm` it gets our twin of it, with daGPAM.
"""

import argparse
import sys

import pytest
from fairseq import models
from fairseq.modules.multihead_attention import MultiheadAttention

import fairseq_gpam  # noqa: F401
from fairseq_gpam import options
from fairseq_gpam.attention import Site
from fairseq_gpam.attention.mechanisms.softmax import SoftmaxAttention
from fairseq_gpam.modules import GPAMMultiheadAttention
from fairseq_gpam.parameters import STOCK

TORCHSCRIPT = "TorchScript is deprecated in torch and not supported by this package"
XFORMERS = "xformers' attention takes the place of fairseq's own and is refused together with --gpam-mechanism"
PRUNING = "pruning heads is refused: a mechanism may have parameters for each head"
SKIPPED = {
    "xformers": XFORMERS,
    "test_pruning_heads": PRUNING,
    "test_export_": TORCHSCRIPT,
    "test_incremental_state_multihead_attention": TORCHSCRIPT,
    "TestJitSequenceGenerator": TORCHSCRIPT,
}
"""Parts of test names, and why the tests are skipped by design."""


class SoftmaxInPlaceOfStock(GPAMMultiheadAttention):
    """Takes the same arguments as fairseq's class."""

    def __init__(self, embed_dim, num_heads, *args, **kwargs):
        names = ("kdim", "vdim", "dropout", "bias", "add_bias_kv", "add_zero_attn", "self_attention")
        kwargs |= dict(zip(names, args, strict=False))
        kwargs = {name: value for name, value in kwargs.items() if name != "dictionary"}
        site = Site("cross", 0, 1, embed_dim, num_heads, embed_dim // num_heads)
        super().__init__(embed_dim, num_heads, SoftmaxAttention(site, options.resolve(argparse.Namespace())), **kwargs)


def pytest_configure(config):
    for name, module in list(sys.modules.items()):
        if name.startswith("fairseq.") and vars(module).get("MultiheadAttention") is MultiheadAttention:
            module.MultiheadAttention = SoftmaxInPlaceOfStock
    for ours, stock in STOCK.items():
        for name in list(models.ARCH_MODEL_INV_REGISTRY[stock]):
            twin = ours + name.removeprefix(stock)
            for registry in (
                models.ARCH_MODEL_REGISTRY,
                models.ARCH_CONFIG_REGISTRY,
                models.ARCH_MODEL_NAME_REGISTRY,
            ):
                if twin in registry:
                    registry[name] = registry[twin]
        models.MODEL_REGISTRY[stock] = models.MODEL_REGISTRY[ours]
        # Our language model has no entry here, so that its settings are filled in as those of any architecture are.
        models.MODEL_DATACLASS_REGISTRY.pop(stock, None)


def pytest_collection_modifyitems(items):
    for item in items:
        for part, reason in SKIPPED.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))
