"""What every attention mechanism has in common: its place in the model, its settings, its interface, the registry.

Shapes, throughout this package: B batch, H heads, T queries, S keys, D head dimension, C model dimension.
Everything here is B × H × T × D; fairseq's T × B × C stays outside.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.masks import AttentionMask
from fairseq_gpam.attention.core.positions import Form

SiteName = Literal["encoder", "decoder", "cross"]
SITES: tuple[SiteName, ...] = ("encoder", "decoder", "cross")

BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def nearest(value: Any, known: Iterable[str]) -> str:
    """Returns a question after the known name that resembles `value` most, in brackets; "" if none does."""
    return "".join(f" (did you mean {name!r}?)" for name in difflib.get_close_matches(str(value), list(known), 1))


@dataclass(frozen=True)
class Option:
    """One setting of a mechanism, which becomes one `--gpam-…` flag.

    `check` returns whether a value is allowed; `allowed` says in words what is. Both apply to every source of values:
    the command line, a checkpoint, `--model-overrides`, hydra. `former_defaults` are the defaults of earlier versions,
    which their checkpoints contain even if the model never read the option.
    """

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    check: Callable[[Any], bool] | None = None
    allowed: str = ""
    former_defaults: tuple[Any, ...] = ()

    @property
    def flag(self) -> str:
        return "--gpam-" + self.name.replace("_", "-")

    @property
    def dest(self) -> str:
        return "gpam_" + self.name

    def parse(self, value: Any) -> Any:
        """Returns `value` as this option's type; raises ValueError with the flag, the value and what is allowed."""
        if value is None:
            return self.default
        try:
            parsed = BOOLEANS[str(value).lower()] if self.type is bool else self.type(value)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(self.refusal(value)) from None
        is_rounded = self.type is int and isinstance(value, float) and parsed != value
        is_finite = not isinstance(parsed, float) or math.isfinite(parsed)
        is_chosen = self.choices is None or parsed in self.choices
        if is_rounded or not is_finite or not is_chosen or (self.check is not None and not self.check(parsed)):
            raise ValueError(self.refusal(value))
        return parsed

    def refusal(self, value: Any) -> str:
        allowed = self.allowed
        if not allowed:
            kinds = {float: "a finite number", int: "a whole number", bool: "true or false", str: "text"}
            allowed = ", ".join(self.choices) if self.choices else kinds[self.type]
        near = nearest(value, self.choices or (REGISTRY if self.name.endswith("mechanism") else ()))
        return f"{self.flag} {value!r} is not allowed{near}; allowed: {allowed}"


class Settings(dict[str, Any]):
    """The checked values of all options, read as items or as attributes (`settings.lambda_scope`)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no --gpam option {name!r}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError(f"{name} is not changed in place: all modules of a model share their settings")

    def __reduce__(self) -> Any:
        return Settings, (dict(self),)


@dataclass(frozen=True)
class Site:
    """The place of an attention module in the model.

    `head_dim` is the width of a head's values; `query_rank` is the width of its queries and keys if that differs.
    `shared` is one dictionary for the whole model, in which layers share objects (a λ of scope `model`, the first
    layer's values) under keys of their choice.
    """

    name: SiteName
    layer: int
    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    shared: dict[tuple[object, ...], Any] = field(default_factory=dict, compare=False, repr=False)
    query_rank: int | None = None

    @property
    def query_dim(self) -> int:
        """Returns the width of a head's queries and keys."""
        return self.query_rank or self.head_dim

    def __str__(self) -> str:
        return f"{self.name} layer {self.layer}"


@dataclass(frozen=True)
class AttentionInput:
    """The input of one call of an attention mechanism.

    q: B × H × T × D, not scaled. k, v: B × H × S × D; with --gpam-query-rank the D of v differs from that of q and k.
    mask: which keys a query may see.
    x: B × T × C, the layer's input to the query projection.
    dropout_p: the probability of dropping a weight; 0 outside training.
    need_weights: whether the weights are requested.
    past: tensors that the mechanism keeps from one decoding step to the next, by names of its choice, with the batch
        as first dimension; it reads and replaces them here. Empty at the first step; None except in step-by-step
        decoding of decoder self-attention.
    form: the norms and the rotation that q and k have had, for a mechanism that makes further queries or keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: AttentionMask
    x: Tensor
    dropout_p: float = 0.0
    need_weights: bool = False
    past: dict[str, Tensor] | None = None
    form: Form = Form()  # noqa: RUF009

    @property
    def own_padding(self) -> Tensor | None:
        """Returns which of the queries' own positions are padding: bool, B × T; None if there is no padding mask."""
        padding = self.mask.padding
        return None if padding is None else padding[:, self.k.size(-2) - self.q.size(-2) :]

    def zero_padding(self, values: Tensor) -> Tensor:
        """Returns values at the queries' own positions, B × H × T × anything, with 0 at padding."""
        padding = self.own_padding
        return values if padding is None else values.masked_fill(padding[:, None, :, None], 0.0)

    def with_new_keys(self) -> AttentionInput:
        """Returns the input with only the keys and values at the queries' own positions."""
        new = slice(self.k.size(-2) - self.q.size(-2), None)
        mask = replace(self.mask, padding=self.own_padding)
        return replace(self, k=self.k[..., new, :], v=self.v[..., new, :], mask=mask)


class AttentionMechanism(nn.Module):
    """The interface of all mechanisms: from queries, keys and values to a weighted sum of the values.

    A mechanism knows nothing of caches, beams or fairseq. At its neutral setting it is softmax attention.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    row_sum: ClassVar[str]
    cost: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    sites: ClassVar[tuple[SiteName, ...]] = SITES
    # The option values with which it is softmax attention at the start of training; None if there are none, for the
    # reason in `why_never_neutral`.
    neutral: ClassVar[tuple[tuple[str, Any], ...] | None] = None
    why_never_neutral: ClassVar[str] = "it names no setting at which it is softmax attention"
    # The weight of the skip connection around it in its source; --gpam-skip-weight overrides it.
    default_skip_weight: float = 1.0
    # Whether each layer passes data to the next, so that none may be skipped or run twice.
    needs_every_layer: bool = False
    # Whether it computes something else in another layer, so that a trained model may not lose layers before it.
    depends_on_layer: bool = False
    # Whether a training forward pass changes it, so that none may be repeated (--checkpoint-activations).
    runs_once: bool = False
    # The values of --gpam-position that mean something to it.
    positions: ClassVar[tuple[str, ...]] = ("rotary", "alibi")
    # How many neighbouring heads attend by one map, and so have one slope with --gpam-position alibi.
    heads_of_a_map: ClassVar[int] = 1
    # Whether decoder self-attention caches keys and values; if not, `past` holds all that is needed of them.
    caches_keys: bool = True
    # Whether it has an implementation for --gpam-backend fused.
    has_fused: ClassVar[bool] = True
    # Whose positions among the keys it relies on: `none`, the queries' `own` (the last T), or those of `all` keys.
    key_positions: Literal["none", "own", "all"] = "none"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__()
        if site.name not in self.sites:
            raise ValueError(
                f"mechanism {self.name!r} cannot be used for {site.name} attention "
                f"(--gpam-mechanism or --gpam-{site.name}-mechanism); it is allowed for: {', '.join(self.sites)}"
            )
        if settings.backend == "fused" and not self.has_fused:
            raise ValueError(
                f"--gpam-backend 'fused' is not allowed with mechanism {self.name!r}, which has no fused "
                "implementation; allowed: auto, reference"
            )
        self.site = site
        self.backend: str = settings.backend

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        """Returns the output, B × H × T × D, and the weights before dropout, B × H × T × S.

        The weights are None unless `inputs.need_weights`.
        """
        raise NotImplementedError

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        """Post-processes the weighted sum, B × H × T × D, for example by a norm; returns it unchanged by default."""
        return output

    def after_projection(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        """Post-processes the result of the output projection, T × B × C; returns it unchanged by default."""
        return output

    def distinct_heads(self) -> list[int]:
        """Returns the first head of each map of weights: all heads, unless some share a map."""
        return list(range(self.site.num_heads))

    def refuse_appended_keys(self) -> None:
        """Raises ValueError if keys that belong to no token (add_bias_kv, add_zero_attn) would be taken for tokens."""
        for part in self.modules():
            if isinstance(part, AttentionMechanism):
                only_sums = not part.caches_keys and self.site.name == "decoder"
                if part.key_positions != "none" or only_sums:
                    raise ValueError(
                        f"add_bias_kv=True and add_zero_attn=True are not allowed with --gpam-mechanism {part.name}, "
                        "which would take the keys that they append for tokens; allowed: both False"
                    )

    def refuse_source_keys(self) -> None:
        """Raises ValueError if the source's tokens before the decoder's own (--cross-self-attention) disturb it."""
        for part in self.modules():
            if isinstance(part, AttentionMechanism) and part.key_positions == "all":
                raise ValueError(
                    f"--cross-self-attention is not allowed with --gpam-decoder-mechanism {part.name}, which relies "
                    "on the positions of all keys; allowed: without it, or another --gpam-decoder-mechanism"
                )

    def extra_repr(self) -> str:
        return f"{self.name}, {self.site}"


REGISTRY: dict[str, type[AttentionMechanism]] = {}
_registration_listeners: list[Callable[[], None]] = []


def register_mechanism(cls: type[AttentionMechanism]) -> type[AttentionMechanism]:
    """Registers a mechanism under its name; registering the same class again is harmless.

    Raises ValueError if another class already has that name.
    """
    known = REGISTRY.setdefault(cls.name, cls)
    if known is not cls:
        raise ValueError(f"two mechanisms are named {cls.name!r}: {known} and {cls}")
    for listener in _registration_listeners:
        listener()
    return cls


def on_registration(listener: Callable[[], None]) -> None:
    """Calls `listener` after every later registration, so that copies of the registry's options can be updated."""
    _registration_listeners.append(listener)


def neutral_settings(mechanism: type[AttentionMechanism], settings: Settings) -> Settings:
    """Returns `settings` with the options of `mechanism` at its neutral setting.

    Raises ValueError if it has none, or if an option is set to neither its neutral value nor its default.
    """
    if mechanism.neutral is None:
        able = ", ".join(name for name, each in sorted(REGISTRY.items()) if each.neutral is not None)
        raise ValueError(
            f"--gpam-warm-start is not allowed with --gpam-mechanism {mechanism.name!r}: "
            f"{mechanism.why_never_neutral}; "
            f"allowed with: {able}"
        )
    options = {option.name: option for option in mechanism.options}
    for name, value in mechanism.neutral:
        if settings[name] not in (value, options[name].default):
            raise ValueError(
                f"{options[name].flag} {settings[name]!r} is not allowed with --gpam-warm-start and mechanism "
                f"{mechanism.name!r}; allowed: {value!r}"
            )
    return Settings({**settings, **dict(mechanism.neutral)})


def describe_neutral(mechanism: type[AttentionMechanism]) -> str:
    """Returns the flags of the neutral setting, or the reason why there is none."""
    if mechanism.neutral is None:
        return f"none: {mechanism.why_never_neutral}"
    options = {option.name: option for option in mechanism.options}
    words: list[str] = []
    for name, value in mechanism.neutral:
        if value != options[name].default:
            words.append(options[name].flag)
            if value is not True:
                words.append(f"{value:g}" if isinstance(value, float) else str(value))
    if mechanism.default_skip_weight != 1:
        words.append("--gpam-skip-weight 1")
    return " ".join(words) or "as it starts"


def refuse_options(settings: Settings, companion: str, refusals: tuple[tuple[str, object, str], ...]) -> None:
    """Raises ValueError for the first option whose value is not the one allowed together with `companion`.

    `refusals` holds, for each option, its name, the only value allowed, and what is allowed in words.
    """
    for name, value, allowed in refusals:
        if settings[name] != value:
            flag = "--gpam-" + name.replace("_", "-")
            given = flag if settings[name] is True else f"{flag} {settings[name]!r}"
            raise ValueError(f"{given} is not allowed with {companion}; allowed: {allowed}")


def softmax(scores: Tensor) -> Tensor:
    """Returns the softmax over the keys, computed in fp32 for half precision; same shape and dtype as `scores`."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).type_as(scores)


def apply_weights(weights: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    """Returns dropout(P) v. Shapes: P B × H × T × S; v B × H × S × D; result B × H × T × D."""
    return torch.matmul(F.dropout(weights, dropout_p) if dropout_p > 0 else weights, v)


def may_be_bypassed(module: nn.Module, x: Tensor) -> bool:
    """Returns whether a custom autograd function may replace the call `module(x)`.

    It may not if the module has hooks (such as quantisation noise), nor under the compiler or autocast, nor on a GPU,
    where nothing would be gained.
    """
    if torch.compiler.is_compiling() or x.is_cuda or torch.is_autocast_enabled(x.device.type):
        return False
    return not any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    )
