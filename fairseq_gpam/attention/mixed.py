"""Mixed heads: each group of heads has a mechanism of its own (Multiformer, arXiv 2205.07100)."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq_gpam.attention.base import AttentionMechanism, Settings, Site, SiteName, build_mechanism
from fairseq_gpam.attention.masks import AttentionMask


def is_mixture(spec: str) -> bool:
    """Returns whether `spec` is of the form `dagpam:4,softmax:4`."""
    return ":" in spec or "," in spec


def parse_mixture(spec: str, site_name: SiteName, num_heads: int) -> list[tuple[str, int]]:
    """Returns the mechanisms of `spec` and how many heads each gets, in the order of the heads.

    Raises ValueError if the form is wrong, a mechanism comes twice, or the numbers do not add up to the heads.
    """
    flag = f"--gpam-mechanism (or --gpam-{site_name}-mechanism) {spec!r}"
    groups = []
    for part in spec.split(","):
        name, colon, count = (word.strip() for word in part.partition(":"))
        if not (name and colon and count.isdecimal() and int(count) > 0):
            raise ValueError(f"{flag} is not allowed: {part!r} is not of the form mechanism:heads, as in dagpam:4")
        groups.append((name, int(count)))
    names = [name for name, _ in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"{flag} is not allowed: a mechanism comes twice; give each once, with all its heads")
    total = sum(count for _, count in groups)
    if total != num_heads:
        numbers = "+".join(str(count) for _, count in groups)
        raise ValueError(
            f"{flag} is not allowed: {numbers} = {total} heads, but {site_name} attention has {num_heads}; "
            f"the numbers must add up to {num_heads}"
        )
    return groups


class MixedHeads(AttentionMechanism):
    """Groups of neighbouring heads, each attending by its own mechanism; the projections around them are shared."""

    name = "mixed heads"
    formula = "the heads of each group by its own mechanism"
    source = "Multiformer, arXiv 2205.07100"
    row_sum = "of each group its own"
    cost = "the mean of its groups"

    def __init__(self, spec: str, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.spec = spec
        self.counts: list[int] = []
        self.groups = torch.nn.ModuleDict()
        for name, count in parse_mixture(spec, site.name, site.num_heads):
            self.groups[name] = build_mechanism(name, site.with_heads(count), settings)
            self.counts.append(count)
        self.needs_every_layer = any(group.needs_every_layer for group in self.groups.values())

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: AttentionMask,
        x: Tensor,
        dropout_p: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        outputs, maps = [], []
        start = 0
        for group, count in zip(self.groups.values(), self.counts, strict=True):
            stop = start + count
            output, weights = group(
                q[:, start:stop],
                k[:, start:stop],
                v[:, start:stop],
                mask.heads(start, stop),
                x,
                dropout_p,
                need_weights,
            )
            outputs.append(output)
            maps.append(weights)
            start = stop
        return torch.cat(outputs, dim=1), torch.cat(maps, dim=1) if need_weights else None

    def extra_repr(self) -> str:
        heads = ", ".join(f"{name}:{count}" for name, count in zip(self.groups, self.counts, strict=True))
        return f"{super().extra_repr()}, {heads}"
