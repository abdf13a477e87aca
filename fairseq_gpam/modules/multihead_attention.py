"""Multi-head attention that replaces fairseq's and computes any mechanism."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from fairseq_gpam.attention import AttentionInput, AttentionMask, AttentionMechanism, FutureMask
from fairseq_gpam.attention.core.families import append_constant_keys
from fairseq_gpam.attention.core.positions import EPSILON, Form, rotation, with_alibi
from fairseq_gpam.modules.projections import project

XFORMERS_REFUSAL = (
    "--encoder-xformers-att-config and --decoder-xformers-att-config are not allowed together with --gpam-mechanism"
)

IncrementalState = dict[str, dict[str, Tensor | None]]
# The prefix of a mechanism's own entries in the cache.
PAST = "past."
WeightsHook = Callable[["GPAMMultiheadAttention", Tensor], None]


class GPAMMultiheadAttention(MultiheadAttention):
    """fairseq's MultiheadAttention with any mechanism; training, scoring and decoding share one code path.

    Parameter names of the stock module are kept; those of the mechanism start with `mechanism.`. Inputs and outputs are
    T × B × C. Keys and values are cached as B × H × S × D, padding as bool B × S.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mechanism: AttentionMechanism,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("xformers_att_config"):
            raise ValueError(XFORMERS_REFUSAL)
        super().__init__(embed_dim, num_heads, q_noise=q_noise, qn_block_size=qn_block_size, **kwargs)
        self._set_mechanism(mechanism, q_noise, qn_block_size)

    def _set_mechanism(self, mechanism: AttentionMechanism, q_noise: float, qn_block_size: int) -> None:
        self.mechanism = mechanism
        self.weights_hooks: OrderedDict[int, WeightsHook] = OrderedDict()
        self.position = "none"
        self.q_norm: nn.RMSNorm | None = None
        self.k_norm: nn.RMSNorm | None = None
        if self.bias_k is not None or self.add_zero_attn:
            mechanism.refuse_appended_keys()
        if mechanism.site.query_dim != self.head_dim:
            self._set_query_width(self.num_heads * mechanism.site.query_dim, q_noise, qn_block_size)
        for module in mechanism.modules():
            # The noise would stay in weights that no optimiser restores.
            if isinstance(module, nn.Linear) and module.weight.requires_grad:
                quant_noise(module, q_noise, qn_block_size)

    def _set_query_width(self, width: int, q_noise: float, qn_block_size: int) -> None:
        """Replaces the query and key projections by ones with `width` channels, initialised as fairseq's are."""
        gain = 1 / math.sqrt(2) if self.qkv_same_dim else 1.0
        for name in ("q_proj", "k_proj"):
            stock = getattr(self, name)
            projection = nn.Linear(stock.in_features, width, bias=stock.bias is not None)
            nn.init.xavier_uniform_(projection.weight, gain=gain)
            setattr(self, name, quant_noise(projection, q_noise, qn_block_size))
        if self.bias_v is not None:
            self.register_parameter("bias_k", nn.Parameter(nn.init.xavier_normal_(self.bias_v.new_empty(1, 1, width))))

    def set_form(self, position: str, qk_norm: bool) -> None:
        """Gives self-attention positions (`rotary` or `alibi`), and any attention a norm of its queries and keys.

        Raises ValueError if a position has no meaning for the mechanism.
        """
        width = self.mechanism.site.query_dim
        if qk_norm:
            self.q_norm, self.k_norm = (nn.RMSNorm(width, eps=EPSILON) for _ in "qk")
        if position == "none" or not self.self_attention:
            return
        self.position = position
        for part in self.mechanism.modules():
            if not isinstance(part, AttentionMechanism):
                continue
            # Among other heads the maps of pairs would need a mask of their own.
            allowed_here = part.positions if part.heads_of_a_map == self.mechanism.heads_of_a_map else ("rotary",)
            if position not in allowed_here:
                allowed = ", ".join(("none", *allowed_here))
                raise ValueError(
                    f"--gpam-position {position!r} is not allowed with --gpam-mechanism {part.name}; allowed: {allowed}"
                )
        if position == "rotary" and width % 2:
            raise ValueError(
                f"--gpam-position 'rotary' is not allowed with {width} channels of a query in a head "
                "(--gpam-query-rank); allowed: an even number"
            )

    def form(self, q: Tensor, padding: Tensor | None, past: dict[str, Tensor] | None) -> Form:
        """Returns the form of queries and keys at the positions of q, B × H × T × D, and counts them in `past`."""
        turn = None
        if self.position == "rotary":
            turn, count = rotation(padding, None if past is None else past.get("tokens"), q)
            if past is not None:
                past["tokens"] = count
        q_norm, k_norm = (None if norm is None else norm.weight for norm in (self.q_norm, self.k_norm))
        return Form(q_norm, k_norm, turn)

    @classmethod
    def from_stock(
        cls, stock: MultiheadAttention, mechanism: AttentionMechanism, q_noise: float = 0.0, qn_block_size: int = 8
    ) -> GPAMMultiheadAttention:
        """Returns an attention module with the projections, dropout and settings of a stock module.

        Draws no random number unless --gpam-query-rank changes the width of the queries.
        """
        if stock.use_xformers:
            raise ValueError(XFORMERS_REFUSAL)
        attention = cls.__new__(cls)
        # nn.Module keeps parameters, submodules and hooks in dictionaries, which the two modules must not share.
        attention.__dict__.update(
            {name: value.copy() if isinstance(value, dict) else value for name, value in vars(stock).items()}
        )
        attention.init_incremental_state()
        attention._set_mechanism(mechanism, q_noise, qn_block_size)
        return attention

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | FutureMask | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from `query` to `key` and `value`; returns the output and, if requested, the weights.

        Shapes: query and output T × B × C, key and value S × B × C; key_padding_mask B × S, True = hidden; attn_mask
        additive T × S. Weights are signed, before dropout, and averaged over the heads, B × T × S; with
        `need_head_weights` they are H × B × T × S.
        """
        if before_softmax:
            raise ValueError("before_softmax=True is not allowed: only softmax has one matrix of scores")
        num_queries, bsz, embed_dim = query.size()
        if embed_dim != self.embed_dim:
            raise ValueError(f"query has {embed_dim} channels, but the attention has {self.embed_dim}")

        saved = self._get_input_buffer(incremental_state) if incremental_state is not None else {}
        past = self._past(saved) if incremental_state is not None and self.self_attention else None
        if static_kv and "prev_key" in saved:
            if not self.encoder_decoder_attention:
                raise ValueError("static_kv=True is only allowed for encoder-decoder attention")
            q = self._split_heads(*project(query, self.q_proj))
            form = self.form(q, None, None)
            q = form.query(q)
            k, v, padding = saved["prev_key"], saved["prev_value"], saved.get("prev_key_padding_mask")
            assert k is not None and v is not None
        else:
            # beam_size stays set after a beam search, so rows are treated as beams of one sentence only in decoding.
            decoding = incremental_state is not None
            q, k, v, padding = self._project(query, key, value, key_padding_mask, bsz, decoding)
            form = self.form(q, padding, past)
            q, k = form.query(q), form.key(k)
            if "prev_key" in saved:
                k, v, padding = self._append_to_cache(saved, k, v, padding)
        buffer: dict[str, Tensor | None] = {}
        if incremental_state is not None:
            if past is None or self.mechanism.caches_keys:
                buffer.update({"prev_key": k, "prev_value": v, "prev_key_padding_mask": padding})
            self._set_input_buffer(incremental_state, buffer)

        mask = self.with_positions(AttentionMask.from_fairseq(padding, attn_mask), q, k)
        k, v, mask = append_constant_keys(k, v, mask, num_queries, (self.bias_k, self.bias_v), self.add_zero_attn)

        # Beams of one sentence share the encoder's keys and are treated as further queries to them.
        x = query.transpose(0, 1)
        beams = bsz // k.size(0)
        if beams > 1:
            if attn_mask is not None:
                raise ValueError("attn_mask is not allowed if beams share their keys")
            q = self._fold_beams(q, beams)
            x = x.reshape(k.size(0), beams * num_queries, embed_dim)

        need_weights = need_weights or need_head_weights
        wants_weights = need_weights or bool(self.weights_hooks)
        is_dropping = self.training or self.dropout_module.apply_during_inference
        dropout_p = self.dropout_module.p if is_dropping else 0.0
        inputs = AttentionInput(q, k, v, mask, x, dropout_p, wants_weights, past, form)
        heads, weights = self.mechanism(inputs)
        if beams > 1:
            heads = self._unfold_beams(heads, beams)
            weights = None if weights is None else self._unfold_beams(weights, beams)
        for hook in list(self.weights_hooks.values()):
            assert weights is not None
            hook(self, weights)
        (output,) = project(heads.permute(2, 0, 1, 3).reshape(num_queries, bsz, self.embed_dim), self.out_proj)
        output = self.mechanism.after_projection(output, inputs)
        if past is not None:
            buffer.update({PAST + name: tensor for name, tensor in past.items()})
        if not need_weights or weights is None:
            return output, None
        return output, weights.transpose(0, 1) if need_head_weights else weights.mean(dim=1)

    def with_positions(self, mask: AttentionMask, q: Tensor, k: Tensor) -> AttentionMask:
        """Returns the mask with the bias of `--gpam-position alibi`; the queries are the last tokens among the keys."""
        if self.position != "alibi":
            return mask
        return with_alibi(mask, q, k.size(2), q.size(1) // self.mechanism.heads_of_a_map)

    def _split_heads(self, projected: Tensor) -> Tensor:
        length, bsz, _ = projected.shape
        return projected.view(length, bsz, self.num_heads, -1).permute(1, 2, 0, 3)

    @staticmethod
    def _fold_beams(heads: Tensor, beams: int) -> Tensor:
        rows, num_heads, length, width = heads.shape
        folded = heads.view(rows // beams, beams, num_heads, length, width).transpose(1, 2)
        return folded.reshape(rows // beams, num_heads, beams * length, width)

    @staticmethod
    def _unfold_beams(heads: Tensor, beams: int) -> Tensor:
        rows, num_heads, length, width = heads.shape
        unfolded = heads.reshape(rows, num_heads, beams, length // beams, width).transpose(1, 2)
        return unfolded.reshape(rows * beams, num_heads, length // beams, width)

    def _project(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, padding: Tensor | None, bsz: int, decoding: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if self.self_attention:
            key = value = query
        elif self.encoder_decoder_attention:
            value = key
        if key is None or value is None:
            raise ValueError("key and value are required, because none are cached")
        padding = padding.bool() if padding is not None and padding.dim() > 0 else None
        if decoding and self.encoder_decoder_attention and self.beam_size > 1 and bsz == key.size(1):
            key = value = key[:, :: self.beam_size]
            padding = None if padding is None else padding[:: self.beam_size]
        if key is query and value is query:
            projected = project(query, self.q_proj, self.k_proj, self.v_proj)
        elif value is key:
            projected = (*project(query, self.q_proj), *project(key, self.k_proj, self.v_proj))
        else:
            projected = (*project(query, self.q_proj), *project(key, self.k_proj), *project(value, self.v_proj))
        q, k, v = (self._split_heads(each) for each in projected)
        return q, k, v, padding

    @staticmethod
    def _append_to_cache(
        saved: dict[str, Tensor | None], k: Tensor, v: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        prev_k, prev_v, prev_padding = saved["prev_key"], saved["prev_value"], saved.get("prev_key_padding_mask")
        order = saved.get("beam_order")
        assert prev_k is not None and prev_v is not None
        if prev_padding is not None or padding is not None:
            parts = [_no_padding(prev_k) if prev_padding is None else prev_padding.bool()]
            if order is not None:
                parts[0] = parts[0].index_select(0, order)
            parts.append(_no_padding(k) if padding is None else padding)
            padding = torch.cat(parts, dim=1)
        return _reordered_with(prev_k, order, k), _reordered_with(prev_v, order, v), padding

    @staticmethod
    def _past(saved: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """Returns what the mechanism stored at the last step, reordered to the surviving beams."""
        order = saved.get("beam_order")
        return {
            name.removeprefix(PAST): tensor if order is None else tensor.index_select(0, order)
            for name, tensor in saved.items()
            if name.startswith(PAST) and tensor is not None
        }

    def reorder_incremental_state(
        self, incremental_state: IncrementalState | None, new_order: Tensor
    ) -> IncrementalState | None:
        """Reorders the cache to the surviving beams.

        Self-attention stores the order and applies it when the next key is appended, so that the cache is copied once
        instead of twice.
        """
        if self.encoder_decoder_attention:
            return super().reorder_incremental_state(incremental_state, new_order)
        saved = self._get_input_buffer(incremental_state)
        if saved:
            pending = saved.get("beam_order")
            saved["beam_order"] = new_order if pending is None else pending.index_select(0, new_order)
        return incremental_state

    def _get_reserve_head_index(self, num_heads_to_keep: int) -> list[tuple[int, int]]:
        raise ValueError(
            f"attention heads cannot be pruned: mechanism {self.mechanism.name!r} (--gpam-mechanism) was built for "
            f"{self.num_heads} heads"
        )

    def _adaptive_prune_heads(self, reserve_head_index: list[tuple[int, int]]) -> None:
        self._get_reserve_head_index(len(reserve_head_index))

    def _check_query_width(self, weight: Tensor | None) -> None:
        """Raises ValueError if the width of a checkpoint's queries differs from the model's."""
        if weight is not None and weight.size(0) != self.q_proj.out_features:
            rank = self.mechanism.site.query_dim
            raise ValueError(
                f"--gpam-query-rank {rank} is not allowed with this checkpoint, whose queries have "
                f"{weight.size(0)} channels in {self.num_heads} heads; allowed: {weight.size(0) // self.num_heads}"
            )

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Adds the mechanism's initial parameters to a stock checkpoint, so that it can be loaded."""
        super().upgrade_state_dict_named(state_dict, name)
        own = f"{name}." if name else ""
        prefix = f"{own}mechanism."
        self._check_query_width(state_dict.get(f"{own}q_proj.weight"))
        for norm, module in (("q_norm", self.q_norm), ("k_norm", self.k_norm)):
            if module is not None:
                state_dict.setdefault(f"{own}{norm}.weight", module.weight.detach())
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update({prefix + key: value for key, value in self.mechanism.state_dict().items()})


def _reordered_with(cached: Tensor, order: Tensor | None, new: Tensor) -> Tensor:
    """Returns `cached` (B × H × S × D) with its batch in `order` and `new` (B′ × H × n × D) appended to the keys."""
    if order is None or torch.is_grad_enabled():
        return torch.cat([cached if order is None else cached.index_select(0, order), new], dim=2)
    rows, heads, count, width = new.shape
    joined = cached.new_empty(rows, heads, cached.size(2) + count, width)
    torch.index_select(cached, 0, order, out=joined[:, :, : cached.size(2)])
    joined[:, :, cached.size(2) :] = new
    return joined


def _no_padding(keys: Tensor) -> Tensor:
    return torch.zeros(keys.size(0), keys.size(2), dtype=torch.bool, device=keys.device)
