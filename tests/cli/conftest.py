"""Small synthetic corpora, and models trained on them by the real commands; made once for all CLI tests."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import sizes

import fairseq_gpam

USER_DIR = Path(fairseq_gpam.__path__[0]).resolve()
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("HYDRA")},
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(USER_DIR.parent),
    "CUDA_VISIBLE_DEVICES": "",
}
SMALL = sizes.tiny("encoder", "decoder")
SMALL_LM = [*sizes.tiny_language_model(), "--tokens-per-sample", "16", "--sample-break-mode", "eos"]
TRAIN = ["--lr", "0.01", "--cpu", "--no-progress-bar", "--required-batch-size-multiple", "1", "--seed", "1"]


def hypotheses(text):
    """The best hypothesis of each sentence, by its number, from the output of fairseq-generate or -interactive."""
    return {int(number): words for number, words in re.findall(r"^D-(\d+)\t[^\t]*\t(.*)$", text, flags=re.M)}


class Command:
    """Runs a command of the environment's bin; `ok` says whether it must succeed.

    `fresh` starts a process of its own, as a user's shell does; the others share one import of fairseq (forked.py).
    fairseq_gpam is not imported there: that is what --user-dir does.
    """

    def __init__(self, folder, forking):
        self.folder = folder
        self.forking = forking
        self.environment = dict(ENVIRONMENT)

    def __call__(self, name, *arguments, cwd=None, stdin="", ok=True, user_dir=True, fresh=False):
        argv = [str((BIN if fresh else self.forking) / name), *map(str, arguments)]
        if user_dir:
            argv += ["--user-dir", str(USER_DIR)]
        surroundings = {"cwd": cwd or self.folder, "input": stdin, "env": self.environment, "timeout": 300}
        done = subprocess.run(argv, capture_output=True, text=True, **surroundings)
        text = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, f"{name} ended with {done.returncode}: {text[-3000:]}"
        return SimpleNamespace(stdout=done.stdout, stderr=done.stderr, text=text)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Source sentences of invented words, and their translation into the same words in capitals."""
    folder = tmp_path_factory.mktemp("cli")
    made = random.Random(1)
    for split, count in (("train", 300), ("valid", 20), ("test", 41)):
        lines = [[f"w{made.randrange(20)}" for _ in range(made.randint(2, 9))] for _ in range(count)]
        (folder / f"{split}.a").write_text("".join(" ".join(line) + "\n" for line in lines))
        (folder / f"{split}.b").write_text("".join(" ".join(line).upper() + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def command(folder, tmp_path_factory):
    python, server = forked.start(tmp_path_factory.mktemp("forking"))
    yield Command(folder, python.parent)
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="session")
def parallel(command, folder):
    splits = [argument for split in ("train", "valid", "test") for argument in (f"--{split}pref", split)]
    command("fairseq-preprocess", "-s", "a", "-t", "b", *splits, "--destdir", "parallel", user_dir=False)
    return folder / "parallel"


@pytest.fixture(scope="session")
def monolingual(command, folder):
    splits = [argument for split in ("train", "valid", "test") for argument in (f"--{split}pref", f"{split}.a")]
    command("fairseq-preprocess", "--only-source", *splits, "--destdir", "monolingual", user_dir=False)
    return folder / "monolingual"


def train_translation(command, parallel, save_dir, *arguments, **kwargs):
    bleu = ["--eval-bleu", "--eval-bleu-detok", "space", "--eval-bleu-args", '{"beam": 2}']
    best = ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]
    return command(
        "fairseq-train",
        *(parallel, "--arch", "transformer_gpam", *SMALL, *TRAIN, *bleu, *best),
        *("--optimizer", "adam", "--max-tokens", "400", "--save-dir", save_dir),
        *arguments,
        **kwargs,
    )


def generate(command, data, path, *arguments, **kwargs):
    words = [data, "--path", path, "--cpu", "--required-batch-size-multiple", "1"]
    return command("fairseq-generate", *words, *arguments, **kwargs)


LAMBDAS = ["--gpam-lambda", "fixed", "--gpam-lambda-plus", "0.25", "--gpam-lambda-minus", "0.75"]


@pytest.fixture(scope="session")
def translation(command, parallel, folder):
    """A translation model, trained for two epochs, then resumed for a third."""
    save_dir = folder / "translation"
    first = train_translation(command, parallel, save_dir, "--max-epoch", "2", *LAMBDAS, fresh=True)
    second = train_translation(command, parallel, save_dir, "--max-epoch", "3", *LAMBDAS)
    return save_dir, first.text, second.text


def train_language_model(command, monolingual, save_dir, *arguments):
    return command(
        "fairseq-train",
        *(monolingual, "--task", "language_modeling", "--arch", "transformer_lm_gpam", *SMALL_LM, *TRAIN),
        *("--optimizer", "gpam_adam", "--weight-decay", "0.01", "--max-tokens", "256", "--save-dir", save_dir),
        *arguments,
    )


def train_language_model_with_hydra(command, monolingual, save_dir, *flags):
    """Trains for three updates; `flags` are NAME=VALUE of --gpam flags."""
    sizes = ["decoder_layers=1", "decoder_embed_dim=16", "decoder_input_dim=16", "decoder_output_dim=16"]
    sizes += ["decoder_ffn_embed_dim=16", "decoder_attention_heads=2"]
    return command(
        "fairseq-hydra-train",
        *("task=language_modeling", f"task.data={monolingual}", "task.tokens_per_sample=16"),
        *("task.sample_break_mode=eos", "model=transformer_lm", "model._name=transformer_lm_gpam"),
        *(f"model.{size}" for size in sizes),
        *(f"+model.gpam_{flag}" for flag in flags),
        *("criterion=cross_entropy", "optimizer=adam", "lr_scheduler=fixed", "common.cpu=true"),
        *("optimization.max_update=3", "optimization.lr=[0.01]", "dataset.max_tokens=256"),
        *(f"common.user_dir={USER_DIR}", f"checkpoint.save_dir={save_dir}", f"hydra.run.dir={save_dir}/hydra"),
        user_dir=False,
    )


@pytest.fixture(scope="session")
def language_model(command, monolingual, folder):
    """A language model, trained for five updates, then resumed for five more."""
    save_dir = folder / "language_model"
    first = train_language_model(command, monolingual, save_dir, "--max-update", "5")
    second = train_language_model(command, monolingual, save_dir, "--max-update", "10")
    return save_dir, first.text, second.text
