"""Tests the tests: changes one operator, number or keyword of the package at a time and counts what no test notices.

Usage: python tests/mutate.py [--sample N] [--seed N] [--jobs N] [--out FILE] PATH …

PATH is a file or folder of the package. cosmic-ray makes the mutants; N of them are drawn at random, each is imported
in a child forked after the slow imports, and the tests of its file run there until one fails. Prints the survivors and
the share that was killed with its 95 % Wilson interval; FILE gets one line of JSON for each mutant, and mutants that it
holds already are not run again.
"""

import argparse
import ast
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import cosmic_ray.plugins
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
NEED_ARGUMENTS = ("core/VariableInserter", "core/VariableReplacer", "core/NoOp")
TIMEOUT = 300
# What else tests a file, or a folder's files, by the names of the test files; a slash ends the name of a folder.
COMMON, MODULES = "families refusals", "modules/ decoding features"
TESTS = {
    "attention": "pytorch",
    "attention/mechanisms": COMMON,
    "attention/core": COMMON,
    "attention/core/affine": "affine blocks choice",
    "attention/core/base": "softmax families options forgetting warm_start decoding",
    "attention/core/build": "heads layers warm_start",
    "attention/core/causal": f"forgetting selective stick_breaking neutreno value_residual {COMMON}",
    "attention/core/families": f"{COMMON} rela sink multihead_attention",
    "attention/core/kernel_sums": "fastmax linear",
    "attention/core/lambdas": f"lambda_sources {COMMON}",
    "attention/core/masks": "centered softmax",
    "attention/core/measures": "training_log metrics",
    "attention/core/positions": "positions",
    "attention/core/recurrent": f"gated_linear zeros {COMMON}",
    "attention/core/sparse": "entmax entmax15 sparsemax",
    "analysis/metrics": "metrics",
    "modules": MODULES,
    "modules/layer_fusion": "layer_fusion",
    "modules/listener": "training_log collect probe",
    "modules/multihead_attention": f"{MODULES} query_rank",
    "modules/projections": f"projections {MODULES}",
    "modules/skip_weight": "skip_weight",
    "modules/spectrum_penalty": "spectrum_penalty",
    "modules/training_log": "training_log",
}


def meaning(code):
    """The syntax tree without annotations, which are not evaluated; None if the code cannot be parsed."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def mutants(path):
    """Yields (operator, occurrence) of every change to the file that changes what it means."""
    code = path.read_text(encoding="utf-8")
    original, nodes = meaning(code), list(ast_nodes(get_ast(code)))
    for name in sorted(cosmic_ray.plugins.operator_names()):
        if name in NEED_ARGUMENTS:
            continue
        operator = cosmic_ray.plugins.get_operator(name)()
        for occurrence in range(sum(len(list(operator.mutation_positions(node))) for node in nodes)):
            if meaning(mutate_code(code, operator, occurrence)) not in (original, None):
                yield name, occurrence


def named(name):
    (found,) = (ROOT / "tests").rglob(f"test_{name}.py")
    return str(found.relative_to(ROOT))


def tests_of(path):
    """Returns the test files to run for a file of the package, its own first."""
    part = path.relative_to(ROOT / "fairseq_gpam").with_suffix("")
    found = [f"tests/{part.parent}/test_{part.name}.py"]
    for key in (str(part), str(part.parent)):
        if key in TESTS:
            found += [f"tests/{name}" if name.endswith("/") else named(name) for name in TESTS[key].split()]
            break
    if part.parts[0] == "attention":
        # The defaults and help texts of its options are on the generated pages.
        found.append("tests/upkeep/test_mechanisms.py")
    existing = [each for each in dict.fromkeys(found) if (ROOT / each).exists()]
    if not existing:
        raise SystemExit(f"{part}: no test file is known for it; name one in TESTS of {Path(__file__).name}")
    return existing


class MutatedFinder:
    """Gives the mutated code to whoever imports the module."""

    def __init__(self, module, path, code):
        self.module, self.path, self.code = module, str(path), code

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        finder = self

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):
                return compile(finder.code, finder.path, "exec")

        return importlib.util.spec_from_file_location(name, self.path, loader=Loader(name, self.path))


def start(path, code):
    """Runs the file's tests with the mutated code in a child and returns its process id."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    sys.meta_path.insert(0, MutatedFinder(module, path, code))
    status = 1
    try:
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests_of(path)])
    finally:
        os._exit(int(status))


def is_killed(child):
    """Returns whether the tests have failed, None while they run; a child that does not end counts as killed."""
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        # All test files exist, so a usage error also comes from the mutant: a conftest.py could not import it.
        return status != 0
    # Processor time, so that a busy machine kills nobody.
    if seconds_used(child) <= TIMEOUT:
        return None
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def run(drawn, jobs):
    """Yields each mutant's record as its tests end, `jobs` mutants at a time."""
    waiting, running = list(drawn), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            path = Path(mutant[0]).resolve()
            code = path.read_text(encoding="utf-8")
            changed = mutate_code(code, cosmic_ray.plugins.get_operator(mutant[1])(), mutant[2])
            lines = zip(code.splitlines(), changed.splitlines(), strict=False)
            place, line = next(((i, new) for i, (old, new) in enumerate(lines, start=1) if old != new), (0, ""))
            running[start(path, changed)] = {"mutant": mutant, "line": place, "text": line.strip()}
        for child, record in list(running.items()):
            killed = is_killed(child)
            if killed is not None:
                del running[child]
                yield record | {"killed": killed}
        time.sleep(0.1)


def seconds_used(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def preload():
    """Imports what the tests import and no mutant changes."""
    import fairseq.options
    import fairseq.tasks
    import fairseq.trainer
    import hypothesis
    import torch

    torch.set_num_threads(1)
    return fairseq, hypothesis


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    preload()
    files = sorted({file for path in args.paths for file in (path.rglob("*.py") if path.is_dir() else [path])})
    every = [(str(file), *mutant) for file in files for mutant in mutants(file.resolve())]
    drawn = random.Random(args.seed).sample(every, min(args.sample, len(every)))
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    results = {tuple(each["mutant"]): each for each in known}
    for record in run([mutant for mutant in drawn if mutant not in results], args.jobs):
        results[tuple(record["mutant"])] = record
        with args.out.open("a") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    for mutant in drawn:
        if not results[mutant]["killed"]:
            print(f"survived {mutant[0]}:{results[mutant]['line']} {mutant[1]}: {results[mutant]['text']}")
    killed = sum(results[mutant]["killed"] for mutant in drawn)
    low, high = binomtest(killed, len(drawn)).proportion_ci(method="wilson")
    print(
        f"{killed} of {len(drawn)} killed: {killed / len(drawn):.1%} (95 % interval {low:.1%} to {high:.1%});", end=" "
    )
    print(f"drawn from {len(every)} mutants with seed {args.seed}")


if __name__ == "__main__":
    main()
