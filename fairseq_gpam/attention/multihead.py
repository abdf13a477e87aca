"""A module that takes the place of `torch.nn.MultiheadAttention` and computes any mechanism."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.affine import BACKENDS
from fairseq_gpam.attention.core.base import (
    REGISTRY,
    AttentionInput,
    AttentionMechanism,
    Option,
    Settings,
    Site,
    SiteName,
)
from fairseq_gpam.attention.core.build import build_mechanism
from fairseq_gpam.attention.core.families import append_constant_keys, join_heads, split_heads
from fairseq_gpam.attention.functional import split_additive, torch_mask

KEYWORDS_OF_TORCH = ("add_bias_kv", "add_zero_attn", "kdim", "vdim", "batch_first", "device", "dtype")
GENERAL: dict[str, tuple[Any, ...]] = {"backend": BACKENDS, "warm_start": (False, True)}


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with any mechanism.

    Takes PyTorch's arguments and the mechanism's options as keywords, named as the flags without `--gpam-`:
    `lambda_plus=0.25`, `warm_start=True`, `lambda_=…` for the flag --gpam-lambda. `site` is the place in the model:
    `encoder` or `decoder` for self-attention, `cross`, or a `Site` for mechanisms to which the layer or its neighbours
    matter. Parameters have PyTorch's names, so its checkpoints load; those of the mechanism begin with `mechanism.`
    and keep their initial values if a checkpoint has none. Raises ValueError for options that nothing reads.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        mechanism: str = "dagpam",
        site: SiteName | Site = "encoder",
        **keywords: Any,
    ) -> None:
        of_torch = {name: keywords.pop(name) for name in KEYWORDS_OF_TORCH if name in keywords}
        super().__init__(embed_dim, num_heads, dropout, bias, **of_torch)
        if isinstance(site, str):
            site = Site(site, 0, 1, embed_dim, num_heads, self.head_dim)
        elif (site.embed_dim, site.num_heads, site.query_dim) != (embed_dim, num_heads, self.head_dim):
            raise ValueError(f"site {site!r} does not fit embed_dim {embed_dim} and num_heads {num_heads}")
        settings, given = _read_settings(keywords)
        self.mechanism = build_mechanism(mechanism, site, settings)
        self.mechanism.to(of_torch.get("device"), of_torch.get("dtype"))
        parts = [part for part in self.mechanism.modules() if isinstance(part, AttentionMechanism)]
        _refuse_unread(given, parts, mechanism)
        if self.bias_k is not None or self.add_zero_attn:
            self.mechanism.refuse_appended_keys()
        self.attends_to_itself = any("cross" not in part.sites for part in parts)
        self.needs_whole_sentences = any(part.sites == ("encoder",) for part in parts)
        # PyTorch's encoder layer would otherwise replace this module by a kernel that knows only softmax.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output, and the weights if requested: signed, before dropout, averaged over the heads or not.

        Shapes are PyTorch's: query T × B × C, key S × B × C (with `batch_first` B × T × C and B × S × C, for one
        sentence T × C); weights B × T × S or B × H × T × S. Masks are PyTorch's too: bool with True = hidden, or added
        to the scores; `key_padding_mask` B × S, `attn_mask` T × S or B·H × T × S. `is_causal` alone is enough for a
        causal mask; with an attention mask both apply. A query that sees no key attends to nothing.
        """
        if is_causal and self.needs_whole_sentences:
            raise ValueError(
                f"is_causal is not allowed with mechanism {self.mechanism.name!r}, whose weights depend on the whole "
                "sentence; allowed: False"
            )
        is_batched = query.dim() == 3
        query, key, value = (
            self._batched(name, x, is_batched) for name, x in (("query", query), ("key", key), ("value", value))
        )
        if not is_batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        self._check_inputs(query, key, value)
        q, k, v = (split_heads(projected, self.num_heads) for projected in self._project(query, key, value))
        padding, bias, hidden = self._read_masks(key_padding_mask, attn_mask, q, k)
        mask = torch_mask(padding, bias, hidden, is_causal, q, k)
        k, v, mask = append_constant_keys(k, v, mask, q.size(2), (self.bias_k, self.bias_v), self.add_zero_attn)
        inputs = AttentionInput(q, k, v, mask, query, self.dropout if self.training else 0.0, need_weights)
        heads, weights = self.mechanism(inputs)
        output = F.linear(join_heads(heads).transpose(0, 1), self.out_proj.weight, self.out_proj.bias)
        output = self.mechanism.after_projection(output, inputs)
        if not is_batched:
            output = output.squeeze(1)
        elif self.batch_first:
            output = output.transpose(0, 1)
        if weights is None:
            return output, None
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return output, weights if is_batched else weights.squeeze(0)

    def _batched(self, name: str, x: Tensor, is_batched: bool) -> Tensor:
        """Returns an input as B × length × C."""
        if x.is_nested:
            raise ValueError(
                f"{name} is a nested tensor; allowed: a padded one (nn.TransformerEncoder makes it without "
                "enable_nested_tensor=False)"
            )
        if x.dim() != (3 if is_batched else 2):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; allowed: 3 dimensions, or 2 in all of query, key, value"
            )
        if not is_batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        for name, x, channels in (
            ("query", query, self.embed_dim),
            ("key", key, self.kdim),
            ("value", value, self.vdim),
        ):
            if x.size(-1) != channels:
                raise ValueError(f"{name} has {x.size(-1)} channels; allowed: {channels}")
            if x.size(0) != query.size(0):
                raise ValueError(f"{name} has a batch of {x.size(0)}; allowed: that of query, {query.size(0)}")
        if key.size(1) != value.size(1):
            raise ValueError(f"value has {value.size(1)} positions; allowed: as many as key, {key.size(1)}")
        if self.attends_to_itself and key.size(1) != query.size(1):
            raise ValueError(
                f"key has {key.size(1)} positions, query {query.size(1)}; allowed with mechanism "
                f"{self.mechanism.name!r}, which is for self-attention: the same number"
            )

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif key is query and value is query:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
            return q, k, v
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, *pair) for x, *pair in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _read_masks(
        self, key_padding_mask: Tensor | None, attn_mask: Tensor | None, q: Tensor, k: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the padding, the bias and the hidden keys of PyTorch's two masks."""
        bsz, heads, num_queries, num_keys = *q.shape[:3], k.size(2)
        padding = bias = hidden = None
        if attn_mask is not None:
            allowed = ((num_queries, num_keys), (bsz * heads, num_queries, num_keys))
            _check_mask("attn_mask", attn_mask, allowed)
            bias, hidden = _parts(attn_mask)
            if attn_mask.dim() == 3:
                bias, hidden = (None if part is None else part.unflatten(0, (bsz, heads)) for part in (bias, hidden))
        if key_padding_mask is not None:
            _check_mask("key_padding_mask", key_padding_mask, ((bsz, num_keys),))
            added, padding = _parts(key_padding_mask)
            if added is not None:
                added = added[:, None, None, :]
                bias = added if bias is None else bias + added
        return padding, bias, hidden

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        mechanism_prefix = f"{prefix}mechanism."
        if not any(name.startswith(mechanism_prefix) for name in state_dict):
            state_dict.update({mechanism_prefix + name: value for name, value in self.mechanism.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _parts(mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return (None, mask) if mask.dtype == torch.bool else split_additive(mask)


def _check_mask(name: str, mask: Tensor, allowed: tuple[tuple[int, ...], ...]) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"{name} has type {mask.dtype}; allowed: bool (True = hidden) or a floating-point type")
    if tuple(mask.shape) not in allowed:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}; allowed: {' or '.join(map(str, allowed))}")


def _read_settings(keywords: dict[str, Any]) -> tuple[Settings, dict[str, Option | None]]:
    """Returns the values of all options, and the option of each keyword (None for a general one)."""
    options = {option.name: option for mechanism in REGISTRY.values() for option in mechanism.options}
    values: dict[str, Any] = {name: allowed[0] for name, allowed in GENERAL.items()}
    values |= {name: option.default for name, option in options.items()}
    given: dict[str, Option | None] = {}
    for keyword, value in keywords.items():
        name = keyword.rstrip("_")
        if name not in values:
            allowed = ", ".join((*KEYWORDS_OF_TORCH, *sorted(values)))
            raise ValueError(f"keyword {keyword}={value!r} is not allowed; allowed: {allowed}")
        if name in GENERAL and value not in GENERAL[name]:
            raise ValueError(
                f"keyword {keyword}={value!r} is not allowed; allowed: {', '.join(map(str, GENERAL[name]))}"
            )
        given[keyword] = options.get(name)
        values[name] = options[name].parse(value) if name in options else value
    return Settings(values), given


def _refuse_unread(given: dict[str, Option | None], parts: list[AttentionMechanism], spec: str) -> None:
    read = {option for part in parts for option in part.options}
    for keyword, option in given.items():
        if option is not None and option not in read:
            allowed = ", ".join(sorted({option.name for part in parts for option in part.options})) or "none"
            raise ValueError(
                f"{keyword} is not allowed with mechanism {spec!r}, which does not read it; allowed: {allowed}"
            )
