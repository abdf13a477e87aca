"""The studies on synthetic data: their generators, a short training, and the tables of their results."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import pages
from fairseq_gpam.lab.experiments import synthetic_studies

STUDIES = Path(__file__).parents[3] / "examples/studies"


def load(name):
    spec = importlib.util.spec_from_file_location(f"study_{name}", STUDIES / name / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_has_means_and_ranges_and_says_what_was_not_run(tmp_path, monkeypatch):
    folder = tmp_path / "examples/studies/made"
    folder.mkdir(parents=True)
    cells = [(1, 1, 1.0), (1, 1, 3.0), (1, 2, 0.5), (2, 1, 0.25)]
    synthetic_studies.write_results(folder, [{"rank": r, "heads": h, "error": e} for r, h, e in cells])
    assert "torch" in json.loads((folder / "results.jsonl").read_text().splitlines()[0])["versions"]
    table, _ = pages.synthetic_table("made", Path("README.md"), tmp_path, "rank", "heads", "error")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["rank \\ heads", "1", "2"]
    assert rows[2:] == [["1", "2 (1–3)", "0.5"], ["2", "0.25", "not run"]]

    drawn = []
    monkeypatch.setattr(pages.drawing, "forest", lambda effects, *rest, **more: drawn.extend(effects) or Figure())
    text, pictures = pages.synthetic_table(
        "made", Path("examples/page.md"), tmp_path, "rank", "heads", "error", ("picture", "table")
    )
    assert [(effect.label, effect.mean, effect.interval) for effect in drawn] == [
        ("rank 1, heads 1", 2, (1, 3)),
        ("rank 1, heads 2", 0.5, (0.5, 0.5)),
        ("rank 2, heads 1", 0.25, (0.25, 0.25)),
    ]
    assert [*pictures] == [folder / "error.cells.svg"]
    assert "](studies/made/error.cells.svg)" in text and text.endswith(table)
    with pytest.raises(ValueError, match="'pictures'; allowed: table, picture"):
        pages.synthetic_table("made", Path("README.md"), tmp_path, "rank", "heads", "error", ("pictures",))


def test_the_answers_compose_the_functions_and_every_arm_trains():
    study = load("function-composition")
    tokens, answers = study.batch(20, torch.Generator().manual_seed(1))
    for sentence, row in zip(tokens.tolist(), answers.tolist(), strict=True):
        tables = [sentence[step * study.ELEMENTS : (step + 1) * study.ELEMENTS] for step in range(study.STEPS)]
        questions = [token - study.ELEMENTS for token in sentence[-study.ELEMENTS :]]
        assert sorted(questions) == list(range(study.ELEMENTS))
        for question, answer in zip(questions, row, strict=True):
            element = question
            for table in tables:
                element = table[element]
            assert element == answer
    results = [study.train(arm, 1, updates=2) for arm in ("3 full", "2 linear, 1 full")]
    assert results[0]["parameters"] == results[1]["parameters"]
    assert all(0 < result["accuracy"] < 1 for result in results)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("query-rank", {"rank": "RANKS", "heads": "HEADS", "seed": "SEEDS"}),
        ("function-composition", {"arm": "ARMS", "seed": "SEEDS"}),
    ],
)
def test_every_cell_is_recorded_once(name, axes):
    study = load(name)
    cells = [tuple(result[axis] for axis in axes) for result in synthetic_studies.read_results(STUDIES / name)]
    assert cells == list(itertools.product(*(getattr(study, constant) for constant in axes.values())))


@pytest.mark.slow
def test_the_nearest_key_is_the_target_and_one_head_of_full_rank_finds_it():
    study = load("query-rank")
    queries, keys, target = study.batch(50, torch.Generator().manual_seed(1))
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(50, study.KEYS))
    for query, sentence, nearest in zip(queries, keys, target, strict=True):
        distances = [(query - key).norm().item() for key in sentence]
        assert torch.equal(sentence[distances.index(min(distances))], nearest)
    layer = study.Layer(study.WIDTH, 1)
    attention = layer.attention
    with torch.no_grad():
        for name, projection in attention.named_parameters():
            projection.copy_(torch.eye(study.WIDTH) if name.endswith("weight") else torch.zeros(study.WIDTH))
        attention.q_proj.weight.mul_(1e4)
    assert study.error(layer, torch.Generator().manual_seed(2), 500) < 0.01


@pytest.mark.slow
def test_a_short_training_lowers_the_error_of_every_shape():
    study = load("query-rank")
    for rank, heads in ((1, 2), (8, 1)):
        start = study.train(rank, heads, 1, updates=1)["error"]
        assert study.train(rank, heads, 1, updates=40)["error"] < start
