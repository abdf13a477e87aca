"""Presets: names for a mechanism with certain values of its options."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairseq_gpam.attention.core.base import REGISTRY, Settings, Site, nearest


@dataclass(frozen=True)
class Preset:
    """A mechanism and the values of its options, which have a name of their own because a paper gave them one."""

    mechanism: str
    values: Mapping[str, Any]
    formula: str
    row_sum: str
    source: str

    def flags(self) -> str:
        """Returns the flags that are the same as this preset."""
        words = ["--gpam-mechanism", self.mechanism]
        for option in REGISTRY[self.mechanism].options:
            if option.name in self.values:
                value = self.values[option.name]
                words += [option.flag] if value is True else [option.flag, str(value).removesuffix(".0")]
        return " ".join(words)


PRESETS = {
    "signed_dual": Preset(
        "dagpam",
        {
            **{"lambda": "fixed", "lambda_plus": 0.0, "lambda_minus": 1.0},
            **{"negative_init": "minus-identity", "negative_frozen": True, "negative_activation": "none"},
        },
        "P = softmax(QKᵀ/√D + M) − softmax(−QKᵀ/√D + M)",
        "0",
        "arXiv 2606.04833",
    ),
}


def check_known(name: str, spec: str) -> None:
    """Raises ValueError if `spec` names neither a registered mechanism nor a preset."""
    known = sorted({*REGISTRY, *PRESETS})
    if name not in known:
        within = "" if name == spec else f" (in {spec!r})"
        near = nearest(name, known)
        allowed = ", ".join(known)
        raise ValueError(f"--gpam-mechanism {name!r}{within} is not allowed{near}; allowed: {allowed}")


def apply_preset(name: str, site: Site, settings: Settings) -> tuple[str, Site, Settings]:
    """Returns the mechanism that `name` stands for, with its settings; a name that is no preset changes nothing.

    Nothing is shared with layers or heads that have the mechanism under its own name. Raises ValueError if an option of
    the preset is set to neither its value nor the default, and with --gpam-warm-start.
    """
    preset = PRESETS.get(name)
    if preset is None:
        return name, site, settings
    if settings.warm_start:
        raise ValueError(
            f"--gpam-warm-start is not allowed with --gpam-mechanism {name!r}, a preset that is not softmax attention; "
            f"allowed: {preset.mechanism}"
        )
    options = {option.name: option for option in REGISTRY[preset.mechanism].options}
    for option, value in preset.values.items():
        if settings[option] not in (value, options[option].default):
            raise ValueError(
                f"{options[option].flag} {settings[option]!r} is not allowed with --gpam-mechanism {name!r}; "
                f"allowed: {value!r}"
            )
    own = replace(site, shared=site.shared.setdefault(("preset", name), {}))
    return preset.mechanism, own, Settings({**settings, **preset.values})
