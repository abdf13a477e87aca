"""The comparison's page in a browser, wide and narrow: no error, nothing cut off, every table of its sections."""

import json
import re

import browser
import pytest
from msgspec.structs import replace
from test_compare import SHIFTS, run_of

from fairseq_gpam.lab.experiments import compare, comparison_report, sections
from fairseq_gpam.lab.experiments.records import Score


def interval(shown, found, digits):
    """Checks `mean ± half the width`."""
    mean, half = shown.split(" ± ")
    near(mean, found["mean"], digits)
    near(half, (found["high"] - found["low"]) / 2, digits)


def check_row(shown, row, digits):
    """`shown` is the row's cells by the names of their columns."""
    assert (shown["arm"], shown["seeds"]) == (row["arm"], str(row["n"]))
    interval(shown["mean"], row, digits)
    assert shown["parameters"] == f"{row['parameters']:,.0f}"
    one = row.get("difference")
    tests = {"p (Holm)": "p_holm", "p (t)": "p_t", "p (sign flips)": "p_sign_flip"}
    if one is None:
        assert shown["verdict"] == "baseline"
        assert {shown[name] for name in ("difference", *tests)} == {"–"}
        return
    assert shown["verdict"] == one["verdict"]
    interval(shown["difference"], one["interval"], digits)
    for name, key in tests.items():
        near(shown[name], one[key], 4)
    assert shown["seeds for δ"] == str(row["seeds_for_delta"] or "over 10,000")


def near(shown, value, digits):
    assert float(shown) == pytest.approx(value, abs=0.5001 * 10**-digits)


def named(heading):
    """The name of a column: its heading without the unit, the level or the value of δ."""
    return re.split(r" ± | = ", heading)[0]


def scored_run(name, seed):
    run = run_of(name, seed)
    scores = {"bleu": 40 - run.loss("valid") + 0.01 * seed * len(name), "chrf": 60 - run.loss("valid")}
    return replace(
        run,
        arm=f"{name}-with-a-name-that-is-as-long-as-a-line-of-flags",
        scores=tuple(Score(metric=metric, value=value) for metric, value in scores.items()),
        costs=replace(run.costs, training_seconds=1234.5),
    )


def test_the_page_fits_and_shows_every_table_and_its_numbers_are_those_of_the_json(tmp_path):
    runs = [scored_run(name, seed) for name in SHIFTS for seed in range(1, 6)]
    page = comparison_report.write(compare.comparison(runs, runs[0].arm), tmp_path)
    found = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    shown = [section for section in sections.of_comparison(found) if section.head]
    tables = [[list(map(str, row)) for row in (section.head, *section.rows)] for section in shown]
    assert (len(tables), len(found["tables"])) == (7, 3)
    for (head, *lines), table in zip(tables, found["tables"], strict=False):
        for cells, row in zip(lines, table["rows"], strict=True):
            check_row(dict(zip(map(named, head), cells, strict=True)), row, 4 if table["unit"] == "nats" else 2)
    head, *costs = tables[3]
    assert head == ["arm", "training (s)", "training tokens/s"]
    for cells, entry in zip(costs, found["costs"], strict=True):
        assert cells == [entry["arm"], "1,234", "5"]
    name = next(entry["arm"] for entry in found["lambdas"])
    last = sum(entry["points"][-1][1] for entry in found["lambdas"]) / len(found["lambdas"])
    assert tables[4] == [["arm", "λ⁺ decoder"], [name, f"{last:.2f} ({last:.2f} to {last:.2f})"]]
    [entry] = found["layers"]
    means = [f"{mean:.3g}" for _, mean, _, _ in entry["points"]]
    assert tables[5] == [
        ["measure", "arm", "seeds", "layer 0", "layer 1"],
        ["mean cosine, decoder", entry["arm"], "5", *means],
    ]
    for cells, entry in zip(tables[6][1:], found["collapse"], strict=True):
        assert cells[:3] == [entry["group"], f"mean cosine, {entry['site']}", str(entry["n"])]
        for value, key in zip(cells[3:], ("rho", "low", "high", "between", "within"), strict=True):
            near(value, entry[key], 2)
    seen = browser.visit(page)
    browser.check(seen)
    for at_width in seen.values():
        assert at_width["tables"] == tables
