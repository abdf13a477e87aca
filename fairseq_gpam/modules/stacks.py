"""The layers of fairseq's encoders and decoders."""

from typing import Any

from fairseq.modules import BaseLayer, LayerDropModuleList
from torch import nn


def is_translation(model: nn.Module) -> bool:
    """Returns whether a fairseq model translates; otherwise it is a language model, which has no encoder."""
    return hasattr(model, "encoder")


def transformer_layers(stack: Any) -> list[nn.Module]:
    """Returns the transformer layers of an encoder or decoder in order, without BASE layers, which have no attention.

    `children()` yields all layers even with LayerDrop, whose list skips some when it is iterated in training.
    """
    return [layer for layer in stack.layers.children() if not isinstance(layer, BaseLayer)]


def refuse_layerdrop(stack: Any, name: str, companion: str) -> None:
    """Raises ValueError if the stack `name` has LayerDrop; `companion` is the flag that needs every layer."""
    if isinstance(stack.layers, LayerDropModuleList):
        raise ValueError(
            f"--{name}-layerdrop {stack.layers.p:g} is not allowed with {companion}, which needs every layer; "
            "allowed: 0"
        )
