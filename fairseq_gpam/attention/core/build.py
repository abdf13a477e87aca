"""Builds what `--gpam-mechanism` and its relatives name: a mechanism, or one for each layer or group of heads."""

from fairseq_gpam.attention.core.base import REGISTRY, AttentionMechanism, Settings, Site, neutral_settings
from fairseq_gpam.attention.core.heads import MixedHeads, is_mixture, parse_mixture
from fairseq_gpam.attention.core.layers import spec_of_layer
from fairseq_gpam.attention.core.presets import apply_preset, check_known


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
        groups = parse_mixture(chosen, site.name, site.num_heads)
        mechanism = MixedHeads(site, settings, groups, lambda name, part: build_mechanism(name, part, settings))
    else:
        check_known(chosen, spec)
        name, site, settings = apply_preset(chosen, site, settings)
        cls = REGISTRY[name]
        mechanism = cls(site, neutral_settings(cls, settings) if settings.warm_start else settings)
    if mechanism.needs_every_layer and chosen != spec:
        raise ValueError(
            f"--gpam-mechanism (or --gpam-{site.name}-mechanism) {spec!r} is not allowed: {chosen!r} must be used in "
            f"every layer; allowed: {chosen}"
        )
    return mechanism
