"""The results tables of README.md and examples/ are what the committed results say."""

import json
import lzma
import re
from pathlib import Path

import pytest
import runs
from msgspec.structs import replace

import keep
import pages
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import cards
from fairseq_gpam.lab.experiments.records import Costs, Run, to_line
from fairseq_gpam.lab.recipes import run_folder, stage_results

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow  # compares all kept runs again
def test_committed_tables_agree_with_the_committed_results():
    changed = pages.rebuild(REPOSITORY, write=False)
    assert not changed, "run: python scripts/upkeep/pages.py"


def test_every_result_has_a_table_and_every_published_anchor_is_shown():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "examples").rglob("*.md"))
    folder = REPOSITORY / "examples/results"
    shown = json.loads((folder / "published.json").read_text(encoding="utf-8"))
    for path in folder.glob("*.jsonl"):
        assert {run.group for run in schema.read_json_lines(path, Run)} == {path.stem}
        # Those of cards are on the page of mechanisms.
        shown += [{"task": path.stem}] if path.stem not in cards.TASKS else []
    for entry in shown:
        assert re.search(rf"<!-- results: {re.escape(entry['task'])}( \S+)* -->", text)
    for anchor in ("108.26", "106.38", "25.96", "25.33", "28.54", "29.25"):
        assert re.search(rf"\|\s+{re.escape(anchor)}\b", text)


def test_committed_results_are_small_and_hold_no_paths():
    paths = [path for path in (REPOSITORY / "examples/results").rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} <= {".json", ".jsonl", ".xz"}
    for path in paths:
        read = lzma.open if path.suffix == ".xz" else open
        with read(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                assert len(line) < 20_000
                without_addresses = re.sub(r"https?://\S+", "", line)
                assert not re.search(r"(?<![\w.:/])/(?:[\w.-]+/)+", without_addresses)


STUDIES = sorted((REPOSITORY / "examples/studies").glob("*/README.md"))


@pytest.mark.parametrize("page", STUDIES, ids=lambda page: page.parent.name)
def test_a_study_begins_with_its_answer_a_picture_and_a_table_before_its_plan(page):
    text = page.read_text(encoding="utf-8")
    answer = text.split("\n\n")[1]
    assert answer.startswith("**Answer.** ")
    assert len(re.findall(r"[.!?](?=\s|$)", answer.removeprefix("**Answer.** "))) <= 2
    plan = text.index("## The plan")
    assert re.match(r"## The plan\n\nWritten before the (first run|runs)", text[plan:])
    if "<!-- " in text:
        assert text.index("![") < text.index("\n| ") < plan


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "examples/results").mkdir(parents=True)
    published = [
        {"task": "shakespeare-lm", "name": "softmax", "source": "paper", "values": {"perplexity_word": "12.30"}}
    ]
    (tmp_path / "examples/results" / "published.json").write_text(json.dumps(published))
    (tmp_path / "README.md").write_text("before\n<!-- results: shakespeare-lm -->\nold\n<!-- /results -->\nafter\n")
    return tmp_path


def made_run(out, name, seed=1, **entries):
    made = runs.made_run(name, seed, 3.0, task="shakespeare-lm")
    command = f"fairseq-train {out}/data-bin/shakespeare-lm --user-dir /somewhere/fairseq_gpam"
    made = replace(made, training=replace(made.training, command=command))
    return runs.write_run(out / "runs/shakespeare-lm" / name / str(seed), made, **entries)


EVALUATED = {"command": "fairseq-eval-lm data", "bits_per_subword": 2.0, "perplexity_subword": 4.0}
EVALUATED |= {"perplexity_word": 8.0, "tokens_per_second": 1.0, "seconds": 2.0}


def test_kept_runs_fill_the_table(repository):
    run = made_run(repository / "out", "dagpam", **{"eval-lm": EVALUATED})
    keep.main([str(run), "--repository", str(repository)])
    [line] = keep.read_task("shakespeare-lm", repository)
    assert line.training.command == "fairseq-train out/data-bin/shakespeare-lm --user-dir fairseq_gpam"
    assert line.training.valid and not line.training.train

    with pytest.raises(SystemExit, match="run: python"):
        pages.main(["--check", "--repository", str(repository)])
    assert "old" in (repository / "README.md").read_text()
    pages.main(["--repository", str(repository)])
    pages.main(["--check", "--repository", str(repository)])
    text = (repository / "README.md").read_text()
    assert text.startswith("before\n<!-- results: shakespeare-lm -->\n")
    assert text.endswith("<!-- /results -->\nafter\n")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert rows[0][0] == "mechanism"
    assert rows[1][0] == "softmax, published: paper"
    assert rows[1][6] == "12.30"
    assert rows[2][0] == "stock"
    assert set(rows[2][2:]) == {"not run"}
    assert rows[3] == ["dagpam", "1", "10", "4", "3.000", "4.00", "8.00", "5", "1"]


def test_keeping_again_changes_nothing_and_other_numbers_are_added_as_a_replicate(repository):
    folders = [made_run(repository / "out", name, seed) for name in ("wider", "dagpam", "stock") for seed in (10, 2)]
    [file] = keep.keep(folders, repository)
    path = Path(file)
    assert path == repository / "examples/results/shakespeare-lm.jsonl"
    first = path.read_bytes()
    keep.keep(folders[::-1], repository)
    keep.keep(folders[2:4], repository)
    assert path.read_bytes() == first
    order = [(run.name, run.seed) for run in keep.read_task("shakespeare-lm", repository)]
    assert order == [(name, seed) for name in ("stock", "dagpam", "wider") for seed in (2, 10)]

    stage_results.update(folders[2], {"eval-lm": EVALUATED})
    assert len(keep.keep([folders[2]], repository)) == 1
    kept = keep.read_task("shakespeare-lm", repository)
    assert len(kept) == 6 and kept[3].score("perplexity_word") == 8.0
    stage_results.update(folders[2], {"eval-lm": {**EVALUATED, "perplexity_word": 8.5}})
    (folders[2] / run_folder.HYPOTHESES).write_text("ein Satz\n")
    _, said = keep.keep([folders[2]], repository)
    assert "dagpam seed 10 is there with other numbers; added as dagpam seed 10 (replicate 2)" in said
    kept = keep.read_task("shakespeare-lm", repository)
    assert [run.score("perplexity_word") for run in kept[3:5]] == [8.0, 8.5]
    [translations] = (path.parent / "hypotheses").rglob("*.xz")
    assert translations.relative_to(path.parent / "hypotheses").parts == ("shakespeare-lm", "dagpam", "10-2.txt.xz")
    assert lzma.decompress(translations.read_bytes()).decode() == "ein Satz\n"
    keep.keep([folders[2]], repository)
    assert keep.read_task("shakespeare-lm", repository) == kept
    pages.rebuild(repository)
    assert "10 (replicate 2)" in (repository / "README.md").read_text()


def shown_rows(repository, marker):
    page = f"{marker}\n<!-- /results -->\n"
    text, pictures = pages.rebuilt(page, Path("README.md"), repository)
    assert pages.rebuilt(text, Path("README.md"), repository) == (text, {})
    assert pictures == {}
    table = [line for line in text.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")[:3]) for line in table[1:]]


def test_a_marker_chooses_names_and_seeds_and_what_was_not_run_says_so(repository):
    folders = [made_run(repository / "out", name, seed) for name in ("stock", "wider", "other") for seed in (1, 2)]
    keep.keep(folders, repository)
    published = ("softmax, published: paper", "–", "–")
    marker = "<!-- results: shakespeare-lm{} -->"
    everything = [(name, seed, "10") for name in ("stock", "other", "wider") for seed in "12"]
    everything.insert(2, ("dagpam", "–", "not run"))
    assert shown_rows(repository, marker.format("")) == [published, *everything]
    assert shown_rows(repository, marker.format(" names=wider,stock seeds=2")) == [
        *(published, ("wider", "2", "10"), ("stock", "2", "10"))
    ]
    assert shown_rows(repository, marker.format(" names=dagpam,wider seeds=1,3")) == [
        *(published, ("dagpam", "1", "not run"), ("dagpam", "3", "not run")),
        *(("wider", "1", "10"), ("wider", "3", "not run")),
    ]
    assert shown_rows(repository, marker.format(" seeds=1")) == [
        *(published, ("stock", "1", "10"), ("dagpam", "1", "not run"), ("other", "1", "10"), ("wider", "1", "10"))
    ]


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("<!-- results: shakespeare-lm name=stock -->", r"'name=stock' is unknown .*; allowed: names=…, seeds=…"),
        ("<!-- results: shakespeare-lm names=a names=b -->", r"'names=b' is unknown or given twice"),
        ("<!-- results: shakespeare-lm names=a,,b -->", r"names is 'a,,b'; allowed: different names of arms"),
        ("<!-- results: shakespeare-lm names=a,a -->", r"names is 'a,a'; allowed: different names of arms"),
        ("<!-- results: shakespeare-lm seeds=1-5 -->", r"seeds is '1-5'; allowed: different whole numbers"),
        ("<!-- results: no-such-task -->", r"no recipe for task 'no-such-task'"),
        ("<!-- results:shakespeare-lm -->", r"not a marker with its end; allowed: <!-- results: NAME names=…"),
        ("<!-- results: a -->\n<!-- results: b -->", r"results: a -->: allowed: <!-- /results --> before"),
        ("<!-- /results -->", r"not a marker with its end"),
    ],
)
def test_a_wrong_marker_is_named_with_its_page_and_what_is_allowed(repository, marker, message):
    with pytest.raises(pages.MarkerError, match=r"docs/page\.md: <!-- .*" + message):
        pages.rebuilt(f"before\n\n{marker}\n<!-- /results -->\n", Path("docs/page.md"), repository)
    (repository / "README.md").write_text(f"{marker}\n<!-- /results -->\n")
    with pytest.raises(SystemExit, match=r"README\.md: <!--"):
        pages.main(["--repository", str(repository)])


@pytest.mark.slow
def test_speeds_that_mean_nothing_are_left_out_with_their_reason(repository):
    run = made_run(repository / "out", "dagpam", **{"eval-lm": EVALUATED})
    keep.main([str(run), "--repository", str(repository), "--without-speeds", "other work"])
    [line] = keep.read_task("shakespeare-lm", repository)
    assert line.costs == Costs()
    assert line.score("perplexity_word") == 8.0
    assert line.note == "speeds are left out: other work"
    pages.rebuild(repository)
    shown = (repository / "README.md").read_text()
    assert re.search(r"\| dagpam .*\| +8\.00 +\|$", shown, re.MULTILINE)
    assert "tokens/s" not in shown


def test_a_folder_without_results_is_not_kept(repository):
    with pytest.raises(FileNotFoundError, match="no results"):
        keep.keep([repository / "out/runs/shakespeare-lm/dagpam/1"], repository)


@pytest.mark.slow
def test_a_line_that_is_not_a_run_is_named_with_its_key_and_what_is_allowed(repository):
    path = repository / "examples/results/shakespeare-lm.jsonl"
    line = json.loads(to_line(runs.made_run(task="shakespeare-lm")))
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, "budget": "half"}) + "\n")
    with pytest.raises(ValueError, match=r'shakespeare-lm\.jsonl, line 2: budget is "half"; allowed: default, full'):
        pages.rebuild(repository)
