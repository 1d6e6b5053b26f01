"""Neighbour purity of the demo model's embedding, beside an untrained model, PCA and chance.

python benchmarks/embedding.py                                  # the nuclei that ship with the package
python benchmarks/embedding.py cells.h5ad --label cell_type     # labelled cells of your own, raw counts
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse

import anndata

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit.demo import held_out_nuclei, score


def main() -> None:
    """Score one data set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--label", default="cell_type")
    arguments = parser.parse_args()
    model = mt.load_model("demo", device="cpu")
    if arguments.path is None:
        name, adata = "heart_nuclei", mt.datasets.load("heart_nuclei")
    else:
        name, adata = arguments.path.stem, anndata.read_h5ad(arguments.path)
    mt.pp.rank_value_encode(adata, model)
    mt.tl.embed(adata, model)
    if arguments.path is None:
        table = score(adata, model, groupby=arguments.label, held_out=held_out_nuclei())
    else:
        mt.tl.neighbor_purity(adata, model, groupby=arguments.label)
        table = mt.get.table(adata, "neighbor_purity")
    report.write(
        f"embedding_{name}",
        table.round(4).to_dict("records"),
        label=arguments.label,
        model_sha256=model.sha256,
    )


if __name__ == "__main__":
    main()
