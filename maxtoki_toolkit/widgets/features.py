"""Look through the features of a sparse autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anndata import AnnData

from .. import _keys
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder
from ._require import require_widgets

if TYPE_CHECKING:
    from ipywidgets import VBox


def features(
    adata: AnnData,
    model: MaxTokiModel | None = None,
    sae: SparseAutoencoder | None = None,
    *,
    key: str = _keys.FEATURES,
    groupby: str | None = None,
    basis: str | None = None,
    feature: int | None = None,
    n_cells: int = 8,
    height: int = 760,
) -> VBox:
    """Look through the features of an autoencoder: find them, and see where they are active.

    On the left a list to search by gene, label or number, to filter and to sort; beside it the feature that
    is chosen: top genes, cell types, cells on a map, its family, and the cells in which it is most active,
    with their genes in rank order.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.features`; labels and families of features, where there are any, are
        shown as well.
    model, sae
        Model and autoencoder, to read the genes of the cells in which a feature is most active; `None` to do
        without.
    key
        Key in `.obsm` and `.uns` of the features.
    groupby
        Column of `.obs` to compare; by default the one whose name speaks of cell types. The 40 largest groups
        are compared.
    basis
        Key in `.obsm` of the map; by default "X_umap", or else the first with two columns, and "spatial".
    feature
        Number of the feature to begin with.
    n_cells
        Cells in which a feature is most active, to be listed.
    height
        Of the widget, in pixels.

    Returns
    -------
    An ipywidgets container, for the last line of a cell; `.children[0].feature` is the number of the feature
    that is chosen. A notebook that is executed without anybody there, or exported, shows a picture instead.

    Raises
    ------
    KeyError
        If there is no such result, column or map.
    ValueError
        If model or autoencoder are not those that the features were read with.
    ImportError
        If the extra "notebook" is not installed.

    Notes
    -----
    An AUROC says how well a feature tells the cells of a group from all others. It is one of cells, not of
    donors, and with many features some are high by chance: `mt.tl.feature_summary` tests.

    `mt.reports.features` writes the same as a page.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:50].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> sae = mt.load_sae("demo")
    >>> mt.tl.features(adata, model, sae, controls=False)
    >>> explorer = mt.widgets.features(adata, model, sae, feature=3)
    >>> explorer.children[0].feature
    3
    """
    require_widgets()
    import anywidget
    import traitlets

    from ._container import Container, is_attended, picture_only, static_bundle
    from ._feature_front import FeatureReader, features_picture, first_feature, front_end

    reader = FeatureReader(adata, model, sae, key=key, groupby=groupby, basis=basis, n_cells=n_cells)
    width = reader.tables.width
    chosen = first_feature(reader.tables) if feature is None else feature
    if not 0 <= chosen < width:
        raise ValueError(f"There is no feature {chosen}; there are 0..{width - 1}.")
    text = f"{width} features of {adata.n_obs} cells"
    bundle = static_bundle(features_picture(reader.tables, chosen), None, text)
    if not is_attended():
        return picture_only(bundle)

    class Explorer(anywidget.AnyWidget):
        _esm = front_end("features.js")
        _css = front_end("features.css")
        core = traitlets.Bytes().tag(sync=True)
        cells = traitlets.Bytes().tag(sync=True)
        feature = traitlets.Int().tag(sync=True)
        height = traitlets.Int().tag(sync=True)
        reads_genes = traitlets.Bool().tag(sync=True)

    blocks = reader.blocks("Features", for_page=False)
    explorer = Explorer(**blocks, feature=chosen, height=height, reads_genes=model is not None)

    def answer(widget: Explorer, message: dict, buffers: list) -> None:
        """Read the genes of the top cells of the feature that was asked for."""
        asked = message.get("feature")
        try:
            widget.send({"feature": asked, "cells": reader.genes_of(asked)})
        except RuntimeError as error:  # as when memory runs out
            widget.send({"feature": asked, "error": str(error)})

    explorer.on_msg(answer)
    return Container([explorer], bundle)
