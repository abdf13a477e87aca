"""W_Q⁻, the projection to the queries of daGPAM's negative branch: one for each head, or one for a layer."""

import math

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import Settings, Site


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
    """Returns W_Q⁻, initialised by `--gpam-negative-init`, its bias at 0; not trained if `--gpam-negative-frozen`."""
    head_dim, bias = site.query_dim, settings.negative_bias
    projection: nn.Linear
    if settings.negative_source == "input":
        return _build_input_projection(site, settings)
    if settings.negative_projection == "shared":
        projection = nn.Linear(head_dim, head_dim, bias=bias)
    else:
        projection = PerHeadLinear(head_dim, site.num_heads, bias)
    with torch.no_grad():
        for block in projection.weight.view(-1, head_dim, head_dim):
            if settings.negative_init == "xavier":
                nn.init.xavier_uniform_(block)
            elif settings.negative_init == "zero":
                nn.init.zeros_(block)
            else:
                nn.init.eye_(block).neg_()
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    return projection.requires_grad_(not settings.negative_frozen)


def _build_input_projection(site: Site, settings: Settings) -> nn.Linear:
    """Returns a W_Q⁻ for the layer's input, C → H·D, initialised as fairseq's query projection or at 0."""
    for name, refused, allowed in (
        ("negative_projection", "shared", "head"),
        ("negative_init", "minus-identity", "xavier, zero"),
    ):
        if settings[name] == refused:
            raise ValueError(
                f"--gpam-{name.replace('_', '-')} {refused!r} is not allowed with --gpam-negative-source 'input', "
                f"where W_Q⁻ maps the model dimension to all heads; allowed: {allowed}"
            )
    projection = nn.Linear(site.embed_dim, site.num_heads * site.query_dim, bias=settings.negative_bias)
    if settings.negative_init == "xavier":
        nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
    else:
        nn.init.zeros_(projection.weight)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    return projection.requires_grad_(not settings.negative_frozen)
