"""The layers of fairseq's encoders and decoders."""

from __future__ import annotations

from typing import Any

from fairseq.modules import BaseLayer
from torch import nn


def transformer_layers(stack: Any) -> list[nn.Module]:
    """Returns the transformer layers of an encoder or decoder in their order.

    BASE layers, which have no attention, are left out. `children()` gives all layers of LayerDrop's list, which skips
    some when it is iterated in training.
    """
    return [layer for layer in stack.layers.children() if not isinstance(layer, BaseLayer)]
