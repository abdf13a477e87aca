"""A transformer as one affine map of its input embeddings, and a deletion test of maps between tokens.

A transformer is affine if its attention weights, the standard deviations of its layer norms and the gates of its
activation functions are frozen at their values for one sentence (TensorLens, arXiv 2601.17958). The mean inside a layer
norm is linear and is not frozen; an activation a(h) becomes (a(h) / h) · h with the gate a(h) / h frozen.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_gpam.analysis.probe import Probe, replace_attribute
from fairseq_gpam.attention import REGISTRY, AttentionMechanism
from fairseq_gpam.modules.layer_fusion import LayerFusion
from fairseq_gpam.modules.listener import AttentionCall, AttentionPlace, find_attentions, find_layers
from fairseq_gpam.modules.stacks import is_translation

TOLERANCE = 1e-6
NOT_WEIGHTS_TIMES_VALUES = {
    *("compressed", "differential", "dint", "exclusive", "gated", "gated_deltanet", "gated_linear", "laser", "nap"),
    *("neutreno", "non", "rela", "softmax_rmsnorm", "value_residual", "zeros"),
}
"""The mechanisms of this package whose output is more than their weights times the layer's values."""


class OperatorError(ValueError):
    """The model cannot be frozen into an affine map; the message says why and what is allowed."""


class FrozenModel:
    """A model frozen into an affine map for one sentence.

    `inputs` are the keyword arguments of the model's forward for one sentence without padding. `embeddings` holds
    the input of the first layer of each stack (`encoder`, `decoder`), 1 × T × C, and `outputs` the model's outputs
    before the projection to the vocabulary, also by stack. Called with embeddings B × T × C by stack, it returns
    outputs B × T × C by stack; `attention_scale`, B, multiplies every attention's output. Raises OperatorError if a
    mechanism's output is not its weights times the values, or if --gpam-layer-fusion is `max` or `gate`.
    """

    def __init__(self, model: Any, inputs: dict[str, Any]) -> None:
        for module in model.modules():
            if isinstance(module, LayerFusion) and module.kind != "concat":
                raise OperatorError(
                    f"--operator is not allowed with --gpam-layer-fusion {module.kind!r}, which is not linear in the "
                    "layers; allowed: none, concat"
                )
        self.model = model
        self.inputs = inputs
        self.embeddings: dict[str, Tensor] = {}
        self._weights: dict[tuple[str, int], Tensor] = {}
        self._deviations: dict[nn.Module, Tensor] = {}
        self._gates: dict[nn.Module, Tensor] = {}
        self.outputs = self._record()
        made = self(self.embeddings)
        for stack, output in self.outputs.items():
            error = float((made[stack] - output).abs().max() / output.abs().max())
            # The negation also catches NaN.
            if not error < TOLERANCE:
                used = {type(module).name for module in model.modules() if isinstance(module, AttentionMechanism)}
                more = ", ".join(sorted(used & NOT_WEIGHTS_TIMES_VALUES)) or "an attention of this model"
                raise OperatorError(
                    f"--operator and --path-loss require attention to output its weights times the values, but {more} "
                    f"computes more than that (relative error in the {stack} {error:.2g}, allowed {TOLERANCE:.0e}); "
                    f"allowed: stock attention, {', '.join(sorted(set(REGISTRY) - NOT_WEIGHTS_TIMES_VALUES))}"
                )

    @torch.no_grad()
    def __call__(self, embeddings: dict[str, Tensor], attention_scale: Tensor | None = None) -> dict[str, Tensor]:
        batch = next(iter(embeddings.values())).size(0)
        with ExitStack() as stack:
            for place in find_attentions(self.model):
                replace_attribute(stack, place.module, "forward", self._frozen_attention(place, attention_scale))
            for module, deviation in self._deviations.items():
                replace_attribute(stack, module, "forward", _frozen_norm(module, deviation))
            for layer, gate in self._gates.items():
                replace_attribute(stack, layer, "activation_fn", lambda hidden, gate=gate: gate * hidden)
            for name, number, layer in find_layers(self.model):
                if number == 0:
                    hook = layer.register_forward_pre_hook(_given(embeddings[name]), with_kwargs=True)
                    stack.callback(hook.remove)
            return self._run(batch)

    def _run(self, batch: int) -> dict[str, Tensor]:
        inputs = {
            name: value.expand(batch, *value.shape[1:]) if torch.is_tensor(value) else value
            for name, value in self.inputs.items()
        }
        encoded: dict[str, Tensor] = {}

        def keep(module: nn.Module, args: Any, output: dict[str, Any]) -> None:
            encoded["encoder"] = output["encoder_out"][0].transpose(0, 1)

        with ExitStack() as stack:
            if is_translation(self.model):
                stack.callback(self.model.encoder.register_forward_hook(keep).remove)
            decoded = self.model(**inputs, features_only=True)[0]
        return {**encoded, "decoder": decoded}

    @torch.no_grad()
    def _record(self) -> dict[str, Tensor]:
        def keep_weights(event: AttentionCall) -> None:
            self._weights[event.site, event.layer] = event.weights

        def keep_deviation(module: Any, args: tuple[Tensor, ...]) -> None:
            self._deviations[module] = (args[0].var(dim=-1, correction=0, keepdim=True) + module.eps).sqrt()

        with ExitStack() as stack:
            for module in self.model.modules():
                if isinstance(module, nn.LayerNorm):
                    stack.callback(module.register_forward_pre_hook(keep_deviation).remove)
            for name, number, layer in find_layers(self.model):
                replace_attribute(stack, layer, "activation_fn", self._recording_activation(layer))
                if number == 0:

                    def keep_input(module: nn.Module, args: Any, kwargs: dict[str, Any], name: str = name) -> None:
                        self.embeddings[name] = (args[0] if args else kwargs["x"]).transpose(0, 1)

                    stack.callback(layer.register_forward_pre_hook(keep_input, with_kwargs=True).remove)
            stack.enter_context(Probe(self.model, on_attention=keep_weights))
            return self._run(1)

    def _recording_activation(self, layer: Any) -> Callable[[Tensor], Tensor]:
        activation = layer.activation_fn

        def record(hidden: Tensor) -> Tensor:
            active = activation(hidden)
            self._gates[layer] = torch.where(hidden == 0, 0.0, active / hidden)
            return active

        return record

    def _frozen_attention(self, place: AttentionPlace, scale: Tensor | None) -> Callable[..., tuple[Tensor, None]]:
        weights, module = self._weights[place.site, place.layer], place.module

        def forward(query: Tensor, key: Tensor, value: Tensor, **others: Any) -> tuple[Tensor, None]:
            values = module.v_proj(value)
            heads = values.unflatten(-1, (weights.size(1), -1)).permute(1, 2, 0, 3)
            if weights.size(-1) != heads.size(2):
                raise OperatorError(
                    f"--operator and --path-loss are not allowed with {place.site} attention with additional "
                    "learned keys; allowed: add_bias_kv=False and add_zero_attn=False"
                )
            output = module.out_proj((weights @ heads).permute(2, 0, 1, 3).flatten(2))
            return output if scale is None else output * scale[:, None], None

        return forward

    @torch.no_grad()
    def block_norms(self, output: str, given: str, chunk: int = 128) -> Tensor:
        """Returns ‖∂ output_i / ∂ embedding_j‖_F for all tokens i of stack `output` and j of stack `given`: T × S.

        Columns of the operator are computed `chunk` at a time, as frozen(e) − frozen(0) for unit vectors e. Only their
        squared norms are kept, never the T·C × S·C matrix.
        """
        zeros = {name: torch.zeros_like(value) for name, value in self.embeddings.items()}
        offset = self(zeros)[output]
        length, channels = self.embeddings[given].shape[1:]
        squares = offset.new_zeros(offset.size(1), length)
        for start in range(0, length * channels, chunk):
            columns = torch.arange(start, min(start + chunk, length * channels))
            units = {name: value.expand(len(columns), -1, -1).clone() for name, value in zeros.items()}
            units[given].flatten(1)[torch.arange(len(columns)), columns] = 1
            images = (self(units)[output] - offset).square().sum(dim=-1)
            squares.index_add_(1, columns // channels, images.T.contiguous())
        return squares.sqrt()


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Converts the model to float64 inside the context, and restores its parameters' type afterwards."""
    dtype = next(model.parameters()).dtype
    try:
        model.double()
        yield
    finally:
        model.to(dtype)


def _given(embeddings: Tensor) -> Callable[..., tuple[Any, Any]]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        x = embeddings.transpose(0, 1)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "x": x})

    return hook


def _frozen_norm(module: Any, deviation: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        centred = (x - x.mean(dim=-1, keepdim=True)) / deviation
        if module.weight is None:
            return centred
        return centred * module.weight + (0 if module.bias is None else module.bias)

    return forward


@torch.no_grad()
def deletion_losses(
    loss: Callable[[Tensor], float], scores: dict[str, Tensor], count: int, draws: int = 8, seed: int = 1
) -> dict[str, float]:
    """Returns how much the loss grows when the `count` tokens that each map ranks highest are removed.

    `loss` takes a bool mask of the tokens that stay. `scores` has, for the name of each map, one number per token.
    `random` in the result is the mean over `draws` random choices, which a meaningful map must exceed.
    """
    length = next(iter(scores.values())).numel()
    whole = loss(torch.ones(length, dtype=torch.bool))

    def without(removed: Tensor) -> float:
        return loss(torch.ones(length, dtype=torch.bool).index_fill(0, removed, False)) - whole

    generator = torch.Generator().manual_seed(seed)
    random = [without(torch.randperm(length, generator=generator)[:count]) for _ in range(draws)]
    increases = {name: without(values.topk(count).indices) for name, values in scores.items()}
    return {**increases, "random": sum(random) / draws}
