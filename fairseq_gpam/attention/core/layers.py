"""A mechanism for each layer: `linear@0-2,4;softmax@3,5` names the layers, `linear*3,dagpam` is a cycle."""

import re

from fairseq_gpam.attention.core.base import Site

NUMBER = re.compile("[0-9]{1,18}")
SPAN = re.compile(f"({NUMBER.pattern})(?:-({NUMBER.pattern}))?")


def is_layered(spec: str) -> bool:
    """Returns whether `spec` assigns different values to different layers."""
    return any(sign in spec for sign in "@*;")


def spec_of_layer(spec: str, site: Site) -> str:
    """Returns the part of `spec` for the layer of `site`: a mechanism or groups of heads.

    A part is a mechanism or groups of heads (`a:4,b:4`), followed by `@` and its layers, counted from 0, or by `*` and
    the number of successive layers that it covers. Parts are separated by `;`, and, in a cycle without groups of heads,
    also by `,`. Raises ValueError if the form is wrong, a layer does not exist, has no mechanism or has two, or a cycle
    is longer than the stack.
    """
    return value_of_layer(f"--gpam-mechanism (or --gpam-{site.name}-mechanism)", spec, site)


def value_of_layer(flag: str, spec: str, site: Site) -> str:
    """Returns the part of a flag's value for the layer of `site`, in the syntax of `spec_of_layer`."""
    flag = f"{flag} {spec!r} is not allowed"
    if not is_layered(spec):
        return spec
    if "@" in spec and "*" in spec:
        raise ValueError(
            f"{flag}: it mixes @ and *; allowed: layers as in linear@0-2;softmax@3, or a cycle linear*3,dagpam"
        )
    parts = _cycle(spec, site, flag) if "@" not in spec else _named_layers(spec, site, flag)
    return parts[site.layer]


def _named_layers(spec: str, site: Site, flag: str) -> list[str]:
    allowed = f"each of the layers 0 to {site.num_layers - 1} of {site.name} attention exactly once"
    chosen: dict[int, str] = {}
    for part in spec.split(";"):
        what, at, spans = (word.strip() for word in part.partition("@"))
        if not (what and at and spans):
            raise ValueError(f"{flag}: {part!r} is not of the form mechanism@layers, as in linear@0-2,4")
        for span in spans.split(","):
            match = SPAN.fullmatch(span.strip())
            if match is None:
                raise ValueError(f"{flag}: {span!r} in {part!r} is not a layer; allowed: a number, or two as in 0-2")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError(f"{flag}: {span!r} in {part!r} goes backwards; allowed: {last}-{first}")
            if last >= site.num_layers:
                raise ValueError(f"{flag}: there is no layer {last}; allowed: {allowed}")
            for layer in range(first, last + 1):
                if layer in chosen:
                    raise ValueError(
                        f"{flag}: layer {layer} has two mechanisms, {chosen[layer]} and {what}; allowed: {allowed}"
                    )
                chosen[layer] = what
    missing = [str(layer) for layer in range(site.num_layers) if layer not in chosen]
    if missing:
        raise ValueError(f"{flag}: no mechanism for layer {', '.join(missing)}; allowed: {allowed}")
    return [chosen[layer] for layer in range(site.num_layers)]


def _cycle(spec: str, site: Site, flag: str) -> list[str]:
    parts: list[tuple[str, int]] = []
    for part in re.split(";" if ";" in spec else ",", spec):
        what, star, count = (word.strip() for word in part.partition("*"))
        if not what or (star and not (NUMBER.fullmatch(count) and int(count) > 0)):
            raise ValueError(f"{flag}: {part!r} is not of the form mechanism*layers, as in linear*3,dagpam")
        parts.append((what, int(count) if star else 1))
    length = sum(count for _, count in parts)
    if length > site.num_layers:
        raise ValueError(
            f"{flag}: its cycle has {length} layers, but {site.name} attention has {site.num_layers}; "
            f"allowed: a cycle of at most {site.num_layers}"
        )
    cycle = [what for what, count in parts for _ in range(count)]
    return [cycle[layer % length] for layer in range(site.num_layers)]
