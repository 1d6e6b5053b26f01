"""What the demo model's lapses rest on: prompts of many new donors, with their parts shuffled, masked and replaced.

    python benchmarks/ablation.py        # a quarter of an hour on one core

The same call as in notebooks/fig4a_prompt_ablation.py, with more donors; cell types that the model was taught the time of, and
two that it was not. Writes `results/ablation.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import json

import maxtoki_toolkit as mt
from benchmarks import report

SETS = {
    "cell types it was taught": ["fibroblast", "monocyte", "macrophage"],
    "cell types it was not": ["cardiomyocyte", "CD8 T cell"],
}
ABLATIONS = [
    "intact",
    "shuffle_genes",
    "shuffle_context",
    "shuffle_query",
    "mask_context",
    "mask_query",
    "replace_context",
    "replace_query",
    "shuffle_lapses",
]


def main() -> None:
    """Ablate, and write the effects."""
    mt.settings.progress = False
    model = mt.load_model("demo", device="cpu")
    atlas = mt.datasets.aging_atlas(16_000, 200, seed=140)
    rows = []
    for name, types in SETS.items():
        cells = (atlas.obs["condition"] == "control") & atlas.obs["cell_type"].isin(types)
        adata = atlas[cells].copy()
        mt.pp.map_genes(adata, model)
        mt.pp.rank_value_encode(adata, model)
        mt.pp.sample_prompts(
            adata,
            time_key="age_months",
            groupby=["cell_type", "sex"],
            donor_key="donor_id",
            n_prompts=600,
            context_size=(2, 3),
            rng=0,
        )
        mt.tl.ablate_prompt(adata, model, ablations=ABLATIONS)
        effects = mt.get.table(adata, "ablate_prompt")
        rows += [{"cells": name, **row} for row in json.loads(effects.round(6).to_json(orient="records"))]
    report.write("ablation", rows, model_sha256=model.sha256)


if __name__ == "__main__":
    main()
