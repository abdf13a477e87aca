"""Two gloo processes: what the first has loaded of a checkpoint arrives in the second, as fairseq sends it."""

import argparse
from collections import OrderedDict

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    state = checkpoint_utils.load_checkpoint_to_cpu(str(folder / "made.pt")) if rank == 0 else None
    state = utils.broadcast_object(state, src_rank=0, group=torch.distributed.group.WORLD)
    weights = state["model"]
    torch.save([dict(weights), weights.trained_with, state["cfg"].model.dropout], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_a_checkpoint_that_one_process_loads_reaches_the_other_with_its_settings(tmp_path):
    optimizer = {"num_updates": 1, "lr_scheduler_state": {}, "optimizer_name": "Adam"}
    state = {"optimizer_history": [optimizer], "extra_state": {"train_iterator": {}}}
    model = argparse.Namespace(dropout=0.25, gpam_mechanism="gated")
    weights = OrderedDict(weight=torch.randn(3, 2))
    torch.save({**state, "cfg": {"model": model}, "model": weights}, tmp_path / "made.pt")
    torch.multiprocessing.start_processes(work, (tmp_path,), 2, start_method="fork")
    for rank in (0, 1):
        received, settings, dropout = torch.load(tmp_path / f"{rank}.pt")
        assert received.keys() == weights.keys() and torch.equal(received["weight"], weights["weight"])
        assert (settings, dropout) == ({"gpam_mechanism": "gated"}, 0.25)
