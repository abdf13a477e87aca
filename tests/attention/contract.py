"""The contract of every mechanism: tests that its test file inherits, and to which it adds a plain reference.

Shapes: B batch, H heads, T queries, S keys, D head dimension, C = H·D.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from learning import build_model, check_stepwise, train
from masks import make_masks
from quick import first
from reference import assert_same
from tiny import settings

from fairseq_gpam.attention import FUTURE, REGISTRY, AttentionInput, AttentionMask, Site, build_mechanism
from fairseq_gpam.attention.core import families
from fairseq_gpam.modules import GPAMMultiheadAttention

BATCH, HEADS, LENGTH, WIDTH = 3, 2, 5, 3
CROSS_QUERIES = 3

PADDING = {
    "right": [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]],
    "left": [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]],
    "a sentence of padding": [[0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]],
}
MASKS = (
    *("nothing", "right", "left", "a sentence of padding", "causal", "causal, right", "causal, left"),
    *("causal, a sentence of padding", "bias", "bias for each head", "bias, hiding, right", "boolean"),
)


def masks(kind, queries, keys=LENGTH, heads=HEADS, batch=BATCH):
    """The mask for the code under test, and for the reference a bias and what is visible: B × H × T × S."""
    padding = next((torch.tensor(PADDING[part])[:batch] for part in kind.split(", ") if part in PADDING), None)
    made = make_masks(kind, batch, queries, keys, heads, padding, torch.float64)
    shape = (batch, heads, queries, keys)
    return made.mask, torch.as_tensor(made.added, dtype=torch.float64).expand(shape), made.visible.expand(shape)


def row_by_row(visible, weigh):
    """Weights B × H × T × S, one row at a time: `weigh(b, h, i, seen)` gives those of row i on the keys `seen`."""
    batch, heads, queries, keys = visible.shape
    maps = []
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                seen = [j for j in range(keys) if visible[b, h, i, j]]
                row = torch.zeros(keys, dtype=torch.float64)
                if seen:
                    row = row.index_put((torch.tensor(seen),), weigh(b, h, i, seen))
                maps.append(row)
    return torch.stack(maps).view(batch, heads, queries, keys)


def plain_softmax(scores):
    powers = torch.exp(scores - scores.max().detach())
    return powers / powers.sum()


def softmax_map(q, k, bias, visible):
    """softmax(QKᵀ/√D + M), row by row."""
    return Contract().weights(None, q, k, None, bias, visible)


def uniform_map(visible):
    """1/n on the n visible keys of a row."""
    counts = visible.sum(-1, keepdim=True)
    return visible.double() / torch.where(counts > 0, counts, 1)


def joined(heads):
    """B × H × T × D to B × T × (H·D)."""
    return torch.cat(heads.unbind(1), dim=-1)


def layer_reference(attention, reference, inputs, bias, visible):
    """A layer's output, T × B × C, and its heads' weights: `inputs` are the queries and the keys, without bias_kv."""
    x, keys = inputs
    projected = [attention.k_proj(keys), attention.v_proj(keys)]
    for index, learned in enumerate((attention.bias_k, attention.bias_v)):
        added = [] if learned is None else [learned]
        added += [torch.zeros_like(projected[index][:1, :1])] if attention.add_zero_attn else []
        projected[index] = torch.cat([projected[index], *(each.expand(1, keys.size(1), -1) for each in added)])
    q, k, v = (
        each.unflatten(-1, (attention.num_heads, -1)).permute(1, 2, 0, 3) for each in (attention.q_proj(x), *projected)
    )
    appended = k.size(2) - keys.size(0)
    bias, visible = F.pad(bias, (0, appended)), F.pad(visible, (0, appended), value=True)
    output, weights = reference(attention.mechanism, q, k, v, x.transpose(0, 1), bias, visible)
    projected = attention.out_proj(joined(output).transpose(0, 1))
    return attention.mechanism.after_projection(projected, None), weights


def future_gradients(call, length=LENGTH, heads=HEADS):
    """The largest gradient of any row's output with respect to a later position of q, k, v or x.

    `call(q, k, v, x)` attends under a causal mask.
    """
    x = torch.randn(1, length, heads * WIDTH, dtype=torch.float64, requires_grad=True)
    places = [torch.randn(1, heads, length, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(3)] + [x]
    output = call(*places)
    worst = 0.0
    for i in range(length - 1):
        gradients = torch.autograd.grad(output[:, :, i].square().sum(), places, retain_graph=True, allow_unused=True)
        for gradient in gradients:
            if gradient is not None:
                worst = max(worst, gradient[..., i + 1 :, :].abs().max().item())
    return worst


class Contract:
    """Inherit as `class TestCoda(Contract)`; give `name`, what differs from softmax, and `variants` of the options.

    What differs is a `row` of weights, all `weights`, how the weighted sum is to `finish`, or the whole `reference`.
    """

    name = ""
    heads = HEADS
    variants = ({},)
    needs_positions = False  # queries are positions among the keys: self-attention only
    mixes_queries = False
    knows_heads = True  # a bias for each head is allowed
    only_padding = False  # padding is the only mask: no matrix, and no causal mask
    model_options = {}  # noqa: RUF012
    drops_weights = True  # attention dropout is allowed
    removed = ([0], [4], [0, 2, 4])  # sets of positions that are padded

    @pytest.fixture(autouse=True)
    def fixed_draws(self):
        """Seeds the random numbers, so that a test outside this folder has the same ones in every run too."""
        torch.manual_seed(0)

    def pytest_generate_tests(self, metafunc):
        if "variant" in metafunc.fixturenames:
            ids = [",".join(f"{key}={value}" for key, value in one.items()) or "default" for one in self.variants]
            metafunc.parametrize("variant", first(2, self.variants), ids=ids)
        if "task" in metafunc.fixturenames:
            tasks = ["language_modeling", "translation"] if "decoder" in REGISTRY[self.name].sites else ["translation"]
            metafunc.parametrize("task", first(1, tasks))
        if "kind" in metafunc.fixturenames:
            kinds = [kind for kind in MASKS if self.knows_heads or kind != "bias for each head"]
            if self.is_causal():
                kinds = [kind for kind in kinds if "causal" in kind]
            if self.only_padding:
                kinds = [kind for kind in kinds if kind in ("nothing", *PADDING)]
            metafunc.parametrize("kind", kinds)

    def is_causal(self):
        """Whether the mechanism is for decoder self-attention only: its masks hide the future."""
        return bool(self.name) and REGISTRY[self.name].sites == ("decoder",)

    def reference(self, mechanism, q, k, v, x, bias, visible):
        """Output B × H × T × D and weights B × H × T × S in plain float64."""
        weights = self.weights(mechanism, q, k, x, bias, visible)
        return self.finish(mechanism, weights @ v, x), weights

    def head_by_head(self, head, visible):
        """Outputs and weights; `head(b, h, seen)` gives those of one head, T × D and T × S, from its visible keys."""
        batch, heads, length, _ = visible.shape
        pairs = [head(b, h, visible[b, h, -1]) for b in range(batch) for h in range(heads)]
        return tuple(torch.stack(each).view(batch, heads, length, -1) for each in zip(*pairs, strict=True))

    def weights(self, mechanism, q, k, x, bias, visible):
        """The weights in plain float64; by default those of each row from its visible scores."""
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5 + bias
        return row_by_row(visible, lambda b, h, i, seen: self.row(mechanism, scores[b, h, i, seen], h))

    def row(self, mechanism, scores, head):
        return plain_softmax(scores)

    def finish(self, mechanism, output, x):
        """What becomes of the weighted sum, B × H × T × D."""
        return output

    def build(self, variant, site=None, dtype=torch.float64, layer=1):
        """The mechanism in the middle of three layers, its parameters moved away from their neutral start."""
        site = site or REGISTRY[self.name].sites[-1 if self.needs_positions else 0]
        mechanism = build_mechanism(
            self.name, Site(site, layer, 3, self.heads * WIDTH, self.heads, WIDTH), settings(**variant)
        ).to(dtype)
        with torch.no_grad():
            for parameter in mechanism.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return mechanism

    def call(self, mechanism, q, k, v, mask, x, dropout_p=0.0, need_weights=False):
        return mechanism(AttentionInput(q, k, v, mask, x, dropout_p, need_weights))

    def inputs(self, queries, keys=LENGTH, dtype=torch.float64):
        def draw(*shape):
            return torch.randn(*shape, dtype=dtype, requires_grad=True)

        q = draw(BATCH, self.heads, queries, WIDTH)
        return (
            q,
            draw(BATCH, self.heads, keys, WIDTH),
            draw(BATCH, self.heads, keys, WIDTH),
            draw(BATCH, queries, self.heads * WIDTH),
        )

    def lengths(self):
        return (LENGTH,) if self.mixes_queries else (LENGTH, CROSS_QUERIES)

    def test_output_weights_and_gradients(self, variant, kind, monkeypatch):
        for queries in self.lengths():
            mechanism = self.build(variant)
            q, k, v, x = self.inputs(queries)
            mask, bias, visible = masks(kind, queries, heads=self.heads)
            output, weights = self.call(mechanism, q, k, v, mask, x, 0.0, True)
            expected, expected_weights = self.reference(mechanism, q, k, v, x, bias, visible)
            torch.testing.assert_close(weights, expected_weights, rtol=1e-9, atol=1e-10)
            without, nothing = self.call(mechanism, q, k, v, mask, x)
            assert nothing is None
            leaves = [q, k, v, x, *(each for each in mechanism.parameters() if each.requires_grad)]
            for result in (output, without):
                assert_same(result, expected, leaves)
            for rows in (1, 2):
                monkeypatch.setattr(families, "BLOCK", rows * BATCH * self.heads * LENGTH)
                with torch.no_grad():
                    in_blocks, _ = self.call(mechanism, q, k, v, mask, x)
                torch.testing.assert_close(in_blocks, expected, rtol=1e-9, atol=1e-10)

    @pytest.mark.parametrize("kind_of_check", ["causal, left", "bias, hiding, right"])
    def test_gradcheck_with_dropout(self, variant, kind_of_check):
        if self.is_causal() and "causal" not in kind_of_check:
            pytest.skip("causal only")
        if self.only_padding:
            kind_of_check = kind_of_check.rpartition(", ")[2]
        mechanism = self.build(variant)
        mask, _, _ = masks(kind_of_check, LENGTH, heads=self.heads, batch=1)
        q, k, v = (torch.randn(1, self.heads, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(3))
        x = torch.randn(1, LENGTH, self.heads * WIDTH, dtype=torch.float64, requires_grad=True)

        def output(q, k, v, x, *_):
            torch.manual_seed(0)
            return self.call(mechanism, q, k, v, mask, x, 0.4 * self.drops_weights)[0]

        assert torch.autograd.gradcheck(output, (q, k, v, x, *mechanism.parameters()), fast_mode=True)

    def test_a_masked_key_is_a_removed_key(self, variant):
        mechanism = self.build(variant)
        for causal, removed in itertools.product((True,) if self.is_causal() else (False, True), self.removed):
            if causal and self.only_padding:
                continue
            q, k, v, x = self.inputs(LENGTH)
            kept = [j for j in range(LENGTH) if j not in removed]
            with torch.no_grad():
                k[:, :, removed] *= 40
                v[:, :, removed] *= 40
            padding = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
            padding[:, removed] = True
            mask = AttentionMask(padding, causal)
            output, weights = self.call(mechanism, q, k, v, mask, x, 0.0, True)
            output = output[:, :, kept]
            short = self.call(
                mechanism, q[:, :, kept], k[:, :, kept], v[:, :, kept], AttentionMask(None, causal), x[:, kept]
            )[0]
            torch.testing.assert_close(output, short, rtol=1e-9, atol=1e-10)
            assert weights[..., removed].abs().max() == 0
            for gradient in torch.autograd.grad(output.square().sum(), [k, v]):
                assert gradient[:, :, removed].abs().max() == 0

    def test_a_row_that_sees_nothing_is_zero(self, variant):
        mechanism = self.build(variant)
        fully_masked = [("a sentence of padding", (1, slice(None))), ("boolean", (slice(None), 0))]
        if self.is_causal():
            fully_masked = [("causal, a sentence of padding", (1, slice(None)))]
        if self.only_padding:
            fully_masked = fully_masked[:1]
        for kind, rows in fully_masked:
            q, k, v, x = self.inputs(LENGTH)
            output, weights = self.call(mechanism, q, k, v, masks(kind, LENGTH)[0], x, 0.0, True)
            assert output.isfinite().all() and weights.isfinite().all()
            assert output.transpose(1, 2)[rows].abs().max() == 0
            assert weights.transpose(1, 2)[rows].abs().max() == 0
            output.square().sum().backward()
            for place in (q, k, v, x, *mechanism.parameters()):
                assert place.grad is None or place.grad.isfinite().all()

    def test_no_gradient_from_the_future(self, variant):
        if "decoder" not in REGISTRY[self.name].sites:
            pytest.skip("no decoder mechanism")
        mechanism = self.build(variant, "decoder")

        def call(q, k, v, x):
            return self.call(mechanism, q, k, v, AttentionMask(causal=True), x)[0]

        assert future_gradients(call, heads=self.heads) == 0

    def test_half_precision(self, variant):
        mechanism = self.build(variant).eval()
        exact_inputs = self.inputs(LENGTH)
        mask, _, _ = masks("left" if self.only_padding else "causal, left", LENGTH)
        expected, expected_weights = self.call(mechanism, *exact_inputs[:3], mask, exact_inputs[3], 0.0, True)
        for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
            half = self.build(variant).eval().to(dtype)
            half.load_state_dict(mechanism.state_dict())
            q, k, v, x = places = [tensor.detach().to(dtype).requires_grad_() for tensor in exact_inputs]
            output, weights = self.call(half, q, k, v, mask, x, 0.0, True)
            without, _ = self.call(half, q, k, v, mask, x)
            for result, exact in ((output, expected), (without, expected), (weights, expected_weights)):
                assert result.dtype == dtype
                torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)
            (output.double().square().sum() + weights.double().square().sum()).backward()
            assert all(each.grad is None or each.grad.isfinite().all() for each in (*places, *half.parameters()))

    def test_decoding_with_reordered_beams_is_the_full_forward(self, variant):
        if "decoder" not in REGISTRY[self.name].sites:
            pytest.skip("no decoder mechanism")
        attention = self.module(variant, "decoder", self_attention=True)
        for padding in (None, torch.tensor(PADDING["left"]).bool()):
            x, state = torch.randn(LENGTH, BATCH, self.heads * WIDTH, dtype=torch.float64), {}
            for i in range(LENGTH):
                for order in ([1, 2, 0], [2, 2, 1]) if i == 3 else ():
                    attention.reorder_incremental_state(state, torch.tensor(order))
                    x, padding = x[:, order], None if padding is None else padding[order]
                seen = None if padding is None else padding[:, i : i + 1]
                step, _ = self.attend(attention, x[i : i + 1], seen, incremental_state=state)
                full, _ = self.attend(attention, x, padding, attn_mask=FUTURE)
                torch.testing.assert_close(step[0], full[i], rtol=1e-9, atol=1e-10)

    @pytest.mark.parametrize("length", [64, 130])
    def test_a_long_sequence_gives_without_its_weights_what_it_gives_with_them(self, variant, length):
        """In blocks of rows, chunks and running sums."""
        for site in sorted({*REGISTRY[self.name].sites} - {"cross"}):
            mechanism = self.build(variant, site)
            q, k, v, x = self.inputs(length, length)
            padding = torch.zeros(BATCH, length, dtype=torch.bool)
            padding[0, :5] = padding[1, -7:] = True
            mask = AttentionMask(padding, causal=site == "decoder")
            found, expected = (self.call(mechanism, q, k, v, mask, x, 0.0, each)[0] for each in (False, True))
            leaves = [q, k, v, x, *(each for each in mechanism.parameters() if each.requires_grad)]
            assert_same(found, expected, leaves)

    def test_decoding_at_cross_attention(self, variant):
        if "cross" not in REGISTRY[self.name].sites:
            pytest.skip("no cross-attention mechanism")
        attention = self.module(variant, "cross", encoder_decoder_attention=True)
        beams = 2
        x = torch.randn(CROSS_QUERIES, BATCH * beams, self.heads * WIDTH, dtype=torch.float64)
        source = torch.randn(LENGTH, BATCH, self.heads * WIDTH, dtype=torch.float64)
        padding = torch.tensor(PADDING["right"]).bool()
        twice, padding_twice = source.repeat_interleave(beams, dim=1), padding.repeat_interleave(beams, dim=0)
        full, _ = attention(x, twice, twice, key_padding_mask=padding_twice)
        for set_beams, keys, hidden in ((1, twice, padding_twice), (beams, source, padding)):
            attention.beam_size = set_beams
            state = {}
            for i in range(CROSS_QUERIES):
                step, _ = attention(x[i : i + 1], keys, keys, hidden, state, static_kv=True)
                torch.testing.assert_close(step[0], full[i], rtol=1e-9, atol=1e-10)

    def test_keys_that_belong_to_no_token(self, variant):
        """Those of bias_kv and zero_attn are keys like all others, or refused where they would be taken for tokens."""
        for site in REGISTRY[self.name].sites:
            role = {"encoder_decoder_attention": True} if site == "cross" else {"self_attention": True}
            try:
                attention = self.module(variant, site, add_bias_kv=True, add_zero_attn=True, **role)
            except ValueError as refusal:
                mechanism = self.build(variant, site)
                assert mechanism.key_positions != "none" or not mechanism.caches_keys
                assert f"add_zero_attn=True are not allowed with --gpam-mechanism {self.name}" in str(refusal)
            else:
                self.check_appended_keys(attention, site)

    def check_appended_keys(self, attention, site):
        x, source = torch.randn(2, LENGTH, BATCH, self.heads * WIDTH, dtype=torch.float64)
        keys = source if site == "cross" else x
        future = FUTURE if site == "decoder" else None
        output, _ = attention(x, keys, keys, torch.tensor(PADDING["right"]).bool(), attn_mask=future)
        _, bias, visible = masks("right" if future is None else "causal, right", LENGTH, heads=self.heads)
        expected, _ = layer_reference(attention, self.reference, (x, keys), bias, visible)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-10)
        state = {}
        for i in range(LENGTH if site == "decoder" else 0):
            step, _ = attention(*[x[i : i + 1]] * 3, incremental_state=state)
            torch.testing.assert_close(step[0, 0], output[i, 0], rtol=1e-9, atol=1e-10)

    def module(self, variant, site, **role):
        mechanism = self.build(variant, site)
        return GPAMMultiheadAttention(self.heads * WIDTH, self.heads, mechanism, **role).double().eval()

    def attend(self, attention, x, padding, **arguments):
        keeps_keys = attention.mechanism.caches_keys
        return attention(x, x, x, key_padding_mask=padding, need_weights=keeps_keys, **arguments)

    def test_learns_and_decodes(self, task):
        model = build_model(task, self.name, **self.model_options)
        first, last = train(model, task)
        assert last < 0.8 * first, f"the loss went from {first:.3f} to {last:.3f}"
        check_stepwise(model, task)
