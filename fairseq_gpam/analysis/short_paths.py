"""What a trained model still predicts when only its short paths are kept (Dong et al. 2021, arXiv 2103.03404)."""

import math
from typing import Any

import torch
from torch import Tensor

from fairseq_gpam.analysis.loading import LoadedModel, Samples
from fairseq_gpam.analysis.operator import FrozenModel, OperatorError, in_float64
from fairseq_gpam.modules.listener import find_layers


@torch.no_grad()
def truncated_outputs(frozen: FrozenModel) -> Tensor:
    """Returns the decoder's outputs from the paths through at most k attentions, k = 0 … n: (n + 1) × T × C.

    n is the largest number of attentions on a path: the number of decoder layers, plus the number of encoder layers in
    translation. With attention weights, layer-norm statistics and gates frozen, the output is a polynomial of degree n
    in a factor that multiplies every attention's output; its coefficient of degree k is the sum of all paths through k
    attentions. The coefficients are computed from its values at n + 1 Chebyshev points.
    """
    degree = len(find_layers(frozen.model))
    points = torch.cos(math.pi * torch.arange(degree + 1, dtype=torch.float64) / degree)
    embeddings = {name: value.expand(len(points), -1, -1) for name, value in frozen.embeddings.items()}
    values = frozen(embeddings, attention_scale=points.to(frozen.outputs["decoder"]))["decoder"].double()
    powers = torch.linalg.vander(points, N=degree + 1)
    coefficients = torch.linalg.solve(powers, values.flatten(1))
    return coefficients.cumsum(dim=0).view_as(values).to(frozen.outputs["decoder"])


@torch.no_grad()
def path_losses(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns the loss in nats per token, and the share of correct tokens, of paths through at most 0 … n attentions.

    `batch` is one sentence without padding. Raises OperatorError for an adaptive softmax, which has no logits, and as
    `FrozenModel` does.
    """
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        raise OperatorError("--path-loss is not allowed with an adaptive softmax, which has no logits")
    outputs = truncated_outputs(FrozenModel(model, batch["net_input"]))
    logits = model.decoder.output_layer(outputs)
    targets = batch["target"].expand(len(outputs), -1)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    right = logits.argmax(dim=-1) == targets
    return losses.view_as(targets).mean(dim=1), right.double().mean(dim=1)


def mean_path_losses(loaded: LoadedModel, samples: Samples) -> list[dict[str, Any]]:
    """Returns loss and share of correct tokens, averaged over all tokens, by the number of attentions on a path."""
    model = loaded.model
    sums, tokens = [], 0
    with in_float64(model):
        for number in samples.numbers:
            batch = samples.batch([number])
            count = batch["target"].numel()
            sums.append(torch.stack(path_losses(model, batch)) * count)
            tokens += count
    return [
        {"checkpoint": loaded.name, "length": length, "loss": loss, "right": right, "tokens": tokens}
        for length, (loss, right) in enumerate((torch.stack(sums).sum(dim=0) / tokens).T.tolist())
    ]
