"""Samples of a study, joined by a sheet."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.io import mmwrite

import maxtoki_toolkit as mt


@pytest.fixture(scope="module")
def cells():
    adata = mt.datasets.aging_atlas(60, 10, n_genes=500, seed=3)
    mt.pp.map_genes(adata)
    adata.X = adata.X.tocsr()
    return adata


def tenx(folder, cells, types="Gene Expression"):
    """A folder as Cell Ranger writes it; all samples have the same barcodes."""
    folder.mkdir()
    mmwrite(folder / "matrix.mtx", sp.coo_matrix(cells.X.T.astype(int)))
    genes = pd.DataFrame({0: cells.var["ensembl_id"], 1: cells.var["symbol"], 2: types})
    genes.to_csv(folder / "features.tsv", sep="\t", header=False, index=False)
    (folder / "barcodes.tsv").write_text("\n".join(f"BARCODE{i}-1" for i in range(cells.n_obs)))


@pytest.fixture
def study(cells, tmp_path):
    """Three samples: one lacks genes, one is an h5ad with ids that have versions."""
    tenx(tmp_path / "s1", cells[:20])
    tenx(tmp_path / "s2", cells[20:40, 10:])
    user = anndata.AnnData(cells.X[40:].copy(), var=cells.var[["symbol"]].copy())
    user.var_names = cells.var["ensembl_id"] + ".3"
    user.write_h5ad(tmp_path / "s3.h5ad")
    return tmp_path


def sheet(folder, *lines):
    (folder / "samples.csv").write_text("\n".join(lines))
    return folder / "samples.csv"


@pytest.mark.filterwarnings("ignore:.*[Zz]arr")
@pytest.mark.parametrize(("comma", "suffix"), [(",", ".h5ad"), (";", ".zarr"), ("\t", ".h5ad")])
def test_samples_are_joined(study, cells, comma, suffix):
    rows = [
        "Path,sample,donor,age,condition",
        "s1,A,007,30,healthy",
        "s2,B,d2,,ill",
        ",,,,",
        "s3.h5ad,C,d3,70.5,ill",
    ]
    path = sheet(study, *(row.replace(",", comma) for row in rows))
    table = mt.pp.import_samples(path, study / f"cells{suffix}")
    assert table["sample"].tolist() == ["A", "B", "C"]
    assert table["n_cells"].tolist() == [20, 20, 20]
    assert table["n_genes"].tolist() == [500, 490, 500]
    assert table["n_missing"].tolist() == [0, 10, 0]
    assert table["notes"].tolist() == [
        "",
        "lacks 10 genes of other samples, which are 0 in its cells; has no age",
        "",
    ]
    joined = mt.pp.read_cells(study / f"cells{suffix}")
    ids = cells.var["ensembl_id"].tolist()
    assert joined.obs_names.is_unique
    assert joined.obs_names[[0, 20]].tolist() == ["BARCODE0-1-A", "BARCODE0-1-B"]
    assert (joined[:, ids].X[:20] != cells.X[:20]).nnz == 0
    assert (joined[:, ids].X[40:] != cells.X[40:]).nnz == 0
    assert (joined[:, ids[10:]].X[20:40] != cells.X[20:40, 10:]).nnz == 0
    assert joined[:, ids[:10]].X[20:40].nnz == 0
    assert joined.var.loc[ids[0], "n_samples"] == 2
    assert joined.var.loc[ids, "symbol"].tolist() == cells.var["symbol"].tolist()
    assert joined.obs["donor"].astype(str).unique().tolist() == ["007", "d2", "d3"]
    np.testing.assert_array_equal(joined.obs["age"].unique(), [30, np.nan, 70.5])
    mt.pp.map_genes(joined)
    assert (joined.var["ensembl_id"] == joined.var_names).all()


def test_ages_as_text(study):
    """Some with their unit, one missing: they are text, and `mt.pp.parse_age` reads them."""
    mt.pp.import_samples(
        sheet(study, "path,sample,age", "s1,A,45", "s2,B,67y", "s3.h5ad,C,"), study / "cells.h5ad"
    )
    cells = mt.pp.read_cells(study / "cells.h5ad")
    assert cells.obs.groupby("sample", observed=True)["age"].first().tolist()[:2] == ["45", "67y"]
    assert cells.obs["age"].isna().sum() == 20


def test_only_genes_are_joined(cells, tmp_path):
    types = np.array(["Gene Expression"] * 490 + ["Antibody Capture"] * 10)
    tenx(tmp_path / "s1", cells[:20], types)
    table = mt.pp.import_samples(sheet(tmp_path, "path", "s1"), tmp_path / "cells.h5ad")
    assert table["sample"].tolist() == ["s1"]
    assert table["notes"].tolist() == ["10 features that are no genes left out (Antibody Capture)"]
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").n_vars == 490


def test_counts_in_raw(study, cells):
    adata = anndata.read_h5ad(study / "s3.h5ad")
    adata.raw = adata.copy()
    adata.X = adata.X.log1p()
    adata.write_h5ad(study / "s3.h5ad")
    path = sheet(study, "path,sample", "s1,A", "s3.h5ad,C")
    with pytest.raises(ValueError, match=r"C: .*looks log-normalised.*Perhaps layer='raw'"):
        mt.pp.import_samples(path, study / "cells.h5ad")
    mt.pp.import_samples(path, study / "cells.h5ad", layer="raw")
    joined = anndata.read_h5ad(study / "cells.h5ad")
    assert (joined[20:, cells.var["ensembl_id"]].X != cells.X[40:]).nnz == 0


def test_everything_that_is_wrong_is_listed(study, cells):
    anndata.AnnData(cells.X.log1p(), var=cells.var[["symbol"]]).write_h5ad(study / "logged.h5ad")
    path = sheet(study, "path,sample", "s1,A", "none,B", "logged.h5ad,C")
    with pytest.raises(
        ValueError, match=r"2 of these samples cannot be joined:\n  B: Did not find .*none.\n  C: .*looks log"
    ):
        mt.pp.import_samples(path, study / "cells.h5ad")
    assert not list(study.glob("*cells*"))


def test_samples_that_do_not_belong_together(study, cells):
    tenx(study / "again", cells[:20])
    symbols = anndata.AnnData(cells.X[20:].copy())
    symbols.var_names = cells.var["symbol"].to_numpy()
    symbols.write_h5ad(study / "symbols.h5ad")
    mouse = anndata.AnnData(cells.X[20:].copy())
    mouse.var_names = cells.var["ensembl_id"].str.replace("ENSG", "ENSMUSG")
    mouse.obs["age"] = 3
    mouse.write_h5ad(study / "mouse.h5ad")
    empty = anndata.AnnData(
        sp.vstack([cells.X[20:], sp.csr_matrix((200, 500))]).tocsr(), var=cells.var[["symbol"]]
    )
    empty.write_h5ad(study / "droplets.h5ad")
    for other, message in {
        "again": "B: 20 of its 20 cells are those of A: is it one sample, listed twice",
        "symbols.h5ad": "B: its genes have names that are no Ensembl ids",
        "mouse.h5ad": "2 of these.*\n  B: only 0% of its genes.*another species.*\n  B: it has a column of its own",
        "droplets.h5ad": "B: .*most of them empty. Give the filtered matrix",
    }.items():
        path = sheet(study, "path,sample,age", "s1,A,1", f"{other},B,2", "s2,C,3")
        with pytest.raises(ValueError, match=message):
            mt.pp.import_samples(path, study / "cells.h5ad")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["p,sample", "s1,A"], "no column 'path'; it has p, sample"),
        (["path,sample", "s1,A", "s2,A"], "sample 'A' more than once"),
        (["path,sample", "s1,A", "s1,B"], "path 's1' more than once"),
        (["path,sample", "s1,A", "s2,"], "no sample in row 2"),
        (["path,sample"], "lists no samples"),
        ([""], "is no table of text"),
    ],
)
def test_sheets_that_are_wrong(study, lines, message):
    with pytest.raises(ValueError, match=message):
        mt.pp.import_samples(sheet(study, *lines), study / "cells.h5ad")


def test_nothing_is_replaced(study):
    path = sheet(study, "path", "s1")
    with pytest.raises(ValueError, match="was not written by"):
        mt.pp.import_samples(path, study / "s3.h5ad")
    with pytest.raises(ValueError, match="would replace the input"):
        mt.pp.import_samples(sheet(study, "path", "s3.h5ad"), study / "s3.h5ad", overwrite=True)
    path = sheet(study, "path", "s1")
    mt.pp.import_samples(path, study / "cells.h5ad")
    with pytest.raises(ValueError, match="overwrite=True"):
        mt.pp.import_samples(path, study / "cells.h5ad")
    assert len(mt.pp.import_samples(path, study / "cells.h5ad", overwrite=True)) == 1
    with pytest.raises(ValueError, match=r"neither \.h5ad nor \.zarr"):
        mt.pp.import_samples(path, study / "cells.csv")
    with pytest.raises(FileNotFoundError, match="Did not find the sheet"):
        mt.pp.import_samples(study / "none.csv", study / "cells.h5ad")
