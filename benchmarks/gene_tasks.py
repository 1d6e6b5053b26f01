"""Gene tasks of the demo model beside what simple measurements of the genes give.

    python benchmarks/gene_tasks.py essential broad factors context panel hallmarks --folder FOLDER_OF_DATA

- `essential`: core essential genes (CEGv2) against non-essential ones (NEGv1), by embeddings in cells, alone and of the
  table. `broad`: genes that more than 70% of DepMap's lines depend on against fewer than 5%. `factors`: transcription
  factors (Lambert et al. 2018) against other genes that DepMap tested. Expression, detection and loadings are those of
  200 heart nuclei.
- `context`: on which genes each of four lung lines depends, one line left out at a time.
- `panel`: the same on 200 simulated lines, whose dependencies follow the programme that is on in a line; and shuffled.
- `hallmarks`: the 50 hallmark sets by a perceptron in the protocol of Tahoe-x1's benchmark: 70% of the genes to train, 5%
  to stop early, 5% to choose among settings, 20% to score, three seeds; micro average precision. `--grid full` has all
  24 settings (for a GPU), `small` three of them.

None of the tables of labels ships: `--folder` is where they are. `--lengths` takes a table of gene lengths (Gene_ID,
Length), which are a baseline then. Each part is written to `results/gene_tasks.json` under its name; the others stay.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder must not come first on the path: its tokenize.py would pass for Python's own.
    sys.path[0] = str(Path(__file__).parents[1])

import argparse
import copy

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn import functional as F

import maxtoki_toolkit as mt
from benchmarks import report
from maxtoki_toolkit.tl._gene_labels import label_matrix
from maxtoki_toolkit.tl._gene_vectors import gene_predictors

PARTS = ("essential", "broad", "factors", "context", "panel", "hallmarks")
HEART, DEPMAP, LINES = "heart_nuclei_700.h5ad", "depmap_crispr_22q1_classes.h5ad", "lung_lines5_celseq2.h5ad"
HALLMARKS = "h.all.v7.0.symbols.gmt"
CONTEXTS = {
    "essential": ("cells", "alone", "table"),
    "broad": ("alone", "table"),
    "factors": ("alone", "table"),
}
N_NUCLEI, N_CELLS, N_WHOLE, N_EACH, N_SHUFFLES = 200, 60, 12, 1000, 20
GRIDS = {
    "full": [(w, n, d) for w in (64, 512, 1024, 2048) for n in (1, 2) for d in (0.0, 0.1, 0.5)],
    "small": [(64, 1, 0.1), (512, 1, 0.1), (512, 1, 0.5)],
}
SEEDS, PATIENCE, BATCH, RATE, EPOCHS = (0, 1, 2), 15, 256, 2e-3, 200


def rounded(table: pd.DataFrame) -> list[dict]:
    """Rows with four decimals; what is not known is null."""
    rows = table.round(4).to_dict("records")
    return [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rows]


def heart(folder: Path, model: mt.models.MaxTokiModel, lengths: Path | None) -> AnnData:
    """Some nuclei, with all genes."""
    adata = anndata.read_h5ad(folder / HEART)
    adata = adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:N_NUCLEI])].copy()
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    if lengths is not None:
        table = pd.read_csv(lengths).drop_duplicates("Gene_ID").set_index("Gene_ID")
        adata.var["gene_length"] = table["Length"].reindex(adata.var["ensembl_id"].astype(str)).to_numpy()
    return adata


def depmap(folder: Path) -> pd.DataFrame:
    """Genes x lines: 1 for a dependency (classes 2 and 3), 0 for none, NaN where it was not measured."""
    adata = anndata.read_h5ad(folder / DEPMAP)
    classes = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
    values = np.where(classes.T == 0, np.nan, (classes.T >= 2).astype(float))
    table = pd.DataFrame(values, index=adata.var["ensembl_id"].astype(str), columns=adata.obs_names)
    return table[~table.index.duplicated()]


def labels_of(part: str, folder: Path, adata: AnnData) -> pd.DataFrame:
    """Genes and their label; at most 1,000 of each kind, drawn, so that it takes minutes."""
    if part == "essential":
        names = {1: "essential_cegv2.csv", 0: "nonessential_negv1.csv"}
        parts = [pd.read_csv(folder / name).assign(label=label) for label, name in names.items()]
        table = pd.concat(parts).rename(columns={"ensembl_id": "gene"})[["gene", "label"]].dropna()
        return table.drop_duplicates("gene", keep=False)
    dependency = depmap(folder)
    share, missing = dependency.mean(axis=1), dependency.isna().mean(axis=1)
    if part == "broad":
        kind = pd.Series(np.where(share > 0.7, 1.0, np.where(share < 0.05, 0.0, np.nan)), share.index)
        kind = kind[missing < 0.1].dropna()
    else:
        matrix, _, _ = label_matrix(adata, "TF")
        factor = pd.Series(matrix[:, 0], adata.var["ensembl_id"].astype(str))
        kind = factor[~factor.index.duplicated()].reindex(share.index).dropna()
    there = set(adata.var["ensembl_id"][adata.var["token_id"] >= 0])
    kind = kind[kind.index.isin(there)].sort_index()
    kind = kind.sample(frac=1, random_state=0).groupby(kind).head(N_EACH)
    return pd.DataFrame({"gene": kind.index, "label": kind.to_numpy()})


def task(part: str, folder: Path, lengths: Path | None) -> None:
    """One binary label of genes."""
    model = mt.load_model("demo", device="cpu")
    adata = heart(folder, model, lengths)
    labels = labels_of(part, folder, adata)
    rows = []
    for context in CONTEXTS[part]:
        mt.tl.embed_genes(adata, model, context=context, whole_cells=context == "cells")
        mt.tl.gene_task(adata, model, labels=labels, n_permutations=N_SHUFFLES)
        rows.append(mt.get.table(adata, "gene_task").drop(columns="gene_set").assign(context=context))
    about = f"{N_NUCLEI} nuclei, at most {N_EACH} genes of each kind, {N_SHUFFLES} shuffles"
    facts = {"cells": about, "lengths": "none" if lengths is None else lengths.name}
    report.add("gene_tasks", rounded(pd.concat(rows)), case=part, device="cpu", **facts)


def context(folder: Path, *, whole: bool) -> None:
    """Four lung lines, one left out at a time."""
    model = mt.load_model("demo", device="cpu")
    adata = anndata.read_h5ad(folder / LINES)
    line = adata.obs["depmap_line"].astype(str)
    order = adata.obs.sample(frac=1, random_state=0).index
    order = order[(line[order] != "").to_numpy()]
    kept = line[order].groupby(line[order]).head(N_WHOLE if whole else N_CELLS).index
    adata = adata[adata.obs_names.isin(kept)].copy()
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.tl.embed_genes(adata, model, groupby="depmap_line", whole_cells=whole)
    dependency, rows = depmap(folder), []
    cells = {str(k): int(v) for k, v in adata.obs["depmap_line"].value_counts().items() if v}
    facts = {"cells": cells, "whole_cells": whole, "unit": "lines; too few for an interval"}
    # The highest ranked genes alone are too few of those that up to half of the lines need.
    for most in (1.0, 0.5) if whole else (1.0,):
        settings = {"min_share": 0.1, "max_share": most, "n_permutations": N_SHUFFLES}
        mt.tl.nominate_targets(adata, model, dependency=dependency, **settings)
        rows.append(mt.get.table(adata, "nominate_targets").assign(max_share=most))
        report.add("gene_tasks", rounded(pd.concat(rows)), case="context", device="cpu", **facts)


def simulated_panel(
    model: mt.models.MaxTokiModel, *, n_lines: int = 200, n_genes: int = 60, n_cells: int = 2, seed: int = 0
) -> tuple[AnnData, pd.DataFrame]:
    """Cells of lines in which some of eight programmes are on, and the genes that each line depends on.

    A line depends on a tenth to a half of the genes of a programme that is on in it, and on few of the others.
    """
    rng = np.random.default_rng(seed)
    genes = np.sort(rng.choice(model.vocab.genes, n_genes, replace=False))
    programme = rng.integers(0, 8, n_genes)
    on = rng.random((n_lines, 8)) < 0.35
    level = rng.gamma(1.0, 3.0, n_genes)
    rate = level * np.where(on[:, programme], 4.0, 1.0) * rng.lognormal(0, 0.3, (n_lines, n_genes))
    counts = rng.poisson(np.repeat(rate, n_cells, axis=0)).astype(np.float32)
    line = np.repeat([f"line_{i:03d}" for i in range(n_lines)], n_cells)
    obs = pd.DataFrame({"line": line}, index=[f"cell_{i}" for i in range(len(line))])
    adata = AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes))
    needed = rng.random(n_genes) < 0.7
    odds = np.where(on[:, programme], 0.8, 0.08) * needed + 0.05 * ~needed
    depends = (rng.random((n_lines, n_genes)) < odds).astype(float)
    return adata, pd.DataFrame(depends.T, index=genes, columns=pd.unique(line))


def panel() -> None:
    """Dependencies that are known, and the same shuffled within genes."""
    model = mt.load_model("demo", device="cpu")
    adata, dependency = simulated_panel(model)
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.tl.embed_genes(adata, model, groupby="line", whole_cells=True)
    shuffled = np.random.default_rng(1).permuted(dependency.to_numpy(), axis=1)
    rows = []
    facts = {"n_lines": 200, "n_genes": 60, "cells_a_line": 2, "unit": "lines, five folds"}
    for name, table in (
        ("planted", dependency),
        ("shuffled", pd.DataFrame(shuffled, dependency.index, dependency.columns)),
    ):
        settings = {"min_share": 0.05, "max_share": 0.6, "n_top": 10, "n_permutations": 9}
        mt.tl.nominate_targets(adata, model, dependency=table, **settings)
        rows.append(mt.get.table(adata, "nominate_targets").assign(labels=name))
        report.add("gene_tasks", rounded(pd.concat(rows)), case="panel", device="cpu", **facts)


def perceptron(n_in: int, n_out: int, width: int, n_layers: int, dropout: float) -> nn.Sequential:
    """Hidden layers with ReLU and dropout."""
    layers, size = [], n_in
    for _ in range(n_layers):
        layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, n_out))


def fit(X, y, parts: dict[str, np.ndarray], setting: tuple, seed: int) -> tuple[float, float]:
    """Micro average precision on the genes to choose by, and on those to score."""
    torch.manual_seed(seed)
    network = perceptron(X.shape[1], y.shape[1], *setting).to(X.device)
    steps = torch.optim.Adam(network.parameters(), lr=RATE)
    best, state, waited = np.inf, None, 0
    rows = torch.from_numpy(parts["train"]).to(X.device)
    for _ in range(EPOCHS):
        network.train()
        for some in rows[torch.randperm(len(rows), device=X.device)].split(BATCH):
            steps.zero_grad()
            F.binary_cross_entropy_with_logits(network(X[some]), y[some]).backward()
            steps.step()
        network.eval()
        with torch.inference_mode():
            stop = parts["stop"]
            loss = F.binary_cross_entropy_with_logits(network(X[stop]), y[stop]).item()
        if loss < best:
            best, state, waited = loss, copy.deepcopy(network.state_dict()), 0
        elif (waited := waited + 1) >= PATIENCE:
            break
    network.load_state_dict(state)
    with torch.inference_mode():
        areas = [
            average_precision_score(
                y[parts[p]].cpu().numpy().ravel(), network(X[parts[p]]).cpu().numpy().ravel()
            )
            for p in ("choose", "score")
        ]
    return areas[0], areas[1]


def hallmarks(folder: Path, lengths: Path | None, grid: str, device: str) -> None:
    """50 sets at once, in the protocol of Tahoe-x1's benchmark."""
    model = mt.load_model("demo", device="cpu")
    adata = heart(folder, model, lengths)
    matrix, names, _ = label_matrix(adata, str(folder / HALLMARKS))
    mt.tl.embed_genes(adata, model, context="table")
    known, _ = gene_predictors(adata, model, "maxtoki", 0)
    known = {name: known[name] for name in ("MaxToki", "untrained", "PCA loadings", "all baselines")} | {
        "expression and detection": np.hstack([known["expression"], known["detection"]])
    }
    usable = (matrix > 0).any(axis=1) & np.isfinite(known["MaxToki"]).all(axis=1)
    rows = np.flatnonzero(usable)
    labels = torch.tensor(matrix[rows], dtype=torch.float32, device=device)
    scores: dict[str, list[float]] = {}
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(rows))
        ends = (np.cumsum([0.7, 0.05, 0.05]) * len(rows)).astype(int)
        parts = dict(zip(("train", "stop", "choose", "score"), np.split(order, ends), strict=True))
        shuffled = labels[np.random.default_rng(100 + seed).permutation(len(rows))]
        for name, vectors in [*known.items(), ("shuffled labels", known["MaxToki"])]:
            X = vectors[rows]
            X = (X - X[parts["train"]].mean(axis=0)) / np.maximum(X[parts["train"]].std(axis=0), 1e-9)
            X = torch.tensor(X, dtype=torch.float32, device=device)
            y = shuffled if name == "shuffled labels" else labels
            found = [fit(X, y, parts, setting, seed) for setting in GRIDS[grid]]
            scores.setdefault(name, []).append(max(found)[1])
            print(seed, name, round(scores[name][-1], 4), flush=True)
        table = [
            {"embedding": name, "micro_auprc": np.mean(values), "low": min(values), "high": max(values)}
            for name, values in scores.items()
        ]
        facts = {"grid": grid, "settings": len(GRIDS[grid]), "seeds": seed + 1, "n_genes": len(rows)}
        facts |= {
            "n_sets": len(names),
            "prevalence": round(float(labels.mean()), 4),
            "interval": "range over seeds",
        }
        report.add("gene_tasks", rounded(pd.DataFrame(table)), case="hallmarks", device=device, **facts)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--grid", choices=GRIDS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--whole", action="store_true", help="read lines' cells whole, in parts (an hour)")
    arguments = parser.parse_args()
    if arguments.folder is None and set(arguments.parts) - {"panel"}:
        parser.error("the tables of labels do not ship: give their folder with --folder")
    for part in arguments.parts:
        if part == "panel":
            panel()
        elif part == "context":
            context(arguments.folder, whole=arguments.whole)
        elif part == "hallmarks":
            hallmarks(arguments.folder, arguments.lengths, arguments.grid, arguments.device)
        else:
            task(part, arguments.folder, arguments.lengths)


if __name__ == "__main__":
    main()
