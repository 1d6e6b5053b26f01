"""Read a file of cells into memory, whatever wrote it."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
from anndata import AnnData

from ._formats import read_whole
from ._store import open_counts, open_store, slot_of


def read_cells(path: str | Path, *, layer: str | None = None) -> AnnData:
    """Read a file of cells.

    Parameters
    ----------
    path
        `.h5ad` (older ones too), `.zarr`, an `.h5` file of 10x, or a 10x folder with `matrix.mtx`, barcodes
        and features.
    layer
        Layer with the raw counts, by default `.X`; "raw" for the counts in `.raw`, where files of CELLxGENE
        have them.

    Returns
    -------
    The cells. Those of 10x have their genes named by id, with `.var["symbol"]`. With `layer="raw"`, all genes
    of `.raw`, its counts as `.X`, and in `.raw` still: functions take them with `layer="raw"` and without.

    Raises
    ------
    ValueError
        If this is no file of cells, or it is damaged or incomplete.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> path = f"{tempfile.mkdtemp()}/cells.h5ad"
    >>> mt.datasets.aging_atlas(200, 10).write_h5ad(path)
    >>> mt.pp.read_cells(path).n_obs
    200
    """
    with open_store(path) as store:
        open_counts(store, layer)  # says what is wrong with a file
        from_raw = slot_of(store, layer) == "raw/X"
        # anndata before 0.8 did not mark its files.
        cells = ad.io.read_elem(store) if "encoding-type" in store.attrs else read_whole(path)
    if from_raw and cells.raw.var_names.equals(cells.var_names):
        cells.X = cells.raw.X.copy()
    elif from_raw:
        cells = cells.raw.to_adata()
        cells.raw = cells
    return cells
