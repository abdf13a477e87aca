"""The script for a GPU runs on a CPU with small shapes, and lists what its time did not suffice for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_script_writes_what_it_measured_and_what_it_did_not(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    script, out = REPOSITORY / "scripts/upkeep/gpu.py", tmp_path / "gpu.json"
    for seconds in ("0", "600"):
        command = [sys.executable, script, "--tiny", "--pairs", "2", "--seconds", seconds, "--out", out]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        results = json.loads(out.read_text())
        assert len(results["ratios"]) + len(results["not_run"]) == 48
        assert bool(results["ratios"]) == (seconds != "0")
    assert all(row["median"] > 0 for row in results["ratios"])
    assert {row["what"] for row in results["memory"]} == {"stock", "softmax:auto", "dagpam:auto"}
    assert all(results["kernels"].values())
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no CUDA device is available; allowed without one: --tiny" in done.stderr
