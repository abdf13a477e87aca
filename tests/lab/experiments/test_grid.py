"""A grid file is checked when it is read, becomes the right commands, and is run by the engine, killed or not."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import experiment, grid
from fairseq_gpam.lab.recipes import stages

REPOSITORY = Path(__file__).parents[3]
EIGHT = "seeds = [1, 2, 3, 4, 5, 6, 7, 8]\n"
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


def test_recipes_of_ones_own_that_share_data_are_prepared_one_after_the_other(tmp_path):
    for name in ("mine", "other"):
        (tmp_path / f"{name}.toml").write_text('base = "iwslt14-de-en"\n')
    added = '[tasks.iwslt14-de-en]\n[tasks."mine.toml"]\n[tasks."other.toml"]\n[tasks.shakespeare-lm]'
    jobs = list(read(tmp_path, SMALL.replace("[tasks.shakespeare-lm]", added)).jobs())
    prepare = {Path(job.command[4]).name: job for job in jobs if job.stage == "prepare"}
    assert list(prepare) == ["bible-de-en", "iwslt14-de-en", "mine.toml", "other.toml", "shakespeare-lm"]
    _, first, second, third, alone = prepare.values()
    assert (first.inputs, alone.inputs) == ((), ())
    assert (second.inputs, third.inputs) == ((first.marker,), (second.marker,))
    waits = {job.label: job.inputs for job in jobs if job.stage == "train"}
    assert waits["mine stock 3"] == (second.marker,)
    assert waits["iwslt14-de-en stock 3"] == (first.marker,)


def test_a_mechanism_of_ones_own_is_imported_by_every_job(tmp_path, monkeypatch):
    monkeypatch.delenv("GPAM_IMPORT", raising=False)
    assert "GPAM_IMPORT" not in read(tmp_path, SMALL).job_environment
    for form in ("--gpam-import /there/mine.py", "--gpam-import=/there/mine.py"):
        text = SMALL.replace('"--gpam-negative-projection shared"', f'{{mechanism = "mine", flags = "{form}"}}')
        assert read(tmp_path, text).job_environment["GPAM_IMPORT"] == "/there/mine.py"
    with pytest.raises(schema.SchemaError, match=r"arms\.shared has --gpam-import mine.py; allowed: an absolute path"):
        read(tmp_path, text.replace("/there/", ""))


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
    jobs, left = list(read(tmp_path, text).jobs()), {"prepare": 1, "train": 2, "generate": 1, "score": 1}
    for job in jobs:
        if left[job.stage] > 0:
            left[job.stage] -= 1
            for path, content in ((job.marker, ""), (job.benchmark, "s\th:m:s\tmax_rss\n60\t0:01:00\t2000.5\n")):
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_text(content)
    # Two trainings, three translations and three scores.
    for at_once, minutes in ((1, "8.0"), (4, "2.0")):
        said = f"1 of 4 runs done, 5 of 13 jobs, about {minutes} min left"
        assert experiment.progress(jobs, tmp_path, at_once) == said
    (tmp_path / next(job.marker for job in jobs if job.stage == "score")).unlink()
    assert "the time left is known once" in experiment.progress(jobs, tmp_path, 1)


@given(st.lists(st.floats(min_value=1e-12, max_value=10), min_size=1, max_size=3, unique=True))
def test_learning_rates_are_data_of_the_runs_to_the_last_digit(rates):
    tables = {"baseline": "stock", "seeds": [1], "learning_rates": rates, "tasks": {"bible-de-en": {}}}
    chosen = schema.check({**tables, "arms": {"stock": {"mechanism": "stock"}, "a_lr1": ""}}, grid.Grid, "FILE")
    runs = list(chosen.runs())
    assert [(run.arm, run.learning_rate) for run in runs] == [
        (arm, rate) for arm in ("stock", "a_lr1") for rate in rates
    ]
    assert len({run.folder for run in runs}) == len(runs)
    assert set(chosen.groups()) == {("bible-de-en", rate) for rate in rates}
    for run, job in zip(runs, (job for job in chosen.jobs() if job.stage == "train"), strict=True):
        words = stages.train_command(run)
        assert float(words[words.index("--lr", words.index("--max-update")) + 1]) == run.learning_rate
        given = job.command[job.command.index("--arm") :]
        assert (given[1], float(given[3])) == (run.arm, run.learning_rate)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = [3, 1]", "seeds = [1, 1]", r"seeds is \[1, 1\]; allowed: each number once"),
        ("seeds = [3, 1]", 'seeds = [3, 1]\nprimary = [["shared", "stock"]]', r"seeds is \[3, 1\]; .* at least 8"),
        ("seeds = [3, 1]", EIGHT + 'primary = [["shard", "stock"]]', r'primary has "shard"; .* \(nearest: shared\)'),
        ("seeds = [3, 1]", EIGHT + 'primary = [["stock", "stock"]]', 'primary has "stock" twice'),
        ("seeds = [3, 1]", "seeds = [1]\ntimes = {god = 1.0}", 'times has "god"; allowed: stock, shared, wider'),
        ("seeds = [3, 1]", "seeds = [4294967296]", r"seeds\[0\] is 4294967296; allowed: .* 4294967295"),
        ("seeds = [3, 1]", "seeds = [1]\nlearning_rates = [inf]", "learning_rates is .*; allowed: finite"),
        ("[tasks.bible-de-en]", "[tasks.ngram-lm]\n[tasks.bible-de-en]", "full is true; allowed: false, .* ngram-lm"),
        ('baseline = "stock"', 'baseline = "stok"', r'baseline is "stok"; allowed: stock, .* \(nearest: stock\)'),
        ("[tasks.bible-de-en]", "[tasks.bible]", "tasks.bible: "),
        ('tasks = ["bible-de-en"]', 'tasks = ["ptb-lm"]', 'arms.wider.tasks has "ptb-lm"; allowed: bible-de-en'),
        ("shared =", '"../shared" =', r'arms\."../shared" is no allowed name; allowed: letters'),
        ("--clip-norm 1", "'", 'train_flags is "\'"; allowed: words as in a shell'),
        ("[arms]", "[slurm]\nflags = '\"'\n[arms]", r"slurm\.flags is .*; allowed: words as in a shell"),
        ("[arms]", "[environment]\n\"A B\" = '1'\n[arms]", r'environment\."A B" is no allowed name; allowed: letters'),
        ("[tasks.bible-de-en]", "[tasks.bible-de-en]\narchive = 'no'", r'archive is "no"; allowed: a file that exists'),
    ],
)
def test_a_wrong_grid_names_file_and_key(tmp_path, old, new, said):
    assert old in SMALL
    with pytest.raises(schema.SchemaError, match=said) as caught:
        full = "full = true\n" if said.startswith("full") else ""
        read(tmp_path, full + SMALL.replace(old, new, 1))
    assert str(tmp_path / "grid.toml") in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("--gpam-negative-projection shared", "--gpam-mechanism nothing", "arm shared .*--gpam-mechanism 'nothing'"),
        (
            "--gpam-negative-projection shared",
            "--gpam-negative",
            "arm shared .*unrecognized arguments: --gpam-negative",
        ),
        ("--encoder-ffn-embed-dim 280", "--gpam-mechanism dagpam", "arm wider .*unrecognized arguments: --gpam"),
        ("--clip-norm 1", "--clip-norm one", "arm stock .* on bible-de-en: argument --clip-norm"),
    ],
)
def test_a_dry_run_builds_the_options_of_every_arm(tmp_path, old, new, said):
    (tmp_path / "grid.toml").write_text(SMALL.replace(old, new))
    with pytest.raises(SystemExit, match=said):
        main(["experiment", str(tmp_path / "grid.toml"), "--dry-run", "--out", str(tmp_path / "out")])


def test_every_study_has_a_grid_that_loads_or_a_script():
    studies = REPOSITORY / "examples/studies"
    folders = [path for path in studies.iterdir() if path.is_dir() and path.name != "cards"]
    assert len(folders) >= 5
    for folder in folders:
        if not (folder / "study.py").exists():
            assert (folder / "grid.toml").exists()
            assert all(list(grid.load(path).jobs()) for path in folder.glob("*.toml"))


def test_environment_has_one_thread_and_settings_can_be_unset(tmp_path):
    chosen = read(tmp_path, SMALL + '[environment]\nMALLOC_TOP_PAD_ = ""\nWORKERS = "2"\n')
    given = experiment.environment(chosen)
    assert given["OMP_NUM_THREADS"] == "1"
    assert given["WORKERS"] == "2"
    assert "MALLOC_TOP_PAD_" not in given
