"""Do the signed effects of genes on others find known regulons and their signs, beyond coexpression?

    python benchmarks/gene_effects.py --folder FOLDER_OF_DATA --regulons dorothea_hs.csv.gz    # half an hour on one core

OneK1K (onek1k_4types_40donors.h5ad; 40 donors are the units) and heart nuclei (cells are), with DoRothEA's edges of
confidence A to D, which do not ship. Beside the demo model, one of its shape with random weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder must not come first on the path: its tokenize.py would pass for Python's own.
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import time

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit.tl._embedding_baselines import untrained_twin

CONFIDENCE = "ABCD"


def cells(name: str, folder: Path) -> tuple[AnnData, dict]:
    """Cells and the settings that suit them."""
    if name == "heart_nuclei":
        return mt.datasets.load("heart_nuclei"), {"n_cells": 150}
    adata = anndata.read_h5ad(folder / "onek1k_4types_40donors.h5ad")
    return adata, {"donor_key": "donor_id", "n_cells": 6}


def measure(name: str, folder: Path, regulons: pd.DataFrame) -> list[dict]:
    """Scores, signs and replication of the demo model and of one with random weights."""
    demo = mt.load_model("demo")
    rows = []
    for of, model in {"demo": demo, "random weights": untrained_twin(demo, 0)}.items():
        adata, settings = cells(name, folder)
        mt.pp.map_genes(adata, model)
        mt.pp.rank_value_encode(adata, model)
        start = time.process_time()
        mt.tl.gene_effects(adata, model, regulons=regulons, n_permutations=999, **settings)
        seconds = round(time.process_time() - start)
        groups = mt.get.table(adata, "gene_effects", "groups").iloc[0]
        edges = mt.get.table(adata, "gene_effects")
        facts = {
            "model": of,
            "cpu_seconds": seconds,
            **groups.drop("group").to_dict(),
            "called": int((edges["q_value"] < 0.05).sum()),
            "of_edges": len(edges),
            "r_with_coexpression": float(np.corrcoef(edges["effect"], edges["coexpression"])[0, 1]),
        }
        for table in ("scores", "signs"):
            found = mt.get.table(adata, "gene_effects", table).drop(columns="group")
            rows += [{**facts, "table": table, **row} for row in found.to_dict("records")]
    return rows


def main() -> None:
    """Run both sets of cells."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", default=["onek1k", "heart_nuclei"])
    parser.add_argument("--folder", type=Path, required=True, help="where onek1k_4types_40donors.h5ad is")
    parser.add_argument(
        "--regulons", type=Path, required=True, help="DoRothEA: source, confidence, target and sign"
    )
    a = parser.parse_args()
    mt.settings.progress = False
    pd.set_option("display.width", 220, "display.max_columns", 40)
    table = pd.read_csv(a.regulons)
    table = table[table["confidence"].isin(list(CONFIDENCE))]
    regulons = table.set_axis(["source", "confidence", "target", "weight"], axis=1)
    for name in a.sets:
        rows = measure(name, a.folder, regulons)
        report.add("gene_effects", rows, case=name, device="cpu", confidence=CONFIDENCE)


if __name__ == "__main__":
    main()
