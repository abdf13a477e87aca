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
    parts = split_layers(spec, flag)
    return (_named_layers if "@" in spec else _cycle)(parts, site, flag)[site.layer] if is_layered(spec) else spec


def split_layers(spec: str, flag: str) -> list[tuple[str, str]]:
    """Returns the parts of `spec`, each with what follows its `@` or `*`, in the syntax of `spec_of_layer`."""
    if not is_layered(spec):
        return [(spec, "")]
    if "@" in spec and "*" in spec:
        raise ValueError(
            f"{flag}: it mixes @ and *; allowed: layers as in linear@0-2;softmax@3, or a cycle linear*3,dagpam"
        )
    sign, example = ("@", "linear@0-2,4") if "@" in spec else ("*", "linear*3,dagpam")
    parts = []
    for part in re.split(";" if sign == "@" or ";" in spec else ",", spec):
        what, there, rest = (word.strip() for word in part.partition(sign))
        fits = bool(rest) if sign == "@" else not there or (NUMBER.fullmatch(rest) and int(rest) > 0)
        if not (what and fits):
            raise ValueError(f"{flag}: {part!r} is not of the form mechanism{sign}layers, as in {example}")
        parts.append((what, rest))
    return parts


def _named_layers(parts: list[tuple[str, str]], site: Site, flag: str) -> list[str]:
    allowed = f"each of the layers 0 to {site.num_layers - 1} of {site.name} attention exactly once"
    chosen: dict[int, str] = {}
    for what, spans in parts:
        for span in spans.split(","):
            match, where = SPAN.fullmatch(span.strip()), f"{span!r} in {f'{what}@{spans}'!r}"
            if match is None:
                raise ValueError(f"{flag}: {where} is not a layer; allowed: a number, or two as in 0-2")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError(f"{flag}: {where} goes backwards; allowed: {last}-{first}")
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


def _cycle(parts: list[tuple[str, str]], site: Site, flag: str) -> list[str]:
    length = sum(int(count or 1) for _, count in parts)
    if length > site.num_layers:
        raise ValueError(
            f"{flag}: its cycle has {length} layers, but {site.name} attention has {site.num_layers}; "
            f"allowed: a cycle of at most {site.num_layers}"
        )
    cycle = [what for what, count in parts for _ in range(int(count or 1))]
    return [cycle[layer % length] for layer in range(site.num_layers)]
