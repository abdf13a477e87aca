"""Hierarchical fusion: the output of a stack is made from all of its layers (Shi et al. 2022, arXiv 2202.08625)."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from fairseq_gpam.attention.base import softmax
from fairseq_gpam.modules.stacks import is_translation, refuse_layerdrop, transformer_layers


class LayerFusion(nn.Module):
    """Puts a mixture of all layers' states H_1 … H_L (T × B × C) in the place of the last layer's.

    `concat` is W[H_1; …; H_L] + b, `max` the greatest number of each channel, `gate` Σ_k g_k H_k with one weight
    g_k = softmax_k(w_kᵀH_k + b_k) for each token. Only states of the same token are mixed, so that decoding step by
    step gives the same. A final layer norm is applied after the fusion.

    The three names, and one weight for a token and layer in `gate`, follow public descriptions of the paper, whose full
    text was not available. Our choices: the embeddings H_0 do not take part, the gates sum to 1, `concat` starts as
    the last layer alone (which is the stock model) and `gate` as the mean of the layers.
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
        """Returns the mixture of the states of all layers, each T × B × C; the same shape."""
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
        """Lets a stock checkpoint be loaded: the mixture starts at its initial values."""
        if not any(key.startswith(f"{name}.") for key in state_dict):
            state_dict.update({f"{name}.{key}": value for key, value in self.state_dict().items()})

    def extra_repr(self) -> str:
        return self.kind


def install_layer_fusion(model: Any, kind: str, warm_start: bool) -> None:
    """Fuses the layers of a translation model's encoder or of a language model's decoder; `none` changes nothing.

    Raises ValueError with LayerDrop, which leaves layers out, and with a warm start where the fused model does not
    start as the stock one.
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
