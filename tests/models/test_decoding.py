"""Step-by-step decoding, caches and beam search of whole models."""

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from tiny import (
    OURS,
    TASKS,
    build,
    dictionary,
    encoded,
    logits,
    model_input,
    model_of,
    needed,
    sentences,
    stepwise,
    translation_input,
)

from fairseq_gpam.attention import REGISTRY

VARIANTS = {
    "translation": [
        [],
        ["--encoder-normalize-before", "--decoder-normalize-before"],
        ["--no-cross-attention", "--cross-self-attention"],
        ["--gpam-cross-mechanism", "softmax"],
        ["--gpam-lambda-scope", "model", "--gpam-negative-projection", "shared"],
        ["--gpam-lambda-source", "token"],
        ["--gpam-backend", "fused"],
    ],
    "language_modeling": [
        [],
        ["--gpam-negative-bias", "--gpam-lambda-max", "2"],
        ["--gpam-backend", "reference"],
    ],
}


@pytest.mark.parametrize("name", sorted(name for name in REGISTRY if "decoder" in REGISTRY[name].sites))
def test_source_keys_before_the_decoders_own(name):
    """--cross-self-attention: no later target token matters, and steps are the full forward, or it is refused."""
    flags = ["--no-cross-attention", "--cross-self-attention", *needed(name), "--gpam-decoder-mechanism", name]
    if REGISTRY[name].key_positions == "all":
        with pytest.raises(ValueError, match=f"--cross-self-attention is not allowed with .*{name}"):
            build("translation", OURS["translation"], *flags)
        return
    model = model_of("translation", *flags).double().eval()
    inputs = translation_input((6, 6, 6), (5, 5, 5))
    encoder_out, tokens = encoded(model, inputs)
    full = logits(model, inputs)
    torch.testing.assert_close(stepwise(model, encoder_out, tokens), full, rtol=1e-6, atol=1e-6)
    changed = torch.cat([tokens[:, :3], tokens[:, 3:].flip(0)], dim=1)
    torch.testing.assert_close(logits(model, {**inputs, "prev_output_tokens": changed})[:, :3], full[:, :3])


SOURCES = [sentences((length,))[0] for length in torch.randint(2, 12, (100,), generator=torch.manual_seed(5)).tolist()]


def source_batch(chosen, left=True):
    width = max(len(source) for source in chosen)
    batch = torch.full((len(chosen), width), 1)
    for row, source in enumerate(chosen):
        batch[row, slice(width - len(source), None) if left else slice(0, len(source))] = source
    return {"net_input": {"src_tokens": batch, "src_lengths": torch.tensor([len(source) for source in chosen])}}


def hypotheses(model, batch_size, beam=4, count=40, caching=True, left=True, **options):
    vocabulary = dictionary()
    generator = SequenceGenerator([model], vocabulary, beam_size=beam, max_len_b=10, **options)
    generator.model.has_incremental = caching
    found = []
    for start in range(0, count, batch_size):
        sample = source_batch(SOURCES[start : min(start + batch_size, count)], left)
        for beams in generator.generate([model], sample):
            found.append([(hypothesis["tokens"].tolist(), hypothesis["score"].item()) for hypothesis in beams])
    return found


def assert_same(mine, theirs):
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert [tokens for tokens, _ in one] == [tokens for tokens, _ in other]
        assert torch.allclose(
            torch.tensor([score for _, score in one]), torch.tensor([score for _, score in other]), atol=1e-4
        )


@pytest.fixture(scope="module")
def translator():
    """A model that has begun to learn to reverse its source; float64, so that rounding cannot change a choice."""
    torch.manual_seed(1)
    learned = ["--encoder-learned-pos", "--decoder-learned-pos", "--max-source-positions", "32"]
    flags = ["--encoder-normalize-before", "--decoder-normalize-before", "--max-target-positions", "32", *learned]
    model = build("translation", OURS["translation"], *flags).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        words = torch.randint(4, 24, (32, int(torch.randint(1, 11, (1,)))))
        eos = torch.full((32, 1), 2)
        scores, _ = model(torch.cat([words, eos], 1), None, torch.cat([eos, words.flip(1)], 1))
        target = torch.cat([words.flip(1), eos], 1)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().double()


def test_the_tested_hypotheses_depend_on_their_sources(translator):
    best = [beams[0][0] for beams in hypotheses(translator, 40)]
    assert len({tuple(tokens) for tokens in best}) > 20
    assert len({len(tokens) for tokens in best}) > 3


def test_beam_search_gives_the_same_hypotheses_at_every_batch_size(translator):
    everything = hypotheses(translator, 40)
    assert_same(hypotheses(translator, 7), everything)
    assert_same(hypotheses(translator, 1), everything)


def test_beam_search_gives_the_same_hypotheses_without_caching(translator):
    assert_same(hypotheses(translator, 40, caching=False), hypotheses(translator, 40))


def test_beam_search_gives_the_same_hypotheses_however_sources_are_padded(translator):
    assert_same(hypotheses(translator, 25, left=False), hypotheses(translator, 25))


@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_beam_search_with_computed_positions(position):
    model = model_of("translation", "--gpam-position", position, "--gpam-qk-norm", scale=1.0).double().eval()
    expected = hypotheses(model, 20, count=20)
    assert len({beams[0][1] for beams in expected}) > 15
    for different in ({"caching": False}, {"left": False}):
        assert_same(hypotheses(model, 20, count=20, **different), expected)
    assert_same(hypotheses(model, 3, count=20), expected)


def test_sampling_a_language_model_with_a_prefix_uses_the_prefix():
    """fairseq feeds the prefix through the cache; the continuation is the full forward's greedy choice."""
    model = model_of("language_modeling", scale=0.5).eval()
    vocabulary = dictionary()
    generator = SequenceGenerator([model], vocabulary, beam_size=1, max_len_b=8, eos=2)
    prefix = torch.randint(4, 24, (3, 4))
    sample = {"net_input": {"src_tokens": prefix, "src_lengths": torch.tensor([4, 4, 4])}}
    found = generator.generate([model], sample, prefix_tokens=prefix)
    for row in range(3):
        tokens = found[row][0]["tokens"].tolist()
        assert tokens[:4] == prefix[row].tolist()
        history = [2, *prefix[row].tolist()]
        for token in tokens[4:-1]:
            scores = model(torch.tensor([history]))[0][0, -1]
            scores[[1]] = float("-inf")
            assert scores.argmax().item() == token
            history.append(token)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "flags"), [(task, flags) for task in TASKS for flags in VARIANTS[task]])
def test_full_forward_is_step_by_step_in_a_padded_batch(task, flags):
    model = model_of(task, *flags).eval()
    inputs = model_input(task)
    encoder_out, tokens = encoded(model, inputs)
    full = logits(model, inputs)
    steps = stepwise(model, encoder_out, tokens)
    assert torch.isfinite(steps).all()
    kept = tokens != 1
    assert torch.allclose(steps[kept], full[kept], atol=1e-5)


@pytest.mark.slow
def test_full_forward_is_step_by_step_with_left_padded_prefixes():
    # fairseq's stepwise positions count the padding: stock differs there too.
    model = model_of("language_modeling", "--no-token-positional-embeddings").eval()
    tokens = sentences((7, 4, 1), left=True)
    full = logits(model, {"src_tokens": tokens})
    steps = stepwise(model, None, tokens)
    assert torch.isfinite(steps).all() and torch.isfinite(full).all()
    kept = tokens != 1
    assert torch.allclose(steps[kept], full[kept], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("repeat_encoder_output", [False, True])
def test_beams_with_one_copy_of_the_encoders_keys_find_the_same_hypotheses(translator, repeat_encoder_output):
    expected = hypotheses(translator, 10)
    kept = translator.encoder.reorder_encoder_out
    translator.decoder.set_beam_size(4)
    if not repeat_encoder_output:
        translator.encoder.reorder_encoder_out = lambda encoder_out, order: encoder_out
    try:
        found = hypotheses(translator, 10)
    finally:
        translator.decoder.set_beam_size(1)
        translator.encoder.reorder_encoder_out = kept
    assert_same(found, expected)
