"""Answers to drugs: which cells were treated, which plates are sound, and what a population would do.

    python benchmarks/response.py plates planted                      # simulated, five minutes on one core
    python benchmarks/response.py glioma mixtures embedded interferon --folder FOLDER   # data that do not ship, ten minutes

- `plates`: screens of 20 clean plates, and screens with a failed plate and one with an edge effect; how many are flagged.
- `planted`: simulated lines and drugs whose answers add up, and lines that answer in genes of their own.
- `glioma`: panobinostat on slices of five glioblastomas (glioma_panobinostat_5donors.h5ad), one donor left out at a
  time.
- `mixtures`: what any mixture of the other donors' answers could reach.
- `embedded`: how well their treated cells are told from controls, in the demo model's embedding and in PCA.
- `interferon`: blood cells with and without interferon beta (pbmc_ifnb_2000.h5ad), by a random half of the cells, and with
  each cell type left out, types being those of marker genes.

Each part is written to `results/response.json` under its name; the others stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder must not come first on the path: its tokenize.py would pass for Python's own.
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import time
import warnings

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit.stats.expression import log_normalize
from maxtoki_toolkit.tl._embedding_baselines import principal_components

PARTS = ("plates", "planted", "glioma", "mixtures", "embedded", "interferon")
GLIOMA = {"groupby": "donor_id", "perturbation_key": "condition", "control": "ctrl"}
SHOWN = ("pearson_control", "pearson_control_top20", "pearson_control_top100", "mse", "mse_weighted")
# Marker genes of the types of blood cells.
MARKERS = {
    "CD14 monocyte": ["CD14", "LYZ", "S100A8", "S100A9", "FCN1"],
    "B cell": ["MS4A1", "CD79A", "CD79B", "CD74"],
    "NK cell": ["NKG7", "GNLY", "KLRD1", "PRF1"],
    "T cell": ["CD3D", "CD3E", "IL7R", "LTB"],
}


def rounded(row: dict) -> dict:
    """Numbers of a row to four digits; those that are not known as null."""
    return {
        name: (None if not np.isfinite(value) else round(float(value), 4))
        if isinstance(value, float)
        else value
        for name, value in row.items()
    }


def rows_of(adata: AnnData, **about) -> list[dict]:
    """A row a method, of the scores that are shown."""
    summary = mt.get.table(adata, "predict_response")
    rows = []
    for method, part in summary.groupby("method", sort=False):
        part = part.set_index("score")
        row = {**about, "method": method, "kind": part["kind"].iloc[0], "n": int(part["n_units"].max())}
        row |= {name: part["value"].get(name, np.nan) for name in SHOWN}
        first = part.loc[SHOWN[0]]
        row |= {
            name: first[name]
            for name in (
                "low",
                "high",
                "difference",
                "difference_low",
                "difference_high",
                "p_value",
                "q_value",
            )
        }
        rows.append(rounded({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()}))
    return rows


def by_unit(adata: AnnData, unit: str = "context") -> dict:
    """Pearson r of the change, of each method on each unit."""
    scores = mt.get.table(adata, "predict_response", "scores").query("score == 'pearson_control'")
    wide = scores.pivot_table(index="method", columns=unit, values="value")
    return {method: row.dropna().round(3).to_dict() for method, row in wide.iterrows()}


def plates(n_seeds: int) -> None:
    """Clean plates, and planted faults."""
    rows = []
    columns = {
        "plate_key": "plate",
        "well_key": "well",
        "perturbation_key": "drug",
        "control": "DMSO",
        "groupby": "line",
    }
    for effect in (1.5, 2.0):
        clean, found, others = 0, {"failed": 0, "edge": 0}, 0
        for seed in range(n_seeds):
            adata = mt.datasets.drug_screen(2, 10, n_plates=20, effect=effect, seed=seed)
            mt.tl.flag_plates(adata, **columns)
            clean += int(mt.get.table(adata, "flag_plates")["flagged"].sum())
            bad, edge = 3 + seed, 8 + seed
            adata = mt.datasets.drug_screen(
                2, 10, n_plates=20, effect=effect, failed_plates=[bad], edge_plates=[edge], seed=100 + seed
            )
            mt.tl.flag_plates(adata, **columns)
            table = mt.get.table(adata, "flag_plates")
            found["failed"] += "concordance" in table["reasons"][bad] and "overlap" in table["reasons"][bad]
            found["edge"] += "edge" in table["reasons"][edge]
            others += int(table["flagged"].drop([bad, edge]).sum())
        rows.append(
            {
                "effect": effect,
                "screens": n_seeds,
                "clean_plates": 20 * n_seeds,
                "clean_flagged": clean,
                "failed_found": f"{found['failed']} of {n_seeds}",
                "edge_found": f"{found['edge']} of {n_seeds}",
                "others_flagged": f"{others} of {18 * n_seeds}",
            }
        )
    report.add("response", rows, case="plates", device="cpu")


def planted(n_steps: int) -> None:
    """Sums and interactions."""
    rows = []
    for interaction in (0.0, 1.0):
        adata = mt.datasets.drug_screen(
            6, 4, n_plates=6, cells_per_well=5, interaction=interaction, effect=1.5
        )
        adata.obsm["X_pca"] = principal_components(adata, 20, 0)
        for held_out in ("combination", "context"):
            recipe = mt.train.ResponseRecipe.of(max_steps=n_steps) if n_steps else None
            mt.tl.predict_response(
                adata,
                groupby="line",
                held_out=held_out,
                perturbation_key="drug",
                control="DMSO",
                use_rep="X_pca",
                recipe=recipe,
            )
            rows += rows_of(adata, answers="own genes" if interaction else "add up", held_out=held_out)
    report.add("response", rows, case="planted", device="cpu", max_steps=n_steps)


def glioma(folder: Path, n_steps: int) -> None:
    """Five donors, one left out at a time, in PCA."""
    adata = anndata.read_h5ad(folder / "glioma_panobinostat_5donors.h5ad")
    adata.obsm["X_pca"] = principal_components(adata, 30, 0)
    recipe = mt.train.ResponseRecipe.of(max_steps=n_steps) if n_steps else None
    mt.tl.predict_response(adata, use_rep="X_pca", recipe=recipe, **GLIOMA)
    report.add(
        "response",
        rows_of(adata, embedding="PCA", n_cells=adata.n_obs),
        case="glioma",
        device="cpu",
        max_steps=n_steps,
        by_donor=by_unit(adata),
    )


def embedded(folder: Path, n_embedded: int) -> None:
    """The same donors in the demo model's embedding, some cells of each: neighbours, and treated cells told from controls."""
    adata = anndata.read_h5ad(folder / "glioma_panobinostat_5donors.h5ad")
    names = (
        adata.obs.groupby(["donor_id", "condition"], observed=True).sample(n_embedded, random_state=0).index
    )
    few = adata[adata.obs_names.isin(names)].copy()
    model = mt.load_model("demo")
    mt.pp.map_genes(few, model)
    mt.pp.rank_value_encode(few, model)
    mt.tl.embed(few, model)
    mt.tl.separability(few, condition_key="condition", control="ctrl", donor_key="donor_id")
    rows = [rounded(row) for row in mt.get.table(few, "separability").to_dict("records")]
    report.add("response", rows, case="separability", device="cpu", n_embedded=n_embedded)


def mixtures(folder: Path) -> None:
    """Of each donor, r of the best mixture of the others' changes, fitted to half of his or her own answer.

    The mixture knows the answer: no weighting of the other donors' changes can be expected to do better.
    """
    adata = anndata.read_h5ad(folder / "glioma_panobinostat_5donors.h5ad")
    X = log_normalize(adata.X, np.float64).toarray()
    of, treated = adata.obs["donor_id"].to_numpy(str), (adata.obs["condition"] != "ctrl").to_numpy()
    half = np.random.default_rng(0).random(adata.n_obs) < 0.5
    names = sorted(set(of))

    def change(name: str, which: np.ndarray) -> np.ndarray:
        here = (of == name) & which
        return X[here & treated].mean(axis=0) - X[here & ~treated].mean(axis=0)

    whole = {name: change(name, np.ones(len(of), bool)) for name in names}
    rows = []
    for name in names:
        others = np.stack([whole[other] for other in names if other != name], axis=1)
        # With a constant, least squares have the largest correlation.
        design = np.column_stack([np.ones(len(others)), others])
        weights = np.linalg.lstsq(design, change(name, half), rcond=None)[0]
        r = [np.corrcoef(others[:, i], whole[name])[0, 1] for i in range(others.shape[1])]
        rows.append(
            {
                "donor": name,
                "mean_of_others": round(
                    float(np.corrcoef(others.mean(axis=1), change(name, ~half))[0, 1]), 3
                ),
                "best_mixture": round(float(np.corrcoef(design @ weights, change(name, ~half))[0, 1]), 3),
                "own_half": round(float(np.corrcoef(change(name, half), change(name, ~half))[0, 1]), 3),
                "nearest_single_donor": round(float(max(r)), 3),
            }
        )
    report.add("response", rows, case="mixtures", device="cpu")


def interferon(folder: Path, n_steps: int) -> None:
    """Random halves of cells, and types left out."""
    adata = anndata.read_h5ad(folder / "pbmc_ifnb_2000.h5ad")
    level = log_normalize(adata.X)
    scores = {
        name: np.asarray(level[:, adata.var_names.isin(genes)].mean(axis=1)).ravel()
        for name, genes in MARKERS.items()
    }
    table = pd.DataFrame(scores, index=adata.obs_names)
    table = (table - table.mean()) / table.std()
    adata.obs["cell_type"] = pd.Categorical(table.idxmax(axis=1))
    adata = adata[:, np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 40].copy()
    adata.obs["all"] = "all"
    adata.obsm["X_pca"] = principal_components(adata, 30, 0)
    columns = {"perturbation_key": "stim", "control": "ctrl", "use_rep": "X_pca"}
    mt.tl.predict_response(adata, groupby="all", held_out="cells", **columns)
    rows = rows_of(adata, split="random halves of the cells", n_cells=adata.n_obs)
    recipe = mt.train.ResponseRecipe.of(max_steps=n_steps) if n_steps else None
    mt.tl.predict_response(adata, groupby="cell_type", recipe=recipe, **columns)
    rows += rows_of(adata, split="a cell type left out", n_cells=adata.n_obs)
    report.add(
        "response",
        rows,
        case="interferon",
        device="cpu",
        max_steps=n_steps,
        n_genes=adata.n_vars,
        cells_of_type=adata.obs["cell_type"].value_counts().to_dict(),
        by_type=by_unit(adata),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--embedded", type=int, default=150, help="cells a donor and condition")
    options = parser.parse_args()
    if {"glioma", "mixtures", "embedded", "interferon"} & set(options.parts) and options.folder is None:
        parser.error("all parts but plates and planted need --folder")
    mt.settings.progress = False
    warnings.filterwarnings("ignore", message="Taken from the names")
    for part in options.parts:
        began = time.process_time()
        if part == "plates":
            plates(options.seeds)
        elif part == "planted":
            planted(options.steps)
        elif part == "glioma":
            glioma(options.folder, options.steps)
        elif part == "mixtures":
            mixtures(options.folder)
        elif part == "embedded":
            embedded(options.folder, options.embedded)
        else:
            interferon(options.folder, options.steps)
        print(f"{part}: {time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
