"""Properties of every mechanism in an attention layer, on inputs that hypothesis makes up.

50 examples of each property; GPAM_PROPERTY_EXAMPLES asks for another number.
"""

import copy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick import EXAMPLES
from tiny import attention

from fairseq_gpam.attention import FUTURE, REGISTRY
from fairseq_gpam.attention.core.base import AttentionMechanism

examples = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
PLACES = [(name, site) for name in sorted(REGISTRY) for site in REGISTRY[name].sites]
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-6}


@st.composite
def cases(draw, sites=("encoder", "decoder", "cross"), dtypes=tuple(TOLERANCE)):
    """A layer, its inputs T × B × C (queries) and S × B × C (keys), its padding B × S or None, and its other mask.

    The layer has one mechanism, or two that share its heads. The other mask is the future's in the decoder, elsewhere
    None or a matrix T × S, added to the scores, that hides some keys; compressed attention refuses one.
    """
    mechanism, site = draw(st.sampled_from([place for place in PLACES if place[1] in sites]))
    heads, width = draw(st.sampled_from([2, 4])), draw(st.sampled_from([2, 4, 6]))
    queries, batch = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    keys = draw(st.integers(1, 7)) if site == "cross" else queries
    dtype = draw(st.sampled_from(dtypes))
    if heads == 4 and draw(st.booleans()):
        others = [name for name, place in PLACES if place == site and name != mechanism]
        mechanism = f"{mechanism}:2,{draw(st.sampled_from(others))}:2"
    torch.manual_seed(draw(st.integers(0, 2**31)))
    allowed = {"cog_everywhere": True, "integral_signals": 2}  # needed with two layers and narrow heads
    layer = attention(site, heads * width, heads, mechanism=mechanism, **allowed).to(dtype).eval()
    query = torch.randn(queries, batch, heads * width, dtype=dtype)
    key = torch.randn(keys, batch, heads * width, dtype=dtype) if site == "cross" else query
    padding = None
    if draw(st.booleans()):
        lengths = torch.tensor(draw(st.lists(st.integers(0, keys), min_size=batch, max_size=batch)))
        padding = torch.arange(keys) >= lengths.unsqueeze(1)
        if draw(st.booleans()):
            padding = padding.flip(1)
    added = FUTURE if site == "decoder" else None
    if site != "decoder" and "compressed" not in mechanism and draw(st.booleans()):
        added = torch.randn(queries, keys, dtype=dtype)
        added = added.masked_fill(torch.rand(queries, keys) < 0.3, draw(st.sampled_from([-1e4, float("-inf")])))
    return layer, query, key, padding, added


def with_backend(layer, backend):
    layer = copy.deepcopy(layer)
    for module in layer.modules():
        if isinstance(module, AttentionMechanism):
            module.backend = backend
    return layer


def run(layer, query, key, padding, added):
    output, _ = layer(query, key, key, key_padding_mask=padding, attn_mask=added, need_weights=False)
    return output


def rows_that_count(query, key, padding):
    """B × T: the queries whose results mean something. Where queries are keys, padding is not a query."""
    rows = torch.ones(query.size(1), query.size(0), dtype=torch.bool)
    return ~padding if padding is not None and key is query else rows


def close(found, expected):
    if not expected.numel():
        return True
    return bool((found - expected).abs().max() <= TOLERANCE[found.dtype] * max(1.0, float(expected.abs().max())))


@examples
@given(cases(dtypes=(torch.float16, torch.bfloat16, *TOLERANCE)))
def test_outputs_and_gradients_are_finite_whatever_is_masked(case):
    layer, query, key, padding, added = case
    output = run(layer, query.requires_grad_(), key, padding, added)
    assert torch.isfinite(output).all()
    output.float().pow(2).mean().backward()
    assert torch.isfinite(query.grad).all()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@examples
@given(cases(), st.sampled_from(["auto", "fused"]))
def test_backends_agree_in_outputs_and_gradients(case, backend):
    layer, query, key, padding, added = case
    counted = rows_that_count(query, key, padding).t()
    direction = torch.randn_like(query)
    results = []
    for each in ("reference", backend):
        one = with_backend(layer, each)
        inputs = query.clone().requires_grad_()
        output = run(one, inputs, inputs if key is query else key, padding, added)
        (output * direction)[counted].sum().backward()
        results.append([output[counted], inputs.grad, *(p.grad for p in one.parameters())])
    (reference_output, *reference), (output, *gradients) = results
    assert close(output, reference_output)
    for expected, found in zip(reference, gradients, strict=True):
        assert (expected is None) == (found is None)
        assert expected is None or close(found, expected)


@examples
@given(cases())
def test_masked_keys_are_as_good_as_removed_and_batch_mates_do_not_matter(case):
    layer, query, key, padding, added = case
    whole = run(layer, query, key, padding, added)
    for row in range(query.size(1)):
        visible = torch.ones(key.size(0), dtype=torch.bool) if padding is None else ~padding[row]
        if not visible.any():
            continue
        keys = key[visible, row : row + 1]
        queries = keys if key is query else query[:, row : row + 1]
        own = added
        if torch.is_tensor(added):
            own = added[:, visible]
            own = own[visible] if key is query else own
        alone = run(layer, queries, keys, None, own)
        assert close(whole[visible, row] if key is query else whole[:, row], alone[:, 0])


@examples
@given(cases(sites=("decoder",)), st.data())
def test_step_by_step_with_reordered_beams_is_the_full_forward(case, data):
    layer, query, _, _, added = case
    steps, batch, _ = query.shape
    state, history, found = {}, query[:0], []
    for step in range(steps):
        if step and data.draw(st.booleans()):
            order = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=batch, max_size=batch)))
            layer.reorder_incremental_state(state, order)
            history = history[:, order]
        history = torch.cat([history, query[step : step + 1]])
        new = history[-1:]
        with torch.no_grad():
            output, _ = layer(new, new, new, incremental_state=state, need_weights=False)
        full = run(layer, history, history, None, added)
        assert close(output[0], full[-1].detach())
        found.append(output)
    assert len(found) == steps
