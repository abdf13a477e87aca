"""Recomputes the main table's differences from the JSON lines of the kept runs, with pandas and scipy alone."""

import math
from pathlib import Path

import pandas as pd
from scipy import stats

runs = pd.read_json(Path(__file__).parents[2] / "results/bible-de-en.jsonl", lines=True)
runs = runs[runs.reindex(columns=["learning_rate", "replicate"]).isna().all(axis=1)]
bits = runs.losses.map(lambda losses: [loss["value"] for loss in losses if loss["split"] == "valid"][-1])
nats = runs.assign(nats=bits * math.log(2)).pivot(index="seed", columns="arm", values="nats").loc[11:18]
for arm, other in [("dagpam", "stock"), ("dagpam-short", "stock")]:
    pairs = nats[[arm, other]].dropna()
    words = f"{arm} − {other}: {len(pairs)} seeds, {(pairs[arm] - pairs[other]).mean():+.4f}"
    test = stats.ttest_rel(pairs[arm], pairs[other])
    low, high = test.confidence_interval()
    print(f"{words} ± {(high - low) / 2:.4f} nats, p {test.pvalue:.4f}")
