"""The values of a stack's first layer, passed from layer to layer within one forward pass."""

from torch import Tensor

from fairseq_gpam.attention.core.base import Site


def first_layer_values(mechanism: str, site: Site, current: Tensor) -> Tensor:
    """Returns what the first layer passed as `current`, B × H × S × D.

    It stays in `site.shared` until the last layer. Raises ValueError if a layer was skipped or repeated.
    """
    key = (mechanism, site.name)
    first = current
    if site.layer > 0:
        previous, first = site.shared.pop(key, (None, current))
        if previous != site.layer - 1 or first.shape != current.shape:
            raise ValueError(
                f"--gpam-mechanism {mechanism} needs all {site.num_layers} {site.name} layers to run in "
                f"order, but layer {site.layer} followed {previous}: not allowed with --encoder-layerdrop, "
                "--decoder-layerdrop or --checkpoint-activations, and every layer must have this mechanism"
            )
    if site.layer < site.num_layers - 1:
        site.shared[key] = (site.layer, first)
    return first
