"""Do cells of one type from two studies come together, and do labels carry over from one study to the other?

    python benchmarks/mixing.py FOLDER_OF_DATA     # ten minutes on one core

The folder holds three studies of human blood, which do not ship: pbmc_facs_3874.h5ad (types by sorting, Zheng et
al. 2017), onek1k_4types_40donors.h5ad (types by the authors, Yazar et al. 2022) and citeseq_pbmc_500.h5ad (types by
surface protein, read here; Mimitou et al. 2019). Kang's control cells and pbmc3k have no types, so that there nobody
could tell mixing of studies from mixing of types. Each of the other two is joined with the sorted blood on the genes
that both have. Written to `results/mixing.json`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder must not come first on the path: its tokenize.py would pass for Python's own.
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
from collections.abc import Callable, Iterator
from importlib.metadata import version

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import maxtoki_toolkit as mt
from maxtoki_toolkit.tl._embedding_baselines import N_PCS, N_TOP_GENES, untrained_twin

FILES = ("pbmc_facs_3874.h5ad", "onek1k_4types_40donors.h5ad", "citeseq_pbmc_500.h5ad")
N_NEIGHBORS = 15
N_DRAWS = 1000
MIN_GENES = 20
SEED = 0
CD4, CD8 = "CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell"
LEVEL = ["B cell", CD4, CD8, "monocyte", "natural killer cell", "hematopoietic precursor cell"]
SORTED = {
    "CD34+": "hematopoietic precursor cell",
    "CD4+/CD25 T Reg": CD4,
    "CD4+/CD45RA+/CD25- Naive T": CD4,
    "CD4+/CD45RO+ Memory": CD4,
    "CD8+/CD45RA+ Naive Cytotoxic": CD8,
    "CD19+ B": "B cell",
    "CD56+ NK": "natural killer cell",
}
ONEK1K = {
    "cd4nc": CD4,
    "bmem": "memory B cell",
    "monoc": "classical monocyte",
    "mononc": "non-classical monocyte",
}
# Counts in the gap between the two humps of each protein. CD3 and CD56 have none: T cells are read from CD5,
# NK cells are left out.
GATES = {"CD4": 100, "CD8": 100, "CD5": 10, "CD14": 10, "CD19": 40}


def harmony(X: np.ndarray, obs: pd.DataFrame) -> np.ndarray:
    """The embedding with studies brought together."""
    import harmonypy

    return harmonypy.run_harmony(X, obs, "study", random_state=SEED, verbose=False, ncores=1).Z_corr


def lisi(X: np.ndarray, study: np.ndarray) -> np.ndarray:
    """How many studies each cell has around it: 1 its own, 2 both alike (local inverse Simpson index)."""
    import harmonypy

    return harmonypy.compute_lisi(X, pd.DataFrame({"study": study}), ["study"])[:, 0]


def sorted_blood(folder: Path) -> AnnData:
    """The half that no demo model is trained on, this one or the next."""
    from benchmarks.build_demo_model import is_held_out

    adata = anndata.read_h5ad(folder / "pbmc_facs_3874.h5ad")
    adata = adata[is_held_out(adata.obs_names)].copy()
    mt.pp.harmonize_cell_types(adata, "cell_type", level=LEVEL, mapping=SORTED)
    return cells_of(adata, "sorted", adata.obs["cell_ontology"], adata.obs_names)


def onek1k(folder: Path) -> AnnData:
    """40 donors, 1,000 genes."""
    adata = anndata.read_h5ad(folder / "onek1k_4types_40donors.h5ad")
    mt.pp.harmonize_cell_types(adata, "cell_type", level=LEVEL, mapping=ONEK1K)
    return cells_of(adata, "query", adata.obs["cell_ontology"], adata.obs["donor_id"])


def citeseq(folder: Path) -> AnnData:
    """Cells whose proteins agree on one type; no gene is looked at."""
    adata = anndata.read_h5ad(folder / "citeseq_pbmc_500.h5ad")
    cell_type = gated(adata.obsm["protein"])
    cell_type[(adata.obs["hto_call"] == "doublet").to_numpy()] = ""
    return cells_of(adata, "query", cell_type, adata.obs_names)


def gated(protein: pd.DataFrame) -> np.ndarray:
    """Types from counts of surface proteins, "" where they do not agree on one."""
    has = {name: (protein[name] >= least).to_numpy() for name, least in GATES.items()}
    t_cell, other = has["CD5"] & ~has["CD14"] & ~has["CD19"], ~has["CD8"]
    types = {
        CD4: t_cell & has["CD4"] & ~has["CD8"],
        CD8: t_cell & has["CD8"] & ~has["CD4"],
        "B cell": has["CD19"] & ~has["CD14"] & ~has["CD4"] & other,
        "monocyte": has["CD14"] & ~has["CD19"] & other,
    }
    return np.select(list(types.values()), list(types), "").astype(object)


def cells_of(adata: AnnData, study: str, cell_type, unit) -> AnnData:
    """Labelled cells: counts, study, type, and the donor, or the cell where donors are not known."""
    if "ensembl_id" not in adata.var:
        mt.pp.map_genes(adata)
    genes = adata.var["ensembl_id"].astype(str)
    known = (genes.str.startswith("ENSG") & ~genes.duplicated()).to_numpy()
    obs = {"study": study, "cell_type": np.asarray(cell_type, str), "unit": np.asarray(unit, str)}
    cells = AnnData(
        adata.X[:, known].astype(np.float32),
        obs=pd.DataFrame(obs, index=study + " " + adata.obs_names),
        var=pd.DataFrame(index=genes[known]),
    )
    return cells[obs["cell_type"] != ""].copy()


def joined(reference: AnnData, query: AnnData, model) -> AnnData:
    """Both studies on their shared genes, ranked; cells of which the model reads almost nothing left out."""
    adata = anndata.concat([reference, query], join="inner")
    mt.pp.map_genes(adata, model)
    read = adata[:, (adata.var["token_id"] >= 0).to_numpy()].X
    adata = adata[np.asarray((read > 0).sum(axis=1)).ravel() >= MIN_GENES].copy()
    mt.pp.rank_value_encode(adata, model)
    return adata


def log_normalised(adata: AnnData) -> AnnData:
    """Expression of the shared genes."""
    plain = AnnData(adata.X.copy(), obs=adata.obs[["study"]], var=adata.var[[]])
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    return plain


def pca(plain: AnnData) -> np.ndarray:
    """Components of the genes that vary within studies, as in scanpy's tutorials; a small panel is used whole."""
    if plain.n_vars > N_TOP_GENES:
        sc.pp.highly_variable_genes(plain, n_top_genes=N_TOP_GENES, batch_key="study")
        plain = plain[:, plain.var["highly_variable"]].copy()
    sc.pp.pca(plain, n_comps=N_PCS, random_state=SEED)
    return plain.obsm["X_pca"]


def embeddings(adata: AnnData, plain: AnnData, model) -> dict[str, np.ndarray]:
    """What is compared. Cells placed at random show what each score is by chance."""
    mt.tl.embed(adata, model)
    mt.tl.embed(adata, untrained_twin(model, SEED), key_added="untrained")
    found = {"PCA": pca(plain)}
    found["PCA + Harmony"] = harmony(found["PCA"], adata.obs)
    found["MaxToki"] = adata.obsm["X_maxtoki"]
    found["MaxToki + Harmony"] = harmony(found["MaxToki"], adata.obs)
    found["untrained"] = adata.obsm["untrained"]
    found["chance"] = np.random.default_rng(SEED).normal(size=(adata.n_obs, N_PCS))
    return found


def balanced(study: np.ndarray, cell_type: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows with as many cells of each type from one study as from the other.

    Else a type that is rarer in one study could not mix without giving up what it is.
    """
    rows = []
    for name in np.unique(cell_type):
        of = [np.flatnonzero((cell_type == name) & (study == one)) for one in np.unique(study)]
        rows += [rng.permutation(some)[: min(map(len, of))] for some in of]
    return np.sort(np.concatenate(rows))


def draws(unit: np.ndarray, study: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of each bootstrap draw: units drawn anew within their study."""
    studies = []
    for one in np.unique(study):
        within = np.flatnonzero(study == one)
        studies.append([within[unit[within] == name] for name in np.unique(unit[within])])
    for _ in range(N_DRAWS):
        yield np.concatenate([units[i] for units in studies for i in rng.integers(0, len(units), len(units))])


def measured(name: str, score: Callable[[np.ndarray], float], every: np.ndarray, drawn: list) -> dict:
    """A score on all rows, with its 95% interval over the draws."""
    low, high = np.quantile([score(rows) for rows in drawn], [0.025, 0.975])
    values = {name: score(every), f"{name}_low": low, f"{name}_high": high}
    return {key: round(float(value), 4) for key, value in values.items()}


def type_mean(values: np.ndarray, code: np.ndarray) -> float:
    """Mean over types of their means."""
    size = np.bincount(code)
    return (np.bincount(code, values)[size > 0] / size[size > 0]).mean()


def other_study(X: np.ndarray, study: np.ndarray) -> np.ndarray:
    """Share of each cell's neighbours that are of the other study, over what chance would give."""
    near = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(X).kneighbors(return_distance=False)
    size = pd.Series(study).value_counts()[study].to_numpy()
    return (study[near] != study[:, None]).mean(axis=1) * (len(study) - 1) / (len(study) - size)


def same_type_across(X: np.ndarray, study: np.ndarray, cell_type: np.ndarray) -> np.ndarray:
    """Share of each cell's nearest neighbours in the other study that have its type."""
    share = np.empty(len(study))
    for one in np.unique(study):
        here, there = study == one, study != one
        near = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(X[there]).kneighbors(X[here])[1]
        share[here] = (cell_type[there][near] == cell_type[here][:, None]).mean(axis=1)
    return share


def mixing(X: np.ndarray, obs: pd.DataFrame) -> dict:
    """How well studies mix, and types do not: over cells of types that both studies have as many of."""
    rng = np.random.default_rng(SEED)
    study, cell_type, unit = (obs[name].to_numpy(dtype=str) for name in ("study", "cell_type", "unit"))
    rows = balanced(study, cell_type, rng)
    X, study, cell_type, unit = X[rows], study[rows], cell_type[rows], unit[rows]
    code = np.unique(cell_type, return_inverse=True)[1]
    drawn, every = list(draws(unit, study, rng)), np.arange(len(rows))
    around, other = lisi(X, study), other_study(X, study)
    same = same_type_across(X, study, cell_type)
    found = {"n_mixed": len(rows)}
    found |= measured("lisi", lambda rows: np.median(around[rows]), every, drawn)
    found["lisi_chance"] = round(float(np.median(lisi(X, rng.permutation(study)))), 4)
    found |= measured("other_study", lambda rows: other[rows].mean(), every, drawn)
    found |= measured("same_type", lambda rows: type_mean(same[rows], code[rows]), every, drawn)
    return found


def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 of the true types; whatever else is predicted is wrong."""
    n = max(true.max(), predicted.max()) + 1
    hit = np.bincount(true[true == predicted], minlength=n)
    size, called = np.bincount(true, minlength=n), np.bincount(predicted, minlength=n)
    there = size > 0
    return (2 * hit[there] / (size[there] + called[there])).mean()


CLASSIFIERS = {
    "knn": lambda: KNeighborsClassifier(N_NEIGHBORS),
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
}


def transfer(X, obs: pd.DataFrame, classifiers: dict[str, Callable]) -> dict:
    """Types of the query told by classifiers that learned from all sorted cells."""
    reference = (obs["study"] == "sorted").to_numpy()
    code = np.unique(obs["cell_type"].to_numpy(dtype=str), return_inverse=True)[1]
    true, unit = code[~reference], obs["unit"].to_numpy(dtype=str)[~reference]
    drawn = list(draws(unit, np.zeros(len(true)), np.random.default_rng(SEED)))
    every = np.arange(len(true))
    found = {}
    for name, make in classifiers.items():
        guess = make().fit(X[reference], code[reference]).predict(X[~reference])
        found |= measured(
            f"{name}_f1", lambda rows, guess=guess: macro_f1(true[rows], guess[rows]), every, drawn
        )
        right = guess == true
        found |= measured(f"{name}_accuracy", lambda rows, right=right: right[rows].mean(), every, drawn)
    return found


def majority(obs: pd.DataFrame) -> dict:
    """The commonest type of the sorted blood, given to every cell."""
    from sklearn.dummy import DummyClassifier

    return transfer(np.zeros((len(obs), 1)), obs, dict.fromkeys(CLASSIFIERS, DummyClassifier))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        import harmonypy  # noqa: F401
    except ImportError:
        raise SystemExit("This benchmark needs harmonypy: pip install -c constraints.txt harmonypy") from None
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise SystemExit(
            f"Did not find {', '.join(missing)} in {folder}. The data do not ship with this project."
        )
    from benchmarks import report

    mt.settings.progress = False
    model = mt.load_model("demo", device="cpu")
    reference = sorted_blood(folder)
    rows, cells = [], {}
    for name, read in {"OneK1K": onek1k, "CITE-seq": citeseq}.items():
        adata = joined(reference, read(folder), model)
        plain = log_normalised(adata)
        counts = pd.crosstab(adata.obs["cell_type"], adata.obs["study"])
        cells[name] = {"genes": adata.n_vars, "types": counts.to_dict("index")}
        query = adata.obs.loc[adata.obs["study"] == "query", "unit"]
        cells[name]["intervals"] = f"over {query.nunique()} " + ("donors" if read is onek1k else "cells")
        for embedding, X in embeddings(adata, plain, model).items():
            found = mixing(X, adata.obs) | transfer(X, adata.obs, CLASSIFIERS)
            rows.append({"query": name, "embedding": embedding} | found)
        logistic = {"logistic": lambda: LogisticRegression(max_iter=2000)}
        found = transfer(plain.X, adata.obs, logistic)
        rows.append({"query": name, "embedding": "expression"} | found)
        rows.append({"query": name, "embedding": "majority"} | majority(adata.obs))
    pd.set_option("display.width", 220, "display.max_columns", 40)
    report.write(
        "mixing",
        rows,
        cells=cells,
        n_neighbors=N_NEIGHBORS,
        n_draws=N_DRAWS,
        min_genes=MIN_GENES,
        seed=SEED,
        model_sha256=model.sha256,
        scanpy=version("scanpy"),
        harmonypy=version("harmonypy"),
    )


if __name__ == "__main__":
    main()
