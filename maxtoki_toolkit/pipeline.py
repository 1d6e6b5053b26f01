"""From a file to an embedding, clusters and figures: what `maxtoki embed` runs."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.figure import Figure

from . import _keys, pl, tl
from ._files import atomic
from ._progress import hidden, progress
from ._shards import file_identity, open_shards, shard_path, take_shards
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
) -> AnnData | None:
    """Embed, cluster and plot the cells of a file.

    Counts are read `chunk_size` cells at a time and not kept, so memory grows only by the embedding. Blocks are shared
    out over the processes of `accelerate launch` or the tasks of a SLURM array; each is written to `output`.shards when
    it is done, and not computed again after an interruption. The process that finds all of them there puts
    them together.

    Parameters
    ----------
    path
        `.h5ad` or `.zarr` with raw counts.
    output
        Folder to write; it appears when everything is done.
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
    them as `embedded.h5ad`, with `cells.csv` and figures. `None` where another process has to finish.
    """
    output = Path(output)
    if output.is_file():
        raise ValueError(f"{output} is a file. Give a folder to write to.")
    with open_store(path) as store:
        obs, var = read_frames(store)
        require_obs(AnnData(obs=obs), color)
        # Cells whose ranks are kept, for the heat map.
        shown = np.zeros(len(obs), dtype=bool)
        shown[np.linspace(0, len(obs) - 1, min(len(obs), _SHOWN)).astype(int)] = True
        shards, n_shards = output.with_name(f"{output.name}.shards"), -(-len(obs) // chunk_size)
        recipe = {"input": file_identity(path), "n_cells": len(obs), "chunk_size": chunk_size, **model.params}
        recipe |= {"layer": layer, "gene_key": gene_key, "force": force}
        settings = {"layer": layer, "gene_key": gene_key, "force": force, "chunk_size": chunk_size}
        with open_shards(shards, n_shards, recipe) as todo:
            blocks = encoded_blocks(store, obs, var, model.vocab, numbers=todo, **settings)
            size = {number: min(chunk_size, len(obs) - number * chunk_size) for number in range(n_shards)}
            done = sum(size[number] for number in size if shard_path(shards, number).is_file())
            total = done + sum(size[number] for number in todo)
            with progress(total=total, initial=done, desc="Embedding", unit="cell") as bar:
                for number, cells in zip(todo, blocks, strict=True):
                    with hidden():
                        tl.embed(cells, model)
                    del cells.X
                    cells.var_names_make_unique()  # or the blocks could not be put together
                    keep = sp.diags(shown[number * chunk_size :][: cells.n_obs], dtype=np.uint16)
                    cells.layers[_keys.RANK] = (keep @ cells.layers[_keys.RANK]).tocsr()
                    with atomic(shard_path(shards, number)) as temporary:
                        cells.write_h5ad(temporary)
                    bar.update(cells.n_obs)
    with take_shards(shards, n_shards) as paths:
        if paths is None:
            return None
        cells = ad.concat([ad.read_h5ad(shard) for shard in paths], merge="same", uns_merge="same")
        return _summarise(cells[obs.index].copy(), output, model, shown=obs.index[shown], color=color)


def _summarise(
    cells: AnnData, output: Path, model: MaxTokiModel, *, shown: pd.Index, color: str | None
) -> AnnData:
    """Cluster embedded cells, and write the folder."""
    adata = AnnData(obs=cells.obs, obsm=dict(cells.obsm), uns=cells.uns)
    cluster(adata)
    example = cells[shown].copy()
    example.obs = adata.obs.loc[shown].copy()
    with atomic(output) as folder:
        folder.mkdir()
        colors = ["leiden"] if color is None else [color, "leiden"]
        set_colors(adata, colors)
        example.uns |= {key: value for key, value in adata.uns.items() if key.endswith("_colors")}
        figures = {
            "encoding_report": pl.encoding_report(adata, max_genes=model.cell_length - 2),
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

    with progress(total=3, desc="Neighbours, UMAP, clusters", unit="step") as bar:
        sc.pp.neighbors(
            adata, n_neighbors=min(15, adata.n_obs - 1), use_rep=_keys.EMBEDDING, random_state=seed
        )
        bar.update()
        sc.tl.umap(adata, random_state=seed)
        bar.update()
        sc.tl.leiden(
            adata, flavor="igraph", n_iterations=2, directed=False, resolution=0.5, random_state=seed
        )
        bar.update()


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
