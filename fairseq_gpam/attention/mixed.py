"""Mixed heads: each group of heads has a mechanism of its own (Multiformer, arXiv 2205.07100)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.base import REGISTRY, AttentionInput, AttentionMechanism, Settings, Site, SiteName


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
        self.caches_keys = any(group.caches_keys for group in self.groups.values())

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        outputs, maps = [], []
        start = 0
        for (name, group), count in zip(self.groups.items(), self.counts, strict=True):
            stop = start + count
            q, k, v = (tensor[:, start:stop] for tensor in (inputs.q, inputs.k, inputs.v))
            part = replace(inputs, q=q, k=k, v=v, mask=inputs.mask.heads(start, stop))
            if inputs.past is None:
                output, weights = group(part)
            else:
                output, weights = self._decode(name, group, part, inputs.past)
            outputs.append(output)
            maps.append(weights)
            start = stop
        return torch.cat(outputs, dim=1), torch.cat(maps, dim=1) if inputs.need_weights else None

    def _decode(
        self, name: str, group: nn.Module, part: AttentionInput, past: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Attends with one group, whose memory lies under its own name in the memory of all."""
        prefix = f"{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in past.items() if key.startswith(prefix)}
        part = replace(part, past=own)
        if self.caches_keys and not group.caches_keys:
            part = part.with_new_keys()
        output, weights = group(part)
        past.update({prefix + key: tensor for key, tensor in own.items()})
        return output, weights

    def after_projection(self, output: Tensor) -> Tensor:
        for group in self.groups.values():
            assert isinstance(group, AttentionMechanism)
            output = group.after_projection(output)
        return output

    def extra_repr(self) -> str:
        heads = ", ".join(f"{name}:{count}" for name, count in zip(self.groups, self.counts, strict=True))
        return f"{super().extra_repr()}, {heads}"


def build_mechanism(spec: str, site: Site, settings: Settings) -> AttentionMechanism:
    """Builds the mechanism that `spec` names, or the mixture (`dagpam:4,softmax:4`) that it describes.

    Raises ValueError if one is unknown or cannot stand at this site, or if a mixture does not fit the heads.
    """
    if is_mixture(spec):
        return MixedHeads(spec, site, settings)
    try:
        mechanism = REGISTRY[spec]
    except KeyError:
        raise ValueError(f"--gpam-mechanism {spec!r} is not allowed; allowed: {', '.join(sorted(REGISTRY))}") from None
    return mechanism(site, settings)
