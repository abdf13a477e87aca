"""Collects the best head's scores of the study's runs from what `analyze` wrote.

`python examples/studies/induction-heads/heads.py out/runs/ngram-lm` writes results.jsonl beside this file;
`python scripts/upkeep/pages.py` makes the README's table from it.
"""

import argparse
import json
from pathlib import Path

from fairseq_gpam.lab.experiments.synthetic_studies import write_results

SCORES = {
    "previous token, layer 0": ("previous_token_score", 0),
    "induction, layer 1": ("induction_score", 1),
    "copying, layer 1": ("copying_score", 1),
}


def best_heads(analysis: Path) -> dict[str, float]:
    """Returns the largest mean of each score over the heads of its layer."""
    records = json.loads(analysis.read_text(encoding="utf-8"))["records"]
    heads = [record for record in records if record["head"] is not None]
    return {
        score: max(record["mean"] for record in heads if (record["metric"], record["layer"]) == place)
        for score, place in SCORES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the task's runs, ARM/SEED below it")
    rows = []
    for path in sorted(parser.parse_args().runs.glob("*/*/analysis/results.json")):
        arm, seed = path.parts[-4:-2]
        scores = best_heads(path).items()
        rows += [{"arm": arm, "seed": int(seed), "score": score, "best": round(best, 4)} for score, best in scores]
    write_results(Path(__file__).parent, rows)


if __name__ == "__main__":
    main()
