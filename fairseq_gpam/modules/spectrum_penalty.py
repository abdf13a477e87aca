"""`--gpam-spectrum-penalty W`: penalises the variance of the QK eigenspectrum in training (arXiv 2402.02098)."""

from typing import Any

import torch
from fairseq.logging import metrics
from torch import Tensor, nn

from fairseq_gpam.attention.core.kernel_sums import without_autocast
from fairseq_gpam.modules.multihead_attention import GPAMMultiheadAttention
from fairseq_gpam.modules.training_log import PRIORITY


@without_autocast
def spectrum_penalty(query_weight: Tensor, key_weight: Tensor, num_heads: int) -> Tensor:
    """Returns ‖M − m·I‖²_F / D, M = W_K W_Qᵀ (D × D), m = tr(M)/D, for each head: H numbers.

    Both weights are (H·D) × C; half precision is summed in fp32. Computed as tr(MMᵀ)/D − m², it needs no eigenvalues.
    For a symmetric M it is the variance of the eigenvalues that `analyze` reports; otherwise it is an upper bound of
    that variance. It is 0 if M = m·I.

    Bao, Hataya & Karakida 2024, arXiv 2402.02098, reduce the variance at a fixed mean (LocAteR). Their full text was
    not available. Two choices are ours: one product for each head instead of one over all channels, and MMᵀ instead of
    M², whose trace has no lower bound if eigenvalues are complex.
    """
    wide = torch.float64 if query_weight.dtype == torch.float64 else torch.float32
    queries, keys = (weight.to(wide).unflatten(0, (num_heads, -1)) for weight in (query_weight, key_weight))
    product = keys @ queries.transpose(-2, -1)
    mean = product.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    return product.square().sum(dim=(-2, -1)) / product.size(-1) - mean.square()


def model_penalty(model: nn.Module) -> Tensor:
    """Returns the mean of the penalty over all heads of all self-attentions of a model."""
    heads = [
        spectrum_penalty(attention.q_proj.weight, attention.k_proj.weight, attention.num_heads)
        for attention in model.modules()
        if isinstance(attention, GPAMMultiheadAttention) and attention.self_attention
    ]
    return torch.cat(heads).mean()


def penalise_spectrum(task: Any, model: nn.Module, weight: float) -> None:
    """Makes every criterion that `task` builds from now on add the model's penalty to its training loss.

    fairseq sums the losses of all batches of an update, over processes too, and divides by the sum of their sample
    sizes. Each batch therefore adds its sample size times W·P, so that the update minimises the loss per token (per
    sentence with --sentence-avg) in nats plus W·P, however it is split into batches. A dummy batch, whose loss fairseq
    multiplies by 0, adds nothing. The logged loss excludes W·P; P is logged as `gpam_spectrum_penalty`.
    """
    build_criterion = task.build_criterion

    def build(*args: Any, **kwargs: Any) -> nn.Module:
        criterion: nn.Module = build_criterion(*args, **kwargs)
        criterion.register_forward_hook(add)
        return criterion

    def add(criterion: nn.Module, args: Any, output: tuple[Tensor, Any, dict[str, Any]]) -> Any:
        if not model.training:
            return output
        loss, sample_size, logging_output = output
        penalty = model_penalty(model)
        metrics.log_scalar("gpam_spectrum_penalty", float(penalty), weight=1, priority=PRIORITY, round=5)
        return loss + weight * sample_size * penalty, sample_size, logging_output

    task.build_criterion = build
