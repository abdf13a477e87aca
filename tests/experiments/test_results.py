"""Logs are read, hypotheses are counted, and tables show what was run and say what was not."""

import dataclasses
import json

import pytest

from fairseq_gpam.experiments import results


def record(name, **values):
    return f"2026-01-01 00:00:00 | INFO | {name} | {json.dumps({k: str(v) for k, v in values.items()})}"


def training_log():
    return "\n".join(
        [
            "2026-01-01 00:00:00 | INFO | fairseq_cli.train | num. shared model params: 1,234 (num. trained: 1,234)",
            "2026-01-01 00:00:00 | INFO | fairseq_cli.train | num. expert model params: 0 (num. trained: 0)",
            record("train_inner", num_updates=10, loss=9.0, wps=1000, wpb=2000),
            record("valid", valid_num_updates=10, valid_loss=8.0, valid_nll_loss=7.5),
            record("train_inner", num_updates=20, loss=99.0, wps=1, wpb=2000),
            "2026-01-01 00:00:00 | INFO | fairseq_cli.train | num. shared model params: 1,234 (num. trained: 1,234)",
            record("train_inner", num_updates=20, loss=7.0, wps=4000, wpb=2000),
            record("valid", valid_num_updates=20, valid_loss=6.0, valid_nll_loss=5.5),
            record("valid", valid_num_updates=30, valid_loss=6.5, valid_nll_loss=5.9),
        ]
    )


def test_training_log_counts_a_repeated_update_once():
    measured = results.parse_training_log(training_log())
    assert measured["parameters"] == 1234
    assert measured["updates"] == 30
    assert (measured["valid_loss"], measured["valid_nll_loss"], measured["best_update"]) == (6.0, 5.5, 20)
    assert measured["curve"]["train"] == [[10, 9.0], [20, 7.0]]
    assert measured["tokens_per_second"] == pytest.approx(4000 / 2.5)


def test_training_log_without_validation_is_refused():
    with pytest.raises(ValueError, match="no validation"):
        results.parse_training_log("nothing here")


def test_hypotheses_come_in_the_order_of_the_test_set():
    output = "S-2\tx\nH-2\t-0.5\tthird line\nD-2\t-0.5\tno\nH-0\t-0.1\tfirst\nH-1\t-0.1\t\n"
    assert results.parse_hypotheses(output) == ["first", "", "third line"]


def test_generation_and_evaluation_logs():
    log = "Translated 1,784 sentences (24,000 tokens) in 12.0s (65.33 sentences/s, 2000.00 tokens/s)"
    assert results.parse_generation_log(log)["sentences"] == 1784
    assert results.parse_generation_log(log)["tokens_per_second"] == 2000.0
    log = "Evaluated 1,030 tokens in 2.0s (515.00 tokens/s)\nLoss (base 2): 3.0000, Perplexity: 8.00"
    assert results.parse_evaluation_log(log)["bits_per_subword"] == 3.0
    for parse in (results.parse_generation_log, results.parse_evaluation_log):
        with pytest.raises(ValueError, match="no line"):
            parse("Killed")


def test_perplexities_per_subword_and_per_word():
    evaluation = {"tokens": 100, "bits_per_subword": 3.0}
    measured = results.perplexities(evaluation, words=50, subwords=100)
    assert measured["perplexity_subword"] == 8.0
    assert measured["perplexity_word"] == 64.0
    with pytest.raises(results.CountMismatchError, match="100 tokens evaluated, but the test text has 101"):
        results.perplexities(evaluation, words=50, subwords=101)


def test_bits_per_character_count_every_byte():
    measured = results.bits_per_character({"tokens": 101, "bits_per_subword": 2.0}, characters=100, tokens=101)
    assert measured["bits_per_character"] == pytest.approx(2.02)
    with pytest.raises(results.CountMismatchError, match="100 tokens evaluated, but the test text has 101"):
        results.bits_per_character({"tokens": 100, "bits_per_subword": 2.0}, characters=100, tokens=101)


def test_tokens_are_counted_with_one_end_per_line(tmp_path):
    results.write_atomically(tmp_path / "text", "one two\nthree\n")
    assert results.count_tokens(tmp_path / "text") == 5


def made_run(folder, name="dagpam", hypotheses=("the cat sat", "on the mat")):
    folder.mkdir(parents=True)
    results.write_atomically(folder / "hypotheses.txt", "".join(f"{line}\n" for line in hypotheses))
    return results.update(
        folder,
        {
            "task": "made",
            "name": name,
            "seed": 1,
            "train": {
                **results.parse_training_log(training_log()),
                "environment": {
                    "versions": {"torch": "2"},
                    "machine": {"cpu": "a CPU", "cores": 2, "threads": "1", "accelerators": []},
                    "commit": "abc",
                },
            },
        },
    )


def test_score_keeps_signatures_and_stops_at_a_count_mismatch(tmp_path):
    made_run(tmp_path / "run")
    references = tmp_path / "references"
    results.write_atomically(references, "the cat sat\non the mat\n")
    scores = results.score(tmp_path / "run", results.References(references))
    assert scores["sentences"] == 2
    assert scores["chrf"] == 100.0
    assert "tok:13a" in scores["bleu_signature"]
    assert results.read(tmp_path / "run")["score"] == scores

    results.write_atomically(references, "the cat sat\non the mat\nand slept\n")
    with pytest.raises(results.CountMismatchError, match="2 hypotheses but 3 references"):
        results.score(tmp_path / "run", results.References(references))


def test_line_separators_inside_a_sentence_do_not_count_as_lines(tmp_path):
    results.write_atomically(tmp_path / "text", "one\u2028still one\ntwo\x85\n\n")
    assert len(results.read_lines(tmp_path / "text")) == 3


def test_tokenised_hypotheses_are_detokenised_and_scored_both_ways(tmp_path):
    made_run(
        tmp_path / "run", hypotheses=["the cat &apos;s well-known mat , at last .", "&quot; yes &quot; , it said ."]
    )
    results.write_atomically(tmp_path / "raw", 'The cat\'s well-known mat, at last.\n"Yes", it said.\n')
    results.write_atomically(
        tmp_path / "tok", "the cat &apos;s well-known mat , at last .\n&quot; no &quot; , it said .\n"
    )
    test = results.References(tmp_path / "raw", lowercase=True, detokenize="en", tokenized=tmp_path / "tok")
    bleu, chrf, tokenised = results.score_lines(results.score(tmp_path / "run", test))
    assert bleu.startswith("BLEU = 100.00  nrefs:1|case:lc")
    assert chrf.startswith("chrF = 100.00  nrefs:1|case:lc")
    assert tokenised.startswith("tokenised BLEU (not comparable with the above) = ")
    assert "tok:none|smooth:none" in tokenised
    detokenised = (tmp_path / "run/hypotheses.detok.txt").read_text(encoding="utf-8")
    assert detokenised == 'the cat\'s well-known mat, at last.\n"yes", it said.\n'
    unsplit = results.read(tmp_path / "run")["score"]["tokenized_bleu"]
    lines = results.score_lines(results.score(tmp_path / "run", dataclasses.replace(test, compounds=True)))
    assert "tokenised BLEU (not comparable with the above, compounds split)" in lines[2]
    assert results.read(tmp_path / "run")["score"]["tokenized_bleu"] > unsplit


def test_compare_is_a_paired_test(tmp_path):
    lines = [f"sentence number {n} of the set" for n in range(20)]
    made_run(tmp_path / "a", hypotheses=[f"{line} x" for line in lines])
    made_run(tmp_path / "b", hypotheses=lines)
    results.write_atomically(tmp_path / "ref", "".join(f"{line}\n" for line in lines))
    text = results.compare(tmp_path / "a", tmp_path / "b", results.References(tmp_path / "ref"), samples=50)
    assert "BLEU: 100.00" in text
    assert "p = " in text
    assert "baseline" in text


def test_table_and_report(tmp_path):
    run = made_run(tmp_path / "run")
    text = results.table([run])
    header, _, row = text.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        *("mechanism", "seed", "parameters", "updates", "valid loss"),
        *("BLEU", "chrF", "training tokens/s", "decoding tokens/s"),
    ]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("dagpam", "1", "1,234", "30", "6.000"),
        *("not run", "not run", "1,600", "not run"),
    ]
    assert results.report([run], tmp_path / "report") == text
    assert (tmp_path / "report/table.md").read_text(encoding="utf-8").startswith(text)
    assert json.loads((tmp_path / "report/results.json").read_text(encoding="utf-8")) == [run]
    assert (tmp_path / "report/learning-curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="either"):
        results.table([run, {**run, "eval-lm": {}}])
    shown = results.table([{**run, "score": {"tokenized_bleu": 34.44}}])
    assert "tokenised BLEU" in shown
    assert "34.4" in shown
