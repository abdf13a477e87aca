"""`--ddp-backend fully_sharded` is refused before there is a model to train."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from quick import first
from tiny import OURS, TASKS, build

import fairseq_gpam

PACKAGE = Path(fairseq_gpam.__path__[0])


REFUSAL = "--ddp-backend 'fully_sharded' is not allowed with --gpam-mechanism, whose layers may share parameters"


@pytest.mark.parametrize("task", TASKS)
def test_a_model_is_not_built_inside_fairscales_wrapping(task, monkeypatch):
    wrapping = ModuleType("fairscale.nn.wrap.auto_wrap")
    wrapping.ConfigAutoWrap = SimpleNamespace(in_autowrap_context=True)
    monkeypatch.setitem(sys.modules, "fairscale.nn.wrap.auto_wrap", wrapping)
    with pytest.raises(ValueError, match="--ddp-backend 'fully_sharded' is not allowed"):
        build(task, OURS[task])
    wrapping.ConfigAutoWrap.in_autowrap_context = False
    build(task, OURS[task])


@pytest.mark.slow
@pytest.mark.parametrize("task", first(1, TASKS))
def test_the_command_ends_in_one_sentence(tmp_path, interpreter, task):
    command = [interpreter, "-m", "fairseq_cli.train", tmp_path, "--user-dir", PACKAGE, "--task", task]
    command += ["--arch", OURS[task], "--ddp-backend", "fully_sharded", "--cpu", "--max-tokens", "64"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ValueError: {REFUSAL}; allowed: c10d, legacy_ddp"
    assert not list(tmp_path.iterdir())
