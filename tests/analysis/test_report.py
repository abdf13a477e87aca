import base64
import html
import json
import math
import sys
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO

import browser
import numpy as np
import pandas as pd
import pytest
from conftest import HOSTILE, SMALL
from matplotlib.backends.backend_agg import RendererAgg
from PIL import Image

from fairseq_gpam.__main__ import main
from fairseq_gpam.analysis import cli, pictures

NAMES = ("stock", "ours 1", "ours 2 " + " ".join(HOSTILE))


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.numbers, self.links, self.scripts, self.ids = [], {}, [], 0, set()
        self._number = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        if tag == "img":
            self.images.append(attributes)
        if tag == "script":
            self.scripts += 1
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if "data-json" in attributes:
            self._number = attributes["data-json"]

    def handle_data(self, data):
        if self._number:
            self.numbers[self._number] = data
            self._number = None


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
    return Page((report / "report.html").read_text(encoding="utf-8"))


def test_every_image_is_inside_and_has_an_alternative_text(page):
    assert len(page.images) > 20
    for image in page.images:
        assert len(image["alt"]) > 20
        with Image.open(BytesIO(base64.b64decode(image["src"].removeprefix("data:image/png;base64,")))) as picture:
            assert picture.size == (int(image["width"]), int(image["height"]))


def test_nothing_is_fetched_and_links_lead_somewhere(page):
    for link in page.links:
        assert link.startswith("data:") or link[1:] in page.ids


def test_hostile_words_and_names_are_shown_and_do_nothing(report, page):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert html.escape(HOSTILE[0]) in text and HOSTILE[1] in text
    assert page.scripts == 0


@pytest.fixture
def drawn(monkeypatch):
    """The texts in the pictures that a test draws, and whether each is drawn as a formula."""
    texts = {}

    def record(renderer, gc, x, y, text, prop, angle, ismath=False, mtext=None):
        texts[text] = bool(ismath)

    monkeypatch.setattr(RendererAgg, "draw_text", record)
    return texts


def test_pictures_show_text_as_it_is_and_no_formulas(tmp_path, drawn):
    words, name = ["$a$", r"\$", "$"], HOSTILE[1]
    pictures.attention_maps(np.eye(3)[None], words, words, tmp_path / "maps.png", 90)
    pictures.token_map(np.eye(3), words, words, name, tmp_path / "relevance.png")
    line = {"checkpoint": name, "variant": "full", "metric": "query_gradient", "site": "encoder", "head": None}
    values = [{"layer": n, "median": 10.0**-n, "low": 10.0**-n, "high": 10.0**-n, "count": 2} for n in range(7)]
    pictures.curves(pd.DataFrame([line | value for value in values]), ["query_gradient"], tmp_path / "c.png", [name])
    assert {"$a$", r"‘\$’", "‘$’", name} <= drawn.keys()
    assert not any(drawn.values())
    # A logarithmic axis has plain numbers, not the source of formulas.
    assert not any("mathdefault" in text for text in drawn)


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
    assert "no fit: fewer than four layers" in (report / "report.html").read_text(encoding="utf-8")
    assert {run["loss_unit"] for run in results["runs"]} == {"nats per token"}


def test_a_checkpoint_keeps_its_colour_where_others_have_no_such_metric(tmp_path):
    line = {"variant": "full", "metric": "lambda_plus", "site": "encoder", "head": None, "low": 0.5, "high": 0.5}
    records = pd.DataFrame([{**line, "checkpoint": "ours", "layer": n, "mean": 0.5, "count": 1} for n in (1, 2)])
    pictures.curves(records, ["lambda_plus"], tmp_path / "lambda.png", ["stock", "ours"])
    with Image.open(tmp_path / "lambda.png") as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)

    def shows(colour):
        wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        return (np.abs(pixels - wanted).max(axis=-1) < 24).any()

    assert shows(pictures.COLOURS[1]) and not shows(pictures.COLOURS[0])


def test_too_few_layers_for_a_slope_are_counted_in_words(tmp_path, drawn):
    fit = {"checkpoint": "ours", "variant": "without skips", "slope": None, "floor": 1e-9}
    counts = {"encoder": (1, [0.5, 1e-12]), "decoder": (2, [0.5, 0.25])}
    fits = [{**fit, "site": site, "points": points, "ratios": ratios} for site, (points, ratios) in counts.items()]
    pictures.log_log(fits, tmp_path / "collapse.png", ["ours"])
    assert "ours, without skips, encoder: no fit, 1 layer above rounding" in drawn
    assert "ours, without skips, decoder: no fit, 2 layers above rounding" in drawn


def test_updates_have_thousands_separators(tmp_path, drawn):
    line = {"metric": "lambda_plus", "group": "ours", "site": "encoder", "layer": 1, "least": 0.4, "greatest": 0.6}
    rows = pd.DataFrame([{**line, "updates": updates, "mean": 0.5} for updates in (0, 20_000)])
    pictures.lambda_history(rows, tmp_path / "lambda.png")
    assert {"0", "3,000", "12,000"} <= drawn.keys()


def test_tokens_without_a_letter_are_quoted():
    assert [pictures._visible_label(token) for token in (",", "▁.", "a", "</s>", "7")] == [
        "‘,’",
        "‘▁.’",
        "a",
        "</s>",
        "7",
    ]


def test_zero_is_white_and_signs_have_their_colours(tmp_path):
    assert pictures.SIGNED(0.5) == (1.0, 1.0, 1.0, 1.0)
    red, blue = pictures.SIGNED(0.9), pictures.SIGNED(0.1)
    assert red[0] > red[2] and blue[2] > blue[0]
    weights = np.zeros((1, 4, 4))
    weights[0, 0, 0], weights[0, 3, 3] = 1, -1
    pictures.attention_maps(weights, ["a"] * 4, ["b"] * 4, tmp_path / "maps.png", 100)
    with Image.open(tmp_path / "maps.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    white = (pixels == 255).all(axis=1).mean()
    assert white > 0.5
    assert ((pixels[:, 0] > 150 - 60) & (pixels[:, 2] < 60)).any() and ((pixels[:, 2] > 90) & (pixels[:, 0] < 60)).any()


def test_a_page_of_15_layers_and_8_heads_stays_small(tmp_path):
    weights = np.random.default_rng(0).normal(size=(8, 24, 24))
    words = [f"▁token{number}" for number in range(24)]
    pictures.attention_maps(weights, words, words, tmp_path / "maps.png", 90)
    with Image.open(tmp_path / "maps.png") as image:
        assert image.width < 1300
    # three sites, and base64
    assert (tmp_path / "maps.png").stat().st_size * 45 * 4 / 3 < 10e6


def test_a_browser_opens_it_without_an_error_wide_and_narrow(report, page):
    seen = browser.visit(report / "report.html")
    browser.check(seen)
    for found in seen.values():
        shown = [cell for table in found["tables"] for row in table for cell in row]
        assert not Counter(page.numbers.values()) - Counter(shown)


def test_the_loss_of_all_paths_is_that_of_the_model(report):
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    for run in (run for run in results["runs"] if run["variant"] == "full"):
        rows = [row for row in results["path_losses"] if row["checkpoint"] == run["checkpoint"]]
        assert [row["length"] for row in rows] == list(range(len(rows)))
        assert len({row["loss"] for row in rows}) == len(rows) > 2
        assert rows[-1]["loss"] == pytest.approx(run["loss"], rel=1e-4)


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


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(cli.LIBRARIES, "jinja2", "no_such_library")
    with pytest.raises(SystemExit, match=r"needs jinja2: pip install 'fairseq-gpam\[analysis\]'"):
        main(["analyze", "model.pt", "--data", "data"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to analyze"),
        ([__file__, "--only-without"], "--only-without is not allowed"),
        ([__file__, "--names", "a", "b"], "--names has 2 names, but there are 1 models"),
        (["model.pt"], "CHECKPOINT model.pt is not allowed: there is no such file; allowed: a checkpoint"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["analyze", "--data", "data", *arguments])


def test_fresh_models_are_told_apart():
    words = "transformer --layers 2 --arch transformer_gpam --layers 2 --arch transformer_gpam --gpam-lambda-plus 1"
    models = cli.fresh_models([*words.split(), "--layers", "2"])
    assert [model[1] for model in models] == ["transformer", "transformer_gpam", "transformer_gpam"]
    assert cli.architecture_names(models) == ["transformer", "transformer_gpam", "transformer_gpam lambda-plus 1"]
