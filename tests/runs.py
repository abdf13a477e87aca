"""Records of runs for tests."""

from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.recipes import stage_results


def made_run(arm="stock", seed=1, bits=4.0, task="made-lm", **values):
    """A run with this validation loss; `values` are further keys of its record."""
    valid = [[update, bits + 1 / update] for update in (1, 2, 4)]
    training = {"command": "fairseq-train data", "parameters": 10, "updates": 4, "valid": valid}
    record = {"task": task, "arm": arm, "mechanism": arm, "seed": seed, "training": training}
    record["losses"] = [{"split": "valid", "value": bits}]
    return schema.check({**record, **values}, Run, "made")


ENVIRONMENT = {
    "versions": {"torch": "2"},
    "machine": {"cpu": "a CPU", "cores": 2, "threads": "1", "accelerators": []},
    "commit": "abc",
}


def stages_of(run, **entries):
    """What the stages of a run record in its folder."""
    curve = {"valid": [list(point) for point in run.training.valid]}
    losses = {"valid_loss": run.loss("valid"), "valid_nll_loss": run.loss("valid"), "tokens_per_second": 5.0}
    train = {"command": run.training.command, "parameters": 10, "updates": 4, **losses, "curve": curve}
    train["environment"] = ENVIRONMENT
    return {"task": run.task, "name": run.name, "seed": run.seed, "train": train, **entries}


def write_run(folder, run, **entries):
    """A folder that holds what the stages of the run record; returns it."""
    folder.mkdir(parents=True)
    stage_results.update(folder, stages_of(run, **entries))
    return folder
