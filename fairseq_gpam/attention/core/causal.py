"""What mechanisms share that depend on the order of the positions (in decoder self-attention only) or of the layers."""

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Site


def require_causal(mechanism: str, inputs: AttentionInput) -> None:
    """Raises ValueError unless the future is hidden and the queries are the newest positions."""
    if inputs.mask.hidden is not None or (inputs.q.size(-2) > 1 and not inputs.mask.causal):
        raise ValueError(
            f"--gpam-mechanism {mechanism} is causal: a mask that shows the future, or is a matrix, is not "
            "allowed; allowed: decoder self-attention with fairseq's causal mask"
        )


def remembered(inputs: AttentionInput, name: str, mechanism: str) -> Tensor | None:
    """Returns what the mechanism cached under `name` for the positions before the queries; None if there are none.

    Raises ValueError if there are earlier keys but nothing was cached for them.
    """
    kept = None if inputs.past is None else inputs.past.get(name)
    earlier = inputs.k.size(-2) - inputs.q.size(-2)
    if (0 if kept is None else kept.size(-1)) != earlier:
        raise ValueError(
            f"--gpam-mechanism {mechanism} has no cached state for {earlier} earlier keys; allowed: decoding "
            "from the first position"
        )
    return kept


def earlier_keys(scores: Tensor) -> Tensor:
    """Returns which keys lie strictly before the query's own position, S−T+i, for scores … × T × S: bool, T × S."""
    num_queries, num_keys = scores.shape[-2:]
    every = torch.ones(num_queries, num_keys, dtype=torch.bool, device=scores.device)
    return every.tril(num_keys - num_queries - 1)


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
