"""Draws the kept runs against the learning rate: loss of every arm, and its difference from stock at the same rate.

`python examples/studies/own-learning-rate/picture.py`, after more runs were kept, writes rates.svg.
"""

import shlex
from pathlib import Path

from fairseq_gpam.analysis import embed
from fairseq_gpam.analysis.drawing import Panel, Series, look, panels
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import grid, statistics
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.experiments.series import NATS
from fairseq_gpam.lab.recipes import run_folder

HERE = Path(__file__).parent
SEEDS = range(23, 26)
"""Those that are trained at every rate and did not choose one."""


def losses():
    """Returns validation losses in nats by arm, learning rate and seed; at an arm's own rate those of grid.toml."""
    rates, chosen = (grid.load(HERE / name) for name in ("rates.toml", "grid.toml"))
    own = {arm: float(run_folder.last_flag(shlex.split(chosen.arm(arm).flags), "--lr")) for arm in chosen.arms}
    values = {arm: {rate: {} for rate in rates.learning_rates} for arm in rates.arms}
    for run in schema.read_json_lines(HERE.parents[1] / "results/bible-de-en.jsonl", Run):
        rate = run.learning_rate or own.get(run.arm)
        if run.seed in SEEDS and rate is not None:
            values[run.arm][rate][run.seed] = run.loss("valid") * NATS
    return values


def differences(values):
    """Returns the differences from stock at the same rate and seed, by arm and rate."""
    stock = values["stock"]
    return {
        arm: {
            rate: {seed: loss - stock[rate][seed] for seed, loss in at_rate.items() if seed in stock[rate]}
            for rate, at_rate in by_rate.items()
        }
        for arm, by_rate in values.items()
        if arm != "stock"
    }


def lines(values, arms):
    """Returns a line of means over the seeds for each arm, and the 95 % t interval of each mean, side by side."""
    shown = []
    for arm, by_rate in values.items():
        number = arms.index(arm)
        means = {
            rate * 1.03 ** (number - 1.5): statistics.interval(list(by_seed.values()))
            for rate, by_seed in by_rate.items()
            if by_seed
        }
        colour = look(number)["colour"]
        shown.append(Series(arm, [(at, mean.mean) for at, mean in means.items()], colour=colour, dash=number))
        for at, mean in means.items():
            if mean.low is not None:
                shown.append(Series("", [(at, mean.low), (at, mean.high)], colour=colour, marker=""))
    return shown


def main():
    values = losses()
    arms, rates = list(values), {rate: f"{rate:g}" for rate in values["stock"]}
    axis = {"x": "learning rate", "logarithmic_x": True, "names": rates}
    shown = [
        Panel("loss", **axis, y="validation loss (nats)", series=lines(values, arms)),
        Panel("difference from stock", **axis, y="nats", series=lines(differences(values), arms), zero=True),
    ]
    note = f"Means over the seeds {SEEDS[0]} to {SEEDS[-1]}; vertical lines: their 95 % intervals."
    embed.write(panels(shown, 2, (3.6, 2.6), note=note), HERE / "rates.svg")


if __name__ == "__main__":
    main()
