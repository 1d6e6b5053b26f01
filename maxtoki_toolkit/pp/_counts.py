"""Raw counts: where they are, whether they are counts, and how to read them in blocks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse as sp
from anndata import AnnData


def get_counts(adata: AnnData, layer: str | None):
    """Return the matrix that holds the counts: `.X` or a layer, in memory or on disk."""
    if layer is None:
        if adata.X is None:
            raise ValueError("The AnnData has no .X. Say which layer holds the raw counts: layer='counts'.")
        return adata.X
    if layer not in adata.layers:
        raise KeyError(f"Did not find .layers[{layer!r}]. Available layers: {sorted(adata.layers)}.")
    return adata.layers[layer]


def iter_csr(
    matrix, chunk_size: int, numbers: Iterable[int] | None = None
) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Yield (first row, CSR block) over a dense, sparse or on-disk matrix; do not change the blocks.

    All blocks, or those with these numbers. Blocks of a CSR matrix in memory share its data, since copying would take as
    long as ranking.
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
            yield start, sp.csr_matrix(matrix[start:stop])


def check_counts(block: sp.csr_matrix, *, force: bool, hint: str = "") -> None:
    """Refuse what is not raw counts.

    Negative, infinite and NaN values are always refused: no rank can be given to them. Non-integers
    (log-normalised, scaled, FPKM) are refused unless `force`; what looks logarithmic is warned of even then.
    """
    values = block.data
    if np.issubdtype(values.dtype, np.integer):
        if values.size and values.min() < 0:
            raise ValueError(f"The counts hold negative values (lowest {values.min()}).{hint}")
        return
    if values.dtype == bool:
        return
    finite = np.isfinite(values)
    if not finite.all():
        raise ValueError(
            f"The counts hold {np.count_nonzero(~finite)} NaN or infinite values. Genes that were not "
            "measured cannot be ranked: drop them, or set them to 0 if they mean not detected."
        )
    if values.size and values.min() < 0:
        raise ValueError(
            f"The counts hold negative values (lowest {values.min():.3g}), as scaled data do. "
            f"Raw counts are needed.{hint}"
        )
    fractional = values != np.rint(values)
    if not fractional.any():
        return
    found = f"{fractional.mean():.0%} of the values are not integers (e.g. {values[fractional][0]:.4g}; highest {values.max():.4g})"
    if values.max() < 20:
        found += ": this looks log-normalised, which changes the order of the genes."
        if force:
            warnings.warn(f"{found} The ranks are not those of the counts.", UserWarning, stacklevel=4)
            return
        raise ValueError(f"{found} Raw counts are needed.{hint}")
    if not force:
        raise ValueError(
            f"{found}: this looks normalised (CPM, TPM, FPKM) or corrected. Raw counts are needed.{hint} Values that "
            "are linear in expression keep their order within a cell: for those, pass force=True."
        )


def counts_hint(adata: AnnData) -> str:
    """Say where the raw counts may be in this object."""
    layers = [name for name in adata.layers if "count" in name.lower() or "raw" in name.lower()]
    if layers:
        return f" Perhaps layer={layers[0]!r}?"
    if adata.raw is not None:
        return " Perhaps adata.raw.to_adata() holds them?"
    return ""
