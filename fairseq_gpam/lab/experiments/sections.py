"""The sections of a comparison, from which Markdown, the HTML page and the pages of studies are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from fairseq_gpam.analysis.definitions import describe
from fairseq_gpam.lab.experiments import plots, records, statistics

Entries = Sequence[dict[str, Any]]
SIGNS = {"plus": "λ⁺", "minus": "λ⁻", "": "λ"}
LAMBDA_NOTE = "The mean over seeds and layers of the last λ that was logged, and the range of the layers."
COST_NOTE = "Medians over the runs that were measured. Times and speeds count only if nothing else ran on the machine."
COLLAPSE_NOTE = (
    "Each measure is that of the last layer; performance is the validation loss, so a negative ρ says that more of the "
    "measure goes with lower loss. The bootstrap draws arms and seeds; with fewer than four arms or two seeds there is "
    "no interval. “Between arms” is ρ of the arms' means over seeds; “within arms” is ρ of what is left of each run "
    "when the effects of arm and seed are subtracted. Intervals are not corrected for the number of measures."
)
COLLAPSE_HEAD = ("task", "measure", "runs", "Spearman's ρ", "95 % low", "95 % high", "between arms", "within arms")
LAYERS_NOTE = "Means over seeds, measured with the best checkpoint on test examples; “input” is what enters layer 0."


@dataclass(frozen=True)
class Picture:
    """A picture, drawn only where it is shown, with its description and the end of its file's name."""

    draw: Callable[[], Figure]
    words: str
    suffix: str


@dataclass(frozen=True)
class Section:
    """A part of a page; without a head there is no table."""

    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""
    picture: Picture | None = None


def of_comparison(comparison: dict[str, Any]) -> list[Section]:
    """Returns the sections of a finished comparison."""
    baseline = comparison["baseline"]
    remarks: dict[str, str] = {}
    for entry in comparison["remarks"]:
        remarks[entry["group"]] = f"{remarks.get(entry['group'], '')} {entry['text']}".strip()
    # Only the comparison of a grid with primary contrasts has them.
    sections = [Section(**entry) for entry in comparison.get("primary", ())]
    sections += [of_table(table, baseline, remark=remarks.get(table["group"], "")) for table in comparison["tables"]]
    with_table = {table["group"] for table in comparison["tables"]}
    sections += [Section(group, note=text) for group, text in remarks.items() if group not in with_table]
    builders: tuple[tuple[str, Callable[[str, Entries], list[Section]]], ...] = (
        ("costs", of_costs),
        ("curves", lambda group, entries: of_curves(group, entries, baseline)),
        ("lambdas", of_lambdas),
        ("bootstrap", of_bootstrap),
        ("layers", of_layers),
        ("collapse", of_collapse),
    )
    for key, build in builders:
        for group in dict.fromkeys(entry["group"] for entry in comparison[key]):
            sections += build(group, [entry for entry in comparison[key] if entry["group"] == group])
    return sections


def of_table(table: dict[str, Any], baseline: str, arms: Sequence[str] = (), remark: str = "") -> Section:
    """Returns the comparison in one quantity; `arms` that are not in the table were not run."""
    head = (
        *("arm", "seeds", f"mean ± 95 % ({table['unit']})", f"difference ± 95 % ({table['unit']})", "verdict"),
        *("p (Holm)", "p (t)", "p (sign flips)", f"seeds for δ = {table['delta']:g}", "parameters"),
    )
    rows = {row["arm"]: _cells(row, table, is_baseline=row is table["rows"][0]) for row in table["rows"]}
    lines = [rows.get(arm, [arm, "0", "not run", *["–"] * (len(head) - 3)]) for arm in arms or rows]
    unit = "" if table["unit"] in table["quantity"] else f"{table['unit']}, "
    better = "lower" if table["lower_is_better"] else "higher"
    title = f"{table['group']}: {table['quantity']} ({unit}{better} is better)"
    picture = None
    if any(row.get("difference") for row in table["rows"]):
        effects = "; ".join(f"{cells[0]} {cells[3]}, {cells[4]}" for cells in list(rows.values())[1:])
        what = f"{table['group']}, {table['quantity']}: difference from {baseline} with 95 % interval ({table['unit']})"
        texts = {arm: cells[3] for arm, cells in rows.items()}
        picture = Picture(lambda: plots.forest(table, baseline, texts), f"{what}: {effects}.", ".forest.svg")
    return Section(title, head, lines, f"{_table_note(table)} {remark}".rstrip(), picture)


def _digits(table: dict[str, Any]) -> int:
    return 4 if table["unit"] == "nats" else 2


def number(value: float | None, form: str = ".4f") -> str:
    """Returns a number in this format, a dash for one that is not known."""
    return "–" if value is None else format(value, form)


def _spread(shown: dict[str, Any], digits: int, sign: str = "") -> str:
    """Returns a mean ± half the width of its interval, as text."""
    if shown["low"] is None:
        return f"{shown['mean']:{sign}.{digits}f}"
    return f"{shown['mean']:{sign}.{digits}f} ± {(shown['high'] - shown['low']) / 2:.{digits}f}"


def _cells(row: dict[str, Any], table: dict[str, Any], is_baseline: bool) -> list[str]:
    difference, parameters = row.get("difference"), _cost(row["parameters"])
    mean = _spread(row, _digits(table))
    if difference is None:
        verdict = "baseline" if is_baseline else "no common seed"
        return [row["arm"], str(row["n"]), mean, "–", verdict, *["–"] * 4, parameters]
    interval = difference["interval"]
    seeds = str(row["n"]) + (f", {interval['n']} pairs" if interval["n"] != row["n"] else "")
    if difference["verdict"] == statistics.TOO_FEW:
        # The p value is left out if the arm gets no verdict; the CSV and the JSON have it.
        tests = [statistics.TOO_FEW, *["–"] * 4]
    else:
        needed = str(row["seeds_for_delta"] or "over 10,000") if interval["sd"] else "–"
        p_values = (number(difference[key]) for key in ("p_holm", "p_t", "p_sign_flip"))
        tests = [difference["verdict"], *p_values, needed]
    return [row["arm"], seeds, mean, _spread(interval, _digits(table), "+"), *tests, parameters]


def _table_note(table: dict[str, Any]) -> str:
    """Returns the sentences about the baseline's spread, the correction, and runs that diverged or are not alike."""
    noise, unit, tests = table["noise"], table["unit"], table["tests"]
    rule = f"δ = {table['delta']:g} {unit}."
    # An exploratory table corrects nothing.
    rule += f" Holm's correction is over {tests} arm{'s' if tests != 1 else ''}." if tests else ""
    if table["diverged"]:
        rule += f" Diverged and not counted: {'; '.join(f'{arm} seed {seed}' for arm, seed in table['diverged'])}."
    if table["decoded_otherwise"]:
        rule += f" Decoded otherwise than the first run of the table: {'. '.join(table['decoded_otherwise'])}."
    if noise["sd"] is None:
        return f"Noise floor: not known, the baseline has one seed. {rule}"
    sd, width = (number(noise[key], f".{_digits(table)}f") for key in ("sd", "range"))
    spread = f"over {noise['n']} seeds the baseline's standard deviation is {sd}, its range {width} {unit}"
    return f"Noise floor: {spread}. {rule}"


def _cost(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.0f}"


def of_costs(group: str, entries: Entries) -> list[Section]:
    """Returns what was measured of the arms' costs; the number of parameters stands in every other table."""
    measured = [(key, label) for key, label, _ in records.COSTS[1:] if any(entry[key] is not None for entry in entries)]
    if not measured:
        return []
    rows = [[entry["arm"], *(_cost(entry[key]) for key, _ in measured)] for entry in entries]
    return [Section(f"{group}: costs", ("arm", *(label for _, label in measured)), rows, COST_NOTE)]


def of_curves(group: str, entries: Entries, baseline: str) -> list[Section]:
    """Returns the picture of the learning curves."""
    curves = [entry for entry in entries if entry["points"]]
    if not curves:
        return []
    ends = "; ".join(f"{entry['arm']} ends at {entry['points'][-1][1]:.3f}" for entry in curves)
    what = "Mean validation loss in nats, with label smoothing if any, over updates, and its difference from"
    picture = Picture(lambda: plots.curves(curves, baseline), f"{what} {baseline}. {ends}.", ".curves.svg")
    return [Section(f"{group}: learning curves", picture=picture)]


def of_lambdas(group: str, entries: Entries) -> list[Section]:
    """Returns the table of each arm's last λ, mean over seeds and layers and range over layers, and its history."""
    if not entries:
        return []
    columns = list(dict.fromkeys((entry["site"], entry["sign"]) for entry in entries))
    arms = list(dict.fromkeys(entry["arm"] for entry in entries))
    last: dict[tuple[str, ...], list[float]] = {}
    for entry in entries:
        last.setdefault((entry["arm"], entry["site"], entry["sign"]), []).append(entry["last"])
    rows = [[arm, *(_mean_and_range(last.get((arm, *place), ())) for place in columns)] for arm in arms]
    head = ("arm", *(f"{SIGNS[sign]} {site}" for site, sign in columns))
    picture = None
    # Kept runs have only the last value of each λ.
    if any(len(entry["points"]) > 1 for entry in entries):
        ends = "; ".join(f"{row[0]} {', '.join(cell for cell in row[1:] if cell != '–')}" for row in rows)
        words = f"λ over updates, the mean over seeds. Last values: {ends}."
        picture = Picture(lambda: plots.lambdas(entries), words, ".lambdas.svg")
    return [Section(f"{group}: λ at the end of training", head, rows, LAMBDA_NOTE, picture)]


def _mean_and_range(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def of_bootstrap(group: str, entries: Entries) -> list[Section]:
    """Returns the differences in BLEU and chrF with the intervals of the nested bootstrap."""
    rows = []
    for entry in entries:
        interval = (f"{entry[edge]:+.2f}" for edge in ("difference", "low", "high"))
        rows.append([entry["arm"], str(len(entry["seeds"])), entry["metric"], *interval])
    note = (
        "Each of 1,000 samples draws seeds, and sentences of the test set for each of them; with one seed the interval "
        "is that of two trained models, not of their arms. Not corrected for the number of arms."
    )
    head = ("arm", "seeds", "metric", "difference", "95 % from", "to")
    return [Section(f"{group}: translations, sentences drawn within seeds", head, rows, note)]


def of_layers(group: str, entries: Entries) -> list[Section]:
    """Returns the measures of collapse by layer, averaged over seeds."""
    if not entries:
        return []
    title = f"{group}: measures of collapse by layer"
    depths = sorted({layer for entry in entries for layer, *_ in entry["points"]})
    rows, words = [], []
    for metric, site in dict.fromkeys((entry["metric"], entry["site"]) for entry in entries):
        ends = []
        for entry in entries:
            if (entry["metric"], entry["site"]) == (metric, site):
                means = {layer: _three_digits(mean) for layer, mean, *_ in entry["points"]}
                cells = [means.get(layer, "–") for layer in depths]
                rows.append([_measure(metric, site), entry["arm"], str(entry["seeds"]), *cells])
                ends.append(f"{entry['arm']} {next(iter(means.values()))} to {list(means.values())[-1]}")
        words.append(f"{_measure(metric, site)}, first to last layer: {', '.join(ends)}.")
    head = ("measure", "arm", "seeds", *("input" if layer < 0 else f"layer {layer}" for layer in depths))
    metrics = dict.fromkeys(entry["metric"] for entry in entries)
    meanings = "; ".join(f"{metric.replace('_', ' ')}: {describe(metric).definition}" for metric in metrics)
    picture = Picture(lambda: plots.layers(title, entries), f"{title}. {' '.join(words)}", ".layers.svg")
    return [Section(title, head, rows, f"{LAYERS_NOTE} {meanings}.", picture)]


def of_collapse(group: str, entries: Entries) -> list[Section]:
    """Returns the correlation of each measure of collapse with the validation loss."""
    if not entries:
        return []
    title = f"{group}: collapse against performance"
    rows = [
        [
            *(group, _measure(entry["metric"], entry["site"]), str(entry["n"])),
            *(number(entry[key], ".2f") for key in ("rho", "low", "high", "between", "within")),
        ]
        for entry in entries
    ]
    ends = "; ".join(f"{row[1]} {row[3]}" for row in rows)
    words = f"{title}, a point for each run. Spearman's ρ: {ends}."
    picture = Picture(lambda: plots.correlation(title, entries), words, ".collapse.svg")
    return [Section(title, COLLAPSE_HEAD, rows, COLLAPSE_NOTE, picture)]


def _measure(metric: str, site: str) -> str:
    return f"{metric.replace('_', ' ')}, {site}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as Markdown, without a line end."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
