"""From a file to an embedding, clusters and figures: what `maxtoki embed` runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from matplotlib.figure import Figure

from . import _keys, pl, tl
from ._outputs import check_output, is_made, new_output
from ._progress import progress
from ._shards import run_shards
from ._validate import require_obs
from .models.costs import Cost, plan, reading, require_gpu
from .models.model import MaxTokiModel, require_whole
from .pl._style import category_colors, clean, drawing
from .pp._columns import find_columns
from .pp._identity import input_identity
from .pp._store import encoded_blocks, open_store, ranked_lengths, read_frames

BY = "maxtoki embed"
# Cells kept for the heat map of ranks, of however many there are.
_SHOWN = 2000
_MOST_LABELS = 60  # a legend of more is larger than the figure
_FEWEST = 4  # cells for neighbours and a UMAP
_COUNTED = 16  # blocks of cells whose lengths a plan goes by


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
    share_array: bool = False,
    overwrite: bool = False,
) -> AnnData | None:
    """Embed, cluster and plot the cells of a file.

    Counts are read `chunk_size` cells at a time and not kept, so memory grows only by the embedding. Blocks
    are shared out over the processes of `accelerate launch` and, if that is asked for, the tasks of a SLURM
    array; each is written to `output`.shards when it is done, and not computed again after an interruption.
    The process that finds all of them there puts them together. If the output is there already, from this
    input with these settings, it is read.

    Parameters
    ----------
    path
        `.h5ad` or `.zarr` with raw counts.
    output
        Folder to write, of its own; it appears when everything is done.
    model
        Model.
    color
        Column of `.obs` to colour the UMAP by, beside the clusters; by default that of the cell type, if its
        name gives it away.
    layer, force
        As in `mt.pp.rank_value_encode`.
    gene_key
        As in `mt.pp.map_genes`.
    chunk_size
        Cells a block.
    share_array
        Share the blocks out over the tasks of the SLURM array that this process is of.
    overwrite
        Replace what this function has written to `output` from another input or with other settings. Anything
        else that is there stays in any case.

    Returns
    -------
    Cells without genes, counts and ranks: `.obs` with "maxtoki_leiden", `.obsm["X_maxtoki"]`,
    `.obsm["X_umap"]`. The folder holds them as `embedded.h5ad`, with `cells.csv` and figures. `None` where
    another process has to finish.

    Raises
    ------
    ValueError
        If something else is at `output`, the input cannot be read, lies in `output`, or another process is at
        the same work.
    """
    output = Path(output)
    require_whole(model)
    if output.is_file():
        raise ValueError(f"{output} is a file. Give a folder to write to.")
    with open_store(path) as store:
        obs, var = read_frames(store, layer)
        require_obs(AnnData(obs=obs), color)
        color = find_columns(obs, optional=["groupby"], groupby=color)["groupby"]
        if len(obs) < _FEWEST:
            raise ValueError(
                f"{path} has {len(obs)} cell{'s' * (len(obs) != 1)}: neighbours, UMAP and clusters need {_FEWEST} at least. "
                "mt.tl.embed embeds any number."
            )
        # Cells whose ranks are kept, for the heat map.
        shown = np.zeros(len(obs), dtype=bool)
        shown[np.linspace(0, len(obs) - 1, min(len(obs), _SHOWN)).astype(int)] = True
        settings = {"layer": layer, "gene_key": gene_key, "force": force}
        recipe = {"input": input_identity(path), **model.params, **settings}
        job = {**recipe, "color": color}
        how = {"by": BY, "job": job, "overwrite": overwrite, "inputs": [path]}
        starts = range(0, len(obs), chunk_size)

        def compute(todo: list[int]) -> Iterator[AnnData]:
            blocks = encoded_blocks(
                store, obs, var, model.vocab, numbers=todo, chunk_size=chunk_size, **settings
            )
            for number, cells in zip(todo, blocks, strict=True):
                tl.embed(cells, model)
                del cells.X
                cells.var_names_make_unique()  # or the blocks could not be put together
                keep = sp.diags(shown[starts[number] :][: cells.n_obs], dtype=np.uint16)
                cells.layers[_keys.RANK] = (keep @ cells.layers[_keys.RANK]).tocsr()
                yield cells

        def join(paths: list[Path]) -> AnnData:
            cells = ad.concat([ad.read_h5ad(shard) for shard in paths], merge="same", uns_merge="same")
            cells = cells[obs.index].copy()
            with new_output(output, **how) as folder:
                return _summarise(cells, folder, model, shown=obs.index[shown], color=color)

        return run_shards(
            output.with_name(f"{output.name}.shards"),
            [min(chunk_size, len(obs) - start) for start in starts],
            {**recipe, "n_cells": len(obs), "chunk_size": chunk_size},
            compute=compute,
            join=join,
            find=lambda: _read(output) if check_output(output, **how) else None,
            made=lambda: _read(output) if is_made(output, by=BY, job=job) else None,
            desc="Embedding",
            unit="cell",
            share_array=share_array,
            overwrite=overwrite,
        )


def plan_embedding(
    path: str | Path,
    model: MaxTokiModel,
    *,
    layer: str | None = None,
    gene_key: str | None = None,
    force: bool = False,
    chunk_size: int = 2048,
    gpu: str | None = None,
    n_devices: int = 1,
    hourly_price: float | None = None,
) -> Cost:
    """Say what the model takes for embedding the cells of a file, before anything is written.

    Parameters
    ----------
    path
        As in `embed_file`, or a file that was encoded for the model. Of many cells, the lengths of some are
        looked at.
    model, layer, gene_key, force, chunk_size
        As in `embed_file`.
    gpu, n_devices, hourly_price
        As in `models.costs.plan`.
    """
    require_gpu(gpu)
    with open_store(path) as store:
        obs, var = read_frames(store, layer)
        n_genes = ranked_lengths(store, model.vocab)
        if n_genes is None:
            n_blocks = -(-len(obs) // chunk_size)
            numbers = np.unique(np.linspace(0, n_blocks - 1, min(n_blocks, _COUNTED)).astype(int))
            settings = {"layer": layer, "gene_key": gene_key, "force": force, "chunk_size": chunk_size}
            blocks = encoded_blocks(store, obs, var, model.vocab, numbers=numbers, **settings)
            n_genes = np.concatenate([cells.obs[_keys.N_RANKED].to_numpy() for cells in blocks])
    lengths = np.minimum(n_genes + 2, model.cell_length)
    work = reading(lengths) * (len(obs) / len(lengths))
    return plan(model, work, gpu=gpu, n_devices=n_devices, hourly_price=hourly_price)


def _read(output: Path) -> AnnData:
    return ad.read_h5ad(output / "embedded.h5ad")


def _summarise(
    cells: AnnData, folder: Path, model: MaxTokiModel, *, shown: pd.Index, color: str | None
) -> AnnData:
    """Cluster embedded cells, and fill the folder."""
    adata = AnnData(obs=cells.obs, obsm=dict(cells.obsm), uns=cells.uns)
    # In the order of names: UMAP and clusters depend on the order of the cells, which means nothing.
    adata = adata[np.argsort(adata.obs_names)].copy()
    cluster(adata)
    adata = adata[cells.obs_names].copy()
    example = cells[shown].copy()
    example.obs = adata.obs.loc[shown].copy()
    colors = [_keys.LEIDEN] if color is None else [color, _keys.LEIDEN]
    set_colors(adata, colors)
    example.uns |= {key: value for key, value in adata.uns.items() if key.endswith("_colors")}
    figures = {
        "encoding_report": pl.encoding_report(adata, max_genes=model.cell_length - 2),
        "rank_heatmap": pl.rank_heatmap(example, groupby=color or _keys.LEIDEN),
        "umap": draw_umap(adata, colors),
    }
    save_figures(figures, folder)
    table = adata.obs.copy()
    table[_keys.UMAP] = adata.obsm["X_umap"]
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
            adata,
            flavor="igraph",
            n_iterations=2,
            directed=False,
            resolution=0.5,
            random_state=seed,
            key_added=_keys.LEIDEN,
        )
        bar.update()


def set_colors(adata: AnnData, names: list[str]) -> None:
    """Choose the colours of categorical columns once, for all figures."""
    for name in names:
        if isinstance(adata.obs[name].dtype, pd.CategoricalDtype):
            adata.uns[f"{name}_colors"] = category_colors(adata.obs[name].cat.categories.size)


@drawing
def draw_umap(adata: AnnData, colors: list[str]) -> Figure:
    """Draw the UMAP once for each column of `.obs`."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    shown = AnnData(obs=adata.obs[colors].copy(), obsm={"X_umap": adata.obsm["X_umap"]}, uns=dict(adata.uns))
    for name in shown.obs.columns[shown.obs.dtypes == "boolean"]:
        # scanpy cannot draw booleans of which some are missing.
        shown.obs[name] = pd.Categorical(shown.obs[name].map({True: "True", False: "False"}))
    fig, axes = plt.subplots(
        1, len(colors), figsize=(6.5 * len(colors), 4.2), squeeze=False, layout="constrained"
    )
    for name, ax in zip(colors, axes[0], strict=True):
        values = shown.obs[name]
        n_labels = values.nunique() if isinstance(values.dtype, pd.CategoricalDtype) else 0
        many = n_labels > _MOST_LABELS
        title = name.replace("_", " ") + (f" ({n_labels} labels, not named)" if many else "")
        legend = None if many else "right margin"
        sc.pl.umap(shown, color=name, ax=ax, show=False, title=title, legend_loc=legend)
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
