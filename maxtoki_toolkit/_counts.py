"""Whether values are raw counts."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ._warn import warn


def check_counts(block: sp.csr_matrix, *, force: bool, hint: str = "") -> None:
    """Refuse what is not raw counts.

    Negative, infinite and NaN values are always refused: no rank can be given to them. Non-integers
    (log-normalised, scaled, FPKM) are refused unless `force`; what looks logarithmic is warned of even then.
    """
    check_columns(block)
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
            warn(f"{found} The ranks are not those of the counts.")
            return
        raise ValueError(f"{found} Raw counts are needed.{hint}")
    if not force:
        raise ValueError(
            f"{found}: this looks normalised (CPM, TPM, FPKM) or corrected. Raw counts are needed.{hint} Values that "
            "are linear in expression keep their order within a cell: for those, pass force=True."
        )


def check_columns(matrix) -> None:
    """Refuse a sparse matrix whose entries are in no column (or row, by gene): of a damaged file."""
    indices, n = matrix.indices, matrix.shape[matrix.format == "csr"]
    if indices.size and not (indices.dtype.kind in "iu" and indices.min() >= 0 and indices.max() < n):
        raise ValueError(
            f"The counts are damaged: they have values in columns that there are not ({indices.min()} to {indices.max()}, of {n} "
            "columns). Copy or download the file again."
        )
