"""Checks of user input that more than one function makes."""

from __future__ import annotations

from anndata import AnnData

from . import _keys


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
            raise KeyError(f"Did not find .obs[{key!r}]. Available columns: {sorted(adata.obs.columns)}.")


def require_rank(adata: AnnData) -> None:
    """Raise if the cells are not rank-encoded."""
    if _keys.RANK not in adata.layers:
        raise KeyError(
            f"Did not find .layers[{_keys.RANK!r}]. Run mt.pp.rank_value_encode(adata, model) first."
        )
