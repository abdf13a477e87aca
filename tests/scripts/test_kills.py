"""A run killed (SIGKILL) at random moments of its stages, and started again after each, ends as an undisturbed one.

GPAM_KILLS is how many moments are tried (default: 2); each run is killed at most once in each stage.
"""

import itertools
import json
import os
import random
import shlex
import time

import pytest
import torch
from machine import wait_for
from test_scripts import SCRIPTS, SMALL

pytestmark = pytest.mark.slow
LAYERS = "--{0}-layers 1 --{0}-embed-dim 16 --{0}-ffn-embed-dim 16 --{0}-attention-heads 2"
TINY = [*SMALL, "--max-tokens", "128", *LAYERS.format("encoder").split(), *LAYERS.format("decoder").split()]
STAGES = ("train", "generate", "score", "analyze", "compare")
KILLS = int(os.environ.get("GPAM_KILLS", "2"))


def start(machine, environment, out, name):
    """Starts all stages of one run; each leaves a mark in its folder when it begins."""
    folder = out / "runs/bible-de-en" / name
    run, command = shlex.quote(f"{folder}/1"), '"$PYTHON" -m fairseq_gpam'
    arguments = f"bible-de-en dagpam --name {name} --out {shlex.quote(str(out))}"
    data = shlex.quote(f"{out}/data-bin/bible-de-en")
    measured = f"--data {data} --samples 2 --maps 0 --paths 0 --names run"
    stages = {
        "train": f"bash {SCRIPTS}/train.sh {arguments} -- {shlex.join(TINY)}",
        "generate": f"bash {SCRIPTS}/generate.sh {arguments} -- --max-len-a 0 --max-len-b 8",
        "score": f"bash {SCRIPTS}/score.sh {run}",
        "analyze": f"{command} analyze {run}/checkpoints/checkpoint_best.pt {measured} --out {run}/analysis",
        "compare": f"{command} compare {run} --baseline {name} --out {run}/comparison",
    }
    folder.mkdir(exist_ok=True, parents=True)
    for mark in folder.glob("*.begun"):
        mark.unlink()
    lines = [f"touch {shlex.quote(f'{folder}/{stage}.begun')} && {stages[stage]}" for stage in STAGES]
    return machine.start(["bash", "-c", " && ".join(lines)], **environment)


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


def finished(machine, environment, out, name):
    """Runs all stages to their end; returns what they end with."""
    process = start(machine, environment, out, name)
    text = process.communicate()[0]
    assert process.returncode == 0, text
    return result(out / "runs/bible-de-en" / name / "1")


def test_killed_at_random_moments(machine, script_environment, bible):
    runs, moments = bible / "runs/bible-de-en", random.Random(1)
    expected = finished(machine, script_environment, bible, "whole")
    begun = [(runs / f"whole/{stage}.begun").stat().st_mtime for stage in STAGES]
    seconds = [end - begin for begin, end in itertools.pairwise([*begun, time.time()])]
    for number in range(KILLS):
        name, stage = f"killed-{number // len(STAGES)}", number % len(STAGES)
        killed = 0
        while not killed:  # the last stage may have ended before its moment
            process = start(machine, script_environment, bible, name)
            wait_for((runs / name / f"{STAGES[stage]}.begun").exists, process)
            moment = moments.uniform(0, seconds[stage])
            time.sleep(moment)
            killed = machine.kill()
        print(
            f"{name}: {killed} processes killed {moment:.2f} of {seconds[stage]:.2f} s into {STAGES[stage]}", flush=True
        )
        if number + 1 in (KILLS, *range(0, KILLS, len(STAGES))):
            assert finished(machine, script_environment, bible, name) == expected
            print(f"{name}: equal", flush=True)
