"""A grid file is checked when it is read, becomes the right commands, and is run by the engine, killed or not."""

import os
from pathlib import Path

import pytest

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.experiments import experiment, grid, slurm_status

REPOSITORY = Path(__file__).parents[3]
SMOKE = REPOSITORY / "examples/studies/smoke/grid.toml"
SMALL = """
baseline = "stock"
seeds = [3, 1]
train_flags = "--clip-norm 1"
plugin_flags = "--gpam-log-attention 2"
[tasks.bible-de-en]
[tasks.shakespeare-lm]
train_flags = "--dropout 0.2"
[arms]
stock = {mechanism = "stock"}
shared = "--gpam-negative-projection shared"
wider = {mechanism = "stock", flags = "--encoder-ffn-embed-dim 280", tasks = ["bible-de-en"]}
"""


def read(tmp_path, text):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return grid.load(path)


def test_jobs_are_the_commands_of_every_run_in_the_order_of_the_seeds(tmp_path):
    jobs = list(read(tmp_path, SMALL).jobs())
    assert [job.stage for job in jobs[:2]] == ["prepare", "prepare"]
    trainings = [job for job in jobs if job.stage == "train"]
    labels = ["bible-de-en stock", "bible-de-en shared", "bible-de-en wider", "shakespeare-lm stock"]
    labels.append("shakespeare-lm shared")
    assert [job.label for job in trainings] == [f"{label} {seed}" for seed in (3, 1) for label in labels]
    assert trainings[0].priority > trainings[-1].priority
    commands = {job.label: " ".join(job.command) for job in trainings}
    assert commands["shakespeare-lm shared 1"] == (
        "python -m fairseq_gpam train shakespeare-lm dagpam 1 --name shared --out . -- --clip-norm 1 --dropout 0.2 "
        "--gpam-log-attention 2 --gpam-negative-projection shared"
    )
    assert "gpam-log" not in commands["bible-de-en stock 3"]
    stages = [job.stage for job in jobs if job.label == "bible-de-en wider 1"]
    assert stages == ["train", "generate", "score"]
    assert [job.stage for job in jobs if job.label == "shakespeare-lm stock 1"] == ["train", "eval-lm"]
    markers = [job.marker for job in jobs]
    assert len(set(markers)) == len(markers)
    assert {place for job in jobs for place in job.inputs} <= set(markers)


def test_a_task_may_be_decoded_with_the_mean_of_its_last_checkpoints(tmp_path):
    jobs = list(read(tmp_path, SMALL.replace("[tasks.bible-de-en]", "[tasks.bible-de-en]\naverage = 3")).jobs())
    commands = {job.stage: " ".join(job.command) for job in jobs if job.label == "bible-de-en stock 3"}
    assert list(commands) == ["train", "average", "generate", "score"]
    assert commands["average"] == "python -m fairseq_gpam average runs/bible-de-en/stock/3 --last 3"
    assert commands["generate"].endswith(" --out . --checkpoint checkpoint_average.pt")
    assert all("average" not in job.command for job in jobs if "shakespeare-lm" in job.label)
    assert {place for job in jobs for place in job.inputs} <= {job.marker for job in jobs}


def test_a_dry_run_lists_what_is_done_and_what_is_to_do(tmp_path, capsys):
    jobs = list(read(tmp_path, SMALL).jobs())
    out = tmp_path / "out"
    arguments = ["experiment", str(tmp_path / "grid.toml"), "--dry-run", "--out", str(out)]
    assert main(arguments) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]] == ["to"] * len(jobs)
    assert not out.exists()
    (out / jobs[0].marker).parent.mkdir(parents=True)
    (out / jobs[0].marker).touch()
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"done  {' '.join(jobs[0].command)}"
    assert lines[-1].startswith(f"0 of 10 runs done, 1 of {len(jobs)} jobs")
    assert len(lines) == len(jobs) + 1


def test_the_time_left_is_that_of_the_jobs_that_have_ended_shared_among_those_at_a_time(tmp_path):
    text = SMALL.replace("[tasks.shakespeare-lm]\n", "").replace("wider =", "# wider =")
    jobs, out = list(read(tmp_path, text).jobs()), tmp_path / "out"
    own = {stage: [job for job in jobs if job.stage == stage] for stage in ("prepare", "train", "generate", "score")}
    assert [len(jobs) for jobs in own.values()] == [1, 4, 4, 4]

    def end(job, seconds):
        (out / job.marker).parent.mkdir(parents=True, exist_ok=True)
        (out / job.marker).touch()
        (out / job.benchmark).write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t2000.5\n")

    for job, seconds in zip([*own["prepare"], *own["train"][:2], own["generate"][0]], (9, 300, 420, 60), strict=True):
        end(job, seconds)
    text = experiment.progress(jobs, out, 1)
    assert text == "0 of 4 runs done, 4 of 13 jobs, the time left is known once each stage has ended once"
    end(own["score"][0], 20)
    # Two trainings of 360 s, three translations of 60 s and three scores of 20 s.
    assert experiment.progress(jobs, out, 1) == "1 of 4 runs done, 5 of 13 jobs, about 16.0 min left"
    assert experiment.progress(jobs, out, 4) == "1 of 4 runs done, 5 of 13 jobs, about 4.0 min left"
    for job in jobs:
        end(job, 1)
    assert experiment.progress(jobs, out, 1) == "4 of 4 runs done, 13 of 13 jobs"


def test_learning_rates_make_arms_of_their_own(tmp_path):
    jobs = list(read(tmp_path, SMALL.replace("seeds = [3, 1]", "seeds = [1]\nlearning_rates = [0.003, 0.01]")).jobs())
    names = [job.command[job.command.index("--name") + 1] for job in jobs if job.stage == "train"]
    assert names[:2] == ["stock_lr0.003", "stock_lr0.01"]
    assert all(
        job.command[-2:] == ("--lr", job.label.split("_lr")[1].split()[0]) for job in jobs if job.stage == "train"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline =", "base =", "baseline is missing"),
        ("seeds = [3, 1]", "seeds = [1, 1]", r"seeds is \[1, 1\]; allowed: different whole numbers"),
        ("seeds = [3, 1]", "seeds = 3", "seeds is 3; allowed: a list"),
        ("seeds = [3, 1]", "seeds = []", "seeds is missing or empty"),
        ("seeds = [3, 1]", "seeds = [true]", "allowed: different whole numbers"),
        (
            'baseline = "stock"',
            'baseline = "softmax"',
            "baseline is 'softmax'; allowed: an arm of stock, shared, wider",
        ),
        ("[tasks.bible-de-en]", "[tasks.bible]", "tasks.bible: "),
        ('train_flags = "--dropout', 'flags = "--dropout', "unknown key tasks.shakespeare-lm.flags; allowed: archive"),
        ('tasks = ["bible-de-en"]', 'tasks = ["ptb-lm"]', "arms.wider.tasks has 'ptb-lm'; allowed: bible-de-en"),
        ("shared =", "a_lr1 =", "arms.a_lr1: a name has"),
        ("--clip-norm 1", "'", 'train_flags is "\'": No closing quotation'),
        (
            "[tasks.bible-de-en]",
            "[tasks.bible-de-en]\naverage = 0",
            "bible-de-en.average is 0; allowed: a number above",
        ),
        ("[tasks.bible-de-en]", "[tasks.bible-de-en]\naverage = '5'", "average is '5'; allowed: a whole number"),
        ("[arms]", "arms", "not TOML"),
    ],
)
def test_a_wrong_grid_names_file_and_key(tmp_path, old, new, message):
    assert old in SMALL
    with pytest.raises(grid.GridError, match=message) as caught:
        read(tmp_path, SMALL.replace(old, new))
    assert str(tmp_path / "grid.toml") in str(caught.value)


def test_every_study_has_a_grid_that_loads_or_a_script_and_a_question_and_an_expectation():
    folders = sorted(path for path in (REPOSITORY / "examples/studies").iterdir() if path.is_dir())
    assert len(folders) >= 5
    for folder in folders:
        if not (folder / "study.py").exists():
            assert (folder / "grid.toml").exists()
            assert all(list(grid.load(path).jobs()) for path in folder.glob("*.toml"))
        if folder.name != "smoke":
            text = (folder / "README.md").read_text(encoding="utf-8")
            assert all(word in text for word in ("**Question.**", "**Expected.**", "verdict"))


def test_environment_has_one_thread_and_settings_can_be_unset(tmp_path):
    chosen = read(tmp_path, SMALL + '[environment]\nMALLOC_TOP_PAD_ = ""\nWORKERS = "2"\n')
    given = experiment.environment(chosen)
    assert given["OMP_NUM_THREADS"] == "1"
    assert given["WORKERS"] == "2"
    assert "MALLOC_TOP_PAD_" not in given


def stand_in(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("COMPLETED", "success"),
        ("RUNNING", "running"),
        ("", "running"),
        ("TIMEOUT", "failed"),
        ("CANCELLED+", "failed"),
    ],
)
def test_slurm_states(tmp_path, monkeypatch, state, expected):
    stand_in(tmp_path / "bin", "sacct", f"echo '{state}'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert slurm_status.status("7") == expected
