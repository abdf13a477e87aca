"""Compressed attention: a strided convolution shortens the keys and values (Multiformer's ConvAttention)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.affine import AffineTerms, affine_attention
from fairseq_gpam.attention.core.base import (
    AttentionInput,
    AttentionMechanism,
    Option,
    Settings,
    Site,
    register_mechanism,
)
from fairseq_gpam.attention.core.layers import NUMBER, value_of_layer
from fairseq_gpam.attention.core.masks import AttentionMask


def compressed_lengths(lengths: Tensor, kernel: int, stride: int) -> Tensor:
    """Returns how many windows a sentence of length n has: ⌊(n + 2⌊s/2⌋ − k)/s⌋ + 1, but at least 1; 0 if n is 0."""
    windows = (lengths + 2 * (stride // 2) - kernel).div(stride, rounding_mode="floor") + 1
    return torch.where(lengths > 0, windows.clamp(min=1), 0)


class Compression(nn.Module):
    """A convolution over the positions of B × H × S × D, shared by all heads: normal, depthwise or separable."""

    def __init__(self, width: int, kernel: int, stride: int, kind: str) -> None:
        super().__init__()
        self.padding = stride // 2
        self.kernel = kernel
        groups = 1 if kind == "normal" else width
        self.convolution = nn.Conv1d(width, width, kernel, stride, groups=groups)
        self.pointwise = nn.Conv1d(width, width, 1) if kind == "separable" else None

    def forward(self, heads: Tensor) -> Tensor:
        """Maps B × H × S × D to B × H × S′ × D; the input is padded with zeros on both sides."""
        bsz, num_heads, length, _ = heads.shape
        behind = max(self.padding, self.kernel - self.padding - length)
        signal = F.pad(heads.flatten(0, 1).transpose(1, 2), (self.padding, behind))
        made = self.convolution(signal)
        if self.pointwise is not None:
            made = self.pointwise(made)
        return made.transpose(1, 2).unflatten(0, (bsz, num_heads))


def _per_layer(name: str, default: str, meaning: str) -> Option:
    def allowed(text: str) -> bool:
        parts = [part.partition("@")[0].strip() for part in text.split(";")]
        return all(NUMBER.fullmatch(part) and int(part) > 0 for part in parts)

    return Option(
        name,
        str,
        default,
        meaning,
        check=allowed,
        allowed="a whole number > 0, or one for each layer as in 5@0-7;7@8-11",
    )


@register_mechanism
class CompressedAttention(AttentionMechanism):
    """Softmax encoder self-attention whose keys and values are convolved with a stride: about T·S/s scores.

    One convolution for keys and one for values serve all heads of the group; they are normal, depthwise (as in all of
    the authors' configurations) or separable, and initialised as nn.Conv1d. A sentence of n tokens has
    ⌊(n + 2⌊s/2⌋ − k)/s⌋ + 1 compressed keys, as in the authors' code. Our choices: there is at least one compressed
    key, and padding is moved behind the tokens and set to zero; in the authors' code it enters the convolution.

    A weight belongs to a window, not to a key, so the weights returned spread a window's weight evenly over its tokens.
    A window contains future tokens, so this mechanism is for encoders only.
    """

    name = "compressed"
    formula = "O = softmax(Q·conv_K(K)ᵀ/√D + M)·conv_V(V), kernel size k, stride s"
    source = "Multiformer, Sant et al. 2022, arXiv 2205.07100; mt-upc/fairseq"
    row_sum = "1"
    cost = "1/s×, and two convolutions"
    positions = ()
    why_never_neutral = "its convolutions are initialised at random"
    sites = ("encoder",)
    key_positions = "all"
    options = (
        _per_layer("compressed_kernel", "5", "the kernel size of the convolutions, in positions"),
        _per_layer("compressed_stride", "2", "the stride of the convolutions, in positions"),
        Option(
            "compressed_convolution",
            str,
            "depthwise",
            "the convolution of keys and values",
            choices=("normal", "depthwise", "separable"),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.kernel, self.stride = (
            int(value_of_layer(option.flag, settings[option.name], site)) for option in self.options[:2]
        )
        if self.stride > self.kernel:
            raise ValueError(
                f"--gpam-compressed-stride {self.stride} is not allowed with --gpam-compressed-kernel {self.kernel}, "
                f"because some positions would be skipped; allowed: at most {self.kernel}"
            )
        kind = settings.compressed_convolution
        self.keys = Compression(site.query_dim, self.kernel, self.stride, kind)
        self.values = Compression(site.head_dim, self.kernel, self.stride, kind)

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        mask, length = inputs.mask, inputs.k.size(-2)
        if mask.causal or mask.bias is not None or mask.hidden is not None or inputs.q.size(-2) != length:
            raise ValueError(
                "--gpam-mechanism compressed is not allowed with an attn_mask, because each of its keys covers several "
                "positions; allowed: encoder self-attention with a key_padding_mask"
            )
        k, v, order = inputs.k, inputs.v, None
        lengths = torch.full((k.size(0),), length, device=k.device)
        if mask.padding is not None:
            # The order of positions that puts the padding last, B × S.
            order = mask.padding.to(torch.uint8).argsort(dim=-1, stable=True)
            lengths = (~mask.padding).sum(dim=-1)
            k, v = (self._aligned(tensor, order, lengths) for tensor in (k, v))
        k, v = self.keys(k), self.values(v)
        windows = compressed_lengths(lengths, self.kernel, self.stride)
        hidden = torch.arange(k.size(-2), device=k.device) >= windows.unsqueeze(-1)
        part = replace(inputs, k=k, v=v, mask=AttentionMask(None if mask.padding is None else hidden))
        output, weights = affine_attention(part, AffineTerms(), self.backend)
        if weights is None:
            return output, None
        return output, self._spread(weights, lengths, order, length)

    @staticmethod
    def _aligned(heads: Tensor, order: Tensor, lengths: Tensor) -> Tensor:
        """Returns B × H × S × D with each sentence's tokens first and zeros after them."""
        moved = heads.gather(2, order[:, None, :, None].expand_as(heads))
        behind = torch.arange(heads.size(2), device=heads.device) >= lengths.unsqueeze(-1)
        return moved.masked_fill(behind[:, None, :, None], 0.0)

    def _spread(self, weights: Tensor, lengths: Tensor, order: Tensor | None, length: int) -> Tensor:
        """Maps weights B × H × T × S′ to B × H × T × S: each window's weight, spread evenly over its tokens."""
        starts = torch.arange(weights.size(-1), device=weights.device) * self.stride - self.stride // 2
        places = torch.arange(length, device=weights.device)
        inside = (places >= starts.unsqueeze(-1)) & (places < starts.unsqueeze(-1) + self.kernel)
        shares = (inside & (places < lengths[:, None, None])).to(weights.dtype)
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp(min=1)
        spread = weights @ shares.unsqueeze(1)
        if order is None:
            return spread
        return torch.zeros_like(spread).scatter(-1, order[:, None, None, :].expand_as(spread), spread)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, k {self.kernel}, s {self.stride}"
