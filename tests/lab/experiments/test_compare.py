"""The comparison of synthetic runs states their true differences in four files; the JSON alone rebuilds the others."""

import csv
import json
import math

import pytest
from browser import Page
from msgspec.structs import replace
from runs import made_run, stages_of, write_run

import keep
from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.experiments import compare, comparison_report, contrasts, grid, run_results, sections, series
from fairseq_gpam.lab.experiments.records import Measure, Score, to_line
from fairseq_gpam.lab.recipes import tasks

SHIFTS = {"stock": 0.0, "good": -0.10, "bad": 0.10, "same": 0.0001}
NOISE = (0.004, -0.003, 0.001, -0.002, 0.0005)


def run_of(name, seed, shift=None, **values):
    bits = 4 + 0.1 * seed + (SHIFTS[name] if shift is None else shift) + (0 if name == "stock" else NOISE[seed - 1])
    measures = [("decoder", 1, "mean_cosine", bits)]
    if name == "good":
        values.setdefault("lambdas", [("decoder", 0, "plus", [[0, 0.0], [4, 0.1 * seed]])])
        measures.insert(0, ("decoder", 0, "mean_cosine", 0.5 + 0.1 * seed))
    values["costs"] = {"training_tokens_per_second": 5.0}
    return made_run(name, seed, bits, **{"measures": measures, **values})


@pytest.fixture(scope="module")
def found():
    return compare.comparison([run_of(name, seed) for name in SHIFTS for seed in range(1, 6)], "stock")


def test_verdicts_on_synthetic_runs_with_known_differences(found):
    [table] = found["tables"]
    verdicts = {row["arm"]: (row.get("difference") or {}).get("verdict") for row in table["rows"]}
    assert verdicts == {"stock": None, "good": "better", "bad": "worse", "same": "equivalent within ±δ"}
    good = next(row for row in table["rows"] if row["arm"] == "good")
    expected = (-0.10 + sum(NOISE) / 5) * math.log(2)
    assert good["difference"]["interval"]["mean"] == pytest.approx(expected)
    assert table["noise"]["range"] == pytest.approx(0.4 * math.log(2))
    [correlation] = found["collapse"]
    assert correlation["rho"] == pytest.approx(1.0)
    assert correlation["n"] == 20


def test_the_curve_of_an_arm_leaves_out_runs_that_diverged():
    training = made_run().training
    diverged = {"diverged": {"update": 1, "reason": "NaN"}, "valid": []}
    lost = made_run("stock", 4, training={"command": "", "parameters": 1, "updates": 1, **diverged})
    whole = [made_run("stock", seed) for seed in (1, 2, 3)]
    assert series.curve([*whole, lost]) == series.curve(whole)
    assert [point[0] for point in series.curve([*whole, lost], whole)] == [update for update, _ in training.valid]


def test_right_answers_are_compared_in_every_test_set():
    def answered(arm, seed, shift):
        scores = (
            Score(metric="accuracy", value=0.5 + 0.01 * seed + shift * part, test_set=name) for name, part in parts
        )
        return replace(made_run(arm, seed), task="filler-lookup", scores=tuple(scores))

    parts = (("test", 0), ("test1", 1), ("test3", -1))
    made = [answered(arm, seed, shift) for arm, shift in (("stock", 0.0), ("good", 0.2)) for seed in range(1, 6)]
    found = {table["quantity"]: table for table in compare.comparison(made, "stock")["tables"]}
    for name, part in parts:
        table = found[f"right answers in {name}"]
        _, good = table["rows"]
        assert not table["lower_is_better"]
        assert good["difference"]["interval"]["mean"] == pytest.approx(20 * part)
        assert good["difference"]["verdict"] == ("equivalent within ±δ", "better", "worse")[part]
    assert "right answers in test2" not in found
    shown = [quantity.key for quantity in compare.QUANTITIES if quantity.belongs_to(tasks.load("flip-flop"))]
    assert shown == ["valid-loss", "accuracy-test", "accuracy-test1"]


def test_curves_and_lambdas_are_means_over_seeds_and_differences_are_paired(found):
    curves = {entry["arm"]: entry for entry in found["curves"]}
    updates, mean, low, high = curves["good"]["points"][0]
    assert updates == 1
    assert mean == pytest.approx((5.3 - 0.1 + sum(NOISE) / 5) * math.log(2))
    assert low < mean < high
    assert curves["stock"]["differences"] == []
    for update, difference, low, high in curves["good"]["differences"]:
        assert update in (1, 2, 4)
        assert difference == pytest.approx((-0.1 + sum(NOISE) / 5) * math.log(2))
        assert high - low < 0.01
    [layers] = found["layers"]
    assert (layers["arm"], layers["metric"], layers["site"], layers["seeds"]) == ("good", "mean_cosine", "decoder", 5)
    assert layers["points"][0] == [0, pytest.approx(0.8), pytest.approx(0.6), 1.0]
    [shown] = found["lambdas"]
    assert [shown[key] for key in ("arm", "site", "layer", "sign")] == ["good", "decoder", 0, "plus"]
    assert shown["points"] == [[0, 0.0], [4, pytest.approx(0.3)]]


def test_learning_rates_are_compared_among_themselves():
    runs = []
    for rate, shift in ((0.001, 0.0), (0.01, 0.5)):
        for name in ("stock", "good"):
            runs += [run_of(name, n, SHIFTS[name] + shift, learning_rate=rate) for n in (1, 2, 3)]
    tables = compare.comparison(runs, "stock")["tables"]
    assert [table["group"] for table in tables] == ["made-lm, learning rate 0.001", "made-lm, learning rate 0.01"]
    means = [table["rows"][1]["difference"]["interval"]["mean"] for table in tables]
    assert means[0] == pytest.approx(means[1])


def test_arms_with_fewer_pairs_than_seeds_show_both_numbers(found):
    runs = [run_of(name, seed) for name in ("stock", "good") for seed in range(1, 6)]
    [table] = compare.comparison(runs[1:], "stock")["tables"]
    assert [row[1] for row in sections.of_table(table, "stock").rows] == ["4", "5, 4 pairs"]
    assert [row[1] for row in sections.of_table(found["tables"][0], "stock").rows] == ["5"] * 4


def test_the_last_lambda_is_the_mean_of_each_seeds_own_last_one_wherever_its_training_ended():
    histories = ([[4, 0.1]], [[4, 0.2], [6, 0.3]], [[4, 0.2], [8, 0.5], [9, math.nan]])
    runs = [
        made_run("good", seed, lambdas=[("decoder", 0, "plus", history)]) for seed, history in enumerate(histories, 1)
    ]
    [shown] = series.mean_lambdas(runs)
    assert shown["points"][-1] == [8, 0.5]
    assert shown["last"] == pytest.approx((0.1 + 0.3 + 0.5) / 3)
    [section] = sections.of_lambdas("made-lm", [{"arm": "good", **shown}])
    [row] = section.rows
    assert row == ["good", "0.30 (0.30 to 0.30)"]


def translated(name, seed, checkpoint, flags=""):
    """A run with a score, and the command line of its translation in a folder of its own."""
    place = f"out-{seed}/runs/made-lm/{name}/checkpoints/{checkpoint}"
    command = f"fairseq-generate out-{seed}/data-bin/made --path {place} --beam 4 {flags}"
    scores = [{"metric": "bleu", "value": 20.0 + seed}, {"metric": "chrf", "value": 40.0}]
    return run_of(name, seed, scores=scores, evaluation={"command": command})


def test_runs_that_were_decoded_otherwise_are_named_below_the_tables_of_their_scores(tmp_path):
    runs = [translated(name, seed, "best.pt") for name in ("stock", "good") for seed in (1, 2, 3)]
    tables = compare.comparison(runs, "stock")["tables"]
    assert [table["decoded_otherwise"] for table in tables] == [[]] * 3
    runs[4:] = [translated("good", seed, "average.pt") for seed in (2, 3)]
    runs[3] = translated("good", 1, "best.pt", "--beam 5")
    comparison_report.write(compare.comparison(runs, "stock"), tmp_path)
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    note = (
        "Decoded otherwise than the first run of the table: good seed 1: --beam (there: 4; now: 5). "
        "good seed 2, good seed 3: --path (there: best.pt; now: average.pt)."
    )
    assert text.count(note) == 2
    assert "Decoded" not in text.partition("test BLEU")[0]


GRID = """
baseline = "stock"
seeds = [1, 2, 3]
[tasks.bible-de-en]
[tasks.shakespeare-lm]
[tasks.ptb-lm]
[arms]
stock = {mechanism = "stock", tasks = ["bible-de-en", "shakespeare-lm"]}
good = ""
bad = ""
"""


def test_runs_that_a_grid_planned_and_that_are_not_there_are_named_below_each_table(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    folders = []
    for task, name, seed in (
        *(("bible-de-en", name, seed) for name, seeds in (("stock", (1, 2, 3)), ("good", (1, 3))) for seed in seeds),
        ("ptb-lm", "good", 1),
    ):
        folders.append(write_run(tmp_path / f"runs/{task}/{name}/{seed}", replace(run_of(name, seed), task=task)))
    contrasts.write(folders, grid.load(tmp_path / "grid.toml"), tmp_path / "out")
    remarks = {
        "bible-de-en": "Not run with any seed of 1, 2, 3: bad. Not run yet: good seeds 2.",
        "shakespeare-lm": "Not run with any seed of 1, 2, 3: stock, good, bad.",
        "ptb-lm": "Not compared, because no run is of the baseline stock: good. "
        "Not run with any seed of 1, 2, 3: bad. Not run yet: good seeds 2, 3.",
    }
    text = (tmp_path / "out/comparison.md").read_text(encoding="utf-8")
    page = (tmp_path / "out/comparison.html").read_text(encoding="utf-8")
    assert f"Holm's correction is over 2 arms. {remarks['bible-de-en']}\n" in text
    for task, words in remarks.items():
        assert text.count(words) == page.count(words) == 1
        if task != "bible-de-en":
            assert f"## {task}\n\n{words}\n" in text


def test_the_page_shows_the_numbers_of_the_json_and_needs_nothing_else(found, tmp_path):
    page = Page(comparison_report.write(found, tmp_path).read_text(encoding="utf-8"))
    assert page.pictures and all(page.pictures)
    assert all(address.startswith("data:") for address in page.links)
    written = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    [table] = written["tables"]
    for section in sections.of_comparison(written):
        assert all(list(map(str, row)) in page.cells for row in section.rows)
    rows = {row["arm"]: row for row in table["rows"]}
    shown = next(row for row in page.cells if row[:1] == ["good"])
    assert float(shown[2].split(" ± ")[0]) == pytest.approx(rows["good"]["mean"], abs=5e-5)
    assert float(shown[3].split(" ± ")[0]) == pytest.approx(rows["good"]["difference"]["interval"]["mean"], abs=5e-5)

    lines = list(csv.DictReader((tmp_path / "comparison.csv").open(encoding="utf-8")))
    assert float(lines[1]["mean"]) == rows[lines[1]["arm"]]["mean"]
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| good | 5 |" in text
    assert "| mean cosine, decoder | good | 5 | 0.8 |" in text
    assert sum("first to last layer: good 0.8 to" in words for words in page.pictures) == 1
    assert sum("validation loss in nats, with label smoothing if any" in words for words in page.pictures) == 1


def test_every_file_is_made_again_from_the_json_alone_byte_for_byte(found, tmp_path):
    comparison_report.write(found, tmp_path / "a")
    main(["compare", "--json", str(tmp_path / "a/comparison.json"), "--out", str(tmp_path / "b")])
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["comparison.csv", "comparison.html", "comparison.json", "comparison.md"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_run_folders_are_read_with_their_logs_and_measurements(tmp_path):
    folders = []
    for name in ("stock", "good"):
        for seed in (1, 2):
            run = run_of(name, seed)
            train = {**stages_of(run)["train"], "seconds": 11.5}
            folder = write_run(tmp_path / f"runs/made-lm/{name}/{seed}", run, train=train)
            (folder / "train.benchmark.tsv").write_text("s\th:m:s\tmax_rss\n12.5\t0:00:12\t345.6\n")
            record = {"num_updates": "2", "gpam_decoder0_lambda_plus": "0.25", "gpam_decoder0_entropy": "1"}
            later = {**record, "num_updates": "4", "gpam_decoder0_lambda_plus": "0.5"}
            log = "".join(f"x | INFO | train_inner | {json.dumps(one)}\n" for one in (record, later))
            (folder / "train.log").write_text(log)
            folders.append(folder)
    analysis = folders[0] / "analysis/results.json"
    analysis.parent.mkdir()
    record = {"metric": "mean_cosine", "site": "decoder", "variant": "full", "head": None}
    records = [{**record, "layer": layer, "mean": mean} for layer, mean in ((1, 0.9), (3, 1 / 3), (2, 0.5), (4, None))]
    records += [{**records[1], "layer": 5, **other} for other in ({"head": 1}, {"variant": "without-mlps"})]
    records += [{**record, "metric": "query_gradient", "layer": 1, "mean": 2 / 3}]
    analysis.write_text(json.dumps({"runs": [{"variant": "full"}], "records": records}))
    runs = compare.read_runs(folders)
    in_layers = [(1, 0.9), (2, 0.5), (3, 1 / 3)]
    cosines = [Measure("decoder", layer, "mean_cosine", value) for layer, value in in_layers]
    assert runs[0].measures == (*cosines, Measure("decoder", 1, "query_gradient", 2 / 3))
    assert runs[1].measures == ()
    line = keep.kept_run(folders[0])
    assert [measure.value for measure in line.measures] == [0.9, 0.5, 0.333333, 0.666667]
    assert [entry.points for entry in line.lambdas] == [((4, 0.5),)]
    assert line.costs == runs[0].costs
    assert (line.costs.training_seconds, line.costs.peak_memory_mib) == (12.5, 345.6)
    without = keep.kept_run(folders[0], "shared").costs
    assert (without.training_seconds, without.peak_memory_mib) == (None, 345.6)
    [entry] = runs[0].lambdas
    assert (entry.site, entry.layer, entry.sign, entry.points) == ("decoder", 0, "plus", ((2, 0.25), (4, 0.5)))
    main(["compare", *map(str, folders), "--baseline", "stock", "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/comparison.md").read_text(encoding="utf-8")
    assert "95 % (nats)" in text
    assert "| good | 12 | 346 | 5 |" in text
    assert "too few seeds" in text
    with pytest.raises(SystemExit, match="--baseline is 'other'; allowed: an arm of the runs: stock, good"):
        main(["compare", *map(str, folders), "--baseline", "other", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="either RUNS or --json"):
        main(["compare", "--out", str(tmp_path / "out")])


def test_wrong_input_is_refused_with_what_is_allowed(found, tmp_path, capsys):
    lines = tmp_path / "runs.jsonl"
    lines.write_text("".join(to_line(run_of(name, seed)) + "\n" for name in ("stock", "good") for seed in (1, 2)))
    again = tmp_path / "again.jsonl"
    again.write_text(to_line(run_of("good", 2)) + "\n")
    comparison_report.write(found, tmp_path / "a")
    written, broken, other = (tmp_path / name for name in ("a/comparison.json", "broken.json", "other.json"))
    broken.write_text("{")
    other.write_text("[]")
    common = ["--baseline", "stock", "--out", str(tmp_path / "out")]
    from_json = ["--out", str(tmp_path / "out"), "--json"]
    for arguments, message in (
        ([str(tmp_path / "none.jsonl"), *common], "none.jsonl: no such file"),
        ([str(lines), *common, "--arms", "good", "god"], "--arms has 'god'; allowed: an arm of the runs: stock, good"),
        ([str(lines), str(again), *common], rf"made-lm, good, seed 2 is in {lines} and in {again}; allowed: one"),
        ([*from_json, str(written), "--baseline", "good"], "--baseline is not allowed beside --json"),
        ([*from_json, str(written), "--arms", "good"], "--arms is not allowed beside --json"),
        ([*from_json, str(written), "--delta-bleu", "1"], "--delta-bleu is not allowed beside --json"),
        ([*from_json, str(tmp_path / "none.json")], "--json is .*none.json; allowed: a comparison.json"),
        ([*from_json, str(broken)], "--json is .*broken.json; allowed: a comparison.json"),
        ([*from_json, str(other)], "--json is .*other.json; allowed: a comparison.json that this version"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["compare", *arguments])
    for delta in ("-0.1", "0", "nan"):
        with pytest.raises(SystemExit):
            main(["compare", str(lines), *common, "--delta-nats", delta])
        assert f"--delta-nats: {delta} is not allowed; allowed: a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    main(["compare", str(lines), *common, "--delta-nats", "0.5"])
    assert json.loads((tmp_path / "out/comparison.json").read_text())["deltas"] == {**compare.DELTAS, "nats": 0.5}


def test_replicates_are_named_and_not_counted(tmp_path):
    lines = [to_line(run_of(name, seed)) for name in ("stock", "good") for seed in (1, 2, 3)]
    again = [to_line(run_of("good", seed, shift=9.0, replicate=2)) for seed in (2, 3)]
    tables = {}
    for name, kept in (("first", lines), ("all", lines + again)):
        (tmp_path / "runs.jsonl").write_text("\n".join(kept) + "\n")
        main(["compare", str(tmp_path / "runs.jsonl"), "--baseline", "stock", "--out", str(tmp_path / name)])
        tables[name] = json.loads((tmp_path / name / "comparison.json").read_text())["tables"]
    assert tables["first"] == tables["all"]
    said = "Not counted, because the first run of their seed is: good seed 2 (replicate 2), good seed 3 (replicate 2)."
    for file in ("comparison.md", "comparison.html"):
        assert said in (tmp_path / "all" / file).read_text(encoding="utf-8")
        assert "Not counted" not in (tmp_path / "first" / file).read_text(encoding="utf-8")


def test_a_comparison_of_an_older_version_is_refused_in_a_sentence(found, tmp_path):
    older = [{key: value for key, value in found.items() if key != left_out} for left_out in found]
    for name in ("tables", "costs", "curves", "lambdas", "layers"):
        for entry in ({}, {"group": "made-lm"}, {"task": "made-lm", "rows": [], "arm": "stock"}, None, 3):
            older.append({**found, name: [entry]})
    for comparison in older:
        (tmp_path / "older.json").write_text(json.dumps(comparison))
        with pytest.raises(
            SystemExit, match=r"--json is .*older\.json; allowed: a comparison\.json that this ver"
        ) as end:
            main(["compare", "--json", str(tmp_path / "older.json"), "--out", str(tmp_path / "out")])
        assert end.value.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("seconds", "measured"), [(12.0, True), (13.0, False), (None, False)])
def test_the_cost_of_a_training_is_that_of_a_job_as_long_as_the_uninterrupted_training(tmp_path, seconds, measured):
    (tmp_path / "train.benchmark.tsv").write_text("s\th:m:s\tmax_rss\n12.5\t0:00:12\t-\n")
    assert run_results.training_cost(tmp_path, seconds) == ({"training_seconds": 12.5} if measured else {})


@pytest.mark.slow
def test_a_run_that_diverged_is_named_and_not_counted(tmp_path):
    runs = [run_of(name, seed) for name in ("stock", "bad") for seed in range(1, 6)]
    lambdas = [("decoder", 0, "plus", [[0, 0.0], [4, math.nan]])]
    losses = [{"split": "valid", "value": math.nan}]
    runs[-1] = run_of("bad", 5, losses=losses, lambdas=lambdas)
    training = replace(runs[-1].training, valid=((1, 5.0), (2, math.inf), (4, math.nan)))
    runs[-1] = replace(runs[-1], training=training)
    [table] = compare.comparison(runs, "stock")["tables"]
    assert [row["n"] for row in table["rows"]] == [5, 4]
    assert table["rows"][1]["difference"]["verdict"] == "worse"
    page = comparison_report.write(compare.comparison(runs, "stock"), tmp_path)
    for file in (page, tmp_path / "comparison.md"):
        assert "Diverged and not counted: bad seed 5." in file.read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_interval_without_a_lambda_is_left_out_of_its_history():
    head = "2026-01-01 00:00:00 | INFO | train_inner | "
    records = [
        {"num_updates": update, "gpam_encoder1_lambda_plus": value}
        for update, value in (("100", "0.5"), ("200", None), ("300", "0.25"))
    ]
    history = run_results.lambda_history("\n".join(head + json.dumps(record) for record in records))
    assert [entry.points for entry in history] == [((100, 0.5), (300, 0.25))]
