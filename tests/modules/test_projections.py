"""Projections of one input give what each of them gives, and so do their gradients."""

import pytest
import torch
from torch import nn

from fairseq_gpam.modules.projections import project


def linears(count, bias):
    torch.manual_seed(1)
    return [nn.Linear(6, 4, bias=bias).double() for _ in range(count)]


def gradients(outputs, x, layers):
    wanted = [x, *(p for layer in layers for p in layer.parameters() if p.requires_grad)]
    wanted = [each for each in wanted if each.requires_grad]
    weighted = sum(((index + 1) * output.sin()).sum() for index, output in enumerate(outputs))
    return torch.autograd.grad(weighted, wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("x_learns", [True, False])
def test_as_one_by_one(count, bias, x_learns):
    layers = linears(count, bias)
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=x_learns)
    found, expected = project(x, *layers), [layer(x) for layer in layers]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(gradients(found, x, layers), gradients(expected, x, layers), strict=True):
        torch.testing.assert_close(one, other)


def test_a_frozen_weight_gets_no_gradient():
    layers = linears(2, True)
    layers[1].weight.requires_grad_(False)
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True)
    sum(each.sum() for each in project(x, *layers)).backward()
    assert layers[1].weight.grad is None
    assert all(p.grad is not None for p in (layers[0].weight, layers[0].bias, layers[1].bias, x))


def test_a_second_derivative_is_refused():
    """The products in the backward pass are not differentiable themselves."""
    layers = linears(2, True)
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(sum(each.sin().sum() for each in project(x, *layers)), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_hook_is_called():
    layers = linears(2, True)
    layers[1].register_forward_hook(lambda module, inputs, output: output + 1)
    x = torch.randn(5, 2, 6, dtype=torch.float64)
    torch.testing.assert_close(project(x, *layers)[1], layers[1](x))


def test_a_backward_hook_is_called():
    layers = linears(2, True)
    seen = []
    layers[1].register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_output))
    x = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True)
    sum(each.sum() for each in project(x, *layers)).backward()
    assert len(seen) == 1


def test_a_layer_of_another_kind_is_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layers = [Doubled(6, 4), nn.Linear(6, 4)]
    x = torch.randn(5, 2, 6)
    torch.testing.assert_close(project(x, *layers)[0], layers[0](x))


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("bias", [False, True])
def test_by_the_other_matrix_library(bias, request):
    torch.manual_seed(1)
    layers = [nn.Linear(64, 48, bias=bias) for _ in range(3)]
    x = torch.randn(50, 6, 64, requires_grad=True)
    expected = [layer(x) for layer in layers]
    wanted = gradients(expected, x, layers)
    made = request.getfixturevalue("onednn")
    found = project(x, *layers)
    assert len(made) == len(layers)
    for one, other in zip([*found, *gradients(found, x, layers)], [*expected, *wanted], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(project(x, *layers)[0], expected[0], rtol=1e-4, atol=1e-4)
