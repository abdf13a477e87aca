"""Linear attention, as a matrix and as sums, and the memory of its decoding."""

import pytest
import torch
from contract import HEADS, Contract, row_by_row, settings
from learning import build_model

from fairseq_gpam.attention import AttentionInput, AttentionMask, Site, build_mechanism


def features(vectors):
    return torch.where(vectors > 0, vectors + 1, torch.exp(vectors))


def state_bytes(state):
    """The bytes that an incremental state holds."""
    tensors = [tensor for buffer in state.values() for tensor in buffer.values() if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def decoding_bytes(attention, steps, width):
    """The bytes of the incremental state after each step."""
    state, sizes = {}, []
    for _ in range(steps):
        x = torch.randn(1, 3, width)
        attention(x, x, x, incremental_state=state, need_weights=False)
        sizes.append(state_bytes(state))
    return sizes


class TestLinear(Contract):
    name = "linear"

    def attend(self, attention, x, padding, **arguments):
        return super().attend(attention, x, padding, need_weights=False, **arguments)

    def weights(self, mechanism, q, k, x, bias, visible):
        def weigh(b, h, i, seen):
            row = features(k[b, h, seen]) @ features(q[b, h, i]) * torch.exp(bias[b, h, i, seen])
            return row / row.sum()

        return row_by_row(visible, weigh)


@pytest.mark.parametrize("keys", [63, 64, 130])
@pytest.mark.parametrize("causal", [False, True])
def test_the_sums_are_the_matrix_at_odd_lengths(keys, causal):
    mechanism = build_mechanism("linear", Site("decoder", 0, 1, 6, HEADS, 3), settings())
    q, k, v = torch.randn(3, 2, HEADS, keys, 3, dtype=torch.float64)
    padding = torch.zeros(2, keys, dtype=torch.bool)
    padding[0, :5] = padding[1, -7:] = True
    for queries in (keys, keys - 20):
        inputs = AttentionInput(q[:, :, -queries:], k, v, AttentionMask(padding, causal), torch.zeros(2, queries, 6))
        output, _ = mechanism(inputs)
        weights = mechanism.weights(inputs)
        torch.testing.assert_close(output, weights @ v, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "gated_linear"])
def test_the_decoding_state_does_not_grow(name):
    model = build_model("language_modeling", name).eval()
    attention = model.decoder.layers[0].self_attn
    sizes = decoding_bytes(attention, 40, 16)
    assert len(set(sizes)) == 1
    # B sentences, H heads, D × (D+1) or D × D numbers of fp32.
    assert sizes[0] == 3 * 2 * 8 * (9 if name == "linear" else 8) * 4


def test_the_state_of_softmax_attention_grows():
    attention = build_model("language_modeling", "softmax").eval().decoder.layers[0].self_attn
    sizes = decoding_bytes(attention, 4, 16)
    assert [size // sizes[0] for size in sizes] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["linear", "gated_linear", "forgetting", "selective", "dint", "linear:1,softmax:1"])
def test_beams_are_reordered(name):
    attention = build_model("language_modeling", "softmax", decoder_mechanism=name).double().eval()
    attention = attention.decoder.layers[0].self_attn
    x = torch.randn(3, 4, 16, dtype=torch.float64)
    order = torch.tensor([2, 2, 0, 1])
    chosen = torch.cat([x[:2, order], x[2:]])
    expected, reordered = {}, {}
    for i in range(3):
        wanted, _ = attention(*[chosen[i : i + 1]] * 3, incremental_state=expected, need_weights=False)
        if i == 2:
            attention.reorder_incremental_state(reordered, torch.tensor([2, 1, 0, 3]))
            attention.reorder_incremental_state(reordered, torch.tensor([0, 0, 2, 1]))
        step = x[i : i + 1]
        result, _ = attention(step, step, step, incremental_state=reordered, need_weights=False)
    torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("name", ["linear", "gated_linear"])
def test_weights_are_refused_where_no_key_is_kept(name):
    attention = build_model("language_modeling", name).eval().decoder.layers[0].self_attn
    x = torch.randn(1, 2, 16)
    with pytest.raises(ValueError, match=f"--gpam-mechanism {name} decodes.*allowed: a full forward pass"):
        attention(x, x, x, incremental_state={}, need_weights=True)


@pytest.mark.parametrize("name", ["linear", "gated_linear"])
def test_sums_over_many_keys_do_not_overflow_in_fp16(name):
    site = Site("decoder", 0, 1, 8, 1, 8)
    mechanism = build_mechanism(name, site, settings()).eval()
    q = torch.full((1, 1, 2000, 8), 3.0)
    inputs = AttentionInput(q, q, torch.randn(1, 1, 2000, 8), AttentionMask(causal=True), torch.randn(1, 2000, 8))
    expected, _ = mechanism(inputs)
    with torch.autocast("cpu", dtype=torch.float16):
        found, _ = mechanism(inputs)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
