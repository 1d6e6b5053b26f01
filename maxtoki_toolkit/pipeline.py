"""From a file to an embedding, clusters and figures: what `maxtoki embed` runs."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure

from . import _keys, pl, tl
from ._files import atomic
from ._progress import hidden, progress
from ._validate import require_obs
from .models.model import MaxTokiModel
from .pl._style import category_colors, clean
from .pp._store import encoded_blocks, open_store, read_frames

# Cells kept for the heat map of ranks, of however many there are.
_SHOWN = 2000


def embed_file(
    path: str | Path,
    output: str | Path,
    model: MaxTokiModel,
    *,
    color: str | None = None,
    layer: str | None = None,
    gene_key: str | None = None,
    force: bool = False,
    chunk_size: int = 2048,
) -> AnnData:
    """Embed, cluster and plot the cells of a file.

    Counts are read `chunk_size` cells at a time and not kept, so memory grows only by the embedding.

    Parameters
    ----------
    path
        `.h5ad` or `.zarr` with raw counts.
    output
        Folder to write; it appears when everything is done, a failure leaves nothing behind.
    model
        Model.
    color
        Column of `.obs` to colour the UMAP by, beside the clusters.
    layer, force
        As in `mt.pp.rank_value_encode`.
    gene_key
        As in `mt.pp.map_genes`.
    chunk_size
        Cells a block.

    Returns
    -------
    Cells without genes, counts and ranks: `.obs` with "leiden", `.obsm["X_maxtoki"]`, `.obsm["X_umap"]`. The folder holds
    them as `embedded.h5ad`, with `cells.csv` and figures.
    """
    output = Path(output)
    if output.is_file():
        raise ValueError(f"{output} is a file. Give a folder to write to.")
    with open_store(path) as store:
        obs, var = read_frames(store)
        require_obs(AnnData(obs=obs), color)
        kept = set(obs.index[np.linspace(0, len(obs) - 1, min(len(obs), _SHOWN)).astype(int)])
        blocks = encoded_blocks(
            store, obs, var, model.vocab, layer=layer, gene_key=gene_key, force=force, chunk_size=chunk_size
        )
        embedded, shown = [], []
        with progress(total=len(obs), desc="Embedding", unit="cell") as bar:
            for cells in blocks:
                with hidden():
                    tl.embed(cells, model)
                del cells.X
                shown.append(cells[cells.obs_names.isin(kept)].copy())
                embedded.append(AnnData(obs=cells.obs, obsm=dict(cells.obsm)))
                bar.update(cells.n_obs)
    adata = ad.concat(embedded)
    adata.uns = cells.uns
    cluster(adata)
    example = ad.concat(shown, merge="same")
    example.obs = adata.obs.loc[example.obs_names].copy()
    example.var, example.uns = cells.var, cells.uns

    with atomic(output) as folder:
        folder.mkdir()
        colors = ["leiden"] if color is None else [color, "leiden"]
        set_colors(adata, colors)
        example.uns |= {key: value for key, value in adata.uns.items() if key.endswith("_colors")}
        figures = {
            "encoding_report": pl.encoding_report(adata, max_genes=model.max_length - 2),
            "rank_heatmap": pl.rank_heatmap(example, groupby=color or "leiden"),
            "umap": draw_umap(adata, colors),
        }
        save_figures(figures, folder)
        table = adata.obs.copy()
        table[["umap1", "umap2"]] = adata.obsm["X_umap"]
        table.to_csv(folder / "cells.csv", index_label="cell")
        adata.write_h5ad(folder / "embedded.h5ad", compression="gzip")
    return adata


def cluster(adata: AnnData, *, seed: int = 0) -> None:
    """Neighbours, UMAP and Leiden clusters on the embedding, by scanpy."""
    import scanpy as sc

    sc.pp.neighbors(adata, n_neighbors=min(15, adata.n_obs - 1), use_rep=_keys.EMBEDDING, random_state=seed)
    sc.tl.umap(adata, random_state=seed)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, resolution=0.5, random_state=seed)


def set_colors(adata: AnnData, names: list[str]) -> None:
    """Choose the colours of categorical columns once, for all figures."""
    for name in names:
        if isinstance(adata.obs[name].dtype, pd.CategoricalDtype):
            adata.uns[f"{name}_colors"] = category_colors(adata.obs[name].cat.categories.size)


def draw_umap(adata: AnnData, colors: list[str]) -> Figure:
    """Draw the UMAP once for each column of `.obs`."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    fig, axes = plt.subplots(
        1, len(colors), figsize=(6.5 * len(colors), 4.2), squeeze=False, layout="constrained"
    )
    for name, ax in zip(colors, axes[0], strict=True):
        sc.pl.umap(adata, color=name, ax=ax, show=False, title=name.replace("_", " "))
        ax.set(xlabel="UMAP 1", ylabel="UMAP 2", box_aspect=1)
        clean(ax)
    return fig


def save_figures(figures: dict, folder: Path) -> None:
    """Write each figure as PNG and PDF, and close it."""
    import matplotlib.pyplot as plt

    for name, figure in figures.items():
        for suffix in ("png", "pdf"):
            figure.savefig(folder / f"{name}.{suffix}", dpi=200, bbox_inches="tight")
        plt.close(figure)
