"""Train the model of `perturbation.py panel`: two hours on one core; an interrupted run goes on.

    python benchmarks/build_panel_model.py runs/panel

It reads all genes that a cell of a 500-gene panel has, where the demo model reads the first 126 of 2,000, and knows two cell types. It is
not shipped. The recipe is panel_model.yaml.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
from dataclasses import replace

import yaml

import maxtoki_toolkit as mt
from benchmarks.temporal import encode

RECIPE = Path(__file__).with_name("panel_model.yaml")


def main() -> None:
    """Train phase after phase, each from the model of the one before."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "output", type=Path, help="folder of the runs; the model is in PHASE/model of the last"
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    a = parser.parse_args()
    recipe = yaml.safe_load(a.recipe.read_text())
    model = replace(mt.load_model("demo", device="cpu"), cell_length=recipe["cell_length"])
    for number, phase in enumerate(recipe["phases"], start=1):
        adata = mt.datasets.aging_atlas(**recipe["aging_atlas"], seed=phase.pop("data_seed"))
        is_taught = (adata.obs["condition"] == "control") & adata.obs["cell_type"].isin(recipe["types"])
        adata = adata[is_taught.to_numpy()].copy()
        adata.uns = {}
        adata = encode(adata, model)
        mt.pp.hold_out(adata, donor_key="donor_id", time_key="age_months", donors=recipe["hold_out"])
        model = mt.train.temporal(
            adata,
            model,
            a.output / str(number),
            time_key="age_months",
            groupby=["cell_type", "sex"],
            use="train",
            held_out="held_out_donors",
            recipe=mt.train.TemporalRecipe.of(device="cpu", **recipe["training"], **phase),
        )
    print(f"{model!r} is in {a.output / str(len(recipe['phases']))}/model.")


if __name__ == "__main__":
    main()
