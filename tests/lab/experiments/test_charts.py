"""Charts place their points in proportion to the numbers, on linear and logarithmic axes."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fairseq_gpam.lab.experiments.charts import COLOURS, Axis, Panel, Series, draw

SVG = "{http://www.w3.org/2000/svg}"


def coordinates(element):
    return np.array([[float(number) for number in pair.split(",")] for pair in element.get("points").split()])


@pytest.mark.parametrize(("logarithmic", "scaled"), [(False, lambda y: y), (True, math.log)])
def test_lines_bands_and_points_are_in_proportion_to_the_numbers(logarithmic, scaled):
    points = [(0, 0.5), (1, 5.0), (3, 40.0)]
    band = [(x, y / 2, y * 2) for x, y in points]
    one = Series("an <arm>", points, band, line=True)
    root = ElementTree.fromstring(draw("made", [Panel("a", "b", "x", "y", [one], logarithmic)], "note", columns=2))
    [line], [outline] = root.iter(f"{SVG}polyline"), root.iter(f"{SVG}polygon")
    expected = np.array([(x, scaled(y)) for x, y in points])
    drawn = coordinates(line)
    slope, start = np.polyfit(expected[:, 0], drawn[:, 0], 1)
    assert slope > 0
    assert drawn[:, 0] == pytest.approx(slope * expected[:, 0] + start, abs=0.1)
    slope, start = np.polyfit(expected[:, 1], drawn[:, 1], 1)
    assert slope < 0
    assert drawn[:, 1] == pytest.approx(slope * expected[:, 1] + start, abs=0.1)
    edges = [scaled(low) for _, low, _ in band] + [scaled(high) for _, _, high in reversed(band)]
    assert coordinates(outline)[:, 1] == pytest.approx(slope * np.array(edges) + start, abs=0.3)
    dots = [(float(dot.get("x")) + 3, float(dot.get("y")) + 3) for dot in root.iter(f"{SVG}rect") if dot.get("rx")]
    assert np.array(dots[:3]) == pytest.approx(drawn)
    assert "an <arm>" in [text.text for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("values", "logarithmic", "texts"),
    [
        ([0, 15], False, ["0", "5", "10", "15"]),
        ([-0.02, 0.03], False, ["−0.02", "0.00", "0.02"]),
        ([1e-6, 1e-2], True, ["1e−06", "1e−05", "0.0001", "0.001", "0.01"]),
        ([90, 1200], True, ["100", "200", "500", "1000"]),
        ([0, 1.5], True, ["0.0", "0.5", "1.0", "1.5"]),
        ([1.01, 1.02], True, ["1.010", "1.015", "1.020"]),
        ([0, 2], False, ["0", "1", "2"]),
        ([7, 7], False, ["7"]),
        ([7.5, 7.5], False, ["7.0", "7.2", "7.4", "7.6", "7.8", "8.0"]),
    ],
)
def test_labels_are_round_and_stand_at_their_numbers(values, logarithmic, texts):
    axis = Axis(values, 100, 300, logarithmic)
    labels = axis.labels()
    assert [label["text"] for label in labels] == texts
    for label in labels:
        assert label["at"] == axis.place(float(label["text"].replace("−", "-")))
        assert 100 <= label["at"] <= 300


def test_every_arm_has_a_look_of_its_own():
    arms = [Series(f"arm{number}", [(number, number)]) for number in range(3 * len(COLOURS))]
    root = ElementTree.fromstring(draw("made", [Panel("a", "b", "x", "y", arms)], "", columns=3))
    looks = set()
    for group in root.iter(f"{SVG}g"):
        dot = group.find(f"{SVG}rect")
        looks.add((group.get("fill"), dot.get("rx"), "transform" in dot.attrib))
    assert len(looks) == len(arms)
