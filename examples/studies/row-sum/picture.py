"""Draws the kept results against the row sum: residual ratio at the start, and loss after training.

`python examples/studies/row-sum/picture.py`, after start.py or after more runs were kept, writes row-sum.svg, and
docs/pictures/row-sum.svg for README and site, where it has to be legible on a narrow screen.
"""

from pathlib import Path

from fairseq_gpam.analysis import embed
from fairseq_gpam.analysis.drawing import Panel, Series, look, panels
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import grid, statistics
from fairseq_gpam.lab.experiments.records import Run
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
    for run in schema.read_json_lines(HERE.parents[1] / f"results/{TASK}.jsonl", Run):
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
    shown = [
        Panel("at the start, 20 seeds", "row sum", f"residual ratio after {LAYERS} layers", lines(at_the_start())),
        Panel(f"after 400 updates, {seeds} seeds", "row sum", "validation loss (nats)", lines(losses)),
    ]
    note = "Vertical lines: 95 % intervals of the means over seeds."
    embed.write(panels(shown, 2, (3.6, 2.6), note=f"{note} Uniform guess: 2.037 nats."), HERE / "row-sum.svg")
    embed.write(panels(shown, 1, (3.2, 2.1), note=note), HERE.parents[2] / "docs/pictures/row-sum.svg")


if __name__ == "__main__":
    main()
