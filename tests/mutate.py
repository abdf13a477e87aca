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
MODULE_TESTS = "tests/modules tests/models/test_decoding.py tests/models/test_features.py"
# The tests of a file that no test file is named after, and what else tests a file.
MECHANISM_TESTS = "tests/attention/mechanisms"
COMMON_TESTS = "tests/attention/core/test_families.py tests/test_refusals.py"
TESTS = {
    "attention": "tests/attention/test_pytorch.py",
    "attention/mechanisms": COMMON_TESTS,
    "attention/core": COMMON_TESTS,
    "attention/core/affine": "tests/attention/core/test_affine.py tests/attention/core/test_blocks.py "
    "tests/attention/core/test_choice.py",
    "attention/core/base": f"{MECHANISM_TESTS}/test_softmax.py tests/attention/core/test_families.py "
    f"tests/test_options.py {MECHANISM_TESTS}/test_forgetting.py tests/models/test_warm_start.py "
    "tests/models/test_decoding.py",
    "attention/core/build": "tests/attention/core/test_heads.py tests/attention/core/test_layers.py "
    "tests/models/test_warm_start.py",
    "attention/core/causal": f"{MECHANISM_TESTS}/test_forgetting.py {MECHANISM_TESTS}/test_selective.py "
    f"{MECHANISM_TESTS}/test_stick_breaking.py {MECHANISM_TESTS}/test_neutreno.py "
    f"{MECHANISM_TESTS}/test_value_residual.py {COMMON_TESTS}",
    "attention/core/families": f"{COMMON_TESTS} {MECHANISM_TESTS}/test_rela.py {MECHANISM_TESTS}/test_sink.py "
    "tests/modules/test_multihead_attention.py",
    "attention/core/kernel_sums": f"{MECHANISM_TESTS}/test_fastmax.py {MECHANISM_TESTS}/test_linear.py",
    "attention/core/lambdas": f"tests/attention/core/test_lambda_sources.py {COMMON_TESTS}",
    "attention/core/masks": f"{MECHANISM_TESTS}/test_centered.py {MECHANISM_TESTS}/test_softmax.py",
    "attention/core/measures": "tests/analysis/test_training_log.py tests/analysis/test_metrics.py",
    "attention/core/positions": "tests/modules/test_positions.py",
    "attention/core/recurrent": f"{MECHANISM_TESTS}/test_gated_linear.py {MECHANISM_TESTS}/test_zeros.py "
    f"{COMMON_TESTS}",
    "attention/core/sparse": f"{MECHANISM_TESTS}/test_entmax.py {MECHANISM_TESTS}/test_entmax15.py "
    f"{MECHANISM_TESTS}/test_sparsemax.py",
    "analysis/metrics": "tests/analysis/test_metrics.py",
    "modules": MODULE_TESTS,
    "modules/layer_fusion": "tests/models/test_layer_fusion.py",
    "modules/listener": "tests/analysis/test_training_log.py tests/analysis/test_collect.py "
    "tests/analysis/test_probe.py",
    "modules/multihead_attention": f"{MODULE_TESTS} tests/attention/core/test_query_rank.py",
    "modules/projections": f"tests/modules/test_projections.py {MODULE_TESTS}",
    "modules/skip_weight": "tests/models/test_skip_weight.py",
    "modules/spectrum_penalty": "tests/modules/test_spectrum_penalty.py",
    "modules/training_log": "tests/analysis/test_training_log.py",
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


def tests_of(path):
    """Returns the test files to run for a file of the package, its own first."""
    part = path.relative_to(ROOT / "fairseq_gpam").with_suffix("")
    found = [f"tests/{part.parent}/test_{part.name}.py"]
    for key in (str(part), str(part.parent)):
        if key in TESTS:
            found += TESTS[key].split()
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
