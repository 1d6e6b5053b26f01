"""Effects of genes on the probability of others."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import drawing


@drawing
def gene_effects(
    adata: AnnData, *, group: str | None = None, n_genes: int = 20, key: str = _keys.GENE_EFFECTS
) -> Figure:
    """Draw the effects among the genes of the surest edges of a group of cells.

    Parameters
    ----------
    {adata}
    group
        Group of cells, by default the first.
    n_genes
        Sources and targets to draw, at most: those of the edges with the lowest p values.
    {key}

    Returns
    -------
    The figure: sources x targets, blue where the source speaks against the target and red where it announces
    it, a dot where q < 0.05, grey where the target cannot come after the source often enough. How well the
    effects find known regulons: `mt.pl.gene_network(adata, key="gene_effects")`.

    Raises
    ------
    ValueError
        If there is no such group.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(60, 10, n_genes=500)
    >>> mt.pp.map_genes(adata)
    >>> vocab = mt.models.Vocabulary.from_anndata(adata)
    >>> mt.pp.rank_value_encode(adata, vocab)
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...              max_position_embeddings=128)
    >>> model = mt.models.build_model(shape, vocab)  # that has learned nothing
    >>> mt.tl.gene_effects(adata, model, donor_key="donor_id", n_cells=3)
    >>> len(mt.pl.gene_effects(adata).axes)
    2
    """
    import matplotlib.pyplot as plt

    edges = read_table(adata, key, "edges")
    groups = read_table(adata, key, "groups")["group"].tolist()
    group = groups[0] if group is None else group
    if group not in groups:
        raise ValueError(f"There is no group {group!r}; there are {', '.join(groups)}.")
    edges = edges[edges["group"] == group].sort_values("p_value", kind="stable")
    genes = read_table(adata, key, "genes")
    place = dict(zip(genes["gene"], range(len(genes)), strict=True))
    sources, targets = (
        np.array([place[g] for g in dict.fromkeys(edges[column])][:n_genes])
        for column in ("source", "target")
    )
    shown = np.asarray(adata.uns[key]["matrix"])[groups.index(group)][np.ix_(sources, targets)]
    reach = float(np.nanmax(np.abs(shown)))
    height, width = shown.shape
    figure, ax = plt.subplots(figsize=(2.2 + 0.24 * width, 1.5 + 0.22 * height), layout="constrained")
    ax.set_facecolor("0.9")
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    called = edges[edges["q_value"] < 0.05]
    at = {gene: i for i, gene in enumerate(targets)}
    row = {gene: i for i, gene in enumerate(sources)}
    dots = [
        (at[place[t]], row[place[s]])
        for s, t in zip(called["source"], called["target"], strict=True)
        if place[t] in at and place[s] in row
    ]
    if dots:
        ax.scatter(*np.array(dots).T, s=5, c="black", lw=0)
    symbols = genes["symbol"].to_numpy()
    ax.set_xticks(range(width), symbols[targets], rotation=90, fontsize=8)
    ax.set_yticks(range(height), symbols[sources], fontsize=8)
    ax.tick_params(length=0)
    ax.set(xlabel="target", ylabel="source (taken out)")
    ax.set_title(f"{group}; dot: q < 0.05", fontsize=9, loc="left")
    bar = figure.colorbar(image, shrink=0.7, pad=0.02)
    bar.set_label("added to the log-probability (nats)", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    plt.close(figure)  # or a notebook would show it twice
    return figure
