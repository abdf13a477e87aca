"""Local attention: softmax over the keys of a window around the query's own position."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fairseq_gpam.attention.affine import AffineTerms
from fairseq_gpam.attention.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.families import AffineMechanism
from fairseq_gpam.attention.masks import AttentionMask


def windowed(mask: AttentionMask, num_queries: int, num_keys: int, reach: int, device: torch.device) -> AttentionMask:
    """Returns the mask that also hides the keys further than `reach` from the query's own position, S−T+i.

    For weights B × H × T × S. The local attention of Multiformer, Sant et al. 2022, arXiv 2205.07100.
    """
    own = torch.arange(num_keys - num_queries, num_keys, device=device)
    far = (own[:, None] - torch.arange(num_keys, device=device)).abs() > reach
    return replace(mask, hidden=far if mask.hidden is None else mask.hidden | far)


@register_mechanism
class LocalAttention(AffineMechanism):
    """Softmax self-attention that sees only positions within a window on either side of its own.

    It is meant for groups of heads beside others (`local:2,softmax:6`), as in Multiformer. All local heads share one
    window. The authors' code (mt-upc/fairseq) has windows of 64 positions, as blocks of 32 that see themselves and the
    block before; w = 32 is the closest centred window. The default size is ours. The T × S mask is computed, so the
    window saves no time.
    """

    name = "local"
    formula = "P = softmax(QKᵀ/√D + M) over the keys j with |i − j| ≤ w"
    source = "Multiformer, Sant et al. 2022, arXiv 2205.07100"
    row_sum = "1"
    cost = "1×"
    sites = ("encoder", "decoder")
    why_never_neutral = "it hides what lies outside its window at every setting"
    options = (
        Option(
            "local_window",
            int,
            16,
            "how many positions w on either side of its own a query sees",
            check=lambda reach: reach >= 0,
            allowed="0 or a whole number of positions",
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.reach: int = settings.local_window

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        return AffineTerms()

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        sizes = inputs.q.size(-2), inputs.k.size(-2)
        return super().forward(replace(inputs, mask=windowed(inputs.mask, *sizes, self.reach, inputs.q.device)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, w {self.reach}"
