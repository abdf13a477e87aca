"""Draws row-sum.svg from the kept results: residual ratio at the start and loss after training against the row sum.

`python examples/studies/row-sum/picture.py`, after start.py or after more runs were kept.
"""

from pathlib import Path

from fairseq_gpam.analysis import embed
from fairseq_gpam.analysis.drawing import Panel, Series, look, panels
from fairseq_gpam.lab.experiments import committed_results, grid, statistics
from fairseq_gpam.lab.experiments.series import NATS
from fairseq_gpam.lab.experiments.synthetic_studies import read_results

HERE = Path(__file__).parent
TASK, LAYERS = "in-context-bigrams.deep", 24
KINDS = {
    "one softmax, scaled": {"scaled-1.5": 1.5, "softmax": 1, "scaled-0.5": 0.5},
    "one softmax minus uniform": {"uniform-1": 1, "uniform-0.5": 0.5, "centred": 0},
    "two softmaxes": {"two-1.5": 1.5, "two-1": 1, "two-0.5": 0.5, "two-0": 0},
}
"""The row sum of every arm."""


def at_the_start():
    """Returns each arm's residual ratios in the last layer, one for each seed."""
    values = {}
    for result in read_results(HERE):
        if result["layers"] == LAYERS:
            values.setdefault(result["arm"], []).append(result["residual_ratio"])
    return values


def after_training():
    """Returns each arm's validation losses in nats at its own learning rate, one for each reported seed."""
    seeds, values = grid.load(HERE / "grid.toml").seeds, {}
    for run in committed_results.read_task(TASK, HERE.parents[2]):
        if run.learning_rate is None and run.seed in seeds:
            values.setdefault(run.arm, []).append(run.loss("valid") * NATS)
    return values


def lines(values, logarithmic=False):
    """Returns a line of means for each kind of arm, and the 95 % t interval of each mean, side by side."""
    shown = []
    for number, (kind, sums) in enumerate(KINDS.items()):
        means = {
            row_sum + 0.025 * (number - 1): statistics.interval(values[arm])
            for arm, row_sum in sums.items()
            if arm in values
        }
        style = {"colour": look(number)["colour"], "hollow": number == 2}
        shown.append(Series(kind, [(at, one.mean) for at, one in means.items()], dash=number, **style))
        for at, one in means.items():
            if one.low is not None:
                shown.append(Series("", [(at, one.low), (at, one.high)], marker="", **style))
    return shown


def main():
    losses = after_training()
    least, most = (
        extreme(len(losses.get(arm, ())) for arm in grid.load(HERE / "grid.toml").arms) for extreme in (min, max)
    )
    seeds = str(most) if least == most else f"{least} or {most}"
    figure = panels(
        [
            Panel("at the start, 20 seeds", "row sum", f"residual ratio after {LAYERS} layers", lines(at_the_start())),
            Panel(f"after 400 updates, {seeds} seeds", "row sum", "validation loss (nats)", lines(losses)),
        ],
        columns=2,
        note="Vertical lines: 95 % intervals of the means over seeds. Uniform guess: 2.037 nats.",
        size=(3.6, 2.6),
    )
    (HERE / "row-sum.svg").write_text(embed.svg(figure, "row-sum.svg"), encoding="utf-8")


if __name__ == "__main__":
    main()
