"""What proteins and peaks are divided by before they are ranked."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from .._counts import check_counts
from .._validate import require_adata
from ._counts import counts_hint, get_counts
from ._modalities import ADT, ATAC, kinds_of, names_of, protein_background, values_of


def modality_medians(
    cells: AnnData, *, layer: str | None = None, min_cells: int = 3
) -> dict[str, dict[str, float]]:
    """Read the medians of proteins and the accessibility of peaks, for `Vocabulary.with_modalities`.

    Parameters
    ----------
    cells
        Cells x features, raw counts, `.var["feature_types"]` as 10x has them (`mt.pp.join_modalities`).
    layer
        Layer that holds the raw counts, `.X` by default.
    min_cells
        A feature counts when at least this many cells have it.

    Returns
    -------
    For "adt": each protein's median, over the cells that are above its background, of counts per ten thousand
    less the background. For "atac": the share of the cells in which each peak is open.

    Raises
    ------
    ValueError
        If there are neither proteins nor peaks in enough cells, or values are no raw counts.

    Notes
    -----
    A protein's background reaches two standard deviations above the mean of log(1 + counts per ten thousand)
    in the lower of two classes of cells, those whose means lie furthest apart for their sizes (Otsu, IEEE
    Trans. Syst. Man Cybern. 1979). Peaks that are open in few cells say more of a cell than those that are
    open in all: dividing by the share of open cells puts them first, as dividing by the median does for
    genes.

    Examples
    --------
    >>> import numpy as np, pandas as pd, maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:60].copy()
    >>> counts = np.random.default_rng(0).poisson(np.where(np.arange(60)[:, None] < 30, [90, 5], [5, 90]))
    >>> proteins = pd.DataFrame(counts, index=adata.obs_names, columns=["CD3", "CD19"])
    >>> sorted(mt.pp.modality_medians(mt.pp.join_modalities(adata, proteins=proteins))["adt"])
    ['CD19', 'CD3']
    """
    require_adata(cells)
    kinds = kinds_of(cells.var)
    counts = get_counts(cells, layer)
    out = {}
    for kind in (ADT, ATAC):
        columns = np.flatnonzero(kinds == kind)
        if not len(columns):
            continue
        part = sp.csr_matrix(counts[:, columns])
        check_counts(part, force=False, hint=counts_hint(cells, layer))
        values = values_of(kind, part, protein_background(part) if kind == ADT else None).tocsc()
        names = [name.partition(":")[2] for name in names_of(cells.var.iloc[columns], kinds[columns])]
        n = np.diff(values.indptr)
        if kind == ATAC:
            found = n / cells.n_obs
        else:
            found = [np.median(values.data[a:b]) if b > a else 0.0 for a, b in pairwise(values.indptr)]
        out[kind] = {
            name: float(v) for name, v, k in zip(names, found, n, strict=True) if k >= min_cells and v > 0
        }
    if not any(out.values()):
        raise ValueError(
            f"There are no proteins or peaks in {min_cells} cells. Their columns need "
            '.var["feature_types"] "Antibody Capture" or "Peaks": see mt.pp.join_modalities.'
        )
    return {kind: table for kind, table in out.items() if table}
