"""A run killed (SIGKILL) at random moments of training, saving, translating and scoring ends as an undisturbed one.

GPAM_KILLS is how many moments are tried (default: 2).
"""

import json
import os
import random
import shlex
import time

import pytest
import torch
from test_scripts import SCRIPTS, SMALL

pytestmark = pytest.mark.slow
LAYERS = "--{0}-layers 1 --{0}-embed-dim 16 --{0}-ffn-embed-dim 16 --{0}-attention-heads 2"
TINY = [
    *SMALL,
    "--max-update",
    "12",
    "--max-tokens",
    "256",
    *LAYERS.format("encoder").split(),
    *LAYERS.format("decoder").split(),
]


def start(machines, environment, out, name):
    """Starts training, translating and scoring one run."""
    run = f"bible-de-en dagpam --name {name} --out {shlex.quote(str(out))}"
    lines = [
        f"bash {SCRIPTS}/train.sh {run} -- {shlex.join(TINY)}",
        f"bash {SCRIPTS}/generate.sh {run} -- --max-len-a 0 --max-len-b 8",
        f"bash {SCRIPTS}/score.sh {shlex.quote(str(out))}/runs/bible-de-en/{name}/1",
    ]
    return machines.current.start(["bash", "-c", " && ".join(lines)], **environment)


def result(folder):
    """What a run ends with, without times."""
    weights = {}
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        state = torch.load(folder / "checkpoints" / name, weights_only=True)
        weights |= {(name, parameter): tensor.tolist() for parameter, tensor in state["model"].items()}
    recorded = json.loads((folder / "results.json").read_text())
    numbers = {key: recorded["train"][key] for key in ("updates", "valid_loss", "best_update", "curve")}
    return weights, numbers, recorded["score"], (folder / "hypotheses.txt").read_text()


@pytest.fixture(scope="module")
def undisturbed(machines, script_environment, bible):
    """What an undisturbed run ends with, and the seconds that it takes."""
    assert machines.current  # A machine's own start takes time too.
    begun = time.monotonic()
    process = start(machines, script_environment, bible, "whole")
    text = process.communicate()[0]
    assert process.returncode == 0, text
    return result(bible / "runs/bible-de-en/whole/1"), time.monotonic() - begun


@pytest.mark.parametrize("number", range(int(os.environ.get("GPAM_KILLS", "2"))))
def test_killed_at_a_random_moment(machines, script_environment, bible, undisturbed, number):
    expected, seconds = undisturbed
    name = f"killed-{number}"
    start(machines, script_environment, bible, name)
    time.sleep(random.Random(number).uniform(0, seconds))
    machines.kill()
    again = start(machines, script_environment, bible, name)
    text = again.communicate()[0]
    assert again.returncode == 0, text
    assert result(bible / "runs/bible-de-en" / name / "1") == expected
