"""The commands of the recipes' READMEs, as they stand there, on synthetic archives.

The commands run in a folder of the test. What is changed: `scripts/` and `python` get their
paths, the task is each of the folder's in turn, and after `--` come flags for a tiny model, two
updates and short outputs; `--last 10` becomes the two checkpoints that there are.
"""

import json
import re
from pathlib import Path

import archives
import pytest
import sizes
from shell import bash

from fairseq_gpam.lab.recipes import tasks

REPOSITORY = Path(__file__).parents[3]
FOLDERS = {
    "iwslt14-de-en": archives.iwslt14,
    "iwslt14-en-de": archives.iwslt14,
    "wmt14-en-de": archives.wmt14,
    "multi30k-en-de": archives.multi30k,
    "ngram-lm": archives.ngrams,
    "ptb-lm": archives.ptb,
    "wikitext-103-lm": archives.wikitext_103,
    "enwik8-lm": archives.enwik8,
}
TASKS = sorted(task for task in tasks.names() if task.partition(".")[0] in FOLDERS)
NAMES = ("stock", "softmax", "dagpam")

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d[\d,.]*")

TRAIN = "--max-update 2 --update-freq 1 --num-workers 0 --log-interval 1 --warmup-updates 4 "
TRAIN += "--save-interval-updates 1 --validate-interval-updates 1 --max-tokens 1024"
TINY = {
    "translation": " ".join(sizes.tiny("encoder", "decoder")),
    "lm": " ".join([*sizes.tiny_language_model(), "--tokens-per-sample", "32"]),
    "adaptive": "--adaptive-input-cutoff 50,100 --adaptive-softmax-cutoff 50,100 "
    "--adaptive-input-factor 1 --adaptive-softmax-factor 1",
}


def blocks(folder):
    """Return a README's blocks as (language, content); the commands are those in `bash`."""
    return BLOCK.findall((REPOSITORY / "examples" / folder / "README.md").read_text(encoding="utf-8"))


def flags(script, task):
    """Return what follows `--` for a script, or nothing."""
    language_model = "-lm" in task
    if script == "train.sh":
        parts = [TRAIN, TINY["lm" if language_model else "translation"]]
        if task.startswith("wikitext") and "softmax" not in task:
            parts.append(TINY["adaptive"])
        return " -- " + " ".join(parts)
    if script == "generate.sh":
        return " -- --max-len-a 0 --max-len-b 8"
    return " -- --tokens-per-sample 32 --context-window 24 --max-tokens 1024" if script == "eval-lm.sh" else ""


def commands(task):
    """Return the README's commands for the task as one shell script."""
    folder = task.split(".")[0]
    lines = []
    for language, content in blocks(folder):
        if language != "bash":
            continue
        for line in content.splitlines():
            if line.startswith("task="):
                assert line == f"task={folder}"
                line = f"task={task}"
            match = re.match(r"bash scripts/([\w.-]+)", line)
            if match:
                if task.endswith(".wmt16") and match[1].startswith("prepare-"):
                    line += " --wmt16 made/wmt16_en_de.tar.gz"
                if task.endswith(".sentencepiece") and match[1].startswith("prepare-"):
                    line += " --sentencepiece --vocabulary 150"
                line += flags(match[1], task)
            if line.startswith("for name in"):
                line = line.replace("--last 10", "--last 1")
            line = line.replace("bash scripts/", f"bash {REPOSITORY}/scripts/").replace("--last 10", "--last 2")
            lines.append(re.sub(r"^python ", '"$PYTHON" ', line))
    return "\n".join(lines)


def expected_lines(folder):
    """Return the lines that the README shows after its commands."""
    return [line for language, content in blocks(folder) if language == "" for line in content.splitlines()]


def general(text):
    """Replace what differs between machines and settings: numbers."""
    return NUMBER.sub("#", text)


@pytest.mark.recipes
@pytest.mark.parametrize("task", TASKS)
def test_readme(task, interpreter, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    folder = task.split(".")[0]
    environment = {"PYTHON": str(interpreter), **FOLDERS[folder](made)}
    shown = bash(commands(task), tmp_path, **environment)
    if task == folder:
        missing = [line for line in expected_lines(folder) if general(line) not in general(shown)]
        assert not missing, shown[-5000:]

    for name in NAMES:
        check_run(tmp_path / "out/runs" / task / name / "1", task, name)

    if not folder.endswith("-lm"):
        hypotheses = tmp_path / "out/runs" / task / "dagpam/1/hypotheses.txt"
        lines = hypotheses.read_text(encoding="utf-8").splitlines(keepends=True)
        assert len(lines) == 41
        hypotheses.write_text("".join(lines[:-1]), encoding="utf-8")
        refused = bash(f"bash {REPOSITORY}/scripts/score.sh out/runs/{task}/dagpam/1", tmp_path, 2, **environment)
        assert "40 hypotheses but 41 references" in refused


def check_run(run, task, name):
    """Check that everything a run's folder should hold is there."""
    recorded = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert (recorded["task"], recorded["name"], recorded["seed"]) == (task, name, 1)
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["common"]["seed"] == 1
    architecture = config["model"]["_name"] if isinstance(config["model"], dict) else config["model"]
    assert ("gpam" in architecture) == (name != "stock")
    stages = ["train", "eval-lm"] if "-lm" in task else ["train", "generate"]
    for stage in stages:
        line = (run / f"{stage}.command").read_text(encoding="utf-8").strip()
        assert line == recorded[stage]["command"]
        assert "--required-batch-size-multiple 1" in line
        assert stage != "train" or "--update-epoch-batch-itr True" in line
        assert (run / f"{stage}.log").stat().st_size > 0
        environment = recorded[stage]["environment"]
        assert {"fairseq_gpam", "torch", "fairseq"} & set(environment["versions"])
        assert environment["commit"]
    assert recorded["train"]["updates"] == 2
    if task.startswith("enwik8"):
        assert recorded["eval-lm"]["characters"] == 1500
        assert recorded["eval-lm"]["bits_per_character"] > 0
    elif "-lm" in task:
        assert recorded["eval-lm"]["perplexity_word"] == pytest.approx(recorded["eval-lm"]["perplexity_subword"])
    else:
        assert recorded["generate"]["sentences"] == recorded["score"]["sentences"] == 41
        tokenised = not task.endswith(".sentencepiece")
        assert ("tokenized_bleu" in recorded["score"]) == tokenised
        assert (run / "hypotheses.detok.txt").exists() == tokenised


@pytest.mark.slow
def test_every_folder_has_a_recipe_a_readme_and_all_three_models():
    for folder in FOLDERS:
        text = "\n".join(content for language, content in blocks(folder) if language == "bash")
        for name in NAMES:
            assert f"bash scripts/train.sh $task {name} 1\n" in text
    named = (REPOSITORY / "examples/README.md").read_text(encoding="utf-8")
    for folder in {task.partition(".")[0] for task in tasks.names()}:
        assert f"| `{folder}` |" in named or f"| [{folder}](" in named
        assert (REPOSITORY / "examples" / folder / "README.md").exists()
    for task in TASKS:
        folder, _, variant = task.partition(".")
        assert f"`.{variant}`" in named if variant else f"`{folder}`"
