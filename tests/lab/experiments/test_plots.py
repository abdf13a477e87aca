import matplotlib.figure
import pytest

from fairseq_gpam.lab.experiments import plots


def run(name, seed, valid):
    return {"name": name, "seed": seed, "task": "toy", "train": {"curve": {"train": [], "valid": valid}}}


@pytest.fixture
def figures(monkeypatch):
    drawn = []

    class Figure(matplotlib.figure.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(matplotlib.figure, "Figure", Figure)
    return drawn


def test_the_second_panel_is_the_difference_to_stock_of_the_same_seed(figures, tmp_path):
    runs = [
        run("stock", 1, [(10, 4.0), (20, 3.0)]),
        run("stock", 2, [(10, 5.0), (20, 4.0)]),
        run("dagpam", 2, [(10, 4.5), (20, 3.75), (30, 3.0)]),
    ]
    plots.learning_curves(runs, tmp_path / "curves.png")
    _, difference = figures[0].axes
    _, line = difference.lines  # the first one marks zero
    assert line.get_xydata().tolist() == [[10, -0.5], [20, -0.25]]
    assert difference.xaxis.get_major_formatter()(12_000) == "12,000"
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("names", [["stock"], ["dagpam", "softmax"]])
def test_one_panel_where_there_is_nothing_to_compare(figures, tmp_path, names):
    plots.learning_curves([run(name, 1, [(10, 4.0)]) for name in names], tmp_path / "curves.png")
    assert len(figures[0].axes) == 1
