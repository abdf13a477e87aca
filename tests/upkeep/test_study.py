"""A study's tables and pictures follow from its grid file and the kept runs, and name what is missing."""

import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from runs import ENVIRONMENT, made_run
from scipy import stats

import keep
import pages
import study
from fairseq_gpam.lab.experiments import compare, grid

GRID = """
baseline = "stock"
seeds = [1, 2, 3]
plugin_flags = "--gpam-log-attention 100"

[tasks.bible-de-en]
[tasks.shakespeare-lm]

[arms]
dagpam = ""
stock = { mechanism = "stock" }
wider = { mechanism = "stock", flags = "--encoder-ffn-embed-dim 280", tasks = ["bible-de-en"] }
"""
MARKER = "<!-- comparison: made -->"
FOREST, LAYERS, SCATTER, _ = study.PICTURES
BITS = {"stock": (4.0, 4.1, 4.2), "dagpam": (3.9, 3.98, 4.11), "wider": (4.01, 4.2, 4.1)}


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / study.FOLDER / "made"
    folder.mkdir(parents=True)
    (folder / "grid.toml").write_text(GRID)
    (folder / "README.md").write_text(f"before\n{MARKER}\n<!-- /comparison -->\nafter\n")
    (tmp_path / "README.md").write_text(
        "<!-- comparison: made tasks=bible-de-en measures=valid-loss show=table,picture -->\n<!-- /comparison -->\n"
    )
    (tmp_path / "examples/results").mkdir()
    return tmp_path


def keep_made_runs(repository, leave_out=(), more_flags="", analysed=False):
    """Keeps a run for each planned one of the translation, except those left out."""
    kept_runs = []
    for plan in grid.load(repository / study.FOLDER / "made/grid.toml").runs():
        if plan.run_group == "bible-de-en" and (plan.name, plan.seed) not in leave_out:
            nll = BITS[plan.name][plan.seed - 1]
            command = f"{shlex.join(study.command(plan))} {more_flags}"
            training = {"command": command, "parameters": 10, "updates": 1, "environment": ENVIRONMENT}
            values = {"training": training, "measures": [("decoder", 2, "mean_cosine", nll)]}
            values["scores"] = [
                {"metric": "bleu", "value": 10 * nll, "signature": "tok:13a"},
                {"metric": "chrf", "value": 20 * nll, "signature": "nc:6"},
            ]
            if analysed:
                for site, metric, layers in (
                    ("encoder", "residual_ratio", (-1, 0, 1)),
                    ("cross", "query_gradient", (0, 1)),
                ):
                    values["measures"] += [(site, layer, metric, nll / 2 ** (layer + 1)) for layer in layers]
                values["costs"] = {"peak_memory_mib": 1000.0 * plan.seed}
            if plan.name == "dagpam":
                lambdas = [("encoder", layer, "plus", [[1100, layer + 1 + plan.seed]]) for layer in (0, 1)]
                values["lambdas"] = [*lambdas, ("cross", 0, "minus", [[1100, 0.25]])]
            kept_runs.append(made_run(plan.name, plan.seed, nll, "bible-de-en", **values))
    (repository / "examples/results/bible-de-en.jsonl").unlink(missing_ok=True)
    keep.write(kept_runs, repository)


def cells(text, arm):
    line = next(line for line in text.splitlines() if line.startswith(f"| {arm} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def shown(repository, page="examples/studies/made/README.md"):
    pages.main(["--repository", str(repository)])
    return (repository / page).read_text(encoding="utf-8")


def test_the_table_is_what_the_kept_runs_say(repository):
    keep_made_runs(repository)
    text = shown(repository)
    bits = {arm: np.array(values) * math.log(2) for arm, values in BITS.items()}
    difference = bits["dagpam"] - bits["stock"]
    low, high = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
    p = {arm: stats.ttest_rel(bits[arm], bits["stock"]).pvalue for arm in ("dagpam", "wider")}
    row = cells(text, "dagpam")
    assert (row[1], row[9]) == ("3", "10")
    assert row[3] == f"{difference.mean():+.4f} ± {(high - low) / 2:.4f}"
    assert row[4:8] == ["better", f"{2 * p['dagpam']:.4f}", f"{p['dagpam']:.4f}", "0.2500"]
    assert cells(text, "wider")[4] == "inconclusive"
    assert cells(text, "stock")[4] == "baseline"
    assert "difference ± 95 % (nats)" in text
    assert f"standard deviation is {bits['stock'].std(ddof=1):.4f}" in text
    assert text.index("| stock |") < text.index("| dagpam |") < text.index("| wider |")
    assert "**bible-de-en: test BLEU (higher is better)**" in text
    assert "test loss" not in text.partition("shakespeare-lm")[0]
    assert "shakespeare-lm: test loss per subword (nats)**\n\nThere is no run of the baseline `stock`" in text
    assert "Not run with any seed of 1, 2, 3: stock, dagpam." in text
    assert "| arm | λ⁺ encoder | λ⁻ cross |" in text
    assert "| dagpam | 3.50 (3.00 to 4.00) | 0.25 (0.25 to 0.25) |" in text
    assert "| bible-de-en | mean cosine, decoder | 9 | 1.00 | – | – |" in text
    for note in ("bleu: tok:13a", "chrf: nc:6", "machine: a CPU, 2 cores, 1 thread(s)", "commit: abc"):
        assert text.count(f"- {note}\n") == 1


def test_missing_and_outdated_runs_are_named_and_not_counted(repository):
    keep_made_runs(repository, leave_out=[("dagpam", 1), ("wider", 1), ("wider", 2), ("wider", 3)])
    text = shown(repository)
    assert cells(text, "dagpam")[1] == "2"
    assert cells(text, "dagpam")[4] == "too few seeds"
    assert "| wider |" not in text
    assert "Not run with any seed of 1, 2, 3: wider." in text
    assert "Not run yet: dagpam seeds 1." in text
    assert "Holm's correction is over 2 arms." in text
    keep_made_runs(repository, leave_out=[("wider", seed) for seed in (1, 2, 3)])
    row = dict(zip(("p (Holm)", "p (t)"), map(float, cells(shown(repository), "dagpam")[5:7]), strict=True))
    assert row["p (Holm)"] == pytest.approx(2 * row["p (t)"], abs=1e-3)

    keep_made_runs(repository, more_flags="--gpam-log-attention 7")
    assert cells(shown(repository), "dagpam")[1] == "3"
    keep_made_runs(repository, more_flags="--dropout 0.5")
    text = shown(repository)
    assert "dagpam seed 1: --dropout (there: 0.5; now: 0.1)" in text
    assert "no run of the baseline `stock`, too few seeds" in text
    assert not list(repository.rglob("*.svg"))


def test_measures_by_layer_are_means_over_seeds_in_a_table_and_a_picture(repository):
    page = repository / study.FOLDER / "made/README.md"
    page.write_text("<!-- comparison: made show=layers,costs -->\n<!-- /comparison -->\n")
    keep_made_runs(repository)
    assert "by layer" not in shown(repository)
    keep_made_runs(repository, analysed=True, leave_out=[("wider", 1), ("wider", 3)])
    text = shown(repository)
    assert "| measure | arm | seeds | input | layer 0 | layer 1 |" in text
    means = [f"{np.mean(BITS['dagpam']) / 2**layer:.3g}" for layer in range(3)]
    assert f"| residual ratio, encoder | dagpam | 3 | {' | '.join(means)} |" in text
    assert f"| query gradient, cross | dagpam | 3 | – | {' | '.join(means[1:])} |" in text
    assert "| arm | peak memory (MiB) |" in text and "| stock | 2,000 |" in text
    assert f"](bible-de-en{LAYERS})" in text and (page.parent / f"bible-de-en{LAYERS}").exists()


def test_another_page_shows_the_same_table_and_the_same_picture(repository):
    keep_made_runs(repository)
    study_page, readme = shown(repository), shown(repository, "README.md")
    assert cells(readme, "dagpam") == cells(study_page, "dagpam")
    assert "BLEU" not in readme
    assert "shakespeare" not in readme
    [address] = re.findall(r"!\[[^]]+\]\((.+)\)", readme)
    assert address == "examples/studies/made/bible-de-en.valid-loss.forest.svg"
    assert "](bible-de-en.valid-loss.forest.svg)" in study_page
    assert (repository / address).exists()


def test_pictures_are_made_again_and_removed_when_no_page_shows_them(repository):
    keep_made_runs(repository)
    shown(repository)
    pictures = {path: path.read_bytes() for path in repository.rglob("*.svg")}
    forests = {f"bible-de-en.{key}{FOREST}" for key in ("valid-loss", "bleu", "chrf")}
    assert {path.name for path in pictures} == forests | {f"bible-de-en{SCATTER}"}
    missing, *others = pictures
    missing.unlink()
    with pytest.raises(SystemExit, match="run: python"):
        pages.main(["--check", "--repository", str(repository)])
    for path in others:
        path.write_text("<svg/>")
    shown(repository)
    assert {path: path.read_bytes() for path in repository.rglob("*.svg")} == pictures
    (repository / study.FOLDER / "made/README.md").unlink()
    shown(repository, "README.md")
    assert [path.name for path in repository.rglob("*.svg")] == [f"bible-de-en.valid-loss{FOREST}"]


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("<!-- comparison: none -->", r"none/grid.toml: no such file"),
        ("<!-- comparison: made tasks=ptb-lm -->", r"tasks has 'ptb-lm'; allowed: bible-de-en, shakespeare-lm"),
        ("<!-- comparison: made measures=loss -->", r"measures has 'loss'; allowed: valid-loss, bleu, chrf, test-loss"),
        (
            "<!-- comparison: made show=plot -->",
            r"show has 'plot'; allowed: table, picture, costs, lambdas, layers, collapse, notes",
        ),
        ("<!-- comparison: made seeds=1 -->", r"'seeds=1' is unknown .*; allowed: tasks=…, measures=…, show=…"),
    ],
)
def test_a_wrong_choice_is_named(repository, marker, message):
    with pytest.raises(pages.MarkerError, match=r"page\.md: <!-- comparison: .*" + message):
        pages.rebuilt(f"{marker}\n<!-- /comparison -->\n", Path("page.md"), repository)


@pytest.mark.slow
def test_measures_kept_only_by_layer_are_compared_with_performance_in_the_last_layer(repository):
    page = repository / study.FOLDER / "made/README.md"
    page.write_text("<!-- comparison: made show=collapse,notes -->\n<!-- /comparison -->\n")
    keep_made_runs(repository, analysed=True)
    text = shown(repository)
    for measure in ("mean cosine, decoder", "residual ratio, encoder", "query gradient, cross"):
        assert text.count(f"| bible-de-en | {measure} | 9 | 1.00 | – | – |") == 1
    points = {
        (entry["metric"], entry["site"]): entry["points"]
        for entry in compare.collapse(keep.read_task("bible-de-en", repository))
    }
    cosine, ratio, gradient = (
        [x for x, *_ in points[place]]
        for place in (("mean_cosine", "decoder"), ("residual_ratio", "encoder"), ("query_gradient", "cross"))
    )
    assert ratio == gradient == pytest.approx([value / 4 for value in cosine])
    assert "- W_Q⁻: one for each head: dagpam\n" in text
