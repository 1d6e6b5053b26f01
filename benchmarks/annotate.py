"""Are cells named rightly, and cells of no label of the reference found? Beside PCA, the commonest label and chance.

    python benchmarks/annotate.py planted tuned heart speed            # a quarter of an hour on one quiet core
    python benchmarks/annotate.py blood brain --folder FOLDER_OF_DATA  # as long; the data do not ship

- `planted`: 160 labels that overlap, of simulated cells whose expression follows the Cell Ontology
  (`planted_types.py`): 4,000 cells of 20 donors; then cells of other donors, of known terms, of terms beside them, and of
  other branches.
- `blood`: the half of the sorted blood (pbmc_facs_3874.h5ad, Zheng et al. 2017) that nothing is trained on, by its ten
  sorted types; and labels carried from it to a CITE-seq study (citeseq_pbmc_500.h5ad, Mimitou et al. 2019), whose types
  are read from surface proteins by the gates of `mixing.py`, on the genes that both have.
- `heart`: the nuclei that ship, of one donor; the demo model has read most of them, without labels.
- `brain`: darmanis_brain_466.h5ad (Darmanis et al. 2015), donors held out.
- `speed`: cells named by a reference of 2,000, in a process that may use two cores.

"5 folds": each cell is named by what the other folds taught. "a fifth held out": fine-tuning is done once, the other rows
beside it are of the same cells. Written to `results/annotate.json` by part.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder must not come first on the path: its tokenize.py would pass for Python's own.
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.neighbors import NearestNeighbors

import maxtoki_toolkit as mt
from benchmarks import mixing, report
from benchmarks.build_demo_model import is_held_out
from benchmarks.planted_types import plant
from maxtoki_toolkit._ontology import cell_ontology, find_term, kinds_above
from maxtoki_toolkit.stats.annotation import Calibration, Regions, call, cross_fit, fit_probe, folds_of

PARTS = ("planted", "tuned", "blood", "heart", "brain", "speed")
STEPS = {"tuned": 300, "blood": 150, "heart": 100, "brain": 100}
BATCH = 16
# At a tenth of it the demo model hardly leaves the probe at which it begins.
LEARNING_RATE = 3e-3
METHODS = ("probe", "knn")
ALPHA, SEED = 0.05, 0
SORTED = {
    "CD34+": "hematopoietic precursor cell",
    "CD4+/CD25 T Reg": "CD4-positive, CD25-positive, alpha-beta regulatory T cell",
    "CD4+/CD45RA+/CD25- Naive T": "naive thymus-derived CD4-positive, alpha-beta T cell",
    "CD4+/CD45RO+ Memory": "CD4-positive, alpha-beta memory T cell",
    "CD8+/CD45RA+ Naive Cytotoxic": "naive thymus-derived CD8-positive, alpha-beta T cell",
    "CD19+ B": "B cell",
    "CD56+ NK": "natural killer cell",
}
KEPT = ["predictor", "n_cells", "n_units", "unit", "calibration_error", "false_alarms", "p_value", "q_value"]
KEPT += ["n_in_ontology", "n_unseen", "unseen_found", "sure_named", "sure_wrong", "sure_steps"]
KEPT += [
    f"{name}{end}"
    for name in ("macro_f1", "accuracy", "ontology_distance", "difference")
    for end in ("", "_low", "_high")
]


def rows_of(scores: pd.DataFrame, protocol: str, **more) -> list[dict]:
    """Rows of a table of scores, rounded, without what is not known."""
    found = []
    for row in scores[["column", *KEPT]].to_dict("records"):
        known = {key: value for key, value in row.items() if isinstance(value, str) or np.isfinite(value)}
        rounded = {
            key: round(value, 4) if isinstance(value, float) else value for key, value in known.items()
        }
        found.append({"protocol": protocol, **more} | rounded)
    return found


def encoded(adata: AnnData, model) -> AnnData:
    """The cells, ranked and embedded."""
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.tl.embed(adata, model)
    return adata


def judged(query: AnnData, reference: AnnData, model, groupby, donor_key) -> list[dict]:
    """Scores of all methods on the reference; labels of the query are written to it by method."""
    rows = []
    # Without counts the baselines are not computed again.
    bare = AnnData(
        None, reference.obs, reference.var, uns=reference.uns, obsm=reference.obsm, layers=reference.layers
    )
    for method in METHODS:
        mt.tl.annotate(
            query,
            model,
            reference=reference if method == METHODS[0] else bare,
            groupby=groupby,
            donor_key=donor_key,
            method=method,
            alpha=ALPHA,
            rng=SEED,
            key_added=method,
        )
        scores = mt.get.table(query, method)
        # Baselines are the same for both.
        rows += rows_of(scores if method == METHODS[0] else scores[scores["predictor"] == method], "5 folds")
    return rows


def tuned_rows(query: AnnData, reference: AnnData, model, part: str, groupby, donor_key) -> list[dict]:
    """Scores of fine-tuning on a fifth of the reference; labels of the query are written to it."""
    if part not in STEPS:
        return []
    recipe = mt.train.ClassifierRecipe.of(
        max_steps=STEPS[part],
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        eval_every=STEPS[part],
        save_every=STEPS[part],
        n_held_out=BATCH,
        seed=SEED,
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        classifier = mt.train.classify(
            reference, model, folder, groupby=groupby, donor_key=donor_key, alpha=ALPHA, recipe=recipe
        )
        seconds = time.perf_counter() - start
        mt.tl.annotate(query, model, classifier=classifier, key_added="fine-tuned")
    return rows_of(classifier.tables["scores"], "a fifth held out", seconds=round(seconds))


def simulated(model) -> tuple[AnnData, AnnData]:
    """Cells with many labels that overlap, and cells of these terms and of others."""
    found = plant(pd.Series(model.vocab.medians), n_query=900, seed=SEED)
    for cells in found:
        mt.pp.map_genes(cells, model)
        mt.pp.rank_value_encode(cells, model)
    return found


def planted(model, folder) -> dict:
    """The reference by its folds, and which cells of other donors are unknown."""
    reference, query = simulated(model)
    for cells in (reference, query):
        mt.tl.embed(cells, model)
    rows = judged(query, reference, model, "cell_type", "donor_id")
    found = {name: (query.obs[f"{name}_cell_type"] == "unknown").to_numpy() for name in METHODS}
    found["PCA logistic"] = unknown_by_pca(reference, query)
    labels, kind = (
        cells.obs[key].to_numpy(str) for cells, key in ((reference, "cell_type"), (query, "kind"))
    )
    return {
        "rows": rows,
        "unknown": unknown_rows(query, found),
        "sure": sure_rows(query, METHODS),
        "n_labels": len(np.unique(labels)),
        "labelled_as_made": round(float((labels == reference.obs["truth"].to_numpy(str)).mean()), 4),
        "n_query": {of: int((kind == of).sum()) for of in np.unique(kind)},
    }


def tuned(model, folder) -> dict:
    """The same by fine-tuning."""
    reference, query = simulated(model)
    rows = tuned_rows(query, reference, model, "tuned", "cell_type", "donor_id")
    found = {"fine-tuned": (query.obs["fine-tuned_cell_type"] == "unknown").to_numpy()}
    return {
        "rows": rows,
        "unknown": unknown_rows(query, found),
        "sure": sure_rows(query, ["fine-tuned"]),
    }


def unknown_rows(query: AnnData, found: dict[str, np.ndarray]) -> list[dict]:
    """Share of the cells of each kind that are called unknown."""
    kind = query.obs["kind"].to_numpy(str)
    return [
        {"predictor": name}
        | {of: round(float(is_unknown[kind == of].mean()), 4) for of in ("known", "near", "far")}
        for name, is_unknown in found.items()
    ]


def sure_rows(query: AnnData, names: Sequence[str]) -> list[dict]:
    """Of cells of each kind, the share whose type is the likeliest label or a kind of it, and the same of what cells are sure of."""
    truth, kind = (query.obs[key].to_numpy(str) for key in ("truth", "kind"))
    above = {name: set(cell_ontology()["name"][list(kinds_above(find_term(name)))]) for name in set(truth)}
    rows = []
    for name in names:
        row = {"predictor": name}
        for said in ("best", "sure"):
            called = query.obs[f"{name}_cell_type_{said}"].to_numpy(str)
            right = np.array([call in above[true] for call, true in zip(called, truth, strict=True)])
            row |= {
                f"{said}_{of}": round(float(right[kind == of].mean()), 4) for of in ("known", "near", "far")
            }
        row["nothing_known"] = round(float((called == "unknown")[kind == "known"].mean()), 4)
        row["same_known"] = round(
            float((called == query.obs[f"{name}_cell_type_best"].to_numpy(str))[kind == "known"].mean()), 4
        )
        rows.append(row)
    return rows


def unknown_by_pca(reference: AnnData, query: AnnData) -> np.ndarray:
    """Unknown cells by the same rule, on components of expression in place of the embedding."""
    both = anndata.concat({"reference": reference, "query": query}, label="study", join="inner")
    X = mixing.pca(mixing.log_normalised(both))
    X, Y = X[: reference.n_obs], X[reference.n_obs :]
    names, code = np.unique(reference.obs["cell_type"].to_numpy(str), return_inverse=True)
    fold = folds_of(code, reference.obs["donor_id"].to_numpy(str), 5, SEED)
    logits, distance = cross_fit(X, code, fold, fit_probe, len(names))
    could = np.isfinite(logits[np.arange(len(code)), code])
    calibration = Calibration.fit(logits[could], code[could], distance[could], ALPHA)
    return call(fit_probe(X, code, len(names))(Y), Regions.fit(X, code).distance(Y), calibration).unknown


def blood(model, folder: Path) -> dict:
    """Sorted types, and their labels carried to another study."""
    adata = anndata.read_h5ad(folder / "pbmc_facs_3874.h5ad")
    adata = adata[is_held_out(adata.obs_names)].copy()
    mt.pp.harmonize_cell_types(adata, "cell_type", level=mixing.LEVEL, mapping=SORTED)
    reference = mixing.cells_of(adata, "sorted", adata.obs["cell_ontology"], adata.obs_names)
    reference.obs["sorted_type"] = adata.obs["cell_type"].astype(str).to_numpy()
    query = mixing.citeseq(folder)
    both = mixing.joined(reference, query, model)
    is_reference = (both.obs["study"] == "sorted").to_numpy()
    X = mixing.pca(mixing.log_normalised(both))
    sorted_cells, cells = both[is_reference].copy(), both[~is_reference].copy()
    kept = reference.obs.loc[sorted_cells.obs_names, "sorted_type"].to_numpy()
    sorted_cells.obs["sorted_type"] = kept
    # What the sorted types mean in the ontology.
    mt.pp.harmonize_cell_types(sorted_cells, "sorted_type", mapping=SORTED, key_added="sorted_ontology")
    for part in (sorted_cells, cells):
        encoded(part, model)
    columns = ["sorted_type", "cell_type"]
    rows = judged(cells, sorted_cells, model, columns, None)
    rows += tuned_rows(cells, sorted_cells, model, "blood", columns, None)
    truth = cells.obs["cell_type"].to_numpy(str)
    names = [*METHODS, *(["fine-tuned"] if "blood" in STEPS else [])]
    called = {name: cells.obs[f"{name}_cell_type_best"].to_numpy(str) for name in names}
    labels, code = np.unique(sorted_cells.obs["cell_type"].to_numpy(str), return_inverse=True)
    called["PCA logistic"] = labels[
        fit_probe(X[is_reference], code, len(labels))(X[~is_reference]).argmax(axis=1)
    ]
    called["majority"] = np.full(len(truth), labels[np.bincount(code).argmax()])
    called["permuted"] = np.random.default_rng(SEED).permutation(called["probe"])
    across = [across_studies(truth, name, found) for name, found in called.items()]
    for row in across:
        if (column := f"{row['predictor']}_cell_type") in cells.obs:
            row["unknown"] = round(float((cells.obs[column] == "unknown").mean()), 4)
    return {
        "rows": rows,
        "across": across,
        "n_genes": both.n_vars,
        "query_types": pd.Series(truth).value_counts().to_dict(),
        "reference_types": sorted_cells.obs["sorted_type"].value_counts().to_dict(),
    }


def across_studies(truth: np.ndarray, predictor: str, called: np.ndarray) -> dict:
    """Macro F1 and accuracy with bootstrap intervals over cells; of "permuted" calls a central 95%."""
    code = np.unique(np.concatenate([truth, called]), return_inverse=True)[1]
    true, found = code[: len(truth)], code[len(truth) :]
    rng = np.random.default_rng(SEED)
    if predictor == "permuted":
        drawn = [mixing.macro_f1(true, rng.permutation(found)) for _ in range(mixing.N_DRAWS)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        values = {"macro_f1": np.mean(drawn), "macro_f1_low": low, "macro_f1_high": high}
        return {"predictor": predictor, "n_cells": len(truth)} | {
            k: round(float(v), 4) for k, v in values.items()
        }
    drawn = [rng.integers(0, len(true), len(true)) for _ in range(mixing.N_DRAWS)]
    values = mixing.measured(
        "macro_f1", lambda rows: mixing.macro_f1(true[rows], found[rows]), np.arange(len(true)), drawn
    )
    values |= mixing.measured(
        "accuracy", lambda rows: (true[rows] == found[rows]).mean(), np.arange(len(true)), drawn
    )
    return {"predictor": predictor, "n_cells": len(truth)} | values


def heart(model, folder) -> dict:
    """Nuclei of one donor: cells are the units."""
    adata = encoded(mt.datasets.load("heart_nuclei"), model)
    query = adata.copy()
    rows = judged(query, adata, model, "cell_type", None)
    return {"rows": rows + tuned_rows(query, adata, model, "heart", "cell_type", None)}


def brain(model, folder: Path) -> dict:
    """Donors held out; some types are of fetal donors alone."""
    adata = anndata.read_h5ad(folder / "darmanis_brain_466.h5ad")
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    encoded(adata, model)
    query = adata.copy()
    rows = judged(query, adata, model, "cell_type", "donor_id")
    return {"rows": rows + tuned_rows(query, adata, model, "brain", "cell_type", "donor_id")}


def speed(model, folder) -> dict:
    """Seconds for 5,000 and 20,000 cells, by step."""
    medians = pd.Series(model.vocab.medians)
    reference = plant(medians, n_labels=20, n_cells=2000, n_query=3, seed=SEED).reference
    encoded(reference, model)
    rows = []
    for n_cells in (5000, 20_000):
        # The same 5,000 again and again: what is computed of a cell does not depend on the others.
        some = plant(medians, n_labels=20, n_cells=5000, n_query=3, seed=SEED + 1).reference
        query = anndata.concat([some] * (n_cells // 5000), merge="same")
        query.obs_names = [f"cell_{i}" for i in range(query.n_obs)]
        seconds = {"n_cells": n_cells}
        start = time.perf_counter()
        mt.pp.map_genes(query, model)
        mt.pp.rank_value_encode(query, model)
        seconds["rank"] = time.perf_counter() - start
        start = time.perf_counter()
        mt.tl.embed(query, model)
        seconds["embed"] = time.perf_counter() - start
        for method in METHODS:
            start = time.perf_counter()
            mt.tl.annotate(
                query, model, reference=reference, groupby="cell_type", donor_key="donor_id", method=method
            )
            seconds[f"annotate_{method}"] = time.perf_counter() - start
        nearest = NearestNeighbors(n_neighbors=15).fit(reference.obsm["X_maxtoki"])
        start = time.perf_counter()
        nearest.kneighbors(query.obsm["X_maxtoki"])
        seconds["neighbors_alone"] = time.perf_counter() - start
        rows.append(
            {key: round(value, 2) if isinstance(value, float) else value for key, value in seconds.items()}
        )
    return {"rows": rows, "n_reference": reference.n_obs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--frozen", action="store_true", help="leave fine-tuning out")
    arguments = parser.parse_args()
    if arguments.folder is None and {"blood", "brain"} & set(arguments.parts):
        raise SystemExit("These data do not ship with the project: name their folder with --folder.")
    if arguments.frozen:
        STEPS.clear()
    mt.settings.progress = False
    warnings.simplefilter("ignore", UserWarning)
    pd.set_option("display.width", 250, "display.max_columns", 40)
    model = mt.load_model("demo", device="cpu")
    for part in arguments.parts:
        start = time.perf_counter()
        found = globals()[part](model, arguments.folder)
        facts = {key: value for key, value in found.items() if key != "rows"}
        report.add(
            "annotate",
            found["rows"],
            case=part,
            device="cpu",
            seed=SEED,
            alpha=ALPHA,
            steps=STEPS.get(part),
            batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            model_sha256=model.sha256,
            total_seconds=round(time.perf_counter() - start),
            **facts,
        )
        print(part, round(time.perf_counter() - start), "s", facts, flush=True)


if __name__ == "__main__":
    main()
