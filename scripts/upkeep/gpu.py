"""Everything that needs a GPU, in at most six minutes, as one JSON file.

Runs the tests marked gpu; times layers and whole models against stock fairseq, in training and inference, in fp32, bf16
and fp16, and layers that `torch.compile` compiled; measures peak memory; counts the kernels that an attention launches.
What the time did not suffice for is listed. `--tiny` runs the same on a CPU with small shapes, to test this script.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

import fairseq_gpam  # noqa: F401  (registers the models)
from fairseq_gpam.lab.benchmark import memory
from fairseq_gpam.lab.benchmark.cases import SHAPES, Candidate, Shape, core_pair, creating, layer_pair, model_pair
from fairseq_gpam.lab.benchmark.cli import machine
from fairseq_gpam.lab.benchmark.timing import Step, paired

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = ("tests/attention/core/test_choice.py", "tests/models/test_gpu.py")
DTYPES = ("float32", "bfloat16", "float16")
TINY = {"tiny": Shape(6, 2, 16, 16, 2, ("encoder", "decoder", "lm"))}


def cases(shapes: dict[str, Shape], with_models: bool) -> Iterator[dict[str, Any]]:
    """Yields what is timed, the most important first: for each data type layers, then models, then compiled layers."""
    for level in ("layer", *(("model",) if with_models else ()), "compiled layer"):
        for dtype in DTYPES if level != "compiled layer" else ("bfloat16",):
            for name, shape in shapes.items():
                for kind, mode, mechanism in product(shape.kinds, ("training", "inference"), ("dagpam", "softmax")):
                    yield {"level": level, "shape": name, "kind": kind, "mode": mode, "dtype": dtype,
                           "mechanism": mechanism, "backend": "auto", "dropout": 0.0}  # fmt: skip


def steps_of(case: dict[str, Any], shape: Shape, device: str) -> tuple[Step, Step]:
    """Returns stock's step and ours."""
    candidate, training = Candidate(case["mechanism"], case["backend"]), case["mode"] == "training"
    torch.manual_seed(1)
    with creating(device, getattr(torch, case["dtype"])):
        if case["level"] == "model":
            return model_pair(candidate, shape, case["kind"], training)
        stock, ours = layer_pair(candidate, shape, case["kind"], 0.0, training)
    if case["level"] != "compiled layer":
        return stock, ours
    backend = "inductor" if device == "cuda" else "eager"
    return torch.compile(stock, backend=backend), torch.compile(ours, backend=backend)


def kernels(mechanism: str, device: str, dtype: torch.dtype) -> int:
    """Returns how many kernels (on a CPU: operations) a causal attention of 512 tokens launches in a training step."""
    activity = torch.profiler.ProfilerActivity.CUDA if device == "cuda" else torch.profiler.ProfilerActivity.CPU
    with creating(device, dtype):
        _, step = core_pair(Candidate(mechanism, "auto"), Shape(512 if device == "cuda" else 8, 2, 128, 0, 2, ()), 0.0)
    step()
    with torch.profiler.profile(activities=[activity]) as profile:
        step()
    return sum(event.count for event in profile.key_averages())


def run_tests(timeout: float) -> dict[str, Any]:
    """Returns the status and the last line of the tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-n", "8", *TESTS]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"status": None, "summary": f"stopped after {timeout:.0f} s"}
    return {"status": done.returncode, "summary": done.stdout.strip().rpartition("\n")[2]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON file (default: gpu.json)")
    parser.add_argument("--seconds", type=float, default=360.0, help="the time for everything (default: 360)")
    parser.add_argument("--pairs", type=int, default=7, help="counted pairs of each comparison (default: 7)")
    parser.add_argument("--tiny", action="store_true", help="small shapes on a CPU, without the tests and the models")
    arguments = parser.parse_args()
    if not (arguments.tiny or torch.cuda.is_available()):
        parser.error("no CUDA device is available; allowed without one: --tiny")
    device, end = "cpu" if arguments.tiny else "cuda", time.monotonic() + arguments.seconds
    shapes = TINY if arguments.tiny else {name: SHAPES[name] for name in ("iwslt", "wmt", "lm512")}
    results: dict[str, Any] = {"machine": machine(1, device, "several"), "not_run": [], "ratios": [], "memory": []}
    results["kernels"] = {
        f"{mechanism}, {dtype}": kernels(mechanism, device, getattr(torch, dtype))
        for mechanism in ("softmax", "dagpam")
        for dtype in DTYPES
    }
    for what in ("stock", "softmax:auto", "dagpam:auto"):
        for length in (64,) if arguments.tiny else (512, 2048):
            mebibytes = memory.measure(what, length, 0.0, device, "float32" if arguments.tiny else "bfloat16")
            results["memory"].append({"what": what, "length": length, "mebibytes": mebibytes})
    for case in cases(shapes, with_models=not arguments.tiny):
        # A third of the time is kept for the tests.
        if time.monotonic() > end - (0 if arguments.tiny else arguments.seconds / 3):
            results["not_run"].append(case)
            continue
        ratio = paired(*steps_of(case, shapes[case["shape"]], device), arguments.pairs)
        results["ratios"].append({**case, **ratio})
        print(json.dumps(results["ratios"][-1]), flush=True)
    results["tests"] = None if arguments.tiny else run_tests(max(1.0, end - time.monotonic()))
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {arguments.out}; not run for lack of time: {len(results['not_run'])} comparisons")
    return 0


if __name__ == "__main__":
    sys.exit(main())
