"""Compressed attention."""

import pytest
import torch
import torch.nn.functional as F
from contract import WIDTH, Contract, plain_softmax
from tiny import build, mechanism_of, settings

from fairseq_gpam.attention import AttentionInput, AttentionMask
from fairseq_gpam.modules import attention_modules


def convolved(signal, compression, kind):
    """One head's n × D tokens as windows of k places, s apart, from place −⌊s/2⌋ on."""
    weight, bias = compression.convolution.weight, compression.convolution.bias
    kernel, stride = weight.size(2), compression.convolution.stride[0]
    count = max(1, (len(signal) + 2 * (stride // 2) - kernel) // stride + 1)
    windows = F.pad(signal.T, (stride // 2, kernel)).unfold(1, kernel, stride)[:, :count]
    if kind == "normal":
        made = torch.einsum("cwk,dck->wd", windows, weight) + bias
    else:
        made = torch.einsum("cwk,ck->wc", windows, weight[:, 0]) + bias
    if kind == "separable":
        made = made @ compression.pointwise.weight[:, :, 0].T + compression.pointwise.bias
    return made, [
        [place for place in range(len(signal)) if 0 <= place - window * stride + stride // 2 < kernel]
        for window in range(count)
    ]


class TestCompressed(Contract):
    name = "compressed"
    needs_positions = True
    only_padding = True
    variants = (
        {"compressed_kernel": "2", "compressed_stride": "1"},
        {"compressed_kernel": "3", "compressed_stride": "2", "compressed_convolution": "separable"},
        {"compressed_kernel": "5", "compressed_stride": "3", "compressed_convolution": "normal"},
    )

    def lengths(self):
        return (5,)

    def reference(self, mechanism, q, k, v, x, bias, visible):
        kind = "separable" if mechanism.keys.pointwise is not None else "depthwise"
        kind = "normal" if mechanism.keys.convolution.groups == 1 else kind

        def head(b, h, shown):
            seen, length = torch.nonzero(shown).flatten().tolist(), len(shown)
            spread = torch.zeros(length, length, dtype=q.dtype)
            if not seen:
                return torch.zeros(length, WIDTH, dtype=q.dtype), spread
            keys, places = convolved(k[b, h, seen], mechanism.keys, kind)
            values, _ = convolved(v[b, h, seen], mechanism.values, kind)
            rows = torch.stack([plain_softmax(keys @ q[b, h, i] / WIDTH**0.5) for i in range(length)])
            for window, own in enumerate(places):
                for place in own:
                    spread[:, seen[place]] = spread[:, seen[place]] + rows[:, window] / len(own)
            return rows @ values, spread

        return self.head_by_head(head, visible)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 1), (7, 1), (7, 4)])
def test_a_sentence_shorter_than_the_window_has_one_key(kernel, stride):
    q = torch.randn(1, 2, 2, WIDTH)
    output, weights = mechanism_of("compressed", compressed_kernel=str(kernel), compressed_stride=str(stride))(
        AttentionInput(q, q, q, AttentionMask(), q, 0.0, True)
    )
    torch.testing.assert_close(output[:, :, 0], output[:, :, 1])
    torch.testing.assert_close(weights, torch.full_like(weights, 0.5))


@pytest.mark.parametrize("value", ["0", "5@0-1;x@2", "five", "٣"])
def test_a_kernel_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"--gpam-compressed-kernel .* is not allowed; allowed: a whole number"):
        settings(compressed_kernel=value)


def test_a_published_configuration_is_a_line_of_flags():
    """s2t_multiformer_s in the Multiformer authors' code: kernels, local heads and full heads are chosen by layer."""
    model = build(
        "translation",
        "transformer_gpam",
        *("--encoder-layers", "12", "--encoder-attention-heads", "4", "--gpam-mechanism", "softmax"),
        "--gpam-encoder-mechanism=compressed@0-1;local:2,compressed:2@2-7;softmax:2,compressed:2@8-11",
        *("--gpam-local-window", "31"),
        *("--gpam-compressed-kernel", "5@0-7;7@8-11", "--gpam-compressed-stride", "2@0-7;3@8-11"),
    )
    found = []
    for attention in attention_modules(model.encoder):
        groups = getattr(attention.mechanism, "groups", {"compressed": attention.mechanism})
        heads = groups["compressed"]
        found.append((heads.site.num_heads, heads.kernel, heads.stride, sorted(groups)))
    assert found == (
        [(4, 5, 2, ["compressed"])] * 2
        + [(2, 5, 2, ["compressed", "local"])] * 6
        + [(2, 7, 3, ["compressed", "softmax"])] * 4
    )
