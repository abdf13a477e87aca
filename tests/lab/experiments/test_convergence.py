"""The picture of the study convergence has the losses of the kept runs."""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

EXAMPLES = Path(__file__).parents[3] / "examples"
LAST = {"stock": 2400, "dagpam": 2400, "dagpam-short": 2058}


@pytest.fixture
def kept():
    """Returns the last label-smoothed validation loss in nats of each arm's runs, by seed."""
    losses = {}
    for line in (EXAMPLES / "results/bible-de-en.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        if run["seed"] in range(11, 19) and "learning_rate" not in run:
            losses.setdefault(run["arm"], {})[run["seed"]] = run["training"]["valid"][-1][1] * math.log(2)
    return losses


@pytest.fixture
def picture():
    return runpy.run_path(str(EXAMPLES / "studies/convergence/picture.py"))


def test_the_curves_end_at_the_mean_of_the_kept_losses_at_their_processor_time(kept, picture):
    shown = {series.label: series.points[-1] for series in picture["against_time"](picture["runs"](), 1.5)}
    assert shown.keys() == LAST.keys()
    for arm, (time, loss) in shown.items():
        assert time == pytest.approx(LAST[arm] * (1 if arm == "stock" else 1.5))
        assert loss == pytest.approx(np.mean(list(kept[arm].values())))


def test_the_differences_end_at_those_of_the_kept_losses_paired_by_seed(kept, picture):
    for series in picture["differences"](picture["runs"]()):
        pairs = [(loss, kept["stock"][seed]) for seed, loss in kept[series.label].items()]
        first, second = zip(*pairs, strict=True)
        low, high = stats.ttest_rel(first, second).confidence_interval()
        assert series.points[-1] == pytest.approx((2400, np.subtract(first, second).mean()))
        assert series.band[-1] == pytest.approx((2400, low, high))
