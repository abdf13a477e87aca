"""`--gpam-skip-weight w`: scales the skip connection around self-attention by w; 0 removes it."""

from typing import Any

from torch import Tensor, nn

from fairseq_gpam.modules.stacks import transformer_layers


class SkipWeight(nn.Module):
    """Makes a layer compute w·x + dropout(attention(x)) at its self-attention; all shapes are T × B × C.

    w is α_SA of He & Hofmann 2023, arXiv 2311.01906, whose blocks have w = 0; here it is not trained.
    """

    def __init__(self, layer: Any, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self._has_attended = False
        layer.self_attn.register_forward_hook(self._attended)
        # Overrides, on this instance, the method that fairseq's layer calls after each sublayer.
        layer.residual_connection = self.join

    def _attended(self, attention: nn.Module, args: Any, output: Any) -> None:
        self._has_attended = True

    def join(self, branch: Tensor, residual: Tensor) -> Tensor:
        """Returns the sum of a sublayer's output and its input, which is weighted if the sublayer is self-attention."""
        is_attention, self._has_attended = self._has_attended, False
        return self.weight * residual + branch if is_attention else residual + branch

    def extra_repr(self) -> str:
        return f"{self.weight:g} at self-attention"


def install_skip_weight(model: nn.Module, weight: float | None, warm_start: bool) -> None:
    """Scales the skip connections around all self-attentions of a model by `weight`; 1 changes nothing.

    None stands for each mechanism's default, and for 1 with a warm start. Raises ValueError for any other weight with a
    warm start, because it changes the stock model's output.
    """
    if warm_start:
        if weight not in (None, 1):
            raise ValueError(
                f"--gpam-skip-weight {weight:g} is not allowed with --gpam-warm-start: it changes the stock model's "
                "output; allowed: 1"
            )
        return
    stacks = (getattr(model, name, None) for name in ("encoder", "decoder"))
    layers: list[Any] = [layer for stack in stacks if stack is not None for layer in transformer_layers(stack)]
    for layer in layers:
        layer_weight = layer.self_attn.mechanism.default_skip_weight if weight is None else weight
        if layer_weight != 1:
            layer.skip_weight = SkipWeight(layer, layer_weight)
