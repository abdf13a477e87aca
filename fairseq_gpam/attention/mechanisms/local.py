"""Local attention: softmax over the keys of a window around the query's own position."""

from dataclasses import replace

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism


@register_mechanism
class LocalAttention(AffineMechanism):
    """Softmax self-attention to the positions within a window around the query's own.

    It is meant for some of a layer's heads (`local:2,softmax:6`), as in Multiformer. All local heads share one window.
    In the authors' code (mt-upc/fairseq) blocks of 21 positions, a third of its window of 64, attend to themselves and
    to the blocks before and after; w = 31 is the closest centred window. The default size is ours. The full T × S
    matrix is computed, so the window saves no time.
    """

    name = "local"
    formula = "P = softmax(QKᵀ/√D + M) over the keys j with |i − j| ≤ w"
    source = "Multiformer, Sant et al. 2022, arXiv 2205.07100"
    row_sum = "1"
    cost = "1×"
    sites = ("encoder", "decoder")
    key_positions = "all"
    why_never_neutral = "it hides keys outside its window at every setting"
    options = (
        Option(
            "local_window",
            int,
            16,
            "the number w of positions on either side of the query's own that it attends to",
            check=lambda reach: reach >= 0,
            allowed="0 or a whole number of positions",
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.reach: int = settings.local_window

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        positions = torch.arange(inputs.k.size(-2), device=inputs.q.device)
        far = (positions[inputs.k.size(-2) - inputs.q.size(-2) :, None] - positions).abs() > self.reach
        hidden = far if inputs.mask.hidden is None else inputs.mask.hidden | far
        return super().forward(replace(inputs, mask=replace(inputs.mask, hidden=hidden)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, w {self.reach}"
