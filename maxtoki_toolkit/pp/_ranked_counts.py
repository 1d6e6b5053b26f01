"""The counts that results are made of: of which matrix, of genes alone, in one column a gene."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._counts import check_counts
from .._features import gene_columns
from .._warn import warn
from ._counts import counts_hint, get_counts

# What `.uns["rank_value_encode"]` calls `.X`, and cells that a model wrote, which have no counts.
_X, _GENERATED = "X", "generated"
_ELSEWHERE = ": say where the counts are now (layer=, here or in mt.pp.rank_value_encode)"


def source_of(adata: AnnData, layer: str | None) -> tuple[str | None, bool]:
    """Layer with the counts (`None` for `.X`): the one asked for, else what was ranked; and whether it need not be whole numbers."""
    params = adata.uns.get(_keys.ENCODING, {}).get("params", {})
    ranked = params.get("layer", _X)
    ranked = None if ranked in (_X, _GENERATED) else ranked
    source = ranked if layer is None else layer
    return source, bool(params.get("force", False)) and source == ranked


def has_counts(adata: AnnData, layer: str | None = None) -> bool:
    """Whether the matrix that `ranked_counts` reads is there."""
    try:
        return get_counts(adata, source_of(adata, layer)[0]) is not None
    except (KeyError, ValueError):
        return False


def ranked_counts(
    adata: AnnData,
    layer: str | None = None,
    rows: np.ndarray | slice = slice(None),
    *,
    whole: bool = False,
) -> sp.csr_matrix:
    """Read the counts of some cells as they are ranked.

    Parameters
    ----------
    adata
        Cells.
    layer
        Layer with the raw counts; by default what was ranked, and `.X` where nothing was.
    rows
        Cells.
    whole
        Refuse what are no whole numbers, also where they were ranked with `force`.

    Returns
    -------
    CSR, cells x genes: raw counts, those of columns of one gene in the first of them, and none of what is no
    gene.
    """
    source, force = source_of(adata, layer)
    try:
        counts = get_counts(adata, source)
    except KeyError as error:
        if layer is not None:
            raise
        raise KeyError(f"{error.args[0]} The cells were ranked from it{_ELSEWHERE}.") from None
    counts = sp.csr_matrix(counts[rows])
    check_counts(counts, force=force and not whole, hint=counts_hint(adata, source))
    return sum_genes(counts, gene_columns(adata.var))


def counts_or_none(
    adata: AnnData, rows: np.ndarray | slice = slice(None), *, instead: str
) -> sp.csr_matrix | None:
    """Read the counts that were ranked; where they are gone, warn of what is done `instead` and return `None`."""
    if adata.X is None and not has_counts(adata, None):
        return None
    try:
        return ranked_counts(adata, None, rows)
    except (KeyError, ValueError) as error:
        # Who calls this has no `layer` to say where they are.
        reason = error.args[0].replace(_ELSEWHERE, "")
    warn(
        f"{instead}: {reason} The counts that the cells were ranked from must be where they were then: put them back, or "
        "rank again (mt.pp.rank_value_encode with layer=)."
    )
    return None


def sum_genes(counts: sp.csr_matrix, into: np.ndarray) -> sp.csr_matrix:
    """Add each column to the one that stands for its gene (see `gene_columns`), in canonical form; exact for all types."""
    if (into == np.arange(len(into))).all():
        if counts.has_canonical_format:
            return counts
        counts = counts.astype(np.float64)
    else:
        columns = np.flatnonzero(into >= 0)
        # Whole numbers of a small type would wrap around.
        gather = sp.csr_matrix((np.ones(len(columns)), (columns, into[columns])), shape=(len(into),) * 2)
        counts = counts.astype(np.float64) @ gather
    counts.sum_duplicates()
    return counts
