"""Pictures show the numbers they are given, with labels on every axis; their SVG is the same for the same numbers."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_gpam.analysis import drawing, embed
from fairseq_gpam.analysis.drawing import Effect, Panel, Series, WeightMap

SVG = "{http://www.w3.org/2000/svg}"
POSITIVE = st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=6)
HOSTILE = ("<b>&", "$a$", r"\$", "▁der")


def texts(figure, name="made"):
    return [element.text for element in ElementTree.fromstring(embed.svg(figure, name)).iter(f"{SVG}text")]


def ticks(axis):
    low, high = axis.get_view_interval()
    formatter = axis.get_major_formatter()
    return [formatter(at) for at in axis.get_major_locator().tick_values(low, high) if low <= at <= high]


@given(POSITIVE)
@settings(max_examples=40, deadline=None)
def test_a_logarithmic_axis_has_at_least_two_distinct_plain_labels(values):
    points = list(enumerate(values, start=1))
    figure = drawing.panels([Panel("a", "x", series=[Series("b", points)], logarithmic=True)], columns=1)
    labels = ticks(figure.axes[0].yaxis)
    assert len(set(labels)) == len(labels) >= 2
    assert [float(label) for label in labels] == sorted(map(float, labels))


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_panel_draws_its_points_band_and_names(logarithmic):
    points = [(-1, 0.5), (0, 5.0), (1, 40.0)]
    band = [(x, y / 2, y * 2) for x, y in points]
    series = Series("an <arm>", points, band, colour=1, dash=1, marker="s")
    panel = Panel("title", "layer", series=[series], logarithmic=logarithmic, names=drawing.LAYER_NAMES)
    figure = drawing.panels([None, panel], columns=2, heading="a heading", note="a note")
    [axes] = figure.axes
    [line], [filled] = axes.lines, axes.collections
    assert line.get_xydata().tolist() == [list(point) for point in points]
    assert line.get_color() == drawing.COLOURS[1]
    edges = {tuple(vertex) for path in filled.get_paths() for vertex in path.vertices}
    assert {(x, low) for x, low, _ in band} | {(x, high) for x, _, high in band} <= edges
    assert axes.get_yscale() == ("log" if logarithmic else "linear")
    assert {"an <arm>", "a heading", "a note", "title", "input", "0", "1"} <= set(texts(figure))


def test_texts_keep_all_their_digits():
    figure = drawing.forest([Effect("a", 0.0123, None, "+0.01234")], "0.5678", "n", sides=("0.001", "b"))
    assert {"+0.01234", "0.5678", "← 0.001"} <= set(texts(figure))


def test_lines_that_coincide_remain_visible():
    series = [Series(str(number), [(0, 1), (1, 2)], colour=number, dash=number) for number in range(4)]
    figure = drawing.panels([Panel("a", "x", series=series)], columns=1)
    widths = [line.get_linewidth() for line in figure.axes[0].lines]
    assert widths == sorted(set(widths), reverse=True)
    assert len({line.get_linestyle() for line in figure.axes[0].lines}) == 4


@pytest.mark.parametrize("lowest_first", [True, False])
def test_a_forest_plot_has_its_effects_in_order_with_their_intervals(lowest_first):
    effects = [
        Effect("b", 0.2, (0.1, 0.3), "worse"),
        Effect("a", -0.1, (-0.4, 0.2), "?"),
        Effect("c", 0.3, None, "few"),
    ]
    figure = drawing.forest(
        effects, "heading", "note", sides=("better", "worse"), lowest_first=lowest_first, delta=0.05
    )
    [axes] = figure.axes
    order = ["a", "b", "c"] if lowest_first else ["c", "b", "a"]
    assert [label.get_text() for label in axes.get_yticklabels()] == order
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    lines = [(line.get_xdata(), line.get_ydata()) for line in axes.lines[1:]]
    intervals = {order[int(y[0])]: tuple(x) for x, y in lines if len(x) == 2}
    means = {
        order[int(y[0])]: (x[0], line.get_markerfacecolor())
        for line in axes.lines
        if len(line.get_xdata()) == 1
        for x, y in [(line.get_xdata(), line.get_ydata())]
    }
    assert intervals == {effect.label: effect.interval for effect in effects if effect.interval}
    assert {label: mean for label, (mean, _) in means.items()} == {effect.label: effect.mean for effect in effects}
    assert [label for label, (_, face) in means.items() if face == "white"] == ["c"]
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert heights == {effect.text: order.index(effect.label) for effect in effects}


def signed_maps():
    weights = np.random.default_rng(0).normal(size=(2, 4, 4)) * 0.1
    weights[:, 0, 0] = 1
    weights[:, np.triu(np.ones((4, 4)), 1) > 0] = np.nan
    return [WeightMap(f"head {number}", part, HOSTILE, HOSTILE) for number, part in enumerate(weights)]


def test_maps_show_weights_on_hover_and_masked_cells_grey():
    shown = signed_maps()
    figure = drawing.maps(shown, 2, drawing.bound_of([part.weights for part in shown]), axis_labels=("query", "key"))
    for axes, part in zip(figure.axes, shown, strict=False):
        [image] = axes.images
        np.testing.assert_array_equal(image.get_array().filled(np.nan), part.weights)
        colours = image.to_rgba(image.get_array())
        assert (colours[0, 1:] == colours[0, 1]).all()
        assert len(set(colours[0, 1, :3])) == 1
        below = part.weights < -0.02
        assert (colours[below][:, 2] > colours[below][:, 0]).all()
    root = ElementTree.fromstring(embed.svg(figure, "made"))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    expected = [
        f"{HOSTILE[row]} → {HOSTILE[column]}: {part.weights[row, column]:.3f}"
        for part in shown
        for row in range(4)
        for column in range(row + 1)
    ]
    assert titles == expected
    assert {*HOSTILE, "query", "key", "head 1"} <= set(texts(figure))


def test_one_large_weight_does_not_hide_the_others():
    weights = np.full((40, 40), 0.05)
    weights[0, 0], weights[1] = 1, np.nan
    assert drawing.bound_of([weights]) == pytest.approx(0.05)
    assert drawing.bound_of([np.zeros((2, 2))]) == drawing.bound_of([]) == 1


def test_zero_is_white_and_the_largest_weight_of_a_small_map_has_the_deepest_colour():
    weights = np.array([[2.0, -0.5], [0.0, 0.25]])
    figure = drawing.small_map(weights, ["a", "b"], 8)
    [image] = figure.axes[0].images
    colours = image.to_rgba(weights)
    assert colours[1, 0].tolist() == [1, 1, 1, 1]
    assert tuple(colours[0, 0]) == drawing.SIGNED(1.0)
    assert 'width="12pt"' in embed.svg(figure, "made")


def test_spaces_are_visible():
    assert [drawing.visible_token(token) for token in (" ", "a b", "▁.", ",", "")] == ["·", "a·b", "▁.", ",", "∅"]


def test_the_same_numbers_give_the_same_svg_and_two_pictures_share_no_id():
    first, again, other = (embed.svg(drawing.maps(signed_maps(), 2, 1.0), name) for name in ("a", "a", "b"))
    assert first == again
    ids = [re.findall(r'\bid="([^"]+)"', text) for text in (first, other)]
    assert ids[0] and not set(ids[0]) & set(ids[1])


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_file_is_written_whole(tmp_path, suffix):
    embed.write(drawing.small_map(np.eye(2), "ab", 8), tmp_path / f"map.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"map.{suffix}"]


@pytest.mark.slow
def test_every_series_has_a_look_of_its_own():
    looks = {tuple(drawing.look(number).items()) for number in range(28)}
    assert len(looks) == 28
