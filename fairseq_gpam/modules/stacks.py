"""The layers of fairseq's encoders and decoders."""

from __future__ import annotations

from typing import Any

from fairseq.modules import BaseLayer
from torch import nn


def transformer_layers(stack: Any) -> list[nn.Module]:
    """Returns the transformer layers of an encoder or decoder in their order.

    BASE layers, which have no attention, do not count. LayerDrop's list is read whole: iterated while training, it
    would skip layers.
    """
    return [layer for layer in stack.layers.children() if not isinstance(layer, BaseLayer)]
