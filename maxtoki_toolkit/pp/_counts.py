"""Raw counts: where they are, and how to read them in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

# The layer that stands for the counts in `.raw`, where files of CELLxGENE have them.
RAW = "raw"


def get_counts(adata: AnnData, layer: str | None):
    """Return the matrix that holds the counts: `.X`, a layer or ("raw") that in `.raw`, in memory or on disk."""
    if layer is None:
        if adata.X is None:
            hint = counts_hint(adata) or " Say which layer holds the raw counts: layer='counts'."
            raise ValueError(f"The AnnData has no .X.{hint}")
        return _workable(adata.X)
    if layer in adata.layers:
        return _workable(adata.layers[layer])
    if layer == RAW and adata.raw is not None:
        return _workable(_raw_counts(adata))
    raise KeyError(f"Did not find .layers[{layer!r}]. Available layers: {_layer_names(adata)}.")


def _layer_names(adata: AnnData) -> list[str]:
    return sorted({*adata.layers, *([] if adata.raw is None else [RAW])})


def _raw_counts(adata: AnnData):
    """Return the matrix in `.raw`, its columns in the order of the genes."""
    names = adata.raw.var_names
    if names.equals(adata.var_names):
        return adata.raw.X
    if len(names) != adata.n_vars or not names.is_unique or not names.isin(adata.var_names).all():
        raise ValueError(
            f".raw has {len(names)} genes and .var {adata.n_vars}: ranks of a part of the genes are not those of the cell. Go on "
            "with all of them: adata = adata.raw.to_adata(), whose .X are these counts."
        )
    return adata.raw.X[:, names.get_indexer(adata.var_names)]


def _workable(matrix):
    """Return a matrix as scipy can work with it: no half precision, row pointers and columns of one type."""
    if isinstance(matrix, np.ndarray) and matrix.dtype == np.float16:
        return matrix.astype(np.float32)
    if sp.issparse(matrix) and matrix.format in ("csr", "csc"):
        if matrix.indices.dtype != matrix.indptr.dtype and matrix.indices.dtype.kind == "i":
            return type(matrix)((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    return matrix


def iter_csr(
    matrix, chunk_size: int, numbers: Iterable[int] | None = None
) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Yield (first row, CSR block) over a dense, sparse or on-disk matrix; do not change the blocks.

    All blocks, or those with these numbers. Blocks of a CSR matrix in memory share its data, since copying
    would take as long as ranking.
    """
    if sp.issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()
    for number in range(-(-matrix.shape[0] // chunk_size)) if numbers is None else numbers:
        start = number * chunk_size
        stop = min(start + chunk_size, matrix.shape[0])
        if sp.issparse(matrix):
            indptr = matrix.indptr[start : stop + 1]
            entries = slice(indptr[0], indptr[-1])
            # The constructor would copy what is a small part of a large array.
            block = sp.csr_matrix((stop - start, matrix.shape[1]), dtype=matrix.dtype)
            block.data, block.indices = matrix.data[entries], matrix.indices[entries]
            block.indptr = indptr - indptr[0]
            yield start, block
        else:
            yield start, sp.csr_matrix(_workable(matrix[start:stop]))


def counts_hint(adata: AnnData, asked: str | None = None) -> str:
    """Say where the raw counts may be in this object, if not where they were looked for."""
    return hint_of([name for name in _layer_names(adata) if name != asked])


def hint_of(layers: list[str]) -> str:
    """Say which of these layers may hold the raw counts."""
    named = [name for name in layers if "count" in name.lower() or RAW in name.lower()]
    return f" Perhaps layer={named[0]!r}?" if named else ""
