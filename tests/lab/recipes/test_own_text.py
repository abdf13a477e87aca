"""A recipe of one's own: the commands of docs/your-data.md on 200 made sentence pairs, and what is refused."""

import itertools
import re
from pathlib import Path

import pytest
import sizes
from fairseq import options
from fairseq.data.data_utils import post_process
from page_of_own_text import SHORT, blocks, write_recipe, write_text
from shell import bash

import fairseq_gpam
from fairseq_gpam.lab.recipes import own_text, prepare, tasks
from fairseq_gpam.lab.recipes.run_folder import last_flag

TINY_LM = " ".join([*sizes.tiny_language_model(), "--tokens-per-sample", "32"])


@pytest.fixture
def run(interpreter, tmp_path):
    """Runs lines of the page in the test's folder; training gets the flags of a tiny model."""

    def run(lines):
        script = re.sub(r"^fairseq-gpam", f"{interpreter} -m fairseq_gpam", lines, flags=re.MULTILINE)
        return bash(script, tmp_path, PYTHONPATH=str(Path(fairseq_gpam.__path__[0]).parent))

    return run


def general(text):
    """Lines without their numbers and paths."""
    return {re.sub(r"/\S*/", "/", re.sub(r"\d[\d,.]*", "#", line)) for line in text.splitlines()}


@pytest.mark.slow  # five trainings, by fairseq's own commands
def test_the_pages_commands_lead_to_a_score_and_a_comparison(run, tmp_path):
    write_text(tmp_path)
    write_recipe(tmp_path)
    shown = run(next(block for block in blocks("bash") if "prepare" in block))
    assert general(blocks("")[0]) <= general(shown)
    assert (tmp_path / "out/runs/my-task/dagpam/1/hypotheses.txt").read_text().count("\n") == 20
    grid = next(block for block in blocks("toml") if "[arms]" in block)
    (tmp_path / "my-grid.toml").write_text(grid.replace("[1, 2, 3, 4, 5, 6, 7, 8]", "[1, 2]"))
    run(next(block for block in blocks("bash") if "experiment" in block))
    (compared,) = (tmp_path / "out/comparison").rglob("comparison.md")
    assert re.search(r"\| dagpam +\| 2 ", compared.read_text())
    assert "dagpam" in run("fairseq-gpam results table out/runs/my-task/dagpam/1")


@pytest.mark.slow  # fairseq's own commands
def test_a_language_model_of_ones_own(run, tmp_path):
    write_text(tmp_path)
    recipe = f'train_more = "{TINY_LM}"\n{SHORT}[text]\n'
    recipe += "".join(f'{split} = ["{split}.de"]\n' for split in tasks.SPLITS)
    (tmp_path / "mine.toml").write_text(f"{recipe}[data]\nvocabulary = 60\n")
    shown = run(
        "fairseq-gpam prepare mine.toml\nfairseq-gpam train mine.toml softmax\nfairseq-gpam eval-lm mine.toml softmax\n"
    )
    assert "per word" in shown
    assert "softmax" in run("fairseq-gpam results table out/runs/mine/softmax/1")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('train = ["train.de", "train.en"]', 'train = "train.de"', ["text.train", "train.de", "two paths"]),
        ('target = "en"', 'target = "de"', ["target", "de"]),
        ('target = "en"', "", ["target"]),
        ('target = "en"', 'target = "en"\nbase = "bible"', ["base", "bible-de-en"]),
        ("vocabulary = 100", 'subwords = "bytes"', ["subwords", "bytes", "sentencepiece"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_key(tmp_path, old, new, named):
    path = write_recipe(tmp_path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(tasks.TaskError) as refusal:
        tasks.load(str(path))
    assert all(word in str(refusal.value) for word in [path.name, *named])


@pytest.mark.parametrize("name", ["bible-de-en", "mine-full", "mi ne", "mine.other"])
def test_a_name_that_would_collide_or_make_no_folder_is_refused(tmp_path, name):
    path = write_recipe(tmp_path).rename(tmp_path / f"{name}.toml")
    with pytest.raises(tasks.TaskError, match=re.escape(path.name)):
        tasks.load(str(path))


def test_a_name_without_toml_is_answered_with_the_file_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    with pytest.raises(tasks.TaskError, match=r"did you mean my-task\.toml"):
        tasks.load("my-task")


def test_a_base_gives_its_settings_but_not_its_corpus(tmp_path):
    task = tasks.load(str(write_recipe(tmp_path, 'base = "iwslt14-de-en"\n')))
    base = tasks.load("iwslt14-de-en")
    assert (task.arch, task.evaluate, task.data.tokenizer) == (base.arch, base.evaluate, base.data.tokenizer)
    assert task.train[: len(base.train)] == base.train and task.data.vocabulary == 100
    assert (task.data.corpus, task.data.name) == ("text", "my-task")
    assert [Path(file.file).name for file in task.data.files][:2] == ["train.de", "train.en"]


ENCODED = {"sentencepiece": "▁on e ▁two", "subword-nmt": "on@@ e two", "words": "one two"}


@pytest.mark.parametrize("base", ["bible-de-en", "iwslt14-de-en", "multi30k-en-de"])
@pytest.mark.parametrize(("between", "kind"), itertools.product(ENCODED, repeat=2))
def test_words_are_joined_as_the_subwords_need_whatever_those_of_the_base(tmp_path, base, between, kind):
    first = write_recipe(tmp_path, f'base = "{base}"\n', f'subwords = "{between}"\n').rename(tmp_path / "first.toml")
    (tmp_path / "own.toml").write_text(f'base = "{first}"\n[data]\nsubwords = "{kind}"\n')
    for name, subwords in ((first, between), (tmp_path / "own.toml", kind)):
        task = tasks.load(str(name))
        given = options.parse_args_and_arch(options.get_generation_parser(), ["data", *task.evaluate])
        assert post_process(ENCODED[subwords], given.post_process) == "one two"
        if "--eval-bleu" in task.train:
            assert post_process(ENCODED[subwords], last_flag(task.train, "--eval-bleu-remove-bpe")) == "one two"


def test_flags_of_ones_own_decide_how_words_are_joined(tmp_path):
    path = write_recipe(tmp_path, 'evaluate = "--remove-bpe letter"\ntrain = "--eval-bleu"\n', 'subwords = "words"\n')
    task = tasks.load(str(path))
    assert task.evaluate == ("--remove-bpe", "letter") and "--eval-bleu-remove-bpe" not in task.train


def prepared(folder, more=""):
    task = tasks.load(str(write_recipe(folder, more)))
    out = folder / "written"
    out.mkdir()
    own_text.prepare_text(task, prepare.fetch(task, folder / "out"), out)
    return out


def test_pairs_with_an_empty_side_are_left_out_of_training_but_not_of_the_test(tmp_path, capsys):
    write_text(tmp_path, train=4)
    (tmp_path / "train.de").write_text("ein\r\n\nzwei\ndrei\n")
    (tmp_path / "test.en").write_text("one\n" + "\n" * 19)
    out = prepared(tmp_path)
    assert (out / "train.de").read_text() == "ein\nzwei\ndrei\n"
    assert (out / "train.en").read_text().count("\n") == 3
    assert (out / "test.en").read_text().count("\n") == 20
    assert "1 with an empty side" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, ["exists"]), (b"one\n", ["1", "200"]), (b"\n" * 200, ["no line with text"]), (b"\xff\n" * 200, ["UTF-8"])],
)
def test_a_text_that_does_not_fit_is_refused_with_its_file(tmp_path, content, named):
    write_text(tmp_path)
    path = tmp_path / "train.en"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(own_text.TextError) as refusal:
        prepared(tmp_path)
    assert all(word in str(refusal.value) for word in [str(path), *named])


def test_tokenised_and_lower_cased_text_is_encoded_and_the_raw_text_is_scored(tmp_path):
    write_text(tmp_path)
    (tmp_path / "test.en").write_text("Well, DONE.\n" * 20)
    path = write_recipe(tmp_path, data='tokenizer = "moses"\nlowercase = true\nsubwords = "subword-nmt"\n')
    task = tasks.load(str(path))
    (out := tmp_path / "written").mkdir()
    prepare.read_corpus(task, prepare.fetch(task, tmp_path), out)
    assert (out / "test.en").read_text().startswith("Well, DONE.\n")
    assert (out / "input/test.en").read_text().startswith("well , done .\n")
    assert (out / "subword/codes").is_file()


def test_words_are_binarised_as_they_were_tokenised_and_lower_cased(tmp_path):
    write_text(tmp_path)
    (tmp_path / "train.en").write_text("Well, DONE.\n" * 200)
    path = write_recipe(tmp_path, data='tokenizer = "moses"\nlowercase = true\nsubwords = "words"\n')
    task = tasks.load(str(path))
    prepare.prepare(task, prepare.fetch(task, tmp_path / "out"), tmp_path / "out")
    assert {"well", ",", "done"} < set((task.data_bin(tmp_path / "out") / "dict.en.txt").read_text().split())
    assert task.binarised_text(tmp_path / "out") == task.text(tmp_path / "out") / "input"


def test_a_line_is_one_for_fairseq_too_which_splits_at_carriage_returns(tmp_path):
    write_text(tmp_path)
    given = ["a\rb", "\ra", "a\r\rb", "a\r\r", "a\u2028b\x85c\x0cd", "\r", "", "a"] * 2 + ["a\r"] * 4
    (tmp_path / "test.en").write_text("".join(f"{line}\n" for line in given), encoding="utf-8", newline="")
    with (prepared(tmp_path) / "test.en").open(encoding="utf-8") as lines:
        read = [line.removesuffix("\n") for line in lines]
    assert [line.strip() for line in read] == [line.replace("\r", " ").strip() for line in given]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[data]", '[data]\ntokenizer = "moses"'),
        ("[data]", "[data]\nlowercase = true"),
        ('source = "de"\ntarget = "en"', 'source = "en"\ntarget = "de"'),
        ('target = "en"', 'target = "fr"'),
    ],
)
def test_data_that_was_prepared_with_another_setting_is_refused(tmp_path, monkeypatch, old, new):
    write_text(tmp_path)
    monkeypatch.setattr(prepare, "binarise", lambda *_: None)
    data, out = 'subwords = "words"\npreprocess = "--joined-dictionary"\n', tmp_path / "out"
    path = write_recipe(tmp_path, 'base = "bible-de-en"\n', data)
    for _ in range(2):
        task = tasks.load(str(path))
        prepare.prepare(task, prepare.fetch(task, out), out)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    task = tasks.load(str(path))
    with pytest.raises(prepare.PrepareError, match="was made with other settings"):
        prepare.prepare(task, prepare.fetch(task, out), out)


def test_too_many_subwords_are_refused_with_their_key(tmp_path):
    write_text(tmp_path)
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace("= 100", "= 9000"))
    task = tasks.load(str(path))
    with pytest.raises(prepare.PrepareError, match=r"9,000.*data\.vocabulary"):
        prepare.prepare(task, prepare.fetch(task, tmp_path / "out"), tmp_path / "out")
