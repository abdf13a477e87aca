"""One of torchrun's processes: compares averaged gradients with those of one process on the joined batch.

Reads cases, `[name, task, [flags]]`, from the JSON file that it is given; its first process writes
`{name: {"difference": …, "unused": [parameters], "logged": [of one process, of each]}}` to the second file.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed

sys.path.insert(0, str(Path(__file__).parents[1]))

from fairseq.logging import metrics
from fairseq.models import DistributedFairseqModel
from tiny import OURS, build, scramble, sentences, shifted

import fairseq_gpam  # noqa: F401

# The processes' batches differ in length, so that joining them adds padding.
LENGTHS = (((6, 3, 5), (4, 5, 2)), ((8, 2, 4), (6, 3, 7)))


def inputs(task, lengths, generator_seed):
    torch.manual_seed(generator_seed)
    source, target = lengths
    if task == "language_modeling":
        return {"src_tokens": shifted(sentences(source))}
    return {
        "src_tokens": sentences(source, left=True),
        "src_lengths": torch.tensor(source),
        "prev_output_tokens": shifted(sentences(target)),
    }


def joined(batches):
    """The sentences of all batches in one, padded on their sides."""
    result = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        if name != "src_lengths":
            width = max(part.size(1) for part in parts)
            left = name == "src_tokens" and "src_lengths" in batches[0]
            sides = [(width - part.size(1), 0) if left else (0, width - part.size(1)) for part in parts]
            parts = [torch.nn.functional.pad(part, side, value=1) for part, side in zip(parts, sides, strict=True)]
        result[name] = torch.cat(parts)
    return result


class Criterion(torch.nn.Module):
    """The sum over the unpadded positions, so that the joined batch's gradient is the sum of the batches'."""

    def forward(self, model, batch):
        scores = torch.log_softmax(model(**batch)[0], dim=-1)
        tokens = batch.get("prev_output_tokens", batch["src_tokens"])
        counted = scores[tokens != 1]
        return -counted[:, 5].sum(), len(counted), {}


def built(task, flags):
    """A model and the criterion that its task makes, with which a penalty reaches the loss."""
    made = SimpleNamespace(build_criterion=Criterion)
    torch.manual_seed(1)
    model = scramble(build(task, OURS[task], *flags, made=made)).train()
    return model, made.build_criterion()


def backward(criterion, model, batch):
    """Runs a batch backward; what was logged."""
    with metrics.aggregate(new_root=True) as logged:
        loss, _, _ = criterion(model, batch)
    loss.backward()
    return logged.get_smoothed_values()


def compare(task, flags, rank, world, wrap):
    batches = [inputs(task, lengths, seed) for seed, lengths in enumerate(LENGTHS)]
    single, criterion = built(task, flags)
    alone = backward(criterion, single, joined(batches))
    model, criterion = built(task, flags)
    wrapped = wrap(model)
    start = [buffer.clone() for buffer in model.buffers()]
    for _ in range(2):  # a parameter that is left out is noticed at the next forward
        model.zero_grad()
        for buffer, first in zip(model.buffers(), start, strict=True):
            buffer.copy_(first)
        own = backward(criterion, wrapped, batches[rank])
        if hasattr(wrapped, "all_reduce_grads"):
            wrapped.all_reduce_grads()
    each = [None] * world
    torch.distributed.all_gather_object(each, own)
    difference, unused = 0.0, []
    for (name, ours), one in zip(model.named_parameters(), single.parameters(), strict=True):
        if ours.grad is None or one.grad is None:
            unused.append(name)
            continue
        expected = one.grad / world
        scale = max(1.0, float(expected.abs().max()))
        difference = max(difference, float((ours.grad - expected).abs().max()) / scale)
    return {"difference": difference, "unused": unused, "logged": [alone, *each]}


def legacy(model):
    settings = SimpleNamespace(tpu=False, ddp_backend="legacy_ddp", heartbeat_timeout=-1)
    return DistributedFairseqModel(settings, model, torch.distributed.group.WORLD, torch.device("cpu"))


def main(cases, output):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results = {}
    for name, task, flags in json.loads(Path(cases).read_text()):
        # fairseq's own default for c10d: find_unused_parameters off.
        wrap = legacy if "legacy_ddp" in name else torch.nn.parallel.DistributedDataParallel
        try:
            results[name] = compare(task, flags, rank, world, wrap)
        except RuntimeError as error:
            results[name] = {"difference": None, "unused": [str(error)[:300]]}
    if rank == 0:
        Path(output).write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"] == "2"
    main(*sys.argv[1:])
