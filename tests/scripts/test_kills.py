"""A run killed (SIGKILL) at a random moment of any of its stages, and started again, ends as an undisturbed one.

GPAM_KILLS is how many moments are tried (default: 3).
"""

import itertools
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
STAGES = ("train", "analyze", "generate", "compare", "score")
"""In the order in which they are killed."""


def start(machines, environment, out, name):
    """Starts all stages of one run; each leaves a file in its folder when it begins."""
    folder = out / "runs/bible-de-en" / name
    run, command = shlex.quote(f"{folder}/1"), '"$PYTHON" -m fairseq_gpam'
    arguments = f"bible-de-en dagpam --name {name} --out {shlex.quote(str(out))}"
    measured = f"--data {shlex.quote(str(out))}/data-bin/* --samples 2 --maps 0 --paths 0 --names run"
    stages = {
        "train": f"bash {SCRIPTS}/train.sh {arguments} -- {shlex.join(TINY)}",
        "generate": f"bash {SCRIPTS}/generate.sh {arguments} -- --max-len-a 0 --max-len-b 8",
        "score": f"bash {SCRIPTS}/score.sh {run}",
        "analyze": f"{command} analyze {run}/checkpoints/checkpoint_best.pt {measured} --out {run}/analysis",
        "compare": f"{command} compare {run} --baseline {name} --out {run}/comparison",
    }
    folder.mkdir(exist_ok=True, parents=True)
    lines = [f"touch {shlex.quote(f'{folder}/{stage}.begun')} && {line}" for stage, line in stages.items()]
    return machines.current.start(["bash", "-c", " && ".join(lines)], **environment)


def result(folder):
    """What a run ends with, without times and without its name."""
    weights = {}
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        state = torch.load(folder / "checkpoints" / name, weights_only=True)
        weights |= {(name, parameter): tensor.tolist() for parameter, tensor in state["model"].items()}
    recorded, analysis, comparison = (
        json.loads((folder / name).read_text().replace(f'"{folder.parent.name}"', '"run"'))
        for name in ("results.json", "analysis/results.json", "comparison/comparison.json")
    )
    del comparison["costs"]
    numbers = {key: recorded["train"][key] for key in ("updates", "valid_loss", "best_update", "curve")}
    return weights, numbers, recorded["score"], (folder / "hypotheses.txt").read_text(), analysis["records"], comparison


@pytest.fixture(scope="module")
def undisturbed(machines, script_environment, bible):
    """What an undisturbed run ends with, and the seconds that each of its stages takes."""
    process = start(machines, script_environment, bible, "whole")
    text = process.communicate()[0]
    assert process.returncode == 0, text
    begun = {path.stem: path.stat().st_mtime for path in (bible / "runs/bible-de-en/whole").glob("*.begun")}
    times = [*sorted((when, stage) for stage, when in begun.items()), (time.time(), "")]
    seconds = {stage: end - when for (when, stage), (end, _) in itertools.pairwise(times)}
    return result(bible / "runs/bible-de-en/whole/1"), seconds


@pytest.mark.parametrize("number", range(int(os.environ.get("GPAM_KILLS", "3"))))
def test_killed_at_a_random_moment(machines, script_environment, bible, undisturbed, number):
    expected, seconds = undisturbed
    name, stage = f"killed-{number}", STAGES[number % len(STAGES)]
    process = start(machines, script_environment, bible, name)
    while not (bible / "runs/bible-de-en" / name / f"{stage}.begun").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    time.sleep(random.Random(number).uniform(0, seconds[stage]))
    machines.kill()
    again = start(machines, script_environment, bible, name)
    text = again.communicate()[0]
    assert again.returncode == 0, text
    assert result(bible / "runs/bible-de-en" / name / "1") == expected
