"""Mixed heads: each group of heads has its own mechanism (Multiformer, arXiv 2205.07100)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.base import (
    REGISTRY,
    AttentionInput,
    AttentionMechanism,
    Settings,
    Site,
    SiteName,
    neutral_settings,
)
from fairseq_gpam.attention.layers import NUMBER, spec_of_layer


def is_mixture(spec: str) -> bool:
    """Returns whether `spec` is of the form `dagpam:4,softmax:4`."""
    return ":" in spec or "," in spec


def check_known(name: str, spec: str) -> None:
    """Raises ValueError if `spec` names a mechanism that is not registered."""
    if name not in REGISTRY:
        within = "" if name == spec else f" (in {spec!r})"
        raise ValueError(f"--gpam-mechanism {name!r}{within} is not allowed; allowed: {', '.join(sorted(REGISTRY))}")


def parse_mixture(spec: str, site_name: SiteName, num_heads: int) -> list[tuple[str, int]]:
    """Returns the mechanisms of `spec` and how many heads each gets, in the order of the heads.

    Raises ValueError if the form is wrong, a mechanism is unknown or named twice, or the numbers do not add up to the
    heads.
    """
    flag = f"--gpam-mechanism (or --gpam-{site_name}-mechanism) {spec!r}"
    groups = []
    for part in spec.split(","):
        name, colon, count = (word.strip() for word in part.partition(":"))
        if not (name and colon and NUMBER.fullmatch(count) and int(count) > 0):
            raise ValueError(f"{flag} is not allowed: {part!r} is not of the form mechanism:heads, as in dagpam:4")
        groups.append((name, int(count)))
    names = [name for name, _ in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"{flag} is not allowed: a mechanism is named twice; name each once, with all its heads")
    for name in names:
        check_known(name, spec)
    total = sum(count for _, count in groups)
    if total != num_heads:
        counts = "+".join(str(count) for _, count in groups)
        raise ValueError(
            f"{flag} is not allowed: {counts} = {total} heads, but {site_name} attention has {num_heads}; "
            f"the numbers must add up to {num_heads}"
        )
    return groups


class MixedHeads(AttentionMechanism):
    """Groups of neighbouring heads, each attending by its own mechanism; the projections around them are shared."""

    name = "mixed heads"
    formula = "the heads of each group by its own mechanism"
    source = "Multiformer, arXiv 2205.07100"
    row_sum = "that of each group"
    cost = "the mean of its groups"

    def __init__(self, spec: str, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.spec = spec
        self.counts: list[int] = []
        self.first_heads: dict[str, int] = {}
        self.groups = torch.nn.ModuleDict()
        for name, count in parse_mixture(spec, site.name, site.num_heads):
            self.first_heads[name] = sum(self.counts)
            self.groups[name] = build_mechanism(name, site.with_heads(count), settings)
            self.counts.append(count)
        self.needs_every_layer = any(group.needs_every_layer for group in self.groups.values())
        self.caches_keys = any(group.caches_keys for group in self.groups.values())

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        outputs, maps = [], []
        for (name, group), count in zip(self.groups.items(), self.counts, strict=True):
            start = self.first_heads[name]
            stop = start + count
            q, k, v = (tensor[:, start:stop] for tensor in (inputs.q, inputs.k, inputs.v))
            part = replace(inputs, q=q, k=k, v=v, mask=inputs.mask.heads(start, stop))
            if inputs.past is None:
                output, weights = group(part)
            else:
                output, weights = self._decode(name, group, part, inputs.past)
            outputs.append(output)
            maps.append(weights)
        return torch.cat(outputs, dim=1), torch.cat(maps, dim=1) if inputs.need_weights else None

    def _decode(
        self, name: str, group: nn.Module, part: AttentionInput, past: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Attends with one group, whose decoding state is stored under the group's name."""
        with _own_past(name, past) as own:
            part = replace(part, past=own)
            if self.caches_keys and not group.caches_keys:
                part = part.with_new_keys()
            output, weights = group(part)
        return output, weights

    def after_projection(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        for name, group in self.groups.items():
            assert isinstance(group, AttentionMechanism)
            if inputs.past is None:
                output = group.after_projection(output, inputs)
            else:
                with _own_past(name, inputs.past) as own:
                    output = group.after_projection(output, replace(inputs, past=own))
        return output

    def distinct_heads(self) -> list[int]:
        found: list[int] = []
        for name, group in self.groups.items():
            assert isinstance(group, AttentionMechanism)
            found += [self.first_heads[name] + head for head in group.distinct_heads()]
        return found

    def extra_repr(self) -> str:
        heads = ", ".join(f"{name}:{count}" for name, count in zip(self.groups, self.counts, strict=True))
        return f"{super().extra_repr()}, {heads}"


@contextmanager
def _own_past(name: str, past: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Gives a group its part of the decoding state, under unprefixed names, and stores what the group leaves there."""
    prefix = f"{name}."
    own = {key.removeprefix(prefix): tensor for key, tensor in past.items() if key.startswith(prefix)}
    yield own
    past.update({prefix + key: tensor for key, tensor in own.items()})


def build_mechanism(spec: str, site: Site, settings: Settings) -> AttentionMechanism:
    """Builds the mechanism that `spec` names for the layer of `site`, or the mixture (`a:4,b:4`) that it describes.

    With `--gpam-warm-start` a mechanism is built at its neutral setting. Raises ValueError if a mechanism is unknown,
    not allowed at this site or without the required neutral setting, or if a mixture does not fit the heads or layers.
    """
    chosen = spec_of_layer(spec, site)
    if settings.warm_start and site.query_dim != site.head_dim:
        raise ValueError(
            f"--gpam-query-rank {site.query_rank} is not allowed with --gpam-warm-start: a stock model's queries have "
            f"{site.head_dim} channels in a head; allowed: {site.head_dim}"
        )
    mechanism: AttentionMechanism
    if is_mixture(chosen):
        mechanism = MixedHeads(chosen, site, settings)
    else:
        check_known(chosen, spec)
        cls = REGISTRY[chosen]
        mechanism = cls(site, neutral_settings(cls, settings) if settings.warm_start else settings)
    if mechanism.needs_every_layer and chosen != spec:
        raise ValueError(
            f"--gpam-mechanism (or --gpam-{site.name}-mechanism) {spec!r} is not allowed: {chosen!r} must be used in "
            f"every layer; allowed: {chosen}"
        )
    return mechanism
