"""Draws the validation losses of the arms against processor time, and their differences from stock at the same update.

`python examples/studies/convergence/picture.py`, after all runs were kept, writes curves.svg.
"""

from pathlib import Path

from fairseq_gpam.analysis import embed
from fairseq_gpam.analysis.drawing import Panel, Series, panels
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import grid
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.experiments.series import curve

HERE = Path(__file__).parent
LEAST_UPDATE = 800
"""Earlier losses would flatten the rest of the picture."""


def runs():
    """Returns the runs of each arm that has all its seeds."""
    chosen = grid.load(HERE / "grid.toml")
    by_arm = {arm: [] for arm in chosen.arms}
    for run in schema.read_json_lines(HERE.parents[1] / "results/bible-de-en.jsonl", Run):
        if run.seed in chosen.seeds and run.learning_rate is None and run.arm in by_arm:
            by_arm[run.arm].append(run)
    return {arm: of_arm for arm, of_arm in by_arm.items() if len(of_arm) == len(chosen.seeds)}


def against_time(by_arm, ratio):
    """Returns the mean losses over processor time, in updates of stock; an update of daGPAM takes `ratio` of them."""
    shown = []
    for number, (arm, of_arm) in enumerate(by_arm.items()):
        if arm != "dagpam-tied":
            pace = 1 if arm == "stock" else ratio
            points = [(update * pace, mean) for update, mean, *_ in curve(of_arm) if update >= LEAST_UPDATE]
            shown.append(Series(arm, points, colour=number, dash=number))
    return shown


def differences(by_arm):
    """Returns the mean differences from stock at the same update, paired by seed, with 95 % t intervals."""
    shown = []
    for number, arm in enumerate(by_arm):
        # The schedule of dagpam-short is another one at the same update.
        if arm in ("dagpam", "dagpam-tied"):
            points = [point for point in curve(by_arm[arm], by_arm["stock"]) if point[0] >= LEAST_UPDATE]
            band = [(update, low, high) for update, _, low, high in points]
            shown.append(Series(arm, [point[:2] for point in points], band, colour=number, dash=number))
    return shown


def main():
    by_arm = runs()
    ratio = grid.load(HERE.parent / "own-learning-rate/grid.toml").times["dagpam"]
    shown = [
        Panel(
            "loss",
            "processor time (updates of stock)",
            "label-smoothed validation loss (nats)",
            against_time(by_arm, ratio),
        ),
        Panel("difference from stock", "updates", "nats", differences(by_arm), zero=True),
    ]
    note = "Means over eight seeds; bands: 95 % intervals of the paired differences."
    embed.write(panels(shown, 2, (3.6, 2.6), note=note), HERE / "curves.svg")


if __name__ == "__main__":
    main()
