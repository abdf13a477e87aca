"""Numbers in the prose of README.md and of the studies are rounded from the kept results.

The tests check the text after "What came out" or "Results": every "a ± b", every "p 0.0xx", and in a paragraph that
names ρ every other number with two decimals. A number must belong to an arm, or a measure of collapse, that its
paragraph names, and be a difference from the study's baseline or from one that the page names in a `--baseline`.
Correlations are compared with the study's generated table, which test_pages.py compares with the results. In the
studies on synthetic data every number with two decimals must be a result in their results.jsonl, or the mean of a cell.
The tests do not check whole numbers, numbers with one decimal, λ's, scores without an interval, and numbers before the
results, which are expectations and pilots.
"""

import re
from pathlib import Path
from statistics import mean

import pytest

from fairseq_gpam.lab.experiments import compare, grid, pages, study, synthetic_studies

REPOSITORY = Path(__file__).parents[3]
PAGES = [
    Path("README.md"),
    *sorted(path.relative_to(REPOSITORY) for path in REPOSITORY.glob("examples/studies/*/*.md")),
]
RESULTS = re.compile(r"^(?:## (?:What came out|Results)|\*\*Result\.\*\*)", re.MULTILINE)
MEAN = re.compile(r"([+−]?\d+\.\d+) ± (\d+\.\d+)")
P = re.compile(r"\bp (?:is )?(0\.\d+)(?:,? and (0\.\d+))?")
TWO_DECIMALS = re.compile(r"([+−]?\b\d\.\d\d)(?!\d| nats)")


def rounds(written, value):
    """Tells whether a written number is the rounding of `value`, or of its absolute value if it has no sign."""
    number = written.replace("−", "-")
    value = value if number[0] in "+-" else abs(value)
    return number == f"{value:{'+' if number[0] == '+' else ''}.{len(number.partition('.')[2])}f}"


def differences(name, baselines):
    """Each arm's difference from each baseline in every quantity of a study, in every group of its runs."""
    chosen = grid.load(REPOSITORY / study.FOLDER / name / "grid.toml")
    found = []
    for group in study.groups(chosen, REPOSITORY):
        for baseline in (chosen.baseline, *baselines):
            for quantity in compare.QUANTITIES:
                table = compare.table(group.title, group.by_arm, baseline, quantity, 1.0, len(group.by_arm) - 1)
                rows = table["rows"] if table else []
                found += [(row["arm"], row["difference"]) for row in rows if row.get("difference")]
    return found


def correlations(name):
    """The measure, its site and the correlations in each row of the generated table in a study's README."""
    text = (REPOSITORY / study.FOLDER / name / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \S+ \| ([a-z ]+), (encoder|decoder|cross) \| \d+ \| (.+) \|$", text, re.MULTILINE)
    return [
        (measure, site, [float(cell) for cell in cells.split(" | ") if cell != "–"]) for measure, site, cells in rows
    ]


def made_results(marker):
    """The results in the table of a study on synthetic data, and their means over seeds."""
    folder, options = REPOSITORY / study.FOLDER / marker[2], dict(word.split("=") for word in marker[3].split())
    cells = {}
    for result in synthetic_studies.read_results(folder):
        cells.setdefault((result[options["rows"]], result[options["columns"]]), []).append(result[options["value"]])
    return [value for own in cells.values() for value in (*own, mean(own))]


def wrong_numbers(text):
    """The numbers in a page's prose that no result rounds to, and how many there are in all."""
    markers = [pages.MARKER.fullmatch(block["marker"]) for block in pages.BLOCK.finditer(text)]
    prose = pages.BLOCK.sub("", text)
    prose = prose[RESULTS.search(prose).start() :]
    made = [value for marker in markers if marker[1] == "study" for value in made_results(marker)]
    studies = dict.fromkeys(marker[2] for marker in markers if marker[1] == "comparison")
    baselines = re.findall(r"--baseline (\S+)", prose)
    compared = [row for name in studies for row in differences(name, baselines)]
    correlated = [row for name in studies for row in correlations(name)]
    wrong, count = [], 0

    def check(quoted, right):
        nonlocal count
        count += 1
        if not right:
            wrong.append(quoted)

    for paragraph in re.split(r"\n\n|\n(?=- )", prose):
        words = " ".join(paragraph.split())
        arms = {*re.findall(r"`([^`]+)`", words), *(["dagpam"] if "daGPAM" in words else [])}
        own = [one for arm, one in compared if arm in arms and one["interval"]["low"] is not None]
        for mean_and_half in MEAN.finditer(words):
            shown = [(one["interval"]["mean"], one["interval"]["high"] - one["interval"]["mean"]) for one in own]
            right = (rounds(mean_and_half[1], center) and rounds(mean_and_half[2], half) for center, half in shown)
            check(mean_and_half[0], any(right))
        for quoted in P.finditer(words):
            for p in filter(None, quoted.groups()):
                check(f"p {p}", any(rounds(p, one["p_holm"]) for one in own if one["p_holm"] is not None))
        rest = P.sub("", MEAN.sub("", words))
        values = list(made)
        for measure, site, row in correlated if "ρ" in rest else ():
            values += row if measure in rest and site in rest else []
        for quoted in TWO_DECIMALS.findall(rest) if made or "ρ" in rest else ():
            check(quoted, any(rounds(quoted, value) for value in values))
    return wrong, count


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_prose_quotes_what_the_results_say(page):
    wrong, _ = wrong_numbers((REPOSITORY / page).read_text(encoding="utf-8"))
    assert not wrong


@pytest.mark.parametrize(
    ("page", "before", "form"),
    [
        ("README.md", "lowers the validation loss by ", MEAN),
        ("README.md", "output (ρ ", TWO_DECIMALS),
        ("examples/studies/what-does-the-work/README.md", "0.011 (", P),
        (
            "examples/studies/function-composition/README.md",
            "with two linear ones, in either order, ends at ",
            TWO_DECIMALS,
        ),
    ],
)
def test_a_digit_that_no_result_has_is_found(page, before, form):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    quoted = form.match(text, text.index(before) + len(before))[0]
    digit = str((int(quoted[-1]) + 1) % 10)
    wrong, count = wrong_numbers(text.replace(before + quoted, before + quoted[:-1] + digit))
    assert wrong == [quoted[:-1] + digit]
    assert count > len(wrong)
