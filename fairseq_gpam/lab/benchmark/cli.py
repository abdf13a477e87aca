"""Compares time and memory with unmodified fairseq.

Both run alternately in one process; the median ratio is printed with its quartiles. A ratio below 1 means that this
package is faster than stock. Levels: core (attention without projections), layer and model (training without the
optimiser, and inference), decoding (one layer, its cache reordered), generation (beam search), memory and scaling (the
core from 32 to 8192 tokens, one sentence, 2 heads of 64), and growth (a decoding step after 64 to 4096 tokens, compared
with the same mechanism's step after 64 instead of with stock).

`--device cuda` measures all levels on a GPU, `--dtype bfloat16` or `float16` in half precision. Memory is then what
PyTorch allocates on the GPU.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq_gpam import errors
from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.attention.core import matmul
from fairseq_gpam.attention.core.affine import BACKENDS
from fairseq_gpam.lab.benchmark.shapes import LEVELS, SHAPES, Candidate, by_length, label
from fairseq_gpam.lab.benchmark.timing import paired
from fairseq_gpam.lab.recipes.environment import environment

ALL_LEVELS = (*LEVELS, "memory", "scaling", "growth")
DTYPES = ("float32", "bfloat16", "float16")
SCALING_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def _list_of(allowed: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not allowed; allowed: {', '.join(allowed)}")
        return names

    return parse


def _device(name: str) -> str:
    allowed = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if name not in allowed:
        raise argparse.ArgumentTypeError(f"{name!r} is not available; available: {', '.join(allowed)}")
    return name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    mechanisms = tuple(sorted(REGISTRY))
    for flag, allowed, default in (
        ("--shapes", tuple(SHAPES), list(SHAPES)),
        ("--levels", ALL_LEVELS, list(ALL_LEVELS)),
        ("--mechanisms", mechanisms, ["softmax", "dagpam"]),
        ("--backends", BACKENDS, ["auto"]),
    ):
        chosen = "all" if default == list(allowed) else ",".join(default)
        words = f"comma-separated, of {', '.join(allowed)} (default: {chosen})"
        parser.add_argument(flag, type=_list_of(allowed), default=default, metavar="NAMES", help=words)
    parser.add_argument("--pairs", type=int, default=15, help="counted pairs of each comparison (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads (default: 1)")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="data type of models and inputs (default: float32)"
    )
    parser.add_argument(
        "--without-onednn", action="store_true", help="leave every matrix product to PyTorch's own library (MKL)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the ratios to FILE, memory and scaling beside it"
    )


def run(arguments: argparse.Namespace) -> int:
    from fairseq_gpam.lab.benchmark.cases import all_cases, creating
    from fairseq_gpam.lab.benchmark.growth import measure_growth

    if arguments.picture:
        errors.require("matplotlib", "jinja2")
    torch.set_num_threads(arguments.threads)
    if arguments.without_onednn:
        torch.backends.mkldnn.set_flags(False)
    results: dict[str, Any] = {"machine": machine(arguments.threads, arguments.device, arguments.dtype)}
    results |= {"ratios": [], "memory": [], "scaling": [], "growth": []}
    candidates = [Candidate(m, b) for m in arguments.mechanisms for b in arguments.backends]
    dtype = getattr(torch, arguments.dtype)
    print(json.dumps(results["machine"]))
    print(f"{'comparison':66} {'ratio':>6}  quartiles      stock", flush=True)
    for case, build in all_cases(arguments.shapes, arguments.levels):
        for candidate in candidates:
            torch.manual_seed(1)
            with creating(arguments.device, dtype):
                steps = build(candidate)
            ratio = paired(*steps, arguments.pairs)
            name, quartiles = f"{candidate} {label(case)}", f"{ratio['lower']:.3f}–{ratio['upper']:.3f}"
            print(f"{name:66} {ratio['median']:6.3f}  {quartiles}  {ratio['stock_seconds'] * 1e3:8.1f} ms", flush=True)
            results["ratios"].append({**vars(candidate), **case, **ratio})
    if "memory" in arguments.levels:
        results["memory"] = measure_memory(candidates, arguments.device, arguments.dtype)
    if "scaling" in arguments.levels:
        results["scaling"] = measure_scaling(candidates, arguments.pairs, arguments.device, dtype)
    if "growth" in arguments.levels:
        results["growth"] = measure_growth(arguments.pairs, arguments.device, dtype)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"written: {arguments.json}")
    if arguments.picture:
        from fairseq_gpam.lab.benchmark.picture import draw

        for path in draw(results, arguments.picture):
            print(f"written: {path}")
    return 0


def machine(threads: int, device: str, dtype: str) -> dict[str, Any]:
    """Returns the conditions of a measurement: processor, threads, device, data type, versions, commit and time."""
    facts = environment()
    return {
        "processor": facts["machine"]["cpu"],
        "threads": threads,
        "linear_maps_by": matmul.library(),
        "device": facts["machine"]["accelerators"][0] if device == "cuda" else device,
        "dtype": dtype,
        "commit": facts["commit"],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **facts["versions"],
    }


def exponent(lengths: list[int], amounts: list[float]) -> float:
    """Returns the slope of log amount against log length, fitted by least squares."""
    return float(np.polyfit(np.log(lengths), np.log(amounts), 1)[0])


def measure_memory(candidates: list[Candidate], device: str, dtype: str) -> list[dict[str, Any]]:
    """Prints and returns the core's peak memory at each length, without and with attention dropout."""
    from fairseq_gpam.lab.benchmark import memory

    title = "peak memory of the core in training, MiB, masks included"
    print(f"\n{title:64}" + "".join(f"{n:>8}" for n in memory.LENGTHS) + "  exponent", flush=True)
    rows = []
    for what in ("stock", *map(str, candidates)):
        for dropout in (0.0, 0.1):
            # Stock with dropout, and the reference, allocate T × T matrices, which take gigabytes at 8192 tokens.
            square = (what == "stock" and dropout > 0) or what.endswith(":reference")
            lengths = [n for n in memory.LENGTHS if n <= 4096 or not square]
            mebibytes = [memory.measure(what, length, dropout, device, dtype) for length in lengths]
            slope = exponent(lengths[1:], [max(amount, 0.1) for amount in mebibytes[1:]])
            amounts = "".join(f"{amount:8.0f}" for amount in mebibytes)
            print(f"{f'{what}, attention dropout {dropout:g}':64}{amounts}  {slope:.2f}", flush=True)
            row = {"what": what, "dropout": dropout, "lengths": lengths, "mebibytes": mebibytes, "exponent": slope}
            rows.append(row)
    return rows


def measure_scaling(candidates: list[Candidate], pairs: int, device: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Prints and returns the core's training time at each length, ours and stock's, with the fitted exponents."""
    from fairseq_gpam.lab.benchmark.cases import core_pair, creating

    rows = []
    for candidate in candidates:
        print(f"\nscaling of the core, {candidate}, milliseconds (stock, ours, ratio)")
        measured = []
        for length in SCALING_LENGTHS:
            with creating(device, dtype):
                stock, ours = core_pair(candidate, by_length(length), 0.0)
            ratio = paired(stock, ours, pairs if length <= 2048 else max(3, pairs // 5), warmup=1)
            measured.append(ratio)
            times = f"{ratio['stock_seconds'] * 1e3:10.2f} {ratio['our_seconds'] * 1e3:10.2f}"
            print(f"{length:6} {times} {ratio['median']:7.3f}", flush=True)
        row: dict[str, Any] = {**vars(candidate), "lengths": list(SCALING_LENGTHS)}
        row |= {key: [ratio[key] for ratio in measured] for key in ("stock_seconds", "our_seconds")}
        row["ratios"] = [ratio["median"] for ratio in measured]
        long = SCALING_LENGTHS.index(512)
        for whose in ("stock", "our"):
            row[f"{whose}_exponent"] = exponent(row["lengths"][long:], row[f"{whose}_seconds"][long:])
        print(f"exponent from 512 tokens on: stock {row['stock_exponent']:.2f}, ours {row['our_exponent']:.2f}")
        rows.append(row)
    return rows
