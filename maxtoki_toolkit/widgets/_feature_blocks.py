"""The tables of features as compressed blocks, which the front end opens one by one as it needs them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..pl._style import category_colors
from ._feature_cells import first_genes
from ._feature_tables import FeatureTables

# So that 16,000 features make a page of less than 5 MB. Beyond, the map shows fewer cells, drawn at random,
# and genes are shown of fewer top cells; the page says so.
_MOST_VALUES = 800_000
_MOST_MARKS = 160_000
_MOST_LIVE = 8_000_000  # activations that JupyterLab is sent, some 15 MB
_MOST_POINTS = 20_000  # that a map draws at once
_LEVELS = 32  # of activations in a picture: finer than what an eye tells apart
_UNKNOWN = 255
N_FIRST = 40  # highest ranked genes of a top cell, shown whether active or not


def pack(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Names and numbers as one block: the length of a header, the header as JSON, arrays; compressed.

    The first bytes of all numbers come first, then the second ones: they are alike, and compress well.
    """
    head = {
        "meta": meta,
        "arrays": [[name, value.dtype.str[1:], value.size] for name, value in arrays.items()],
    }
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    parts = [len(text).to_bytes(4, "little"), text]
    for value in arrays.values():
        flat = np.ascontiguousarray(value).ravel()
        flat = flat.astype(flat.dtype.newbyteorder("<"))
        parts.append(flat.view(np.uint8).reshape(-1, flat.itemsize).T.tobytes())
    return gzip.compress(b"".join(parts), 9, mtime=0)


def core_block(tables: FeatureTables, *, title: str) -> bytes:
    """What the list needs, and the top genes."""
    features, genes = tables.features, tables.genes
    number, symbol = pd.factorize(genes["symbol"])
    of = genes["feature"].to_numpy()
    largest = np.zeros(tables.width)
    np.maximum.at(largest, of, genes["mean"].to_numpy())
    overall = np.full(tables.width, np.nan)
    overall[of] = genes["mean"] / genes["lift"]
    families = features.drop_duplicates("family").query("family >= 0").sort_values("family")
    meta = {
        "title": title,
        "width": tables.width,
        "n_cells": len(tables.names),
        "pool": str(tables.params.get("pool", "max")),
        "about": _about(tables),
        "symbols": symbol.astype(str).tolist(),
        "labels": features["label"].tolist() if (features["label"] != "").any() else [],
        "groupby": tables.groupby,
        "groups": tables.groups,
        "colors": category_colors(len(tables.groups)),
        "families": families["family_name"].tolist(),
    }
    arrays = {
        name: _rounded(features[name]) for name in ("density", "mean_active", "max_active", "mean_rank")
    }
    arrays |= {
        "n_cells": _unsigned(features["n_cells"]),
        "n_genes": _unsigned(features["n_genes"]),
        "family": _unsigned(features["family"] + 1),
        "n_top": _unsigned(np.bincount(of, minlength=tables.width)),
        "gene": _unsigned(number),
        "gene_mean": _bytes(genes["mean"] / np.where(largest > 0, largest, 1)[of], _UNKNOWN),
        "gene_share": _bytes(genes["share"], _UNKNOWN),
        "largest_mean": _rounded(largest),
        "overall": _rounded(overall),
        "auroc": _bytes(tables.auroc, _UNKNOWN - 1),
    }
    return pack(meta, arrays)


def cells_block(
    tables: FeatureTables, top: np.ndarray, values: np.ndarray, *, small: bool = True, rng: int = 0
) -> bytes:
    """Pooled activations of the cells on the map, maps, means of groups, and the top cells.

    Parameters
    ----------
    tables
        Tables.
    top
        features x n: rows of the top cells, -1 for none.
    values
        Pooled activations in these.
    small
        Keep to what a page has room for; a widget has more.
    rng
        Seed of the cells on the map, where they are too many for all.
    """
    pooled, n_cells = tables.pooled, len(tables.names)
    most = _MOST_VALUES if small else _MOST_LIVE
    n_shown = min(n_cells, _MOST_POINTS, max(int(n_cells * most / max(pooled.nnz, 1)), 1))
    shown = np.sort(np.random.default_rng(rng).permutation(n_cells)[:n_shown])
    rows = np.append(shown, np.setdiff1d(top[top >= 0], shown)).astype(int)
    place = np.full(n_cells + 1, len(rows))  # the last is that of -1
    place[rows] = np.arange(len(rows))
    part = pooled[shown].tocsc()
    part.sort_indices()
    counts = np.diff(part.indptr)
    scale = pooled.max(axis=0).toarray().ravel()
    level = np.ceil(part.data / np.repeat(scale, counts) * _LEVELS)
    step = np.diff(part.indices, prepend=0)
    first = part.indptr[:-1][counts > 0]
    step[first] = part.indices[first]
    highest = np.nan_to_num(tables.means).max(axis=1, initial=0)
    meta = {
        "names": tables.names[rows].tolist(),
        "n_shown": n_shown,
        "levels": _LEVELS,
        "n_top": top.shape[1],
        "maps": {},
    }
    arrays = {
        "count": _unsigned(counts),
        "step": _unsigned(step),
        "level": level.astype(np.uint8),
        "scale": _rounded(scale),
        "group": (tables.group[rows] + 1).astype(np.uint8),
        "highest_mean": _rounded(highest),
        "group_mean": _bytes(tables.means / np.where(highest > 0, highest, 1)[:, None], _UNKNOWN - 1),
        "top": _unsigned(place[top]),
        "top_value": _rounded(values),
    }
    for name, points in tables.maps.items():
        at = points[shown]
        low, high = np.nanmin(at, axis=0, initial=np.inf), np.nanmax(at, axis=0, initial=-np.inf)
        span = max(float((high - low).max()), 1e-12) if len(at) else 1.0
        known = np.isfinite(at).all(axis=1)
        whole = np.where(known[:, None], np.rint((at - low) / span * 65534), 65535).astype(np.uint16)
        meta["maps"][name] = [float(v) for v in (high - low) / span] if len(at) else [1.0, 1.0]
        arrays |= {f"{name}.x": whole[:, 0], f"{name}.y": whole[:, 1]}
    return pack(meta, arrays)


def genes_block(
    tables: FeatureTables,
    top: np.ndarray,
    found: pd.DataFrame,
    sequences,
    names: np.ndarray,
    is_gene: np.ndarray,
) -> bytes:
    """Genes of the top cells in rank order, and where the feature is active among them.

    Parameters
    ----------
    tables
        Tables.
    top
        features x n: rows of the top cells, -1 for none.
    found
        What `active_genes` found in these.
    sequences
        The cells as token sequences.
    names, is_gene
        Symbol of each token, and whether it is a gene.
    """
    n = top.shape[1]
    slot = pd.Series(np.arange(n)[None].repeat(len(top), axis=0).ravel(), _pairs(top, len(tables.names)))
    slot = slot[slot.index >= 0]
    where = slot.reindex(found["feature"] * len(tables.names) + found["row"]).to_numpy().astype(int)
    by_slot = np.cumsum(np.bincount(where, minlength=n))
    n_kept = max(int((by_slot <= _MOST_MARKS).sum()), 1)
    kept = found[where < n_kept].assign(slot=where[where < n_kept])
    kept = kept.sort_values(["feature", "slot", "rank"], kind="stable")
    rows = np.unique(top[:, :n_kept][top[:, :n_kept] >= 0])
    first = [first_genes(sequences, row, is_gene, N_FIRST) for row in rows]
    tokens = np.unique(np.concatenate([*first, kept["token"].to_numpy(), []]).astype(int))
    number = np.zeros(len(names), dtype=int)
    number[tokens] = np.arange(len(tokens))
    scale = np.zeros(tables.width)
    np.maximum.at(scale, kept["feature"].to_numpy(), kept["value"].to_numpy())
    counts = np.zeros((tables.width, n_kept), dtype=int)
    np.add.at(counts, (kept["feature"].to_numpy(), kept["slot"].to_numpy()), 1)
    meta = {
        "symbols": names[tokens].tolist(),
        "n_kept": n_kept,
        "levels": _LEVELS,
        "cells": tables.names[rows].tolist(),
    }
    arrays = {
        "count": _unsigned(counts),
        "rank": _unsigned(kept["rank"].to_numpy()),
        "value": _bytes(kept["value"] / scale[kept["feature"]], _LEVELS, least=1),
        "scale": _rounded(scale),
        # Those of the first ranks are in `first` as well.
        "gene": _unsigned(np.where(kept["rank"] <= N_FIRST, 0, number[kept["token"].to_numpy().astype(int)])),
        "n_first": np.array([len(part) for part in first], dtype=np.uint8),
        "first": _unsigned(number[np.concatenate([*first, []]).astype(int)]),
        "length": _unsigned([int(is_gene[_tokens(sequences, row)].sum()) for row in rows]),
    }
    return pack(meta, arrays)


def _tokens(sequences, row: int) -> np.ndarray:
    return sequences.tokens[sequences.indptr[row] : sequences.indptr[row + 1]]


def _pairs(top: np.ndarray, n_cells: int) -> np.ndarray:
    """One number a feature and cell, -1 for none."""
    return np.where(top >= 0, np.arange(len(top))[:, None] * n_cells + top, -1).ravel()


def _about(tables: FeatureTables) -> str:
    """One line on where the features come from."""
    p = tables.params
    model = f"model {Path(str(p['model'])).name}" if p.get("model") else ""
    sae = p.get("sae", {})
    where = f"{sae['site']} of block {sae['block']}" if "block" in sae else ""
    each = f"{sae['k']} a gene" if "k" in sae else ""
    pool = {"max": "largest", "mean": "mean of the five largest", "count": "number of genes active"}
    pooled = f"activation of a cell: {pool.get(str(p.get('pool', 'max')), p.get('pool'))}"
    counts = f"{tables.width:,} features, {len(tables.names):,} cells"
    return " · ".join(part for part in (model, where, counts, each, pooled) if part)


def _rounded(values) -> np.ndarray:
    """float32 to three or four digits: the rest of the bits are 0, and compress well."""
    exact = np.asarray(values, dtype=np.float32)
    bits = exact.view(np.uint32)
    near = ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(exact), near, exact).astype(np.float32)


def _unsigned(values) -> np.ndarray:
    """The smallest unsigned integers that hold these."""
    values = np.asarray(values)
    largest = int(values.max(initial=0))
    return values.astype(next(t for t in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(t).max))


def _bytes(shares, most: int, *, least: int = 0) -> np.ndarray:
    """Shares of 1 as bytes, 0 to `most`; 255 for those that are unknown."""
    shares = np.asarray(shares, dtype=float)
    near = np.clip(np.rint(shares * most), least, most)
    return np.where(np.isnan(shares), _UNKNOWN, near).astype(np.uint8)
