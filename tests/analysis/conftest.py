"""Data and checkpoints made by fairseq's own commands."""

import importlib
import random
import sys
from pathlib import Path

import pytest
import sizes

import fairseq_gpam

SMALL = {
    "translation": ["--source-lang", "de", "--target-lang", "en", *sizes.tiny("encoder", "decoder", layers=2)],
    "language_modeling": [
        *("--task", "language_modeling", "--tokens-per-sample", "12"),
        *sizes.tiny("decoder", layers=2),
    ],
}
HOSTILE = ("<script>alert(1)</script>", r"$\frac$")
"""Words that a page would run, or a picture's title would take for a formula, if they were not escaped."""
TRAINING = [
    *("--optimizer", "adam", "--lr", "0.001", "--max-tokens", "200", "--max-update", "2", "--log-format", "none"),
    *("--disable-validation", "--cpu", "--save-interval-updates", "1", "--num-workers", "0", "--dropout", "0.1"),
]


def run_here(name, *arguments):
    """Runs a fairseq command in this process: starting another takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"fairseq-{name}", *map(str, arguments)])
        importlib.import_module(f"fairseq_cli.{name}").cli_main()


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """Folders: `translation` and `language_modeling` (binarised data), stock_…/ and ours/ (checkpoints)."""
    folder = tmp_path_factory.mktemp("trained")
    choices = random.Random(0)
    for split, count in (("train", 60), ("valid", 5), ("test", 10)):
        for language in ("de", "en"):
            words = [*(f"{language}{number}" for number in range(6)), *HOSTILE]
            lines = [" ".join(choices.choices(words, k=choices.randint(2, 9))) for _ in range(count)]
            Path(folder, f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prefixes = [[f"--{split}pref", folder / split] for split in ("train", "valid", "test")]
    flat = [word for pair in prefixes for word in pair]
    single = [word if str(word).startswith("--") else f"{word}.en" for word in flat]
    translation, language_modeling = folder / "translation", folder / "language_modeling"
    run_here("preprocess", *flat, "--source-lang", "de", "--target-lang", "en", "--destdir", translation)
    run_here("preprocess", *single, "--only-source", "--destdir", language_modeling)
    gpam = ("--user-dir", Path(fairseq_gpam.__file__).parent)
    for name, task, arch, more in (
        ("stock_translation", "translation", "transformer", ()),
        ("stock_language_modeling", "language_modeling", "transformer_lm", ()),
        ("ours", "translation", "transformer_gpam", gpam),
    ):
        run_here("train", folder / task, "--arch", arch, "--save-dir", folder / name, *more, *SMALL[task], *TRAINING)
    return folder
