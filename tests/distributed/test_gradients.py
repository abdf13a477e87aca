"""Two gloo processes, started by torchrun: their averaged gradients are those of one process on the joined batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import needed

from fairseq_gpam.attention import REGISTRY

HERE = Path(__file__).parent
LANGUAGE_MODEL, TRANSLATION = "language_modeling", "translation"


PENALTY = "--gpam-spectrum-penalty"
BOTH = {
    "λ⁻ for each token": ["--gpam-lambda-source", "token"],
    "held row sum": ["--gpam-row-sum", "0.8"],
    "held row sum of the model": ["--gpam-row-sum", "1.2", "--gpam-lambda-scope", "model"],
    "query rank": ["--gpam-query-rank", "3"],
    "spectrum penalty": [PENALTY, "0.25"],
    "spectrum penalty of narrow queries, legacy_ddp": [PENALTY, "0.25", "--gpam-query-rank", "3"],
    **{f"layer fusion, {kind}": ["--gpam-layer-fusion", kind] for kind in ("concat", "max", "gate")},
    "a cycle of layers": ["--gpam-decoder-mechanism", "linear*3,dagpam", "--decoder-layers", "4"],
    "named layers": ["--gpam-decoder-mechanism", "gated_linear@0,2;dagpam:1,local:1@1", "--decoder-layers", "3"],
    "a narrow window": ["--gpam-decoder-mechanism", "local", "--gpam-local-window", "1"],
}
MULTIFORMER = ["--gpam-encoder-mechanism", "local:1,compressed:1", "--gpam-local-window", "1"]


def cases():
    """Every mechanism at all of its sites at once, in both models, systems, and variants that share parameters."""
    found = {}
    for name, mechanism in sorted(REGISTRY.items()):
        common = flags = ["--gpam-mechanism", "softmax", *needed(name)]
        for site in mechanism.sites:
            flags = [*flags, f"--gpam-{site}-mechanism", name]
        found[f"{name} {TRANSLATION}"] = (TRANSLATION, flags)
        if "decoder" in mechanism.sites:
            found[f"{name} {LANGUAGE_MODEL}"] = (LANGUAGE_MODEL, [*common, "--gpam-decoder-mechanism", name])
    for name, flags in {
        "one λ for the model": ["--gpam-lambda-scope", "model"],
        "one λ for a layer, tied": ["--gpam-lambda-scope", "layer", "--gpam-lambda-tied"],
        "fixed λ": ["--gpam-lambda", "fixed"],
        "shared W_Q⁻ with bias": ["--gpam-negative-projection", "shared", "--gpam-negative-bias"],
        "mixture": ["--gpam-mechanism", "dagpam:1,gated:1"],
        "reference": ["--gpam-backend", "reference"],
        "Multiformer": MULTIFORMER,
        "separable compression": [*MULTIFORMER, "--gpam-compressed-convolution", "separable"],
        "layers in the encoder": ["--gpam-encoder-mechanism", "compressed@0;local:1,softmax:1@1"],
        "legacy_ddp": [],
    }.items():
        found[name] = (TRANSLATION, flags)
    for name, flags in BOTH.items():
        for task in (TRANSLATION, LANGUAGE_MODEL):
            found[f"{name}, {task}"] = (task, flags)
    return found


CASES = cases()


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "cases.json").write_text(json.dumps([[name, *case] for name, case in CASES.items()]))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [HERE / "worker.py", folder / "cases.json", folder / "results.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    argv = [str(part) for part in (sys.executable, *launcher, *arguments)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_averaged_gradients_are_those_of_the_joined_batch(results, name):
    assert results[name]["unused"] == []
    # The norm of zeros enlarges the rounding of weights that nearly cancel out.
    assert results[name]["difference"] <= (1e-3 if name.startswith("zeros") else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, flags) in CASES.items() if PENALTY in flags])
def test_every_process_logs_the_penalty_that_one_process_logs(results, name):
    one, *each = (logged["gpam_spectrum_penalty"] for logged in results[name]["logged"])
    assert one > 0.01 and len(each) == 2
    assert each == pytest.approx([one, one], abs=1e-5)
