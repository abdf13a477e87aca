"""Recomputes the main table's differences from the JSON lines of the kept runs, with scipy alone."""

import json
import math
from pathlib import Path

from scipy import stats

KEPT = Path(__file__).parents[2] / "results/in-context-bigrams.deep.jsonl"
runs = [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()]
runs = [run for run in runs if "learning_rate" not in run and "replicate" not in run]
loss = {
    (run["arm"], run["seed"]): one["value"] * math.log(2)
    for run in runs
    for one in run["losses"]
    if one["split"] == "valid"
}
for arm, other in [("scaled-0.5", "softmax"), ("two-0.5", "scaled-0.5"), ("two-0", "centred")]:
    pairs = [
        (loss[arm, seed], loss[other, seed]) for seed in range(1, 11) if {(arm, seed), (other, seed)} <= loss.keys()
    ]
    test = stats.ttest_rel(*zip(*pairs, strict=True))
    low, high = test.confidence_interval()
    shown = f"{(low + high) / 2:+.4f} ± {(high - low) / 2:.4f} nats, p {test.pvalue:.4f}"
    print(f"{arm} − {other}: {len(pairs)} seeds, {shown}")
