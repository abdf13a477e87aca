"""The probe: observes a fairseq transformer, may switch off parts of its layers, and restores the model afterwards."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from fairseq_gpam.analysis.definitions import SWITCHES
from fairseq_gpam.modules.listener import AttentionCall, HiddenStates, Listener, find_layers


class Probe(Listener):
    """A listener that also switches off parts of the layers, until it is closed.

    `without` names any of SWITCHES. `skips` removes the residual connections, `mlps` the feed-forward sublayers; both
    together are the setting of Dong et al. 2021 (arXiv 2103.03404). Layer norms are kept (in a post-norm layer even the
    one after a removed MLP), because they rescale tokens and do not undo a collapse, unless `layer-norms` replaces
    those inside the layers by the identity. Raises ValueError for an unknown switch and as `Listener` does.
    """

    def __init__(
        self,
        model: nn.Module,
        without: Iterable[str] = (),
        on_attention: Callable[[AttentionCall], None] | None = None,
        on_states: Callable[[HiddenStates], None] | None = None,
    ) -> None:
        self.without = frozenset(without)
        unknown = sorted(self.without - set(SWITCHES))
        if unknown:
            raise ValueError(f"without {', '.join(unknown)} is not allowed; allowed: {', '.join(SWITCHES)}")
        super().__init__(model, on_attention, on_states)
        for _, _, layer in find_layers(model):
            if getattr(layer, "cross_self_attention", False):
                raise ValueError(
                    "analyze is not possible with --cross-self-attention, where the decoder's keys are the source's "
                    "tokens, then its own; allowed: models without it"
                )
            if self.without & {"skips", "mlps"}:
                self._patch_residuals(layer)
            if "layer-norms" in self.without:
                for module in layer.modules():
                    if isinstance(module, nn.LayerNorm) or type(module).__name__ == "FusedLayerNorm":
                        self.remove_on_close(module.register_forward_hook(lambda module, inputs, output: inputs[0]))

    def _patch_residuals(self, layer: Any) -> None:
        """Replaces the layer's `residual_connection`, on the instance, until the probe is closed."""
        stock = layer.residual_connection
        after_mlp = False

        def mark(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal after_mlp
            after_mlp = True

        def residual_connection(x: Tensor, residual: Tensor) -> Tensor:
            nonlocal after_mlp
            is_mlp, after_mlp = after_mlp, False
            if is_mlp and "mlps" in self.without:
                return residual
            return x if "skips" in self.without else stock(x, residual)

        self.remove_on_close(layer.fc2.register_forward_hook(mark))
        replace_attribute(self, layer, "residual_connection", residual_connection)


def replace_attribute(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Sets an attribute on an instance until the stack closes."""
    missing = name not in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    if missing:
        stack.callback(delattr, owner, name)
    else:
        stack.callback(setattr, owner, name, before)
