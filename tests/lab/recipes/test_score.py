"""Translations are scored with signatures, counted, and compared in pairs."""

import dataclasses
import math
import re
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fairseq_gpam.lab.recipes import logs, run_folder, score, stage_results


def translated(folder, hypotheses=("the cat sat", "on the mat")):
    folder.mkdir(parents=True, exist_ok=True)
    stage_results.write_atomically(folder / "hypotheses.txt", "".join(f"{line}\n" for line in hypotheses))


def test_score_keeps_signatures_and_stops_at_a_count_mismatch(tmp_path):
    translated(tmp_path / "run")
    references = tmp_path / "references"
    stage_results.write_atomically(references, "the cat sat\non the mat\n")
    scores = score.score(tmp_path / "run", score.References(references))
    assert scores["sentences"] == 2
    assert scores["chrf"] == 100.0
    assert "tok:13a" in scores["bleu_signature"]
    assert stage_results.read(tmp_path / "run")["score"] == scores

    stage_results.write_atomically(references, "the cat sat\non the mat\nand slept\n")
    with pytest.raises(logs.CountMismatchError, match="2 hypotheses but 3 references"):
        score.score(tmp_path / "run", score.References(references))


def test_a_score_waits_for_what_uses_the_folder(tmp_path):
    translated(tmp_path / "run")
    stage_results.write_atomically(tmp_path / "references", "a new translation\nof the test set\n")
    with ThreadPoolExecutor(1) as pool:
        with run_folder.exclusive(tmp_path / "run"):
            waiting = pool.submit(score.score, tmp_path / "run", score.References(tmp_path / "references"))
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            translated(tmp_path / "run", hypotheses=["a new translation", "of the test set"])
            stage_results.update(tmp_path / "run", {"generate": {"command": "", "sentences": 2}})
        assert waiting.result()["chrf"] == 100.0
    assert stage_results.read(tmp_path / "run").keys() == {"generate", "score"}


def test_tokenised_hypotheses_are_detokenised_and_scored_both_ways(tmp_path):
    translated(
        tmp_path / "run", hypotheses=["the cat &apos;s well-known mat , at last .", "&quot; yes &quot; , it said ."]
    )
    stage_results.write_atomically(tmp_path / "raw", 'The cat\'s well-known mat, at last.\n"Yes", it said.\n')
    stage_results.write_atomically(
        tmp_path / "tok", "the cat &apos;s well-known mat , at last .\n&quot; no &quot; , it said .\n"
    )
    test = score.References(tmp_path / "raw", lowercase=True, detokenize="en", tokenized=tmp_path / "tok")
    bleu, chrf, lengths, tokenised = score.score_lines(score.score(tmp_path / "run", test))
    assert bleu.startswith("BLEU = 100.00  nrefs:1|case:lc")
    assert chrf.startswith("chrF = 100.00  nrefs:1|case:lc")
    assert lengths == "length ratio = 1.000, brevity penalty = 1.000"
    assert tokenised.startswith("tokenised BLEU (not comparable with the above) = ")
    assert "tok:none|smooth:none" in tokenised
    detokenised = (tmp_path / "run/hypotheses.detok.txt").read_text(encoding="utf-8")
    assert detokenised == 'the cat\'s well-known mat, at last.\n"yes", it said.\n'
    unsplit = stage_results.read(tmp_path / "run")["score"]["tokenized_bleu"]
    lines = score.score_lines(score.score(tmp_path / "run", dataclasses.replace(test, compounds=True)))
    assert "tokenised BLEU (not comparable with the above, compounds split)" in lines[3]
    assert stage_results.read(tmp_path / "run")["score"]["tokenized_bleu"] > unsplit


LENGTHS = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=1, max_size=5)


@given(LENGTHS)
def test_length_ratio_and_brevity_penalty_are_those_of_the_words(tmp_path_factory, lengths):
    folder = tmp_path_factory.mktemp("scored")
    hypotheses, references = (["word " * count for count in counts] for counts in zip(*lengths, strict=True))
    translated(folder / "run", hypotheses)
    stage_results.write_atomically(folder / "references", "".join(f"{line}\n" for line in references))
    scores = score.score(folder / "run", score.References(folder / "references"))
    ratio = sum(of_run for of_run, _ in lengths) / sum(of_reference for _, of_reference in lengths)
    assert scores["length_ratio"] == pytest.approx(ratio)
    expected = 1 if ratio >= 1 else math.exp(1 - 1 / ratio) if ratio else 0
    assert scores["brevity_penalty"] == pytest.approx(expected)


def test_compare_is_a_paired_test(tmp_path):
    lines = [f"sentence number {n} of the set" for n in range(20)]
    translated(tmp_path / "a", hypotheses=[f"{line} x" for line in lines])
    translated(tmp_path / "b", hypotheses=lines)
    stage_results.write_atomically(tmp_path / "ref", "".join(f"{line}\n" for line in lines))
    test = score.References(tmp_path / "ref")
    text = score.compare(tmp_path / "a", tmp_path / "b", test, test, samples=50)
    assert "BLEU: 100.00" in text
    assert "p = " in text
    assert "baseline" in text


def test_each_of_two_runs_is_detokenised_as_its_own_recipe_says(tmp_path):
    lines = ["hello , it &apos;s me .", "the well-known mat ."]
    translated(tmp_path / "moses", hypotheses=lines)
    translated(tmp_path / "plain", hypotheses=["hello, it's me.", "the well-known mat."])
    stage_results.write_atomically(tmp_path / "ref", "hello, it's me.\nthe well-known mat.\n")
    moses = score.References(tmp_path / "ref", detokenize="en")
    plain = score.References(tmp_path / "ref")
    text = score.compare(tmp_path / "moses", tmp_path / "plain", moses, plain, samples=20)
    assert text.count("BLEU: 100.00") == 2
    stage_results.write_atomically(tmp_path / "other", "hello!\nthe well-known mat.\n")
    for other in (score.References(tmp_path / "other"), dataclasses.replace(plain, lowercase=True)):
        with pytest.raises(run_folder.RunError, match="different references"):
            score.compare(tmp_path / "moses", tmp_path / "plain", moses, other)


SENTENCES = st.sampled_from(["", "a", "a cat", "a dog runs", "a cat sat on the mat"])


@given(st.lists(st.tuples(SENTENCES, SENTENCES, SENTENCES), min_size=1, max_size=5), st.booleans())
def test_p_is_one_where_resampling_says_nothing(tmp_path_factory, rows, identical):
    """Among them: one sentence, the same sentence several times, empty translations and references."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [(first, first if identical else second, reference) for first, second, reference in rows]
    for name, lines in zip("abr", zip(*rows, strict=True), strict=True):
        translated(folder / name, hypotheses=lines)
    references = score.References(folder / "r" / run_folder.HYPOTHESES)
    text = score.compare(folder / "a", folder / "b", references, references, samples=20)
    values = [float(value) for value in re.findall(r"p = ([\d.]+)", text)]
    assert len(values) == 2 and all(0 < value <= 1 for value in values)
    if identical or len(set(rows)) < 2:
        assert values == [1, 1]
