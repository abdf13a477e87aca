"""W_Q⁻, the projection to the queries of daGPAM's negative branch: one for each head, or one for a layer."""

import math

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import Settings, Site, refuse_options


class PerHeadLinear(nn.Linear):
    """A D × D linear map for each head; the weight is (H·D) × D, the maps of the heads stacked."""

    def __init__(self, head_dim: int, num_heads: int, bias: bool) -> None:
        super().__init__(head_dim, num_heads * head_dim, bias=bias)
        self.num_heads = num_heads
        self.head_dim = head_dim

    def forward(self, heads: Tensor) -> Tensor:
        """Maps B × H × T × D to the same shape."""
        bsz, _, length, width = heads.shape
        # H × (T·B) × D, which needs no copy in the memory layout of fairseq's projections.
        rows = heads.permute(1, 2, 0, 3).flatten(1, 2)
        matrices = self.weight.view(self.num_heads, self.head_dim, self.head_dim).transpose(1, 2)
        if self.bias is None:
            mapped = torch.bmm(rows, matrices)
        else:
            mapped = torch.baddbmm(self.bias.view(self.num_heads, 1, self.head_dim), rows, matrices)
        return mapped.view(self.num_heads, length, bsz, width).permute(2, 0, 1, 3)


def build_negative_projection(site: Site, settings: Settings) -> nn.Linear:
    """Returns W_Q⁻, initialised by `--gpam-negative-init`, its bias at 0; not trained if `--gpam-negative-frozen`.

    It maps the queries, head by head, or the layer's input, C → H·D. Raises ValueError for options that do not fit.
    """
    head_dim, bias, gain = site.query_dim, settings.negative_bias, 1.0
    projection: nn.Linear
    if settings.negative_source == "input":
        refusals: tuple[tuple[str, object, str], ...] = (("negative_projection", "head", "head"),)
        if settings.negative_init != "zero":
            refusals += (("negative_init", "xavier", "xavier, zero"),)
        companion = "--gpam-negative-source 'input', where W_Q⁻ maps the model dimension to all heads"
        refuse_options(settings, companion, refusals)
        # As fairseq's query projection.
        projection, gain = nn.Linear(site.embed_dim, site.num_heads * head_dim, bias=bias), 1 / math.sqrt(2)
    elif settings.negative_projection == "shared":
        projection = nn.Linear(head_dim, head_dim, bias=bias)
    else:
        projection = PerHeadLinear(head_dim, site.num_heads, bias)
    with torch.no_grad():
        whole = settings.negative_source == "input"
        for block in [projection.weight] if whole else projection.weight.view(-1, head_dim, head_dim):
            if settings.negative_init == "xavier":
                nn.init.xavier_uniform_(block, gain=gain)
            elif settings.negative_init == "zero":
                nn.init.zeros_(block)
            else:
                nn.init.eye_(block).neg_()
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    return projection.requires_grad_(not settings.negative_frozen)
