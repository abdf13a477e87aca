"""Draws the runs that chose the learning rates: loss of every arm, and its difference from stock at the same rate.

`python examples/studies/own-learning-rate/picture.py`, after more runs were kept, writes rates.svg.
"""

import statistics
from pathlib import Path

from fairseq_gpam.analysis import embed
from fairseq_gpam.analysis.drawing import Panel, Series, look, panels
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import grid
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.experiments.series import NATS

HERE = Path(__file__).parent
SEEDS = (21, 22)


def losses():
    """Returns validation losses in nats by arm, learning rate and seed."""
    chosen = grid.load(HERE / "rates.toml")
    values = {arm: {rate: {} for rate in chosen.learning_rates} for arm in chosen.arms}
    for run in schema.read_json_lines(HERE.parents[1] / "results/bible-de-en.jsonl", Run):
        if run.seed in SEEDS and run.learning_rate is not None:
            values[run.arm][run.learning_rate][run.seed] = run.loss("valid") * NATS
    return values


def differences(values):
    """Returns the differences from stock at the same rate and seed, by arm, rate and seed."""
    return {
        arm: {
            rate: {seed: loss - values["stock"][rate][seed] for seed, loss in by_seed.items()}
            for rate, by_seed in by_rate.items()
        }
        for arm, by_rate in values.items()
        if arm != "stock"
    }


def lines(values, arms):
    """Returns a line of means for each arm, and a vertical line from seed to seed at each rate, side by side."""
    shown = []
    for arm, by_rate in values.items():
        number = arms.index(arm)
        at_rate = {
            rate * 1.03 ** (number - 1.5): list(by_seed.values())
            for rate, by_seed in by_rate.items()
            if len(by_seed) == len(SEEDS)
        }
        colour = look(number)["colour"]
        points = [(at, statistics.mean(seeds)) for at, seeds in at_rate.items()]
        shown.append(Series(arm, points, colour=colour, dash=number))
        for at, seeds in at_rate.items():
            shown.append(Series("", [(at, min(seeds)), (at, max(seeds))], colour=colour, marker=""))
    return shown


def main():
    values = losses()
    arms, axis = list(values), {"x": "learning rate", "logarithmic_x": True}
    shown = [
        Panel("loss", **axis, y="validation loss (nats)", series=lines(values, arms)),
        Panel("difference from stock", **axis, y="nats", series=lines(differences(values), arms), zero=True),
    ]
    note = "The seeds that chose the rates: lines join their means, vertical lines the two seeds."
    embed.write(panels(shown, 2, (3.6, 2.6), note=note), HERE / "rates.svg")


if __name__ == "__main__":
    main()
