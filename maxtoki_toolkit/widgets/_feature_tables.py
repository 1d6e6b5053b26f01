"""What the explorer of features shows, from an AnnData: tables of features, genes, groups of cells, maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._validate import require_obs, require_unique_names
from ..pp._columns import guess_columns
from ..results.store import read_result, read_table

MOST_GROUPS = 40  # whose names still fit a list; those with most cells
_SPATIAL = "spatial"
_MISSING = "missing"


@dataclass(frozen=True, eq=False)
class FeatureTables:
    """What is known of the features of an autoencoder in some cells."""

    params: dict
    """How the features were read."""
    features: pd.DataFrame
    """A row a feature, as `mt.tl.features` writes it, with `label` ("" for none) and `family` (-1 for none)."""
    genes: pd.DataFrame
    """Top genes, by feature, the one with the largest mean first."""
    pooled: sp.csc_matrix
    """Pooled activations, cells x features."""
    names: np.ndarray
    """Of the cells."""
    groupby: str
    """Column of the groups; "" for none."""
    groups: list[str]
    """Those that are compared."""
    group: np.ndarray
    """Number of each cell's group, -1 for none of these."""
    auroc: np.ndarray
    """features x groups: how well a feature tells a group from all other cells."""
    means: np.ndarray
    """features x groups: mean pooled activation."""
    maps: dict[str, np.ndarray]
    """Places of the cells by the name of the map."""

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.features)


def feature_tables(
    adata: AnnData, *, key: str = _keys.FEATURES, groupby: str | None = None, basis: str | None = None
) -> FeatureTables:
    """Take from an AnnData what there is on its features.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.features`.
    key
        Key in `.obsm` and `.uns`.
    groupby
        Column of `.obs` to compare; by default the one whose name speaks of cell types, if any.
    basis
        Key in `.obsm` of the map; by default "X_umap", or else the first with two columns, and "spatial".

    Raises
    ------
    KeyError
        If there is no such result, column or map.
    """
    require_unique_names(adata)
    require_obs(adata, groupby)
    read_result(adata, key)
    features = read_table(adata, key, "features")
    genes = read_table(adata, key, "genes")
    params = features.attrs
    if key not in adata.obsm:
        raise KeyError(f"Did not find .obsm[{key!r}]. Run mt.tl.features(adata, model, sae) again.")
    pooled = sp.csc_matrix(adata.obsm[key], dtype=np.float32)
    if pooled.shape[1] != len(features):
        raise ValueError(
            f".obsm[{key!r}] has {pooled.shape[1]} features and .uns[{key!r}] {len(features)}. Run "
            "mt.tl.features(adata, model, sae) again."
        )
    pooled.eliminate_zeros()
    pooled.sort_indices()
    labels = _found(adata, _keys.LABEL_FEATURES, "labels", ("feature", "label"), params)
    families = _found(adata, _keys.FEATURE_FAMILIES, "features", ("feature", "family"), params)
    features["label"] = _by_feature(labels, len(features), "").astype(str)
    codes, names = pd.factorize(_by_feature(families, len(features), None))
    features["family"] = codes
    features["family_name"] = np.append(names.astype(str), "")[codes]
    order = np.lexsort((-genes["mean"].to_numpy(), genes["feature"].to_numpy()))
    if groupby is None:
        groupby = guess_columns(adata.obs, ("cell_type_key",)).get("cell_type_key", "")
    groups, group = _groups(adata, groupby)
    auroc, means = compare_groups(pooled, group, len(groups))
    return FeatureTables(
        params=params,
        features=features.drop(columns="top_genes"),
        genes=genes.iloc[order].reset_index(drop=True),
        pooled=pooled,
        names=adata.obs_names.to_numpy().astype(str),
        groupby=groupby,
        groups=groups,
        group=group,
        auroc=auroc,
        means=means,
        maps=find_maps(adata, basis),
    )


def top_cells(pooled: sp.csc_matrix, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the cells in which each feature is most active, features x n, and how active; -1 for no more."""
    feature = np.repeat(np.arange(pooled.shape[1]), np.diff(pooled.indptr))
    order = np.lexsort((pooled.indices, -pooled.data, feature))
    place = np.arange(len(order)) - pooled.indptr[feature]
    kept = place < n
    rows, values = np.full((pooled.shape[1], n), -1), np.zeros((pooled.shape[1], n), np.float32)
    rows[feature[kept], place[kept]] = pooled.indices[order[kept]]
    values[feature[kept], place[kept]] = pooled.data[order[kept]]
    return rows, values


def compare_groups(pooled: sp.csc_matrix, group: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and mean of each feature in each of n groups against all other cells.

    Ranks are of the activations that are there; those that are 0 share one rank below them.
    """
    n_cells, width = pooled.shape
    size = np.bincount(group[group >= 0], minlength=n)
    feature = np.repeat(np.arange(width), np.diff(pooled.indptr))
    n_active = np.diff(pooled.indptr)
    order = np.lexsort((pooled.data, feature))
    value, column = pooled.data[order], feature[order]
    # Average rank of those that are the same.
    new = np.append(True, (value[1:] != value[:-1]) | (column[1:] != column[:-1]))[: len(value)]
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(value))
    middle = np.repeat((starts + 1 + ends) / 2, ends - starts)
    rank = middle - pooled.indptr[column] + (n_cells - n_active)[column]
    of = group[pooled.indices[order]]
    known = of >= 0
    at, shape = column[known] * n + of[known], (width, n)

    def summed(weights: np.ndarray | None) -> np.ndarray:
        return np.bincount(at, weights, minlength=width * n).reshape(shape)

    there = summed(None)
    zero = (n_cells - n_active + 1) / 2
    ranks = summed(rank[known]) + (size - there) * zero[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (ranks - size * (size + 1) / 2) / (size * (n_cells - size))
        means = summed(value[known]) / size
    return auroc, means


def _groups(adata: AnnData, groupby: str) -> tuple[list[str], np.ndarray]:
    """Names of the groups, and the number of each cell's; -1 where it is unknown or of a small one."""
    if not groupby:
        return [], np.full(adata.n_obs, -1)
    column = adata.obs[groupby]
    known = column.notna().to_numpy()
    text = column.astype(object).where(known, _MISSING).astype(str).to_numpy()
    counts = pd.Series(text[known]).value_counts(sort=True)
    names = sorted(counts.index[:MOST_GROUPS])
    number = pd.Index(names).get_indexer(text)
    return names, np.where(known, number, -1)


def find_maps(adata: AnnData, basis: str | None) -> dict[str, np.ndarray]:
    """Maps of the cells: the one asked for, else an embedding and the places in the tissue, if they are there."""
    two = [key for key, value in adata.obsm.items() if getattr(value, "ndim", 0) == 2 and value.shape[1] == 2]
    if basis is None:
        plain = [key for key in two if key != _SPATIAL]
        wanted = [*(["X_umap"] if "X_umap" in two else plain[:1]), *([_SPATIAL] if _SPATIAL in two else [])]
    elif basis in adata.obsm and np.ndim(adata.obsm[basis]) == 2 and adata.obsm[basis].shape[1] >= 2:
        wanted = [basis]
    else:
        raise KeyError(
            f"Did not find .obsm[{basis!r}] with two columns; there are: {', '.join(two) or 'none'}."
        )
    return {key.removeprefix("X_"): np.asarray(adata.obsm[key], dtype=float)[:, :2] for key in wanted}


def _found(adata: AnnData, key: str, table: str, columns: Iterable[str], params: dict) -> pd.DataFrame | None:
    """A table on the same features, if there is one."""
    result = adata.uns.get(key)
    if not isinstance(result, Mapping) or not set(columns) <= set(getattr(result.get(table), "columns", ())):
        return None
    theirs = sae_digest(result.get("params", {}))
    return result[table] if theirs in ("", sae_digest(params)) else None


def sae_digest(params: Mapping) -> str:
    """SHA-256 of the autoencoder that a result is of; "" where it does not say."""
    return str(params.get("sae", {}).get("sha256", ""))


def _by_feature(table: pd.DataFrame | None, width: int, default: object) -> pd.Series:
    """The second column of such a table, a value a feature."""
    if table is None:
        return pd.Series([default] * width, dtype=object)
    feature, column = ("feature", "label" if "label" in table else "family")
    values = table.drop_duplicates(feature).set_index(feature)[column].astype(object)
    values.index = values.index.astype(int)
    found = values.reindex(np.arange(width)).reset_index(drop=True)
    return found.where(found.notna(), default)
