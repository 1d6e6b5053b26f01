"""The page of features at 16,000 features and 2,000 cells: its size, time to the first view and to filter the list.

    python benchmarks/dashboard.py              # needs Chromium; two minutes on one core

The features are drawn at random, which no compression likes: real ones are alike, and take less. Times are those of
headless Chromium on this machine, without a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import argparse
import statistics
import tempfile
import time

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from benchmarks import report
from benchmarks.chromium import Page
from maxtoki_toolkit._reference import gene_table
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.results.store import write_result
from maxtoki_toolkit.widgets._feature_blocks import cells_block, core_block, genes_block
from maxtoki_toolkit.widgets._feature_front import page_of
from maxtoki_toolkit.widgets._feature_tables import feature_tables, top_cells

N_GROUPS, N_TOP, LENGTH = 12, 10, 1000
SEARCHES = {
    "search": "{state}.query = 'rps'",
    "search by number": "{state}.query = '123'",
    "cell type": "{state}.group = 3",
    "density": "{state}.low = 0.4",
    "sort": "{state}.sort = 'density'",
    "sort by label": "{state}.sort = 'label'",
}


def synthetic(n_features: int, n_cells: int, rng: np.random.Generator) -> tuple[AnnData, np.ndarray]:
    """Cells with features that are active in 0.1% to 30% of them, and symbols of genes."""
    symbols = gene_table()["symbol"].drop_duplicates().to_numpy().astype(str)[:20_000]
    rate = 10 ** rng.uniform(-3, -0.5, n_features)
    group = rng.integers(N_GROUPS, size=n_cells)
    # A third of the features is of one group.
    of = np.where(rng.random(n_features) < 1 / 3, rng.integers(N_GROUPS, size=n_features), -1)
    parts = []
    for i in range(n_cells):
        chance = np.where(of < 0, rate, np.where(of == group[i], np.minimum(rate * 8, 0.9), rate / 4))
        at = np.flatnonzero(rng.random(n_features) < chance)
        parts.append(
            sp.csr_matrix(
                (rng.gamma(2, 3, len(at)).astype(np.float32), (np.zeros(len(at), int), at)),
                shape=(1, n_features),
            )
        )
    pooled = sp.vstack(parts).tocsr()
    names = [f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in range(n_cells)]
    obs = pd.DataFrame({"cell_type": pd.Categorical([f"cell type {g}" for g in group])}, index=names)
    adata = AnnData(obs=obs, obsm={"features": pooled})
    adata.obsm["X_umap"] = rng.normal(size=(n_cells, 2)) + 4 * np.stack([np.cos(group), np.sin(group)], 1)
    feature = np.repeat(np.arange(n_features), N_TOP)
    gene = (len(symbols) * rng.random(len(feature)) ** 2).astype(int)
    mean = np.sort(rng.gamma(2, 2, (n_features, N_TOP)), axis=1)[:, ::-1].ravel()
    genes = {
        "feature": feature,
        "gene": symbols[gene],
        "symbol": symbols[gene],
        "mean": mean,
        "share": rng.random(len(feature)),
        "lift": mean / np.repeat(rng.gamma(2, 0.05, n_features), N_TOP),
        "n_read": rng.integers(5, n_cells, len(feature)),
    }
    table = {
        "feature": np.arange(n_features),
        "density": rate / 30,
        "n_cells": pooled.getnnz(axis=0),
        "mean_active": rng.gamma(2, 3, n_features),
        "max_active": pooled.max(axis=0).toarray().ravel(),
        "mean_rank": rng.uniform(1, LENGTH, n_features),
        "n_genes": rng.integers(1, 3000, n_features),
    }
    table = pd.DataFrame(table).assign(top_genes="")
    tables = {"features": table, "genes": pd.DataFrame(genes)}
    write_result(adata, "features", {"model": "synthetic", "width": n_features, "k": 32}, **tables)
    words = "binding signalling ribosome muscle immune cycle matrix stress lipid channel".split()
    labels = [f"{words[i]} {words[j]}, {symbols[g]}" for i, j, g in rng.integers(10, size=(n_features, 3))]
    adata.uns["label_features"] = {
        "params": {},
        "labels": pd.DataFrame({"feature": np.arange(n_features), "label": labels}),
    }
    family = rng.integers(n_features // 8, size=n_features)
    adata.uns["feature_families"] = {
        "params": {},
        "features": pd.DataFrame({"feature": np.arange(n_features), "family": family}),
    }
    return adata, symbols


def synthetic_genes(
    top: np.ndarray, n_cells: int, n_symbols: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, Sequences]:
    """Genes of the cells, and where features are active: at four places of each top cell on average."""
    tokens = np.concatenate([rng.permutation(n_symbols)[:LENGTH] for _ in range(n_cells)])
    sequences = Sequences.split(tokens.astype(np.int32), np.full(n_cells, LENGTH))
    feature, place = np.nonzero(top >= 0)
    number = np.repeat(np.arange(len(feature)), 1 + rng.poisson(3, len(feature)))
    rank = rng.integers(1, LENGTH + 1, len(number))
    row = top[feature, place][number]
    columns = {"feature": feature[number], "row": row, "rank": rank, "token": tokens[row * LENGTH + rank - 1]}
    found = pd.DataFrame(columns | {"value": rng.gamma(2, 3, len(number))})
    return found.drop_duplicates(["feature", "row", "rank"]), sequences


def main() -> None:
    """Make, open, measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", type=int, default=16_000)
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="where to leave the page")
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    adata, symbols = synthetic(a.features, a.cells, rng)
    began = time.perf_counter()
    tables = feature_tables(adata)
    top, values = top_cells(tables.pooled, 8)
    found, sequences = synthetic_genes(top, a.cells, len(symbols), rng)
    blocks = {
        "core": core_block(tables, title="Synthetic features"),
        "cells": cells_block(tables, top, values),
        "genes": genes_block(
            tables, top, found, sequences, symbols.astype(object), np.ones(len(symbols), bool)
        ),
    }
    page = page_of(blocks, "Synthetic features")
    made = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        path = a.keep or Path(folder) / "page.html"
        path.write_text(page)
        rows = [measure(path) for _ in range(a.repeats)]
    row = {name: round(statistics.median(r[name] for r in rows), 3) for name in rows[0]}
    row = {
        "features": a.features,
        "cells": a.cells,
        "activations": int(tables.pooled.nnz),
        "page_mb": round(len(page.encode()) / 1e6, 2),
        **{f"{name}_mb": round(len(block) * 4 / 3 / 1e6, 2) for name, block in blocks.items()},
        "seconds_to_make": round(made, 1),
        **row,
    }
    report.write("dashboard", [row], repeats=a.repeats, browser=browser())


def browser() -> str:
    """Of the browser."""
    with Page() as page:
        return str(page.run("navigator.userAgent"))


def measure(path: Path) -> dict:
    """Seconds to the first view, to the details, and of each filter with the rows that are drawn after it."""
    with Page() as page:
        page.open(path)
        found = {"first_view_s": float(page.run("document.documentElement.dataset.ready")) / 1000}
        page.wait("document.querySelectorAll('.mt-strip').length")
        found["details_s"] = page.run("performance.now()") / 1000
        for name, change in SEARCHES.items():
            script = f"""(() => {{ const e = document.getElementById('mt-root').explorer;
                Object.assign(e.state, {{query: '', group: -1, low: 0, sort: 'group', down: true}}); e.filter();
                const t = performance.now(); {change.format(state="e.state")}; e.set({{}});
                document.body.offsetHeight; return performance.now() - t; }})()"""
            found[f"{name.replace(' ', '_')}_s"] = page.run(script) / 1000
        clicked = """(async () => { const e = document.getElementById('mt-root').explorer, t = performance.now();
            e.choose(e.order[Math.floor(e.n / 2)]); while (!document.querySelector('.mt-strip')) await 0;
            document.body.offsetHeight; return performance.now() - t; })()"""
        page.run("document.getElementById('mt-root').explorer.set({query: '', group: -1, low: 0})")
        found["choose_s"] = page.run(clicked) / 1000
        found["rows_in_document"] = page.run("document.querySelectorAll('.mt-row').length")
        if problems := page.problems():
            raise RuntimeError(problems)
        return found


if __name__ == "__main__":
    main()
