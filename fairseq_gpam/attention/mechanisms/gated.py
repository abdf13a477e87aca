"""Gated attention: the output of softmax attention is gated by the query's token (Qiu et al. 2025)."""

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, split_heads, upcast


@register_mechanism
class GatedAttention(AffineMechanism):
    """Softmax attention times g·sigmoid(X W_g), W_g without a bias; g = 2 and W_g = 0 give softmax attention.

    It is the gate after attention, position G1 of the paper. W_g is initialised from N(0, 0.02²), as in the authors'
    code. Xavier initialisation, which fairseq's own projections have, makes the gate's logits about three times as
    large.
    """

    name = "gated"
    formula = "O = softmax(QKᵀ/√D + M)·V ⊙ sigmoid(X W_g)"
    source = "Qiu et al. 2025, arXiv 2505.06708; qiuzh20/gated_attention"
    row_sum = "1, before the gate"
    cost = "1×, and the gate's projection"
    neutral = (("gated_gain", 2.0), ("gated_init", "zero"))
    options = (
        Option(
            "gated_gate",
            str,
            "elementwise",
            "one gate for each head, or one for each of its channels",
            choices=("headwise", "elementwise"),
        ),
        Option("gated_gain", float, 1.0, "the factor g of the gate g·sigmoid(X W_g)"),
        Option(
            "gated_init",
            str,
            "normal",
            "the initialisation of W_g: N(0, 0.02²), Xavier, or 0, with which every gate is initially g/2",
            choices=("normal", "xavier", "zero"),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        width = 1 if settings.gated_gate == "headwise" else site.head_dim
        self.gate_proj = nn.Linear(site.embed_dim, site.num_heads * width, bias=False)
        self.gain: float = settings.gated_gain
        if settings.gated_init == "normal":
            nn.init.normal_(self.gate_proj.weight, std=0.02)
        elif settings.gated_init == "xavier":
            nn.init.xavier_uniform_(self.gate_proj.weight)
        else:
            nn.init.zeros_(self.gate_proj.weight)

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        gate = torch.sigmoid(upcast(split_heads(self.gate_proj(inputs.x), output.size(1))))
        return self.gain * (output * gate).type_as(output)
