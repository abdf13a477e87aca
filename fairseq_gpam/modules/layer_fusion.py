"""Hierarchical fusion: the output of a stack combines all of its layers (Shi et al. 2022, arXiv 2202.08625)."""

from typing import Any

import torch
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import softmax
from fairseq_gpam.modules.stacks import is_translation, refuse_layerdrop, transformer_layers


class LayerFusion(nn.Module):
    """Replaces the last layer's states by a combination of all layers' states H_1 … H_L (T × B × C).

    `concat` is W[H_1; …; H_L] + b, `max` the maximum in each channel, and `gate` Σ_k g_k H_k with one weight
    g_k = softmax_k(w_kᵀH_k + b_k) for each token. Only states of the same token are combined, so step-by-step decoding
    gives the same result. A final layer norm is applied after the fusion.

    The three names, and the weight per token and layer in `gate`, follow public descriptions of the paper, whose full
    text was not available. Our choices: the embeddings H_0 are left out, the gates sum to 1, `concat` initially selects
    the last layer (which is the stock model) and `gate` is initially the mean of the layers.
    """

    def __init__(self, kind: str, layers: list[nn.Module], width: int, noise: tuple[float, int] = (0.0, 8)) -> None:
        super().__init__()
        self.kind = kind
        if kind == "concat":
            self.projection = quant_noise(nn.Linear(len(layers) * width, width), *noise)
            with torch.no_grad():
                nn.init.zeros_(self.projection.weight)
                nn.init.eye_(self.projection.weight[:, -width:])
                nn.init.zeros_(self.projection.bias)
        elif kind == "gate":
            self.weight = nn.Parameter(torch.zeros(len(layers), width))
            self.bias = nn.Parameter(torch.zeros(len(layers)))
        self._states: list[Tensor] = []
        layers[0].register_forward_pre_hook(self._start)
        for layer in layers:
            layer.register_forward_hook(self._finish if layer is layers[-1] else self._record_state)

    def forward(self, states: list[Tensor]) -> Tensor:
        """Returns the combination of the states of all layers; each of them, and the result, is T × B × C."""
        if self.kind == "concat":
            return self.projection(torch.cat(states, dim=-1))
        stacked = torch.stack(states, dim=-2)
        if self.kind == "max":
            return stacked.amax(dim=-2)
        gates = softmax((stacked * self.weight).sum(dim=-1) + self.bias)
        return (gates.unsqueeze(-1) * stacked).sum(dim=-2)

    def _start(self, layer: nn.Module, args: Any) -> None:
        self._states = []

    def _record_state(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._states.append(output[0] if isinstance(output, tuple) else output)

    def _finish(self, layer: nn.Module, args: Any, output: Any) -> Any:
        self._record_state(layer, args, output)
        fused = self(self._states)
        self._states = []
        return (fused, *output[1:]) if isinstance(output, tuple) else fused

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Adds the fusion's initial parameters to a stock checkpoint, so that it can be loaded."""
        if not any(key.startswith(f"{name}.") for key in state_dict):
            state_dict.update({f"{name}.{key}": value for key, value in self.state_dict().items()})

    def extra_repr(self) -> str:
        return self.kind


def install_layer_fusion(model: Any, kind: str, warm_start: bool) -> None:
    """Fuses the layers of a translation model's encoder or of a language model's decoder; `none` changes nothing.

    Raises ValueError with LayerDrop, which skips layers, and with a warm start unless the fused model is initially the
    stock model.
    """
    if kind == "none":
        return
    if warm_start and kind != "concat":
        raise ValueError(
            f"--gpam-layer-fusion {kind!r} is not allowed with --gpam-warm-start: it changes the stock model's output; "
            "allowed: none, concat"
        )
    name = "encoder" if is_translation(model) else "decoder"
    stack = getattr(model, name)
    refuse_layerdrop(stack, name, f"--gpam-layer-fusion {kind!r}")
    layers = transformer_layers(stack)
    last: Any = layers[-1]
    noise = (last.quant_noise, last.quant_noise_block_size)
    stack.layer_fusion = LayerFusion(kind, layers, last.embed_dim, noise)
