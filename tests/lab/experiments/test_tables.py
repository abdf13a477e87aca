"""Tables show the runs and mark those that are missing."""

import subprocess
import sys

import numpy as np
import pytest
import runs
from msgspec.structs import replace

import keep
from fairseq_gpam.__main__ import main
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import run_results, tables
from fairseq_gpam.lab.experiments.records import Loss, Run, Score
from fairseq_gpam.lab.recipes import stage_results, synthetic, tasks


def made_run(folder, name="dagpam", task="bible-de-en"):
    return runs.write_run(folder, runs.made_run(name, 1, 6.0, task))


def test_table_and_report(tmp_path):
    folder = tmp_path / "runs/bible-de-en/dagpam/1"
    made_run(folder)
    run = run_results.read(folder)
    text = tables.table_of_runs([run])
    header, _, row = text.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        *("mechanism", "seed", "parameters", "updates", "valid loss (bits, label-smoothed)"),
        "training tokens/s",
    ]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("dagpam", "1", "10", "4", "6.000"),
        "5",
    ]
    assert tables.report([run], tmp_path / "report") == text
    assert (tmp_path / "report/table.md").read_text(encoding="utf-8").startswith(text)
    [written] = schema.read_json(tmp_path / "report/results.json", list[Run])
    assert written == run
    assert (tmp_path / "report/learning-curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="of one task"):
        tables.table_of_runs([run, replace(run, task="shakespeare-lm")])
    assert "| valid loss (bits) |" in " ".join(tables.table([], "words").split())
    shown = tables.table_of_runs([replace(run, scores=(Score(metric="tokenized_bleu", value=34.44),))])
    assert "tokenised BLEU" in shown
    assert "34.4" in shown


WITHOUT_THE_EXTRAS = """
import sys
for name in ("statsmodels", "snakemake", "sacremoses", "subword_nmt"):
    sys.modules[name] = None
from fairseq_gpam.__main__ import main
repository, *runs = sys.argv[1:]
main(["results", "table", *runs])
main(["results", "report", *runs, "--out", f"{repository}/report"])
main(["compare", *runs, "--baseline", "stock", "--out", repository])
"""


@pytest.mark.slow  # a process that imports PyTorch
def test_tables_of_runs_need_nothing_of_the_extra_experiments_and_a_comparison_names_it(tmp_path):
    folders = [tmp_path / f"out/runs/bible-de-en/{name}/1" for name in ("stock", "dagpam")]
    for run in folders:
        made_run(run, run.parent.name)
    command = [sys.executable, "-c", WITHOUT_THE_EXTRAS, str(tmp_path), *map(str, folders)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr.endswith("statsmodels is not installed: pip install 'fairseq-gpam[experiments]'\n")
    assert "Traceback" not in ended.stderr
    assert "| stock" in ended.stdout
    assert (tmp_path / "report/table.md").exists()


def test_what_is_no_run_or_holds_a_path_ends_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="out/typo holds no results of a finished training"):
        main(["results", "table", "out/typo"])
    run = tmp_path / "out/runs/bible-de-en/stock/1"
    made_run(run, "stock")
    stage_results.update(run, {"generate": {"command": "fairseq-generate --path /home/somebody/model.pt"}})
    with pytest.raises(SystemExit, match=r"holds a path of this machine: /home/somebody/model\.pt"):
        keep.main([str(run), "--repository", str(tmp_path)])


def test_the_note_says_which_runs_of_dagpam_share_their_second_query_projection():
    flags = {
        "stock": "--arch transformer",
        "own": "--gpam-mechanism dagpam",
        "tied": "--gpam-mechanism dagpam --gpam-lambda-tied",
        "shared": "--gpam-mechanism dagpam --gpam-negative-projection=shared",
        "own after all": "--gpam-mechanism dagpam:2,softmax:2 --gpam-negative-projection shared "
        "--gpam-negative-projection head",
        "in one stack": "--gpam-mechanism softmax --gpam-decoder-mechanism softmax@0;dagpam@1 "
        "--gpam-negative-projection shared",
        "V2": "--gpam-mechanism dagpam --gpam-negative-source input",
        "another": "--gpam-mechanism differential_v2",
    }
    shown = [
        runs.made_run(name, training={"command": f"fairseq-train data {words}", "parameters": 1, "updates": 1})
        for name, words in flags.items()
        for _ in (1, 2)
    ]
    assert tables.negative_projections(shown) == [
        "W_Q⁻: one for each head: own, tied, own after all; shared by the heads of a layer: shared, in one stack; "
        "from the layer's input to all heads: V2"
    ]
    assert tables.negative_projections([shown[0], shown[-1]]) == []


def test_the_recipe_says_how_a_task_is_measured():
    kinds = {
        "bible-de-en": "translation",
        "ptb-lm": "words",
        "wikitext-103-lm.softmax": "words",
        "flip-flop": "answers",
    }
    for task, kind in {**kinds, "enwik8-lm": "characters"}.items():
        assert tables.kind_of([runs.made_run(task=task)] * 2) == kind


def test_a_table_has_runs_of_one_task():
    with pytest.raises(ValueError, match=r"2 tasks \(bible-de-en, ptb-lm\); allowed: runs of one task"):
        tables.kind_of([runs.made_run(task="bible-de-en"), runs.made_run(task="ptb-lm")])
    with pytest.raises(ValueError, match="0 tasks"):
        tables.kind_of([])


def test_a_run_of_a_recipe_of_ones_own_that_was_only_trained_has_a_row(tmp_path):
    own = tmp_path / "out/recipes/mine.toml"
    own.parent.mkdir(parents=True)
    own.write_text('base = "ptb-lm"\n')
    folder = made_run(tmp_path / "out/runs/mine/stock/1", "stock", task="mine")
    assert "| stock" in tables.table_of_runs([run_results.read(folder)])


def cells(text):
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_right_answers_of_each_test_set_have_a_column():
    scores = tuple(
        Score(metric="accuracy", value=value, test_set=name) for name, value in (("test", 0.75), ("test1", 0.5))
    )
    answered = replace(runs.made_run(task="flip-flop"), scores=scores)
    [row] = cells(tables.table_of_runs([answered]))
    assert {title: cell for title, cell in row.items() if "right" in title} == {
        "right answers, test": "0.7500",
        "right answers, test1": "0.5000",
    }


def test_the_loss_of_bigrams_stands_above_the_best_predictor():
    task = tasks.load("in-context-bigrams")
    drawn = [[int(word[1:]) for word in line] for line in synthetic.lines("bigrams", task.data.options, "test")]
    best = synthetic.best_bits(np.array(drawn), task.data.options["symbols"])
    tested = replace(runs.made_run(task=task.name), losses=(Loss(split="test", value=best + 0.125),))
    [row] = cells(tables.table_of_runs([tested]))
    assert row["test loss above the optimum (bits)"] == "0.1250"
    [row] = cells(tables.table_of_runs([replace(tested, task="ngram-lm")]))
    assert "test loss above the optimum (bits)" not in row
