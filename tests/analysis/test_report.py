import html
import json
import math
from collections import Counter

import browser
import numpy as np
import pandas as pd
import pytest
from conftest import HOSTILE, SMALL

from fairseq_gpam.__main__ import main
from fairseq_gpam.analysis import cli, drawing, embed, pictures

NAMES = ("stock", "ours 1", "ours 2 " + " ".join(HOSTILE))


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    checkpoints = [
        trained / "stock_translation" / "checkpoint_last.pt",
        *sorted((trained / "ours").glob("checkpoint_*_*.pt")),
    ]
    assert len(checkpoints) == 3
    arguments = ["analyze", *map(str, checkpoints), "--data", str(trained / "translation"), "--samples", "5"]
    arguments += ["--out", str(out), "--without", "skips", "mlps", "--paths", "3", "--operator", "--path-loss"]
    arguments += ["--names", *NAMES]
    assert main(arguments) == 0
    return out


@pytest.fixture(scope="module")
def page(report):
    return browser.Page((report / "report.html").read_text(encoding="utf-8"))


def test_every_picture_is_inside_has_an_alternative_text_and_a_file(report, page):
    assert len(page.pictures) > 20
    assert all(len(words) > 20 for words in page.pictures)
    assert len(list((report / "pictures").glob("*.svg"))) == len(page.pictures)


def test_every_weight_that_is_not_masked_is_shown_on_hover(report, page):
    with np.load(report / "maps.npz") as maps:
        shapes = {name: maps[name].shape for name in maps if name.split("/")[0] in "135"}
    cells = 0
    for name, shape in shapes.items():
        rows, columns = shape[-2:]
        causal = name.split("/")[2] == "decoder"
        cells += (shape[0] if len(shape) == 3 else 1) * (rows * (rows + 1) // 2 if causal else rows * columns)
    assert page.tags["title"] == cells + 1


def test_nothing_is_fetched_and_links_lead_somewhere(page):
    for link in page.links:
        assert link.startswith("data:") or link[1:] in page.ids


def test_hostile_words_and_names_are_shown_and_do_nothing(report, page):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert html.escape(HOSTILE[0]) in text and HOSTILE[1] in text
    assert page.tags["script"] == 0


def test_the_numbers_shown_are_those_of_the_json(report, page):
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    assert len(page.numbers) > 500
    for path, text in page.numbers.items():
        value = results
        for part in path.split("/"):
            value = value[int(part)] if isinstance(value, list) else value[part]
        if value is None:
            assert text == "–"
        else:
            assert text == (f"{value:,}" if isinstance(value, int) else f"{value:.4g}"), path
    shown = {path for path in page.numbers if path.startswith("records/")}
    assert len(shown) == sum(record["head"] is None for record in results["records"])


def test_json_and_csv_agree(report):
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    table = pd.read_csv(report / "records.csv")
    assert len(table) == len(results["records"])
    for row, record in zip(table.itertuples(), results["records"], strict=True):
        assert (row.metric, row.site, row.layer) == (record["metric"], record["site"], record["layer"])
        assert (record["mean"] is None and math.isnan(row.mean)) or row.mean == pytest.approx(record["mean"])
    assert {record["metric"] for record in results["records"]} == results["definitions"].keys()
    assert all(entry["definition"] and entry["source"] for entry in results["definitions"].values())


def test_what_the_report_holds(report, page):
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    assert [(run["checkpoint"], run["variant"]) for run in results["runs"]] == [
        (name, variant) for name in NAMES for variant in ("full", "without skips, mlps")
    ]
    assert [run["updates"] for run in results["runs"][::2]] == [2, 1, 2]
    assert {"figure4", "collapse", "relevance", "lambda", "curves", "maps", "paths", "numbers"} <= page.ids
    history = pd.read_csv(report / "lambda.csv")
    assert set(history.updates) == {1, 2} and set(history.site) == {"encoder", "decoder", "cross"}
    lengths = {(row["site"], row["length"], row["number_of_paths"]) for row in results["paths"]}
    assert lengths == {(site, k, n) for site in ("encoder", "decoder") for k, n in ((1, "4"), (2, "4"))}
    with np.load(report / "maps.npz") as maps:
        assert sum(name.endswith("relevance") for name in maps) == 3
        for kind in ("operator", "encoder-operator", "decoder-operator"):
            assert sum(name.endswith(f"/{kind}") for name in maps) == 3
        for row in results["token_maps"]:
            assert maps[row["array"]].argmax(axis=1).tolist() == row["largest"]
        assert len(results["token_maps"]) == 3 * 4 and results["refusals"] == []
        assert sum(name.count("/") == 3 for name in maps) == 6 * 6
    assert (report / "report.html").stat().st_size < 20e6
    rankings = [(row["checkpoint"], row["map"]) for row in results["deletions"]]
    assert rankings == [(name, ranking) for name in NAMES for ranking in ("operator", "relevance", "random")]
    # Two layers are too few for a fit, and the page says so.
    assert all(row["slope"] is None and row["points"] < 4 for row in results["slopes"])
    assert "–: no fit, fewer than four layers" in (report / "report.html").read_text(encoding="utf-8")
    assert {run["loss_unit"] for run in results["runs"]} == {"nats per token"}


def test_a_checkpoint_keeps_its_colour_where_others_have_no_such_metric():
    line = {"variant": "full", "metric": "lambda_plus", "site": "encoder", "head": None, "low": 0.5, "high": 0.5}
    records = pd.DataFrame([{**line, "checkpoint": "ours", "layer": n, "mean": 0.5, "count": 1} for n in (0, 1)])
    [axes] = pictures.curves(records, ["lambda_plus"], ["stock", "ours"]).axes
    [drawn] = axes.lines
    assert drawn.get_color() == drawing.COLOURS[1]
    assert drawn.get_xydata().tolist() == [[0, 0.5], [1, 0.5]]


def test_a_fit_is_drawn_at_its_layers_and_its_absence_is_said_in_words():
    depths = np.arange(5)
    fits = [
        {"slope": slope, "intercept": -1.0, "floor": 1e-9, "points": points, "site": site, "ratios": ratios}
        for slope, points, site, ratios in (
            (0.5, 5, "encoder", np.exp(-np.exp(-1.0 + 0.5 * depths)).tolist()),
            (None, 1, "decoder", [0.5, 1e-12]),
        )
    ]
    named = [{"checkpoint": "ours", "variant": "without skips", **fit} for fit in fits]
    ratios, heights = pictures.log_log(named, ["ours"]).axes
    assert ratios.lines[0].get_xydata().tolist() == [[depth - 1, fits[0]["ratios"][depth]] for depth in depths]
    dots, fitted, few = heights.lines
    np.testing.assert_allclose(dots.get_xydata(), fitted.get_xydata(), atol=1e-9)
    assert dots.get_label() == "ours, without skips, encoder: slope 0.5"
    assert few.get_label() == "ours, without skips, decoder: no fit, 1 layer above rounding"


def test_lambdas_of_every_layer_remain_visible_where_they_coincide():
    line = {"metric": "lambda_plus", "group": "ours", "site": "encoder", "least": 0.4, "greatest": 0.6, "mean": 0.5}
    rows = pd.DataFrame([{**line, "layer": layer, "updates": at} for layer in range(3) for at in (0, 20_000)])
    [axes] = pictures.lambda_history(rows).axes
    looks = {(drawn.get_color(), drawn.get_linestyle(), drawn.get_linewidth()) for drawn in axes.lines}
    assert len(looks) == len(axes.lines) == 3
    assert axes.xaxis.get_major_formatter()(20_000) == "20,000"


@pytest.mark.slow  # draws the largest model's page
def test_the_maps_of_15_layers_and_8_heads_stay_below_10_mb():
    weights = np.random.default_rng(0).normal(size=(8, 24, 24))
    words = [f"▁token{number}" for number in range(24)]
    figure = pictures.attention_maps(weights, np.ones_like(weights, dtype=bool), words, words, 1.0)
    assert figure.get_size_inches()[0] < 13
    assert len(embed.svg(figure, "maps")) * 15 < 10e6


def test_a_browser_opens_it_without_an_error_wide_and_narrow(report, page):
    seen = browser.visit(report / "report.html")
    browser.check(seen)
    for found in seen.values():
        shown = [cell for table in found["tables"] for row in table for cell in row]
        assert not Counter(page.numbers.values()) - Counter(shown)


# The command


def test_a_fresh_language_model(trained, tmp_path, capsys):
    arguments = ["analyze", "--data", str(trained / "language_modeling"), "--samples", "2", "--out", str(tmp_path)]
    arguments += ["--operator", "--paths", "0", "--arch", "transformer_lm_gpam", *SMALL["language_modeling"]]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["runs"][0]["updates"] is None and results["slopes"] == results["paths"] == []
    deletions = {row["map"]: row["increase"] for row in results["deletions"]}
    assert list(deletions) == ["operator", "random"]
    numbers = ", ".join(f"{name} {increase:+.3f}" for name, increase in deletions.items())
    assert f"ranks highest: {numbers} (mean; sentences: 1)" in capsys.readouterr().err
    with np.load(tmp_path / "maps.npz") as maps:
        (operator,) = (maps[name] for name in maps if name.endswith("operator"))
    # No block leads from a later token to an earlier one.
    assert np.abs(np.triu(operator, 1)).max() < 1e-9 * np.abs(operator).max()


@pytest.mark.slow
def test_a_model_without_an_operator_is_named_and_the_others_are_measured(trained, tmp_path, capsys):
    base = ["analyze", "--data", str(trained / "language_modeling"), "--samples", "2", "--paths", "0", "--operator"]
    gated, softmax = (
        ["--arch", "transformer_lm_gpam", *SMALL["language_modeling"], "--gpam-mechanism", name]
        for name in ("gated", "softmax")
    )
    both = [*base, "--path-loss", "--out", str(tmp_path), "--names", "with a gate", "plain", *gated, *softmax]
    assert main(both) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [run["checkpoint"] for run in results["runs"]] == ["with a gate", "plain"]
    assert {row["checkpoint"] for row in results["deletions"] + results["path_losses"]} == {"plain"}
    said, page = capsys.readouterr().err, html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    for row, option in zip(results["refusals"], ("--operator", "--path-loss"), strict=True):
        assert (row["checkpoint"], row["option"]) == ("with a gate", option)
        assert "gated computes more than that" in row["reason"] and "allowed: stock attention" in row["reason"]
        assert f"with a gate has no {option}: {row['reason']}" in said and row["reason"] in page
    assert "none of the models" not in said

    assert main([*base, "--out", str(tmp_path / "alone"), *gated]) == 1
    assert "--operator could be made for none of the models" in capsys.readouterr().err
    assert (tmp_path / "alone" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to analyze"),
        ([__file__, "--only-without"], "--only-without is not allowed"),
        ([__file__, "--names", "a", "b"], "--names has 2 names, but there are 1 models"),
        (["model.pt"], "model.pt: no such file"),
    ],
)
def test_refusals(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", "--data", "data", *arguments])
    assert message in f"{ended.value} {capsys.readouterr().err}"


@pytest.mark.slow
def test_the_loss_of_all_paths_is_that_of_the_model(report):
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    for run in (run for run in results["runs"] if run["variant"] == "full"):
        rows = [row for row in results["path_losses"] if row["checkpoint"] == run["checkpoint"]]
        assert [row["length"] for row in rows] == list(range(len(rows)))
        assert len({row["loss"] for row in rows}) == len(rows) > 2
        assert rows[-1]["loss"] == pytest.approx(run["loss"], rel=1e-4)


@pytest.mark.slow
def test_fresh_models_are_told_apart():
    words = "transformer --layers 2 --arch transformer_gpam --layers 2 --arch transformer_gpam --gpam-lambda-plus 1"
    models = cli.fresh_models([*words.split(), "--layers", "2"])
    assert [model[1] for model in models] == ["transformer", "transformer_gpam", "transformer_gpam"]
    assert cli.architecture_names(models) == ["transformer", "transformer_gpam", "transformer_gpam lambda-plus 1"]
