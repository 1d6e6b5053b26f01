"""h5ad and zarr files, opened without being read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import h5py
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._progress import hidden
from .._results import writable
from ..models.vocabulary import Vocabulary
from ._counts import iter_csr
from .map_genes import gene_report, resolve_genes
from .rank_value_encode import rank_value_encode


@contextmanager
def open_store(path: str | Path, mode: str = "r") -> Iterator:
    """Open an h5ad file or a zarr store as a group."""
    path = Path(path)
    if mode == "r" and not path.exists():
        raise FileNotFoundError(f"Did not find {path}.")
    if path.suffix == ".zarr":
        import zarr

        yield zarr.open_group(path, mode=mode)
        return
    if path.suffix != ".h5ad":
        raise ValueError(f"{path} is neither .h5ad nor .zarr.")
    try:
        file = h5py.File(path, mode)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as h5ad ({error}). It may be cut short, or be no h5ad file: copy or download it again."
        ) from None
    with file:
        yield file


def read_frames(store) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `obs` and `var` of an open store."""
    if missing := [key for key in ("obs", "var") if key not in store]:
        raise ValueError(f"This is no AnnData file: it has no {' and no '.join(missing)}.")
    return ad.io.read_elem(store["obs"]), ad.io.read_elem(store["var"])


def first_values(store, layer: str | None, n: int = 100_000) -> sp.csr_matrix:
    """About the first `n` values of the matrix of counts of an open store, as a matrix of one row."""
    matrix = _counts_of(store, layer)
    if hasattr(matrix, "keys"):
        return sp.csr_matrix(matrix["data"][:n])
    return sp.csr_matrix(matrix[: max(n // matrix.shape[1], 1)].reshape(1, -1))


def encoded_blocks(
    store,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    vocab: Vocabulary,
    *,
    layer: str | None = None,
    gene_key: str | None = None,
    min_overlap: float = 0.1,
    force: bool = False,
    chunk_size: int = 2048,
    numbers: Iterable[int] | None = None,
) -> Iterator[AnnData]:
    """Yield the cells of an open store as rank-encoded AnnData, `chunk_size` cells at a time.

    All blocks, or those with these numbers.
    """
    if f"uns/{_keys.ENCODING}" in store:
        # Of an earlier encoding; without it, they are the user's.
        obs = obs.drop(columns=[_keys.N_RANKED, _keys.SHARE_RANKED], errors="ignore")
    if not obs.index.is_unique:
        repeated = obs.index[obs.index.duplicated()]
        raise ValueError(f"{len(repeated)} cell names in the file are not unique (first: {repeated[0]!r}).")
    var, params = resolve_genes(var, vocab, gene_key=gene_key, min_overlap=min_overlap)
    mapped = writable({_keys.MAP_GENES: {"params": params, "report": gene_report(var)}})
    counts = _open_counts(store, layer)
    for start, block in iter_csr(counts, chunk_size, numbers):
        cells = AnnData(block, obs=obs.iloc[start : start + chunk_size].copy(), var=var, uns=dict(mapped))
        with hidden():
            rank_value_encode(cells, vocab, force=force, chunk_size=chunk_size)
        yield cells


def _slot(layer: str | None) -> str:
    """Where the counts are in a file."""
    return "X" if layer is None else f"layers/{layer}"


def _counts_of(store, layer: str | None):
    """Return the stored matrix of counts as it is."""
    key = _slot(layer)
    if key not in store:
        layers = sorted(store["layers"]) if "layers" in store else []
        raise KeyError(f"Did not find {key} in the file. Its layers: {', '.join(layers) or 'none'}.")
    return store[key]


def _open_counts(store, layer: str | None):
    """Return the on-disk matrix of counts, sliceable by row."""
    matrix = _counts_of(store, layer)
    if not hasattr(matrix, "keys"):
        return matrix
    matrix = ad.io.sparse_dataset(matrix)
    if matrix.format != "csr":
        raise ValueError(
            f"{_slot(layer)} is stored by gene (CSC), which cannot be read cell by cell. Load it with anndata and write "
            "adata.X.tocsr() to a new file."
        )
    return matrix
