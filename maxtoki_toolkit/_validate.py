"""Checks of user input that more than one function makes."""

from __future__ import annotations

from anndata import AnnData

from . import _keys
from ._names import closest


def require_adata(adata: AnnData) -> None:
    """Raise if this is no AnnData."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"Expected an AnnData (anndata.read_h5ad(path)), got {type(adata).__name__}.")


def require_unique_names(adata: AnnData) -> None:
    """Raise if cell names repeat: results are matched to cells by name."""
    require_adata(adata)
    if not adata.obs_names.is_unique:
        repeated = adata.obs_names[adata.obs_names.duplicated()]
        raise ValueError(
            f"{len(repeated)} cell names are not unique (first: {repeated[0]!r}). "
            "Run adata.obs_names_make_unique() first."
        )


def require_obs(adata: AnnData, *keys: str | None) -> None:
    """Raise if a column of `.obs` is missing; `None` stands for a column not asked for."""
    for key in keys:
        if key is not None and key not in adata.obs:
            known = sorted(map(str, adata.obs.columns))
            raise KeyError(f"Did not find .obs[{key!r}]. Available columns: {known}.{closest(key, known)}")


def require_layer(adata: AnnData, layer: str) -> None:
    """Raise if there is no such layer; "raw" stands for the counts in `.raw`."""
    if layer in adata.layers or (layer == "raw" and adata.raw is not None):
        return
    known = sorted({*adata.layers, *([] if adata.raw is None else ["raw"])})
    raise KeyError(f"Did not find .layers[{layer!r}]. Available layers: {known}.{closest(layer, known)}")


def require_rank(adata: AnnData) -> None:
    """Raise if the cells are not rank-encoded."""
    if _keys.RANK not in adata.layers:
        raise KeyError(
            f"Did not find .layers[{_keys.RANK!r}]. Run mt.pp.rank_value_encode(adata, model) first."
        )
    if (kind := adata.layers[_keys.RANK].dtype).kind not in "ui":
        raise ValueError(
            f".layers[{_keys.RANK!r}] must hold whole numbers, as mt.pp.rank_value_encode(adata, model) writes them, got {kind}."
        )


def require_tokens(adata: AnnData) -> None:
    """Raise if no gene has a token of the model."""
    if _keys.TOKEN_ID not in adata.var:
        raise KeyError(f"Did not find .var[{_keys.TOKEN_ID!r}]. Run mt.pp.map_genes(adata, model) first.")
    if not (adata.var[_keys.TOKEN_ID] >= 0).any():
        raise ValueError(
            f"No gene has a token in .var[{_keys.TOKEN_ID!r}]. Run mt.pp.map_genes(adata, model), with the model that you use."
        )
