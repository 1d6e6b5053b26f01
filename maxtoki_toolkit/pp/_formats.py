"""Which files of cells there are, and those that are read as a whole: 10x, and h5ad of before anndata 0.7."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

H5AD, ZARR, TENX_H5, TENX_FOLDER = "h5ad", "zarr", "10x h5", "10x folder"
_KINDS = {".h5ad": H5AD, ".zarr": ZARR, ".h5": TENX_H5}
_ENDINGS = {
    "matrix": "matrix.mtx",
    "genes": "features.tsv",
    "old_genes": "genes.tsv",
    "cells": "barcodes.tsv",
}
# What Cell Ranger writes, the best first.
_OUTS = ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix", "filtered_gene_bc_matrices")
_CONVERT = {
    ".rds": """a Seurat or R object, which only R can read. In R:
  library(Seurat)
  object <- readRDS("{name}")
  counts <- LayerData(JoinLayers(object), assay = "RNA", layer = "counts")  # Seurat 4: GetAssayData(object, slot = "counts")
  DropletUtils::write10xCounts("{stem}_10x", counts, version = "3")
  write.csv(object[[]], "{stem}_obs.csv")
Then in Python:
  cells = mt.pp.read_cells("{stem}_10x")
  cells.obs = pandas.read_csv("{stem}_obs.csv", index_col=0).loc[cells.obs_names]
  cells.write_h5ad("{stem}.h5ad")""",
    ".loom": """a loom file. In Python, with the package loompy:
  cells = anndata.io.read_loom("{name}", obs_names="CellID", var_names="Gene")
  cells.var_names_make_unique()
  cells.write_h5ad("{stem}.h5ad")""",
}
_READ = 'readRDS("{name}")'
_CONVERT |= {
    ending: _CONVERT[".rds"].replace(_READ, instead)
    for ending, instead in {
        ".rda": 'get(load("{name}"))',
        ".rdata": 'get(load("{name}"))',
        ".h5seurat": 'SeuratDisk::LoadH5Seurat("{name}")',
        ".qs": 'qs::qread("{name}")',
    }.items()
}


def kind_of(path: str | Path) -> str:
    """What kind of file of cells this is, by its ending or, for a folder of 10x, by what is in it.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If it is no such file; the message says what to do.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"Did not find {path}.")
    ending = path.suffix.lower()
    if ending in (".h5ad", ".zarr") or (ending == ".h5" and path.is_file()):
        return _KINDS[ending]
    if ending in _CONVERT:
        how = _CONVERT[ending].format(name=path.name, stem=path.stem)
        raise ValueError(f"{path} is {how}")
    if ending in (".gz", ".zip", ".tar", ".tgz"):
        raise ValueError(f"{path} is packed. Unpack it first.")
    if path.is_dir():
        if _tenx_files(path):
            return TENX_FOLDER
        inside = [
            path / name for name in (*_OUTS, *(f"outs/{name}" for name in _OUTS)) if (path / name).exists()
        ]
        if inside:
            raise ValueError(f"{path} is a folder of Cell Ranger. Give the matrix in it: {inside[0]}.")
        raise ValueError(
            f"{path} is a folder, but none of 10x: it has no matrix.mtx with barcodes.tsv and features.tsv (or genes.tsv), "
            "or those of several samples."
        )
    raise ValueError(
        f"{path} is neither .h5ad nor .zarr, nor 10x output (an .h5 file, or the folder of matrix.mtx). Read it in Python, "
        "put cells in rows and raw counts in .X, and write it: adata.write_h5ad(path)."
    )


def stem_of(path: str | Path) -> str:
    """Name without the ending that says what kind of file it is; that of a folder may hold points."""
    path = Path(path)
    return path.stem if path.suffix.lower() in _KINDS else path.name


def read_whole(path: str | Path) -> AnnData:
    """Read a file of cells of any kind into memory."""
    path, kind = Path(path), kind_of(path)
    if kind == H5AD:
        with warnings.catch_warnings():
            # An old file is no news to whoever has one.
            warnings.simplefilter("ignore", ad.OldFormatWarning)
            return ad.read_h5ad(path)
    if kind == ZARR:
        return ad.read_zarr(path)
    cells = _read_folder(path) if kind == TENX_FOLDER else _read_h5(path)
    if not cells.obs_names.is_unique:
        raise ValueError(
            f"{path} has repeated barcodes (first: {cells.obs_names[cells.obs_names.duplicated()][0]!r})."
        )
    return cells


def _read_h5(path: Path) -> AnnData:
    import scanpy as sc

    try:
        return _by_id(sc.read_10x_h5(path, gex_only=False))
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as an .h5 file of 10x ({error}). It may be cut short, or be another kind of HDF5 file."
        ) from error


def _read_folder(folder: Path) -> AnnData:
    """Read matrix.mtx and its tables, with or without .gz, of Cell Ranger 2 or later, or of STARsolo."""
    from scipy.io import mmread

    files = _tenx_files(folder)
    try:
        counts = sp.csr_matrix(mmread(files["matrix"]).T)
        cells, genes = (
            pd.read_csv(files[name], sep="\t", header=None, dtype=str, keep_default_na=False)
            for name in ("cells", "genes")
        )
    except Exception as error:
        raise ValueError(
            f"{folder} cannot be read as a folder of 10x ({error}). Copy or download it again."
        ) from error
    if counts.shape != (len(cells), len(genes)):
        raise ValueError(
            f"{folder} does not fit together: {files['matrix'].name} has {counts.shape[0]} cells and {counts.shape[1]} genes, "
            f"{files['cells'].name} {len(cells)} and {files['genes'].name} {len(genes)}. Copy or download it again."
        )
    var = pd.DataFrame({"gene_ids": genes[0], "symbol": genes[1] if 1 in genes else genes[0]})
    if 2 in genes:
        var["feature_types"] = genes[2]
    return _by_id(
        AnnData(counts, obs=pd.DataFrame(index=cells[0].to_numpy()), var=var.set_axis(var["symbol"]))
    )


def _by_id(cells: AnnData) -> AnnData:
    """Name the genes by their ids, which are unique, with the symbols beside them."""
    cells.var["symbol"] = cells.var_names.to_numpy()
    ids = cells.var.pop("probe_ids" if "probe_ids" in cells.var else "gene_ids")
    cells.var_names = pd.Index(ids.to_numpy(), name=None)
    cells.var_names_make_unique()
    return cells


def _tenx_files(folder: Path) -> dict[str, Path]:
    """Matrix, genes and cells in a folder; empty unless there is one of each. A prefix, as GEO gives it, is no matter."""
    names = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = {}
    for what, ending in _ENDINGS.items():
        if some := [path for path in names if path.name.removesuffix(".gz").lower().endswith(ending)]:
            # The same file compressed and not.
            if len({path.name.removesuffix(".gz") for path in some}) > 1:
                return {}
            found[what] = some[0]
    found.setdefault("genes", found.pop("old_genes", None))
    return found if None not in found.values() and {"matrix", "cells"} <= set(found) else {}
