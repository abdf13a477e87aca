"""The comparison's page in a browser, wide and narrow: no error, nothing cut off, every table of its sections."""

import json

import browser
from msgspec.structs import replace
from test_compare import SHIFTS, run_of

from fairseq_gpam.lab.experiments import compare, comparison_report, sections
from fairseq_gpam.lab.experiments.records import Score


def scored_run(name, seed):
    run = run_of(name, seed)
    scores = {"bleu": 40 - run.loss("valid") + 0.01 * seed * len(name), "chrf": 60 - run.loss("valid")}
    return replace(
        run,
        arm=f"{name}-with-a-name-that-is-as-long-as-a-line-of-flags",
        scores=tuple(Score(metric=metric, value=value) for metric, value in scores.items()),
        costs=replace(run.costs, training_seconds=1234.5),
    )


def test_the_page_fits_and_shows_every_table(tmp_path):
    runs = [scored_run(name, seed) for name in SHIFTS for seed in range(1, 6)]
    page = comparison_report.write(compare.comparison(runs, runs[0].arm), tmp_path)
    comparison = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    shown = [section for section in sections.of_comparison(comparison) if section.head]
    tables = [[list(map(str, row)) for row in (section.head, *section.rows)] for section in shown]
    assert len(tables) == 7
    seen = browser.visit(page)
    browser.check(seen)
    for at_width in seen.values():
        assert at_width["tables"] == tables
