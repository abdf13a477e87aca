"""Two gloo processes: their averaged gradients are those of one process on the joined batch."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.logging import metrics
from fairseq.models import DistributedFairseqModel
from tiny import OURS, build, scramble, sentences, shifted

# The processes' batches differ in length, so that joining them adds padding.
LENGTHS = ((6, 3, 5), (8, 2, 4))
PENALTY = "--gpam-spectrum-penalty 0.25"
CASES = {
    "daGPAM": "",
    "λ⁻ for each token": "--gpam-lambda-source token",
    "fixed λ": "--gpam-lambda fixed",
    "one λ for the model": "--gpam-lambda-scope model",
    "held row sum of the model": "--gpam-row-sum 1.2 --gpam-lambda-scope model",
    "shared W_Q⁻ with bias": "--gpam-negative-projection shared --gpam-negative-bias",
    "mixture": "--gpam-mechanism dagpam:1,gated:1",
    "layers": "--gpam-mechanism gated_linear@0;dagpam:1,local:1@1",
    "running average": "--gpam-mechanism affine_scaled",
    "values of the first layer": "--gpam-mechanism value_residual --gpam-value-residual-learned",
    "query rank": "--gpam-query-rank 3",
    "layer fusion": "--gpam-layer-fusion gate",
    "spectrum penalty": PENALTY,
    "spectrum penalty, legacy_ddp": f"{PENALTY} --gpam-query-rank 3",
}


class Criterion(torch.nn.Module):
    """The sum over the unpadded positions, so that the joined batch's gradient is the sum of the batches'."""

    def forward(self, model, batch):
        counted = torch.log_softmax(model(batch)[0], dim=-1)[batch != 1]
        return -counted[:, 5].sum(), len(counted), {}


def built(flags):
    """A model and the criterion that its task makes, with which a penalty reaches the loss."""
    task = SimpleNamespace(build_criterion=Criterion)
    torch.manual_seed(1)
    model = scramble(build("language_modeling", OURS["language_modeling"], *flags.split(), made=task)).train()
    return model, task.build_criterion()


def backward(criterion, model, batch):
    """Runs a batch backward; the penalty that was logged."""
    with metrics.aggregate(new_root=True) as logged:
        criterion(model, batch)[0].backward()
    return logged.get_smoothed_values().get("gpam_spectrum_penalty")


def compare(name, rank):
    """The largest relative difference of a gradient, and the penalties of one process and of each."""
    torch.manual_seed(0)
    batches = [shifted(sentences(lengths)) for lengths in LENGTHS]
    width = max(batch.size(1) for batch in batches)
    joined = torch.cat([F.pad(batch, (0, width - batch.size(1)), value=1) for batch in batches])
    single, criterion = built(CASES[name])
    logged = [backward(criterion, single, joined), None, None]
    model, criterion = built(CASES[name])
    if "legacy_ddp" in name:
        settings = SimpleNamespace(tpu=False, ddp_backend="legacy_ddp", heartbeat_timeout=-1)
        wrapped = DistributedFairseqModel(settings, model, torch.distributed.group.WORLD, torch.device("cpu"))
    else:  # fairseq's default for c10d: find_unused_parameters off
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    start = [buffer.clone() for buffer in model.buffers()]
    for _ in range(2):  # a parameter that is left out is noticed at the next forward
        model.zero_grad()
        for buffer, first in zip(model.buffers(), start, strict=True):
            buffer.copy_(first)
        own = backward(criterion, wrapped, batches[rank])
        if hasattr(wrapped, "all_reduce_grads"):
            wrapped.all_reduce_grads()
    torch.distributed.all_gather_object(each := [None, None], own)
    logged[1:] = each
    differences = [0.0]
    for ours, alone in zip(model.parameters(), single.parameters(), strict=True):
        if ours.requires_grad:
            expected = alone.grad / 2
            differences.append(float((ours.grad - expected).abs().max() / expected.abs().max().clamp(min=1)))
    return max(differences), logged


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {name: compare(name, rank) for name in CASES}
    (folder / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.start_processes(work, (folder,), 2, start_method="fork")
    return json.loads((folder / "0.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_averaged_gradients_are_those_of_the_joined_batch_and_every_process_logs_the_same_penalty(results, name):
    difference, (alone, *each) = results[name]
    assert difference <= 1e-5
    assert (alone is None) == ("penalty" not in name)
    assert each == ([None] * 2 if alone is None else pytest.approx([alone] * 2, abs=1e-5))
