"""The registry of data sets: what there is, and how to open it verified."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse

from .._manifests import KINDS, UNKNOWN, fetch, fetchable, manifest, manifest_paths


def available(kind: str | None = None) -> pd.DataFrame:
    """Everything the registry knows.

    Parameters
    ----------
    kind
        Keep `"dataset"` (cells), `"checkpoint"` (weights) or `"reference"` (tables and dictionaries).

    Returns
    -------
    One row an entry, by name: `name`, `kind`, `title`, `size_mb` (megabytes, missing where no file is on
    record), `licence`, `shipped` (part of the installed package) and `can_load` (`load` opens it).

    Raises
    ------
    ValueError
        If there is no such kind.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> table = mt.datasets.available("dataset")
    >>> table.loc[table["shipped"], "name"].to_list()
    ['heart_nuclei', 'myoblast_timecourse']
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"No kind {kind!r}. Use one of {', '.join(KINDS)}, or None for everything.")
    entries = [manifest(name) for name in sorted(manifest_paths())]
    rows = [
        {
            "name": entry["name"],
            "kind": entry["kind"],
            "title": entry["title"],
            "size_mb": _megabytes(entry),
            "licence": entry["licence"],
            "shipped": entry["shipped"],
            "can_load": entry["kind"] == "dataset" and fetchable(entry),
        }
        for entry in entries
        if kind in (None, entry["kind"])
    ]
    return pd.DataFrame(rows, columns=["name", "kind", "title", "size_mb", "licence", "shipped", "can_load"])


def load(name: str) -> AnnData:
    """Open a data set, verified against its SHA-256, downloading it once where that is possible.

    Parameters
    ----------
    name
        The name of a data set in `available("dataset")`.

    Returns
    -------
    The cells (n_obs, n_vars), with `.X` as a float32 CSR matrix. `manifest(name)["columns"]` says which
    columns of `obs` hold cell type, donor and time; `.uns["source"]` of shipped data says where they come
    from and what was changed.

    Raises
    ------
    ValueError
        If there is no such data set, or its file is not what the manifest says.
    FileNotFoundError
        If the registry knows the data set but no file with a known checksum; the message says what is
        known and how to bring your own copy.
    ConnectionError
        If the download fails.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> adata.shape
    (700, 17952)
    """
    entry = manifest(name)
    if entry["kind"] != "dataset":
        raise ValueError(
            f"{name!r} holds no cells but is a {entry['kind']}: {entry['title']}. {entry['use']}"
        )
    (path,) = fetch(name).values()
    return _read(path)


def _megabytes(entry: dict) -> float:
    sizes = [file["size"] for file in entry["files"]] if isinstance(entry["files"], list) else [UNKNOWN]
    return float("nan") if UNKNOWN in sizes else round(sum(sizes) / 1e6, 2)


def _read(path: Path) -> AnnData:
    try:
        adata = anndata.read_h5ad(path)
    except OSError as error:
        raise ValueError(
            f"{path} is not a readable h5ad file: {error}. Delete it and load it again."
        ) from None
    X = adata.X if issparse(adata.X) else csr_matrix(adata.X)
    adata.X = X.tocsr().astype(np.float32)
    return adata
