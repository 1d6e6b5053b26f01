"""Doublets told from cells, beside scrublet: planted, real (hashtags), and simulated from real nuclei.

    python benchmarks/doublets.py planted             # simulated atlas, doublets of one type
    python benchmarks/doublets.py heart               # nuclei that ship with the package, one donor
    python benchmarks/doublets.py hashtags path.h5ad  # known doublets of four cell lines

Each part is written to `results/doublets.json` under its name; the others stay. With each come the same detector
with one kind of features alone, and with all but one.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import json
import time

import anndata
import pandas as pd
from anndata import AnnData

import maxtoki_toolkit as mt
from benchmarks import report

ALONE = [["embedding"], ["ranks"], ["expression"], ["expression", "size"]]
WITHOUT = [["ranks", "expression", "size"], ["embedding", "expression", "size"]]
WITHOUT += [["embedding", "ranks", "size"], ["embedding", "ranks", "expression"]]


def measure(adata: AnnData, model, figure: Path | None, **settings) -> list[dict]:
    """Scores with all features, and of the detector alone with some of them."""
    rows = []
    for features in [None, *ALONE, *WITHOUT]:
        found = adata.copy()
        simulation, others = mt.pp.DoubletSimulation.split(settings)
        mt.tl.doublets(found, model, features=features, simulation=simulation, **others)
        scores = mt.get.doublet_scores(found)
        scores.insert(0, "features", "all" if features is None else " + ".join(features))
        if features is not None:
            scores = scores[scores["detector"] == "detector"]
        rows.append(scores)
        if features is None:
            singlets = mt.get.singlet_fraction(found)
            for scored_on in scores["set"].unique() if figure else ():
                fig = mt.pl.doublets(found, scored_on=scored_on)
                fig.savefig(figure / f"doublets_{settings['truth_key']}_{scored_on}.png", dpi=110)
    table = pd.concat([*rows, singlets.assign(set="singlets")], ignore_index=True)
    rows = json.loads(table.round(4).to_json(orient="records"))
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["planted", "heart", "hashtags"])
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--cells", type=int, default=1500)
    arguments = parser.parse_args()
    model = mt.load_model("demo", device="cpu")
    start = time.time()
    settings = {"truth_key": None}
    if arguments.part == "planted":
        adata = mt.datasets.aging_atlas(arguments.cells, 20, seed=5)
        adata.obs["planted"] = adata.obs_names.isin(adata.uns["truth"]["doublets"]["cell"])
        settings = {"truth_key": "planted", "groupby": "cell_type", "same_type": 1.0, "donor_key": "donor_id"}
    elif arguments.part == "heart":
        adata = mt.datasets.load("heart_nuclei")
        settings |= {"groupby": "cell_type", "donor_key": "donor_id"}
    else:
        if arguments.path is None:
            parser.error("hashtags needs the path of the file")
        adata = anndata.read_h5ad(arguments.path)
        adata.var_names = adata.var["ensembl_id"].astype(str)
        # Close to the true 11%, which a user would not know so well: it moves the calibration on the truth, nothing else.
        settings |= {"truth_key": "doublet_true_labels", "expected_rate": 0.1}
    mt.pp.map_genes(adata, model, min_overlap=0.0)
    mt.pp.rank_value_encode(adata, model)
    mt.tl.embed(adata, model)
    rows = measure(adata, model, arguments.figures, **settings)
    report.add(
        "doublets",
        rows,
        case=arguments.part,
        device="cpu",
        cells=adata.n_obs,
        settings={key: value for key, value in settings.items() if value is not None},
        model_sha256=model.sha256,
        seconds=round(time.time() - start),
    )


if __name__ == "__main__":
    main()
