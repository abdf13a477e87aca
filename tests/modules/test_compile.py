"""torch.compile: the attention module as one graph, and a whole model."""

import pytest
import torch
from quick import first
from tiny import build

from fairseq_gpam.attention import FUTURE
from fairseq_gpam.modules import attention_modules


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("training", first(1, [True, False]))
@pytest.mark.parametrize("masked", first(1, ["padding", "nothing", "future"]))
def test_the_attention_module_is_one_graph(training, masked):
    attention = next(attention_modules(build("translation", "transformer_gpam"))).train(training)
    x = torch.randn(5, 2, 16, requires_grad=True)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    masks = {"nothing": {}, "padding": {"key_padding_mask": padding}, "future": {"attn_mask": FUTURE}}[masked]
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    leaves = [x, *attention.parameters()]
    results = []
    for call in (compiled, attention):
        output, _ = call(x, x, x, need_weights=False, **masks)
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_whole_model_compiles():
    model = build("translation", "transformer_gpam").eval()
    source = torch.tensor([[5, 6, 7, 8, 2], [1, 1, 9, 10, 2]])
    target = torch.tensor([[2, 5, 6], [2, 7, 8]])
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(source, None, target)[0], model(source, None, target)[0], rtol=1e-4, atol=1e-5)
