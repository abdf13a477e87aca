"""The synthetic tasks: what their lines promise, and the best possible loss; the commands of their pages."""

import itertools
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.logging import metrics
from shell import bash

from fairseq_gpam import answers
from fairseq_gpam.lab.recipes import stage_results, synthetic, tasks

TASKS = [name for name in tasks.names() if tasks.load(name).data.corpus in synthetic.GENERATORS]


@pytest.mark.parametrize("name", TASKS)
def test_no_line_of_a_task_is_seen_twice_and_splits_differ(name, tmp_path):
    data = tasks.load(name).data
    small = {**data.options, "train": 500, "valid": 50, "test": 50}
    synthetic.write(data.corpus, small, tmp_path)
    texts = [path.read_text().splitlines() for path in sorted(tmp_path.glob("*.txt"))]
    lines = list(itertools.chain(*texts))
    assert len(set(lines)) == len(lines)
    if tasks.load(name).has_questions:
        assert all("?" in line for line in lines)
        longest = max(len(line.split()) for line in lines) + 1
        assert longest < int(tasks.load(name).train[tasks.load(name).train.index("--tokens-per-sample") + 1])
    (again := tmp_path / "again").mkdir()
    synthetic.write(data.corpus, small, again)
    assert [path.read_text().splitlines() for path in sorted(again.glob("*.txt"))] == texts


def test_the_best_predictor_of_bigrams_is_the_posterior_over_their_tables():
    """The mean probability of each line, over tables drawn from the prior, is the predictor's."""
    symbols, lines = 2, np.array(list(itertools.product(range(2), repeat=4)))
    tables = np.random.default_rng(1).dirichlet([synthetic.CONCENTRATION] * symbols, size=(100_000, symbols))
    for line in lines:
        exact = np.mean(np.prod([tables[:, a, b] for a, b in itertools.pairwise(line)], axis=0)) / symbols
        bits = synthetic.best_bits(line[None], symbols) * (len(line) + 1)
        assert bits == pytest.approx(-math.log2(exact), abs=0.05)


def answers_of(name, generate=None):
    """The lines of a task, each with its questions as [place of the question, answer]."""
    data = tasks.load(name).data
    generator = np.random.default_rng(1)
    for line in (generate or synthetic.GENERATORS[data.corpus])(generator, 100, data.options):
        yield line, [(at, line[at + 1]) for at, word in enumerate(line) if word.startswith("?")]


@pytest.mark.parametrize("generate", [synthetic.flip_flop, *synthetic.MORE_TESTS["flip-flop"]])
def test_a_read_gives_the_bit_written_last(generate):
    shares = []
    for line, asked in answers_of("flip-flop", generate):
        assert asked[-1][0] == len(line) - 2
        for at, answer in asked:
            before = "".join(line[:at])
            assert answer == before[before.rindex("w") + 1]
        shares.append(line.count("w") / (len(line) / 2))
    assert np.mean(shares) == pytest.approx(0.13 if generate is synthetic.flip_flop else 0.05, abs=0.02)


@pytest.mark.parametrize(
    ("name", "generate"),
    [
        ("key-lookup", None),
        ("filler-lookup", None),
        *(("filler-lookup", more) for more in synthetic.MORE_TESTS["filler"]),
    ],
)
def test_the_value_of_a_key_stands_once_in_the_line(name, generate):
    for line, asked in answers_of(name, generate):
        for at, answer in asked:
            assert line[:at].count(f"{line[at][1:]}={answer}") == 1


def test_the_missing_word_is_the_answer():
    for line, ((at, answer),) in answers_of("set-difference"):
        mark = line.index("|")
        assert set(line[:mark]) - set(line[mark + 1 : at]) == {answer}


def test_only_answers_count_in_loss_and_accuracy():
    made = [SimpleNamespace(symbols=symbols, pad=lambda: 0) for symbols in (["<pad>", "a", "?", "b"], ["<pad>", "a"])]
    asked, plain = (SimpleNamespace(source_dictionary=each, target_dictionary=each) for each in made)
    criterion = answers.AnswerCrossEntropy(asked)
    tokens = torch.tensor([[1, 2, 3, 1], [2, 1, 1, 0]])
    target = torch.tensor([[2, 3, 1, 1], [1, 1, 1, 0]])
    logits = torch.zeros(2, 4, 4)
    logits[0, 1, 3] = logits[1, 0, 2] = 50.0
    sample = {"net_input": {"src_tokens": tokens}, "target": target, "ntokens": 7}
    loss, count, logged = criterion(lambda src_tokens: (logits, None), sample)
    assert (count, int(logged["correct"])) == (2, 1)
    assert loss.item() == pytest.approx(50, abs=1e-3)
    with metrics.aggregate(new_root=True) as shown:
        criterion.reduce_metrics([logged])
        criterion.reduce_metrics([{"loss": 0.0, "correct": 0, "sample_size": 0}])
    assert shown.get_smoothed_value("accuracy") == 0.5
    with pytest.raises(ValueError, match="no word begins with"):
        answers.AnswerCrossEntropy(plain)


@pytest.mark.recipes
@pytest.mark.parametrize("name", ["filler-lookup", "flip-flop", "in-context-bigrams", "key-lookup", "set-difference"])
def test_the_commands_of_a_page_lead_to_a_result(name, interpreter, tmp_path):
    page = (Path(__file__).parents[3] / "examples" / name / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    short = re.sub("( train .*)", r"\1 -- --max-update 2 --validate-interval-updates 2", block)
    bash(short, tmp_path, PATH=f"{interpreter.parent}:{os.environ['PATH']}")
    assert "eval-lm" in stage_results.read(tmp_path / f"out/runs/{name}/dagpam/1")
