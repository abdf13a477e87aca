"""Measures the time of an update of a grid's arms against the baseline's, for the grid's `times`.

`python examples/studies/update_times.py GRID OUT`, where OUT holds the data that `prepare TASK --out OUT` made. Both
models train alternately in one process, on one thread, with the same batches, optimiser included. Nothing else should
run.
"""

import argparse
import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer

from fairseq_gpam.lab.benchmark.timing import paired
from fairseq_gpam.lab.experiments import grid
from fairseq_gpam.lab.recipes import stages


def update_of(run):
    """Returns a function that makes the next update of a run's training."""
    words = stages.train_command(run)[1:]
    utils.import_user_module(argparse.Namespace(user_dir=str(stages.USER_DIR)))
    settings = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    utils.set_torch_seed(settings.common.seed)
    task = tasks.setup_task(settings.task)
    task.load_dataset("valid")
    trainer = Trainer(settings, task, task.build_model(settings.model), task.build_criterion(settings.criterion))
    batches = trainer.get_train_iterator(epoch=1).next_epoch_itr()
    trainer.begin_epoch(1)
    return lambda: trainer.train_step([next(batches)])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=100, help="updates of each arm (default: 100)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    chosen = grid.load(arguments.grid)
    runs = {run.arm: replace(run, out=arguments.out.resolve()) for run in chosen.runs() if run.seed == chosen.seeds[0]}
    for arm in (arm for arm in runs if arm != chosen.baseline):
        steps = [update_of(runs[name]) for name in (chosen.baseline, arm)]
        ratio = paired(*steps, arguments.pairs, clock=time.process_time)
        print(f"{arm}: {ratio['median']:.3f} (quartiles {ratio['lower']:.3f}–{ratio['upper']:.3f})", flush=True)


if __name__ == "__main__":
    main()
