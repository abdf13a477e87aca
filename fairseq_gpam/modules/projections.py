"""Several linear maps of one input, with input gradients accumulated inside the matrix products."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_gpam.attention.core.base import may_be_bypassed
from fairseq_gpam.attention.core.matmul import linear, product


class _JointLinear(torch.autograd.Function):
    """Computes x Wᵢᵀ + bᵢ for each i; the backward adds to the input's gradient without a separate pass for each i."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *parameters[::2])
        return tuple(
            linear(x, weight, bias)
            for weight, bias in zip(parameters[::2], parameters[1::2], strict=True)
            if weight is not None
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        rows = x.reshape(-1, x.size(-1))
        grad_x: Tensor | None = None
        grads: list[Tensor | None] = []
        for index, (weight, grad_output) in enumerate(zip(weights, grad_outputs, strict=True)):
            upstream = grad_output.reshape(-1, grad_output.size(-1))
            _, *wanted = ctx.needs_input_grad
            if ctx.needs_input_grad[0]:
                grad_x = product(upstream, weight, grad_x)
            grads.append(product(upstream.t(), rows) if wanted[2 * index] else None)
            grads.append(upstream.sum(dim=0) if wanted[2 * index + 1] else None)
        return (None if grad_x is None else grad_x.view(x.shape), *grads)


def project(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Returns each linear layer's output for x, … × C; layers with hooks (quantisation noise) are called as usual."""
    plain = [layer for layer in layers if type(layer) is nn.Linear and may_be_bypassed(layer, x)]
    if len(plain) < len(layers):
        return tuple(layer(x) for layer in layers)
    if torch.is_grad_enabled():
        return _JointLinear.apply(x, *(parameter for layer in plain for parameter in (layer.weight, layer.bias)))
    return tuple(linear(x, layer.weight, layer.bias) for layer in plain)
