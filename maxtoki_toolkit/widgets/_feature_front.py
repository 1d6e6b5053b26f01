"""The front end of the explorer of features: one page that needs nothing from elsewhere, a widget, a picture."""

from __future__ import annotations

import base64
import html
from importlib.resources import files

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..models.model import MaxTokiModel, require_model
from ..models.sae import SparseAutoencoder, require_sae
from ..tl._cells import get_sequences
from ._feature_blocks import N_FIRST, cells_block, core_block, genes_block
from ._feature_cells import active_genes, first_genes, token_symbols
from ._feature_tables import FeatureTables, feature_tables, sae_digest, top_cells

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>html, body {{ height: 100%; margin: 0; }}
{style}</style>
</head>
<body>
<div id="mt-root" style="height: 100vh"><noscript>This page needs JavaScript.</noscript></div>
{blocks}
<script type="module">
{script}
page(document.getElementById("mt-root"));
</script>
</body>
</html>
"""


class FeatureReader:
    """Features of some cells, and what is read of them when it is asked for.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.features`.
    model, sae
        Model and autoencoder, to read the genes of the top cells; `None` for none.
    key, groupby, basis
        As in `feature_tables`.
    n_cells
        Top cells of a feature.

    Raises
    ------
    KeyError
        If there is no such result, column or map.
    ValueError
        If model or autoencoder are not those that the features were read with.
    """

    def __init__(
        self,
        adata: AnnData,
        model: MaxTokiModel | None = None,
        sae: SparseAutoencoder | None = None,
        *,
        key: str = _keys.FEATURES,
        groupby: str | None = None,
        basis: str | None = None,
        n_cells: int = 8,
    ) -> None:
        if (model is None) != (sae is None):
            raise ValueError("Give model and sae together, to read the genes of the top cells; or neither.")
        if n_cells < 1:
            raise ValueError(f"n_cells must be at least 1, got {n_cells}.")
        self.tables = feature_tables(adata, key=key, groupby=groupby, basis=basis)
        self.top, self.top_values = top_cells(self.tables.pooled, n_cells)
        self.model, self.sae, self._known = model, sae, {}
        if model is None or sae is None:
            return
        require_model(model)
        require_sae(sae, model)
        theirs, mine = sae_digest(self.tables.params), sae_digest(sae.params)
        if theirs and theirs != mine:
            raise ValueError(
                f".uns[{key!r}] was read with another autoencoder (sha256 {theirs[:12]}...; this one is "
                f"{mine[:12]}...). Run mt.tl.features(adata, model, sae) with this one."
            )
        self.sequences = get_sequences(adata, model)
        self.symbols = token_symbols(adata, model.vocab.size)
        self.is_gene = np.zeros(model.vocab.size, dtype=bool)
        self.is_gene[model.vocab.gene_ids] = True

    def genes_of(self, feature: int) -> list[dict]:
        """Genes of the top cells of a feature, as the front end wants them; read once."""
        if feature not in self._known:
            wanted = np.full_like(self.top, -1)
            wanted[feature] = self.top[feature]
            found = active_genes(self.model, self.sae, self.sequences, wanted)
            most = float(found["value"].max()) if len(found) else 1.0
            rows = self.top[feature][self.top[feature] >= 0]
            self._known[feature] = [self._cell(row, found[found["row"] == row], most) for row in rows]
        return self._known[feature]

    def _cell(self, row: int, found: pd.DataFrame, most: float) -> dict:
        tokens = self.sequences.tokens[self.sequences.indptr[row] : self.sequences.indptr[row + 1]]
        first = first_genes(self.sequences, row, self.is_gene, N_FIRST)
        marks = [
            {"rank": int(one.rank), "value": float(one.value), "symbol": self.symbols[one.token]}
            for one in found.itertuples()
        ]
        length = int(self.is_gene[tokens].sum())
        return {"length": length, "first": self.symbols[first].tolist(), "marks": marks, "most": most}

    def blocks(self, title: str, *, for_page: bool = True) -> dict[str, bytes]:
        """What the front end reads: for a page small, and with the genes of the top cells if there is a model."""
        found = {
            "core": core_block(self.tables, title=title),
            "cells": cells_block(self.tables, self.top, self.top_values, small=for_page),
        }
        if for_page and self.model is not None:
            genes = active_genes(self.model, self.sae, self.sequences, self.top)
            found["genes"] = genes_block(
                self.tables, self.top, genes, self.sequences, self.symbols, self.is_gene
            )
        return found


def front_end(name: str) -> str:
    """Source of the front end: "features.js" or "features.css"."""
    return (files("maxtoki_toolkit") / "widgets" / name).read_text(encoding="utf-8")


def page_of(blocks: dict[str, bytes], title: str) -> str:
    """A page of these blocks, with all that it needs.

    Text of the cells is in the blocks, as base64: nothing of it can end a tag.
    """
    tags = [
        f'<script type="application/octet-stream" id="mt-{name}">{base64.b64encode(block).decode()}</script>'
        for name, block in blocks.items()
    ]
    return _PAGE.format(
        title=html.escape(title),
        style=front_end("features.css"),
        script=front_end("features.js"),
        blocks="\n".join(tags),
    )


def first_feature(tables: FeatureTables) -> int:
    """The one that the list begins with: that which tells a group best, else the one with the largest activation."""
    best = tables.auroc.max(axis=1, initial=-1, where=np.isfinite(tables.auroc)) if tables.groups else None
    # As the list has it, whose ties go to the smaller number.
    value = tables.features["max_active"].to_numpy() if best is None else np.rint(best * 254)
    return int(np.argmax(value))


def features_picture(tables: FeatureTables, feature: int):
    """The top genes, groups and map of one feature, in matplotlib."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    from ..pl._style import MODEL, clean

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
    genes = tables.genes[tables.genes["feature"] == feature]
    left.barh(np.arange(len(genes)), genes["mean"], color=MODEL)
    left.set_yticks(np.arange(len(genes)), genes["symbol"], style="italic", fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="mean activation", title="Top genes")
    order = np.argsort(-np.nan_to_num(tables.auroc[feature], nan=-1))[:10]
    middle.barh(np.arange(len(order)), tables.auroc[feature][order] - 0.5, left=0.5, color=MODEL)
    middle.set_yticks(np.arange(len(order)), [tables.groups[i] for i in order], fontsize=8)
    middle.axvline(0.5, color="0.7", lw=1)
    middle.invert_yaxis()
    middle.set(xlim=(0, 1), xlabel="AUROC against all other cells", title=tables.groupby or "no groups")
    value = tables.pooled[:, [feature]].toarray().ravel()
    if tables.maps:
        name, points = next(iter(tables.maps.items()))
        active = np.argsort(value)[np.count_nonzero(value == 0) :]
        blues = LinearSegmentedColormap.from_list("", colormaps["Blues"](np.linspace(0.3, 1, 64)))
        right.scatter(*points[value == 0].T, color="0.87", s=5, linewidths=0)
        drawn = right.scatter(*points[active].T, c=value[active], s=5, cmap=blues, linewidths=0, vmin=0)
        figure.colorbar(drawn, ax=right, shrink=0.7, label="activation").outline.set_visible(False)
        name = "UMAP" if name == "umap" else name
        right.set(xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2")
    else:
        right.hist(value[value > 0], bins=20, color=MODEL)
        right.set(xlabel="activation of a cell, where it is active", ylabel="cells")
    label = tables.features["label"][feature]
    figure.suptitle(f"Feature {feature}{': ' + label if label else ''}", x=0.01, ha="left", fontsize=11)
    for ax in (left, middle, right):
        ax.title.set_size(10)
        clean(ax)
    return figure
