"""RNA, proteins and chromatin of the same cells in one AnnData."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .._validate import require_adata, require_unique_names
from ._modalities import ADT, ATAC

_TYPES = {ADT: "Antibody Capture", ATAC: "Peaks"}
_IN_MUDATA = {ADT: ("prot", "adt", "protein", "proteins"), ATAC: ("atac", "peaks")}


def join_modalities(
    cells,
    *,
    proteins: str | pd.DataFrame | AnnData | None = None,
    peaks: str | pd.DataFrame | AnnData | None = None,
) -> AnnData:
    """Put proteins and peaks beside the genes of the same cells.

    Parameters
    ----------
    cells
        AnnData with raw counts of genes; or a MuData, whose "rna", "prot" (or "adt") and "atac" are taken.
    proteins, peaks
        Raw counts of surface proteins, and of peaks (or whether they are open): a key of `.obsm` with a
        DataFrame, a DataFrame or an AnnData, cells x features, with the same cells.

    Returns
    -------
    Cells x features: genes first, then "adt:..." and "atac:...", with `.var["feature_types"]` as 10x has
    them; `.obs` and `.obsm` of `cells`.

    Raises
    ------
    KeyError
        If there is no such key in `.obsm`, or no RNA in a MuData.
    TypeError
        If features have no names.
    ValueError
        If there is nothing to join, or the cells are not the same.

    Examples
    --------
    >>> import pandas as pd, maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:3].copy()
    >>> counts = pd.DataFrame({"CD3": [5, 0, 2], "CD19": [0, 7, 1]}, index=adata.obs_names)
    >>> joint = mt.pp.join_modalities(adata, proteins=counts)
    >>> joint.var_names[-2:].tolist()
    ['adt:CD3', 'adt:CD19']
    """
    if hasattr(cells, "mod"):
        if "rna" not in cells.mod:
            raise KeyError(f"The MuData has no modality 'rna' (it has {', '.join(cells.mod)}).")
        found = {kind: [cells.mod[n] for n in names if n in cells.mod] for kind, names in _IN_MUDATA.items()}
        proteins, peaks = (
            given or next(iter(found[kind]), None) for given, kind in ((proteins, ADT), (peaks, ATAC))
        )
        cells = cells.mod["rna"]
    require_adata(cells)
    require_unique_names(cells)
    if cells.X is None:
        raise ValueError("The cells have no .X: put the raw counts of the genes there.")
    if proteins is None and peaks is None:
        raise ValueError("There is nothing to join: give proteins= or peaks=.")
    var = cells.var.copy()
    var["feature_types"] = "Gene Expression"
    counts, tables = [sp.csr_matrix(cells.X, dtype=np.float32)], [var]
    for kind, given in ((ADT, proteins), (ATAC, peaks)):
        if given is None:
            continue
        names, values = _read(cells, given, kind)
        counts.append(values)
        tables.append(
            pd.DataFrame({"feature_types": _TYPES[kind]}, index=[f"{kind}:{name}" for name in names])
        )
    var = pd.concat(tables)
    for column in var.columns.difference(["feature_types"]):
        if var[column].dtype == object or isinstance(var[column].dtype, pd.CategoricalDtype):
            var[column] = var[column].astype(object).fillna("")
    return AnnData(
        sp.hstack(counts, format="csr"),
        obs=cells.obs.copy(),
        var=var,
        obsm=dict(cells.obsm),
    )


def _read(cells: AnnData, given, kind: str) -> tuple[list[str], sp.csr_matrix]:
    """Names and counts of features, in the order of the cells."""
    if isinstance(given, str):
        if given not in cells.obsm:
            raise KeyError(f"Did not find .obsm[{given!r}]. There are {', '.join(cells.obsm) or 'none'}.")
        given = cells.obsm[given]
        if not isinstance(given, pd.DataFrame):
            raise TypeError(
                f"The features of this .obsm have no names (a {type(given).__name__}). Give a DataFrame, or AnnData(counts, "
                "obs=adata.obs[[]], var=pd.DataFrame(index=names))."
            )
    if isinstance(given, AnnData):
        rows, names, values = given.obs_names, given.var_names, given.X
    elif isinstance(given, pd.DataFrame):
        rows, names, values = given.index, given.columns, given.to_numpy()
    order = pd.Index(rows.astype(str)).get_indexer(cells.obs_names.astype(str))
    if (missing := order < 0).any():
        raise ValueError(
            f"{missing.sum()} of {cells.n_obs} cells are not among those of the "
            f"{'proteins' if kind == ADT else 'peaks'} (first: {cells.obs_names[missing][0]!r})."
        )
    return [str(name) for name in names], sp.csr_matrix(values, dtype=np.float32)[order]
