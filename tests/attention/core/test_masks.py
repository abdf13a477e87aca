"""Every kind of fairseq's masks becomes an AttentionMask."""

import copy
import itertools
import pickle

import pytest
import torch
from masks import make_masks
from reference import visibility

from fairseq_gpam.attention import FUTURE, AttentionMask

BATCH, QUERIES, KEYS = 2, 5, 5
FAIRSEQS_FUTURE = torch.full((QUERIES, KEYS), float("-inf")).triu(1)
PADDING = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]])


def read(mask, heads=1):
    """What `mask` does to scores of zero: −inf where a key is hidden; and which rows have a visible key."""
    like = torch.zeros(BATCH, heads, QUERIES, KEYS)
    bias, fully_masked = mask.for_scores(QUERIES, KEYS, like)
    scores = like if bias is None else like + bias
    rows = torch.ones(BATCH, heads, QUERIES, 1, dtype=torch.bool) if fully_masked is None else ~fully_masked
    return scores, rows.expand(BATCH, heads, QUERIES, 1)


def assert_hides(mask, visible):
    hidden = mask.hidden_keys(QUERIES, KEYS, torch.device("cpu"))
    hidden = torch.zeros(1, dtype=torch.bool) if hidden is None else hidden
    assert torch.equal(~hidden.expand(BATCH, 1, QUERIES, KEYS), visible.expand(BATCH, 1, QUERIES, KEYS))
    scores, rows = read(mask)
    sees = visible.expand(BATCH, 1, QUERIES, KEYS).any(-1, keepdim=True)
    assert torch.equal(rows, sees)
    assert torch.equal((scores > float("-inf")) & rows, visible & sees)
    assert torch.isfinite(torch.softmax(scores, -1)).all()


PATTERN = (torch.arange(QUERIES * KEYS).view(QUERIES, KEYS) % 3 == 1).index_fill(0, torch.tensor([2]), True)
LOW = [(float("-inf"), "float16"), (-1e4, "float16"), (-1e8, "float32"), (-1e8, "bfloat16"), (-1e4, "bfloat16")]
HIDING = {
    **{
        f"padding {dtype}": (PADDING.to(dtype), None) for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32)
    },
    **{f"future {kind}": (None, mask) for kind, mask in (("stand-in", FUTURE), ("tensor", FAIRSEQS_FUTURE))},
    **{f"padded future {kind}": (PADDING, mask) for kind, mask in (("stand-in", FUTURE), ("tensor", FAIRSEQS_FUTURE))},
    **{f"{low} {dtype}": (None, torch.where(PATTERN, low, 0.0).to(getattr(torch, dtype))) for low, dtype in LOW},
    **{f"pattern {dtype}": (None, PATTERN.to(dtype)) for dtype in (torch.bool, torch.uint8)},
}


@pytest.mark.parametrize("kind", HIDING)
def test_every_kind_of_mask_hides_its_keys(kind):
    padding, attn_mask = HIDING[kind]
    is_future = attn_mask is FUTURE or attn_mask is FAIRSEQS_FUTURE
    visible, _ = visibility(BATCH, QUERIES, KEYS, padding, causal=is_future)
    if attn_mask is not None and not is_future:
        visible = ~PATTERN.expand(BATCH, 1, QUERIES, KEYS)
    assert_hides(AttentionMask.from_fairseq(padding, attn_mask), visible)


def test_finite_numbers_are_added_beside_padding_and_hidden_keys():
    additive = torch.randn(QUERIES, KEYS).masked_fill(torch.eye(QUERIES, dtype=torch.bool), float("-inf"))
    scores, rows = read(AttentionMask.from_fairseq(PADDING, additive))
    visible, added = visibility(BATCH, QUERIES, KEYS, padding=PADDING, additive=additive)
    expected = torch.where(visible, added.float(), float("-inf"))
    assert torch.equal(scores[rows.expand_as(scores)], expected[rows.expand_as(scores)])


@pytest.mark.parametrize("heads", [1, 3])
def test_a_mask_for_each_sentence_and_head_is_kept_apart(heads):
    additive = torch.randn(BATCH, heads, QUERIES, KEYS)
    scores, _ = read(AttentionMask.from_fairseq(None, additive), heads)
    assert torch.allclose(scores, additive)


def test_a_mask_of_three_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 5, 5\).*allowed"):
        AttentionMask.from_fairseq(None, torch.zeros(2, 5, 5))


def test_no_mask_is_empty_and_a_padding_of_nothing_hides_nothing():
    assert AttentionMask.from_fairseq().is_empty
    assert AttentionMask.from_fairseq(torch.tensor(False)).is_empty
    assert_hides(AttentionMask.from_fairseq(torch.zeros(BATCH, KEYS)), torch.ones(BATCH, 1, QUERIES, KEYS).bool())


def test_the_last_queries_of_a_longer_sequence_see_their_past():
    hidden = AttentionMask.from_fairseq(None, FUTURE).hidden_keys(2, 5, torch.device("cpu"))
    assert torch.equal(hidden, torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool())
    assert AttentionMask.from_fairseq(None, FUTURE).hidden_keys(1, 5, torch.device("cpu")) is None


def test_a_hidden_key_hides_nothing_else():
    """A row without a visible key is reported, its neighbours are not touched."""
    everything = torch.ones(BATCH, KEYS)
    everything[1] = 0
    _, rows = read(AttentionMask.from_fairseq(everything))
    assert not rows[0].any() and rows[1].all()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("attn_mask", [None, FUTURE, FAIRSEQS_FUTURE], ids=["none", "FUTURE", "tensor"])
def test_appended_keys_are_visible_to_every_query(count, attn_mask):
    mask = AttentionMask.from_fairseq(PADDING, attn_mask)
    extended = mask.expanded(QUERIES, KEYS, torch.device("cpu")).extended(count)
    hidden = extended.hidden_keys(QUERIES, KEYS + count, torch.device("cpu")).expand(BATCH, 1, QUERIES, KEYS + count)
    visible, _ = visibility(BATCH, QUERIES, KEYS, padding=PADDING, causal=attn_mask is not None)
    assert torch.equal(~hidden[..., :KEYS], visible)
    assert not hidden[..., KEYS:].any()


def test_future_is_one_object_that_survives_copies():
    for again in (copy.deepcopy(FUTURE), copy.copy(FUTURE), pickle.loads(pickle.dumps(FUTURE))):
        assert again is FUTURE


def test_padding_that_all_sentences_share_stays_shared():
    mask = AttentionMask(torch.tensor([[False, True]]))
    assert torch.equal(mask.sentences(3, 5).padding, mask.padding)


def test_a_causal_mask_without_its_size_is_not_extended():
    with pytest.raises(ValueError, match="cannot be extended before it is expanded"):
        AttentionMask(causal=True).extended(1)
    assert repr(FUTURE) == "FUTURE"


SEEN = ["none", "right", "left", "a sentence of padding", "causal", "causal, left", "boolean", "boolean, right"]


@pytest.mark.parametrize("kind", SEEN)
def test_padded_queries_have_no_visible_keys(kind):
    masks = make_masks(kind, BATCH, QUERIES, KEYS)
    tokens = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)
    seen = masks.mask.visible_to(tokens, KEYS)
    expected = masks.visible.expand(BATCH, 1, QUERIES, KEYS) & tokens[:, None, :, None]
    assert torch.equal(seen.expand_as(expected), expected)


@pytest.mark.parametrize(
    ("kind", "queries"), [*((kind, QUERIES) for kind in SEEN), ("causal", 1), ("causal, left", 1), ("right", 1)]
)
def test_the_mean_of_visible_values_is_that_of_each_row_alone(kind, queries):
    masks = make_masks(kind, BATCH, QUERIES, KEYS)
    v = torch.randn(BATCH, 3, KEYS, 2, dtype=torch.float64)
    means = masks.mask.visible_mean(v, queries).expand(BATCH, 3, queries, 2)
    visible = masks.visible.expand(BATCH, 3, QUERIES, KEYS)[:, :, QUERIES - queries :]
    for place in itertools.product(range(BATCH), range(3), range(queries)):
        values = v[place[0], place[1], visible[place]]
        expected = values.mean(0) if len(values) else torch.zeros(2, dtype=v.dtype)
        torch.testing.assert_close(means[place], expected)


PARTS = (3, 4, 4, 6)


def check_parts(mask, visible, added):
    """Every range of sentences, heads and queries is hidden and biased as the whole is there."""
    batch, heads, queries, keys = PARTS
    visible, added = visible.expand(PARTS), torch.as_tensor(added, dtype=torch.float64).expand(PARTS)
    ranges = [list(itertools.combinations(range(size + 1), 2)) for size in (batch, heads, queries)]
    for (b0, b1), (h0, h1), (t0, t1) in itertools.product(*ranges):
        part = mask.sentences(b0, b1).heads(h0, h1).rows(t0, t1, queries, keys)
        here = (slice(b0, b1), slice(h0, h1), slice(t0, t1))
        seen = keys - queries + t1 if mask.causal else keys
        assert not visible[here][..., seen:].any()
        expected = visible[here][..., :seen]
        hidden = part.hidden_keys(t1 - t0, seen, torch.device("cpu"))
        found = torch.tensor(True) if hidden is None else ~hidden
        assert torch.equal(found.expand(expected.shape), expected)
        bias = torch.zeros(()) if part.bias is None else part.bias
        assert torch.equal(bias.double().expand(expected.shape), added[here][..., :seen])


@pytest.mark.parametrize("kind", ["none", "right", "causal", "causal, left", "boolean, right", "bias, scattered, left"])
def test_a_part_of_a_mask_is_the_mask_of_the_part(kind):
    batch, heads, queries, keys = PARTS
    masks = make_masks(kind, batch, queries, keys, heads)
    check_parts(masks.mask, masks.visible, masks.added)


@pytest.mark.parametrize("shape", itertools.product(*((1, size) for size in PARTS)))
def test_a_dimension_that_a_mask_shares_stays_shared_in_its_parts(shape):
    batch, _, queries, keys = PARTS
    additive = torch.randn(shape)
    additive = additive.masked_fill(additive < -0.5, float("-inf"))
    padding = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    visible, added = visibility(batch, queries, keys, padding, additive)
    check_parts(AttentionMask.from_fairseq(padding, additive), visible, added)
