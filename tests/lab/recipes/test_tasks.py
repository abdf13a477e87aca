"""Recipes are read and checked; an error names the file and the key."""

import pytest
from fairseq.utils import split_paths

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.experiments.cards import Arm
from fairseq_gpam.lab.recipes import run_folder, stages, synthetic, tasks
from fairseq_gpam.lab.recipes.run_folder import last_flag
from fairseq_gpam.lab.recipes.tasks import TaskError

RECIPE = """
kind = "language_model"
arch = "transformer_lm"
train = "--lr 0.1"
budget = "--max-update 5"
evaluate = "--tokens-per-sample 128"
[data]
corpus = "ptb"
subwords = "words"
[data.variables]
MADE_URL = "https://example.org"
[[data.files]]
url = "${MADE_URL}/made.txt"
"""


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """A folder of recipes with one task, `made`."""
    monkeypatch.setattr(tasks, "FOLDER", tmp_path)
    (tmp_path / "made.toml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize("name", tasks.names())
def test_every_recipe_is_valid(name):
    task = tasks.load(name)
    assert task.data.files or task.data.corpus in ("ngrams", *synthetic.GENERATORS)
    # What every script passes is not repeated in a recipe.
    assert not {"--task", "--update-epoch-batch-itr", "--required-batch-size-multiple", "--seed"} & set(task.train)


def test_an_unknown_task_is_answered_with_the_nearest_or_all(examples):
    with pytest.raises(TaskError, match="'mad'; did you mean made\\?"):
        tasks.load("mad")
    with pytest.raises(TaskError, match="'ptb-lm'; allowed: made"):
        tasks.load("ptb-lm")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('arch = "transformer_lm"', 'arhc = "a"', "unknown key arhc; .*arch"),
        ('url = "', 'urn = "', r"unknown key data\.files.*urn; .*url"),
        ('"language_model"', '"translation"', "needs the keys 'source' and 'target'"),
        ('"words"', '"sentencepiece"', "vocabulary is missing.*a whole number above 0"),
        ('"--lr 0.1"', '"--lr \'0.1"', "key 'train' cannot be split into words: No closing quotation"),
        ("${MADE_URL}", "${MAID_URL}", r"'MAID_URL' in '.*made\.txt' is not a key of data\.variables"),
        ('kind = "', "kind = ", "Invalid"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(examples, old, new, message):
    assert old in RECIPE
    (examples / "made.toml").write_text(RECIPE.replace(old, new))
    with pytest.raises(TaskError, match=rf"(?s)made\.toml: .*{message}"):
        tasks.load("made")


def test_a_variant_replaces_keys_and_adds_flags(examples, monkeypatch):
    (examples / "made.more.toml").write_text('base = "made"\ntrain_more = "--lr 0.2"\n[data]\nname = "other"\n')
    task = tasks.load("made.more")
    assert task.train == ("--lr", "0.1", "--lr", "0.2")
    assert (task.data.name, task.data.corpus) == ("other", "ptb")
    assert task.data.files[0] == tasks.File(file="made.txt", url="https://example.org/made.txt")
    monkeypatch.setenv("MADE_URL", "file:///elsewhere")
    assert tasks.load("made").data.files[0].url == "file:///elsewhere/made.txt"


@pytest.mark.parametrize("length", [1, 2, 3])
def test_recipes_that_are_based_on_each_other_are_refused(examples, length):
    own = examples / "own"
    own.mkdir()
    for number in range(length):
        base = (number + 1) % length
        (own / f"own{number}.toml").write_text(f'base = "{own}/own{base}.toml"\n')
        (examples / f"made.{number}.toml").write_text(f'base = "made.{base}"\n')
    for name in (f"{own}/own0.toml", "made.0"):
        with pytest.raises(TaskError, match=r"0\.toml: base: .*is not allowed: it is based on this recipe itself"):
            tasks.load(name)


def settings(task, tmp_path, mechanism="dagpam", extra=()):
    return stages.RunSettings(task, mechanism, 3, tmp_path, mechanism, extra=extra)


def test_command_lines(tmp_path):
    task = tasks.load("multi30k-en-de")
    command = stages.train_command(settings(task, tmp_path, "stock", ("--lr", "1")))
    assert command[0] == "fairseq-train"
    expected = {"--arch": "transformer", "--seed": "3", "--lr": "1", "--keep-last-epochs": "10", "--source-lang": "en"}
    expected |= {
        "--update-epoch-batch-itr": "True",
        "--required-batch-size-multiple": "1",
        "--adam-betas": "(0.9, 0.98)",
    }
    assert {flag: last_flag(command, flag) for flag in expected} == expected
    assert "--no-epoch-checkpoints" not in command
    command = stages.train_command(settings(tasks.load("wmt14-en-de.big"), tmp_path))
    assert last_flag(command, "--arch") == "transformer_gpam_vaswani_wmt_en_de_big"
    assert last_flag(command, "--gpam-mechanism") == "dagpam"
    assert last_flag(command, "--keep-interval-updates") == "10"
    command = stages.train_command(settings(tasks.load("wikitext-103-lm"), tmp_path))
    assert last_flag(command, "--arch") == "transformer_lm_gpam_wiki103"


@pytest.mark.parametrize(
    "spec", ["dagpam:2,softmax:2", "softmax@0-2;dagpam:2,softmax:2@3", "dagpam*2;dagpam:1,softmax:3"]
)
def test_fairseq_takes_the_checkpoint_of_a_mixture_of_heads_for_one(tmp_path, monkeypatch, spec):
    seen = []
    monkeypatch.setattr(stages, "need_data", lambda this: None)
    monkeypatch.setattr(run_folder, "generate", lambda run, command, _: seen.append(command))
    assert main(["generate", "bible-de-en", spec, "--out", str(tmp_path)]) == 0
    others = [settings(tasks.load("bible-de-en"), tmp_path, spec), Arm(spec).run("flip-flop", 1, 0.1, tmp_path)]
    for command in (*seen, *map(stages.evaluation_command, others)):
        assert len(split_paths(last_flag(command, "--path"))) == 1
    assert {last_flag(stages.train_command(other), "--gpam-mechanism") for other in others} == {spec}


@pytest.mark.parametrize("command", ["train bible-de-en", "generate bible-de-en", "eval-lm ptb-lm"])
@pytest.mark.parametrize("name", ["a:b", "a/b", "/a", "..", "."])
def test_a_name_that_makes_no_folder_or_two_paths_is_refused(capsys, command, name):
    with pytest.raises(SystemExit):
        main([*command.split(), "dagpam", "--name", name])
    assert f"argument --name: {name} is not allowed; allowed: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["multi30k-en-de", "shakespeare-lm", "flip-flop"])
def test_an_evaluation_starts_no_process_that_could_outlive_it(tmp_path, name):
    this = settings(tasks.load(name), tmp_path, extra=("--cpu",))
    assert last_flag(stages.evaluation_command(this), "--num-workers") == "0"


def test_a_language_model_is_evaluated_with_the_length_of_its_training(tmp_path):
    this = settings(tasks.load("shakespeare-lm"), tmp_path)
    assert last_flag(stages.evaluation_command(this), "--tokens-per-sample") == "128"
    this.folder.mkdir(parents=True)
    (this.folder / "train.command").write_text("fairseq-train data --tokens-per-sample 128 --tokens-per-sample 64\n")
    assert last_flag(stages.evaluation_command(this), "--tokens-per-sample") == "64"
