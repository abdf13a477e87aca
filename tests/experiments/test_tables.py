"""The results tables of README.md and examples/ are what the committed results say."""

import json
import re
import shutil
from pathlib import Path

import pytest

from fairseq_gpam.__main__ import main
from fairseq_gpam.experiments import results, tables

REPOSITORY = Path(__file__).parents[2]


def test_committed_tables_agree_with_the_committed_results():
    changed = tables.rebuild(REPOSITORY, write=False)
    assert not changed, "run: python -m fairseq_gpam results tables"


def test_every_result_has_a_table_and_every_published_anchor_is_shown():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "examples").rglob("*.md"))
    folder = REPOSITORY / "examples/results"
    shown = json.loads((folder / tables.PUBLISHED).read_text(encoding="utf-8"))
    for path in folder.glob("*.jsonl"):
        runs = tables.read_lines(path)
        assert {run["task"] for run in runs} == {path.stem}
        shown += runs
    for entry in shown:
        assert f"<!-- results: {entry['task']} -->" in pages
    for anchor in ("108.26", "106.38", "25.96", "25.33", "28.54", "29.25"):
        assert re.search(rf"\|\s+{re.escape(anchor)}\b", pages)


def test_committed_results_are_small_and_hold_no_paths():
    paths = list((REPOSITORY / "examples/results").iterdir())
    assert {path.suffix for path in paths} <= {".json", ".jsonl"}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert len(line) < 20_000
            without_addresses = re.sub(r"https?://\S+", "", line)
            assert not re.search(r"(?<![\w.:/])/(?:[\w.-]+/)+", without_addresses)


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "examples/results").mkdir(parents=True)
    published = [{"task": "made-lm", "name": "softmax", "source": "paper", "eval-lm": {"perplexity_word": "12.30"}}]
    (tmp_path / "examples/results" / tables.PUBLISHED).write_text(json.dumps(published))
    (tmp_path / "README.md").write_text("before\n<!-- results: made-lm -->\nold\n<!-- /results -->\nafter\n")
    return tmp_path


def made_run(out, name, seed=1, **entries):
    run = out / "runs/made-lm" / name / str(seed)
    run.mkdir(parents=True)
    train = {"parameters": 10, "updates": 2, "valid_loss": 3.0, "tokens_per_second": 5.0}
    train["curve"] = {"train": [[1, 2]], "valid": [[2, 3.0]]}
    train["command"] = f"fairseq-train {out}/data-bin/made-lm --user-dir /somewhere/fairseq_gpam"
    results.update(run, {"task": "made-lm", "name": name, "seed": seed, "train": train, **entries})
    return run


def test_kept_runs_fill_the_table(repository):
    evaluated = {"perplexity_subword": 4.0, "perplexity_word": 8.0, "tokens_per_second": 1.0}
    run = made_run(repository / "out", "dagpam", **{"eval-lm": evaluated})
    main(["results", "keep", str(run), "--repository", str(repository)])
    [kept] = tables.read_lines(repository / "examples/results/made-lm.jsonl")
    assert kept["train"]["command"] == "fairseq-train out/data-bin/made-lm --user-dir fairseq_gpam"
    assert kept["train"]["curve"] == {"valid": [[2, 3.0]]}

    with pytest.raises(SystemExit, match="run: python"):
        main(["results", "tables", "--check", "--repository", str(repository)])
    assert "old" in (repository / "README.md").read_text()
    main(["results", "tables", "--repository", str(repository)])
    main(["results", "tables", "--check", "--repository", str(repository)])
    text = (repository / "README.md").read_text()
    assert text.startswith("before\n<!-- results: made-lm -->\n")
    assert text.endswith("<!-- /results -->\nafter\n")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert rows[0][0] == "mechanism"
    assert rows[1][0] == "softmax, published: paper"
    assert rows[1][6] == "12.30"
    assert rows[2][0] == "stock"
    assert set(rows[2][2:]) == {"not run"}
    assert rows[3] == ["dagpam", "1", "10", "2", "3.000", "4.00", "8.00", "5", "1"]


def test_other_paths_are_refused(repository):
    run = made_run(
        repository / "out", "dagpam", generate={"command": "fairseq-generate --path /home/somebody/model.pt"}
    )
    with pytest.raises(ValueError, match=r"/home/somebody/model\.pt"):
        tables.keep([run], repository)
    shutil.rmtree(run)
    with pytest.raises(FileNotFoundError, match="no results"):
        tables.keep([run], repository)


def test_keeping_again_changes_nothing_and_a_new_result_takes_the_place_of_the_old_one(repository):
    runs = [made_run(repository / "out", name, seed) for name in ("wider", "dagpam", "stock") for seed in (10, 2)]
    [path] = tables.keep(runs, repository)
    assert path == repository / "examples/results/made-lm.jsonl"
    first = path.read_bytes()
    tables.keep(runs[::-1], repository)
    tables.keep(runs[2:4], repository)
    assert path.read_bytes() == first
    order = [(run["name"], run["seed"]) for run in tables.read_lines(path)]
    assert order == [(name, seed) for name in ("stock", "dagpam", "wider") for seed in (2, 10)]

    results.update(runs[2], {"train": {**results.read(runs[2])["train"], "valid_loss": 2.5}})
    tables.keep([runs[2]], repository)
    lines, old = path.read_bytes().splitlines(), first.splitlines()
    assert [number for number in range(6) if lines[number] != old[number]] == [3]
    assert tables.read_lines(path)[3]["train"]["valid_loss"] == 2.5


def test_a_line_reads_the_same_whatever_machine_and_commit_it_came_from(repository):
    path = repository / "examples/results/made-lm.jsonl"
    line = {"task": "made-lm", "name": "dagpam", "seed": 1, "train": {"parameters": 1, "updates": 1}, "unknown": [1]}
    line["train"] |= {"valid_loss": 1.0, "tokens_per_second": None}
    path.write_text(json.dumps(line) + "\n")
    tables.rebuild(repository)
    assert "not measured" in (repository / "README.md").read_text()
    path.write_text(json.dumps(line) + "\n{}\n")
    with pytest.raises(ValueError, match=r"made-lm\.jsonl, line 2: not a run"):
        tables.rebuild(repository)
