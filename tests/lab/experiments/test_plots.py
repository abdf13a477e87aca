"""The pictures of runs and comparisons show the numbers of these runs."""

import itertools

import pytest
from msgspec.structs import replace
from runs import made_run

from fairseq_gpam.lab.experiments import compare, plots


def run(name, seed, valid):
    made = made_run(name, seed)
    return replace(made, training=replace(made.training, valid=tuple(valid)))


def lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata())}


def test_the_second_panel_is_the_difference_to_stock_of_the_same_seed():
    runs = [
        run("stock", 1, [(10, 4.0), (20, 3.0)]),
        run("stock", 2, [(10, 5.0), (20, 4.0)]),
        run("dagpam", 2, [(10, 4.5), (20, 3.75), (30, 3.0)]),
    ]
    losses, differences = plots.learning_curves(runs).axes
    assert lines(losses)["dagpam, seed 2"] == [[10, 4.5], [20, 3.75], [30, 3.0]]
    assert lines(differences)["dagpam, seed 2"] == [[10, -0.5], [20, -0.25]]
    assert differences.xaxis.get_major_formatter()(12_000) == "12,000"


def test_a_comparison_shows_means_and_differences_and_every_lambda():
    entries = [
        {"arm": "stock", "points": [[10, 2.0, 1.9, 2.1], [20, 1.0, None, None]], "differences": []},
        {"arm": "dagpam", "points": [[10, 1.5, 1.4, 1.6]], "differences": [[10, -0.5, -0.6, -0.4]]},
    ]
    losses, differences = plots.curves(entries, "stock").axes
    assert lines(losses) == {"stock": [[10, 2.0], [20, 1.0]], "dagpam": [[10, 1.5]]}
    assert lines(differences)["dagpam"] == [[10, -0.5]]
    assert differences.get_ylim() == pytest.approx((-1.8, 1.8))

    tied = [[0, 0.5], [10, 0.25]]
    places = itertools.product(("encoder", "cross"), (0, 1), ("plus", "minus"))
    figure = plots.lambdas(
        [{"arm": "dagpam", "site": site, "layer": layer, "sign": sign, "points": tied} for site, layer, sign in places]
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["dagpam\nencoder", "dagpam\ncross"]
    for axes in figure.axes:
        looks = [(line.get_color(), line.get_linestyle(), line.get_linewidth()) for line in axes.lines[1:]]
        assert len(set(looks)) == len(looks) == 4


def test_layers_and_correlations_have_every_measure_and_arm():
    points = [[-1, 0.5, 0.4, 0.6], [0, 0.1, 0.1, 0.1]]
    entries = [
        {"arm": arm, "metric": "residual_norm", "site": "encoder", "seeds": 2, "points": points} for arm in ("a", "b")
    ]
    [axes] = plots.layers("title", entries).axes
    assert lines(axes) == {arm: [[-1, 0.5], [0, 0.1]] for arm in ("a", "b")}
    assert axes.get_yscale() == "log" and len(axes.collections) == 2
    measured = {
        "metric": "mean_cosine",
        "site": "decoder",
        "rho": None,
        "points": [[0.1, 2.0, "a"], [0.2, 3.0, "b"], [0.3, 1.0, "a"]],
    }
    [axes] = plots.correlation("title", [measured]).axes
    assert lines(axes) == {"a": [[0.1, 2.0], [0.3, 1.0]], "b": [[0.2, 3.0]]}


def test_a_forest_plot_has_the_intervals_of_the_table():
    bits = {"stock": (4.0, 4.1, 4.2), "dagpam": (3.9, 3.98, 4.11), "wider": (4.01, 4.2, 4.1), "single": (3.0,)}
    runs = [made_run(name, seed, value) for name, values in bits.items() for seed, value in enumerate(values, start=1)]
    [table] = compare.comparison(runs, "stock")["tables"]
    [axes] = plots.forest(table, "stock", {name: "±" for name in bits}).axes
    rows = {row["arm"]: row["difference"]["interval"] for row in table["rows"] if row.get("difference")}
    labels = [label.get_text().partition(" ")[0] for label in axes.get_yticklabels()]
    assert labels == sorted(rows, key=lambda arm: rows[arm]["mean"])
    spans = {labels[int(y[0])]: tuple(x) for x, y in (line.get_data() for line in axes.lines[1:]) if len(x) == 2}
    assert spans == {arm: (row["low"], row["high"]) for arm, row in rows.items() if arm != "single"}


@pytest.mark.slow
@pytest.mark.parametrize("names", [["stock"], ["dagpam", "softmax"]])
def test_one_panel_where_there_is_nothing_to_compare(names):
    assert len(plots.learning_curves([run(name, 1, [(10, 4.0)]) for name in names]).axes) == 1
