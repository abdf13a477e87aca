"""fairseq's logs and outputs are read, and perplexities are computed from them."""

import json

import pytest

from fairseq_gpam.lab.recipes import logs


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
    measured = logs.parse_training_log(training_log())
    assert measured["parameters"] == 1234
    assert measured["updates"] == 30
    assert (measured["valid_loss"], measured["valid_nll_loss"], measured["best_update"]) == (6.0, 5.5, 20)
    assert measured["curve"]["train"] == [[10, 9.0], [20, 7.0]]
    assert measured["tokens_per_second"] == pytest.approx(4000 / 2.5)


@pytest.mark.parametrize("updates", [None, 0, 183])
def test_a_training_is_resumed_if_it_went_on_after_its_first_update(updates):
    log = "No existing checkpoint found x/checkpoint_last.pt"
    if updates is not None:
        log = f"Loaded checkpoint x/checkpoint_last.pt (epoch 4 @ {updates} updates)"
    assert logs.resumed(f"2026-01-01 00:00:00 | INFO | fairseq.trainer | {log}\n") is bool(updates)


def test_hypotheses_come_in_the_order_of_the_test_set():
    output = "S-2\tx\nH-2\t-0.5\tthird line\nD-2\t-0.5\tno\nH-0\t-0.1\tfirst\nH-1\t-0.1\t\n"
    assert logs.parse_hypotheses(output) == ["first", "", "third line"]


def test_generation_and_evaluation_logs():
    log = "Translated 1,784 sentences (24,000 tokens) in 12.0s (65.33 sentences/s, 2000.00 tokens/s)"
    assert logs.parse_generation_log(log)["sentences"] == 1784
    assert logs.parse_generation_log(log)["tokens_per_second"] == 2000.0
    log = "Evaluated 1,030 tokens in 2.0s (515.00 tokens/s)\nLoss (base 2): 3.0000, Perplexity: 8.00"
    assert logs.parse_evaluation_log(log)["bits_per_subword"] == 3.0
    for parse in (logs.parse_generation_log, logs.parse_evaluation_log):
        with pytest.raises(ValueError, match="no line"):
            parse("Killed")


def test_perplexities_count_an_end_for_each_line_and_bits_per_character_every_byte(tmp_path):
    text, subword = tmp_path / "text", tmp_path / "subword"
    text.write_text("one\ntwo\n")
    subword.write_text("o ne\nt w o\n")
    evaluation = {"tokens": 7, "bits_per_subword": 3.0}
    measured = logs.of_text(evaluation, text, subword)
    assert (measured["words"], measured["perplexity_subword"]) == (4, 8)
    assert measured["perplexity_word"] == pytest.approx(2 ** (3 * 7 / 4))
    measured = logs.of_text(evaluation, text, subword, by_bytes=True)
    assert measured["bits_per_character"] == pytest.approx(3 * 7 / 8)
    for by_bytes in (False, True):
        with pytest.raises(logs.CountMismatchError, match="6 tokens evaluated, but the test text has 7"):
            logs.of_text({**evaluation, "tokens": 6}, text, subword, by_bytes)
    with pytest.raises(logs.CountMismatchError, match=r"evaluated 0 of 7 tokens.*--tokens-per-sample of the training"):
        logs.of_text({**evaluation, "tokens": 0}, text, subword)
