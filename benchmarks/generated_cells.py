"""Are the cells that the demo model writes real ones? New simulated donors, whose truth is known.

    python benchmarks/generated_cells.py                          # some minutes on one core
    python benchmarks/generated_cells.py --model runs/mine/model  # another model

Prompts are of half of the donors, and everything is compared with true cells of the other half. The last part asks for ages that the
model was not trained on, and whether genes that turn over there go the right way. Writes `results/generated_cells.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import time

import numpy as np
import pandas as pd
from anndata import AnnData

import maxtoki_toolkit as mt
from benchmarks import report

AGES = [(480, 539), (720, 779)]


def atlas(n_cells: int, n_donors: int, seed: int, model) -> AnnData:
    """Rank-encoded cells of new control donors; doublets left out."""
    adata = mt.datasets.aging_atlas(n_cells, n_donors, seed=seed)
    doublet = adata.obs_names.isin(adata.uns["truth"]["doublets"]["cell"])
    adata = adata[(adata.obs["condition"] == "control") & ~doublet].copy()
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    return adata


def rows(part: str, table: pd.DataFrame) -> list[dict]:
    """Rows of a table, without what is missing."""
    records = json.loads(table.round(4).to_json(orient="records"))
    return [{"part": part} | {k: v for k, v in record.items() if v is not None} for record in records]


def quality(model, arguments, temperature: float) -> list[dict]:
    """Singlets, concordance, training on generated cells, ages, and diversity."""
    adata = atlas(arguments.cells, arguments.donors, 21, model)
    donor = {"donor_key": "donor_id"}
    mt.pp.hold_out(adata, donors=0.5, rng=0, **donor)
    mt.pp.sample_prompts(
        adata,
        time_key="age_months",
        groupby=["cell_type", "sex"],
        task="cell",
        n_prompts=arguments.prompts,
        context_size=(2, 3),
        contexts="held_out",
        queries="held_out",
        sampling=mt.pp.PromptSampling(balance=1),
        **donor,
    )
    cells = mt.tl.generate(adata, model, temperature=temperature)
    found = rows(
        "cells",
        pd.DataFrame(
            {
                "cells": [cells.n_obs],
                "genes": [cells.obs["n_genes_ranked"].mean()],
                "finished": [cells.obs["finished"].mean()],
            }
        ),
    )
    mt.tl.evaluate_generated(adata, model, generated=cells, groupby="cell_type", train="held_out")
    found += rows("singlets", mt.get.singlet_fraction(adata))
    found += rows("concordance", mt.get.annotation_concordance(adata))
    found += rows("train on generated", mt.get.train_on_generated(adata))
    found += rows("age", mt.get.generated_ages(adata))
    found += rows("diversity", mt.get.generation_diversity(adata))
    return [{"temperature": temperature} | row for row in found]


def held_out_ages(model, arguments) -> list[dict]:
    """Change of rank between two intervals of age that the model was not trained on."""
    adata = atlas(arguments.aged_cells, arguments.aged_donors, 22, model)
    adata = adata[adata.obs["cell_type"].isin(arguments.types)].copy()
    age = adata.obs["age_months"].to_numpy()
    asked = np.any([(age >= first) & (age <= last) for first, last in AGES], axis=0)
    mt.pp.sample_prompts(
        adata,
        time_key="age_months",
        groupby=["cell_type", "sex"],
        donor_key="donor_id",
        task="cell",
        n_prompts=arguments.aged_prompts,
        context_size=(2, 3),
        contexts=~asked,
        queries=asked,
        sampling=mt.pp.PromptSampling(balance=1),
    )
    cells = mt.tl.generate(adata, model)
    mt.tl.differential_rank(
        adata,
        model,
        generated=cells,
        groupby="cell_type",
        intervals=tuple(AGES),
        known=~asked,
        n_top=100,
    )
    genes = mt.get.differential_rank(adata)
    top = genes[genes["top"] != ""]
    planted = adata.uns["truth"]["age_genes"].query("direction == 'turnover'")
    turned = top.merge(planted, left_on=["gene", "group"], right_on=["ensembl_id", "cell_type"])
    signs = []
    for name, part in (("top", top), ("turning", top[top["turning"]]), ("planted turnover", turned)):
        true = np.sign(part["true_change"])
        signs.append(
            {
                "genes": name,
                "n": len(part),
                "generated": (np.sign(part["generated_change"]) == true).mean(),
                "interpolation": (np.sign(part["interpolated_change"]) == true).mean(),
            }
        )
    return rows("held-out ages", mt.get.differential_rank_scores(adata)) + rows("signs", pd.DataFrame(signs))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo-cells")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.7])
    parser.add_argument("--cells", type=int, default=6000)
    parser.add_argument("--donors", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--aged-cells", type=int, default=24_000)
    parser.add_argument("--aged-donors", type=int, default=600)
    parser.add_argument("--aged-prompts", type=int, default=600)
    parser.add_argument("--types", nargs="+", default=["fibroblast", "macrophage", "CD4 T cell"])
    arguments = parser.parse_args()
    model = mt.load_model(arguments.model, device="cpu")
    start = time.time()
    found = [row for temperature in arguments.temperature for row in quality(model, arguments, temperature)]
    found += held_out_ages(model, arguments)
    report.write(
        "generated_cells",
        found,
        model=arguments.model,
        model_sha256=model.sha256,
        minutes=round((time.time() - start) / 60, 1),
        settings={k: v for k, v in vars(arguments).items() if k != "model"},
    )


if __name__ == "__main__":
    main()
