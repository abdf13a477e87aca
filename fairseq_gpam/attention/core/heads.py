"""Mixed heads: each group of heads has its own mechanism (Multiformer, arXiv 2205.07100)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, AttentionMechanism, Settings, Site, SiteName
from fairseq_gpam.attention.core.layers import NUMBER, split_layers
from fairseq_gpam.attention.core.presets import check_known


def is_mixture(spec: str) -> bool:
    """Returns whether `spec` is of the form `dagpam:4,softmax:4`."""
    return ":" in spec or "," in spec


def parse_mixture(spec: str, site_name: SiteName, num_heads: int) -> list[tuple[str, int]]:
    """Returns the mechanisms of `spec` and how many heads each gets, in the order of the heads.

    Raises ValueError if the form is wrong, a mechanism is unknown or named twice, or the numbers do not add up to the
    heads.
    """
    flag = f"--gpam-mechanism (or --gpam-{site_name}-mechanism) {spec!r}"
    groups = _split_groups(spec, flag)
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


def _split_groups(spec: str, flag: str) -> list[tuple[str, int]]:
    groups = []
    for part in spec.split(","):
        name, colon, count = (word.strip() for word in part.partition(":"))
        if not (name and colon and NUMBER.fullmatch(count) and int(count) > 0):
            raise ValueError(f"{flag} is not allowed: {part!r} is not of the form mechanism:heads, as in dagpam:4")
        groups.append((name, int(count)))
    return groups


def mechanism_names(spec: str) -> list[str]:
    """Returns the names in what --gpam-mechanism takes; raises ValueError if its form is wrong."""
    flag = f"--gpam-mechanism {spec!r}"
    parts = [part for part, _ in split_layers(spec, f"{flag} is not allowed")]
    groups = (_split_groups(part, flag) if is_mixture(part) else [(part, 1)] for part in parts)
    return [name for group in groups for name, _ in group]


class MixedHeads(AttentionMechanism):
    """Groups of neighbouring heads, each attending by its own mechanism; the projections around them are shared."""

    name = "mixed heads"
    formula = "the heads of each group by its own mechanism"
    source = "Multiformer, arXiv 2205.07100"
    row_sum = "that of each group"
    cost = "the mean of its groups"

    def __init__(
        self,
        site: Site,
        settings: Settings,
        groups: list[tuple[str, int]],
        build: Callable[[str, Site], AttentionMechanism],
    ) -> None:
        super().__init__(site, settings)
        self.spec = ",".join(f"{name}:{count}" for name, count in groups)
        self.first_heads: dict[str, int] = {}
        # A ModuleDict, whose type does not say that all its modules are mechanisms.
        self.groups: Any = torch.nn.ModuleDict()
        first = 0
        for name, count in groups:
            self.first_heads[name] = first
            self.groups[name] = build(name, replace(site, num_heads=count))
            first += count
        self.needs_every_layer = any(group.needs_every_layer for group in self.groups.values())
        self.depends_on_layer = any(group.depends_on_layer for group in self.groups.values())
        self.runs_once = any(group.runs_once for group in self.groups.values())
        self.caches_keys = any(group.caches_keys for group in self.groups.values())
        skip_weights: set[Any] = {group.default_skip_weight for group in self.groups.values()}
        self.default_skip_weight: float = skip_weights.pop() if len(skip_weights) == 1 else 1.0

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        outputs, maps = [], []
        for name, group in self.groups.items():
            start = self.first_heads[name]
            stop = start + group.site.num_heads
            q, k, v = (tensor[:, start:stop] for tensor in (inputs.q, inputs.k, inputs.v))
            with _past_of_group(name, inputs.past) as group_past:
                part = replace(inputs, q=q, k=k, v=v, mask=inputs.mask.heads(start, stop), past=group_past)
                if group_past is not None and self.caches_keys and not group.caches_keys:
                    part = part.with_new_keys()
                output, weights = group(part)
            outputs.append(output)
            maps.append(weights)
        return torch.cat(outputs, dim=1), torch.cat(maps, dim=1) if inputs.need_weights else None

    def after_projection(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        for name, group in self.groups.items():
            with _past_of_group(name, inputs.past) as group_past:
                output = group.after_projection(output, replace(inputs, past=group_past))
        return output

    def distinct_heads(self) -> list[int]:
        return [self.first_heads[name] + head for name, group in self.groups.items() for head in group.distinct_heads()]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.spec.replace(',', ', ')}"


@contextmanager
def _past_of_group(name: str, past: dict[str, Tensor] | None) -> Iterator[dict[str, Tensor] | None]:
    """Gives a group its part of the decoding state, under unprefixed names, and stores what the group leaves there."""
    if past is None:
        yield None
        return
    prefix = f"{name}."
    group_past = {key.removeprefix(prefix): tensor for key, tensor in past.items() if key.startswith(prefix)}
    yield group_past
    past.update({prefix + key: tensor for key, tensor in group_past.items()})
