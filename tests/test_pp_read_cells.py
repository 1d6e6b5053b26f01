"""Files of cells as they come: 10x, CELLxGENE, old and damaged ones."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.io import mmwrite

import maxtoki_toolkit as mt

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:anndata", "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*[Zz]arr"
)


@pytest.fixture(scope="module")
def cells():
    adata = mt.datasets.aging_atlas(60, 10, n_genes=500, seed=3)
    mt.pp.map_genes(adata)
    adata.X = adata.X.tocsr()
    return adata


@pytest.fixture(scope="module")
def vocab(cells):
    return mt.models.Vocabulary.from_anndata(cells)


@pytest.fixture(scope="module")
def ranks(cells, vocab):
    encoded = cells.copy()
    mt.pp.rank_value_encode(encoded, vocab)
    return encoded.layers["rank"]


@pytest.fixture
def plain(cells):
    """Cells as a user has them."""
    return anndata.AnnData(
        cells.X.copy(), obs=cells.obs[["cell_type"]].copy(), var=cells.var[["symbol"]].copy()
    )


def encode(path, vocab, name="ranks.h5ad", **settings):
    output = Path(path).parent / name
    mt.pp.encode_file(path, output, vocab, chunk_size=16, **settings)
    return anndata.read_h5ad(output)


def same(encoded, ranks):
    return encoded.layers["rank"].shape == ranks.shape and (encoded.layers["rank"] != ranks).nnz == 0


def in_raw(plain):
    """As CELLxGENE has cells: counts in `.raw`, of more genes than are in X, which is log-normalised."""
    adata = plain.copy()
    adata.raw = plain
    adata.X = adata.X.multiply(0.37).log1p().tocsr()
    return adata[:, :300].copy()


@pytest.mark.parametrize("suffix", [".H5AD", ".ZARR"])
def test_counts_in_raw(plain, vocab, ranks, tmp_path, suffix):
    path = tmp_path / f"cells{suffix}"
    adata = in_raw(plain)
    adata.write_h5ad(path) if suffix.lower() == ".h5ad" else adata.write_zarr(path)
    assert same(encode(path, vocab, layer="raw"), ranks)
    with pytest.raises(ValueError, match=r"looks log-normalised.*Perhaps layer='raw'\?"):
        encode(path, vocab, "other.h5ad")
    with pytest.raises(KeyError, match=r"Did not find layers/raw\.X in the file. Its layers: raw"):
        encode(path, vocab, "other.h5ad", layer="raw.X")
    read = mt.pp.read_cells(path, layer="raw")
    assert (read.X != plain.X).nnz == 0
    for layer in ("raw", None):
        mt.pp.rank_value_encode(read, vocab, layer=layer)
        assert same(read, ranks)


def test_counts_in_raw_in_memory(plain, vocab, ranks):
    adata = plain.copy()
    adata.raw = plain
    adata.X = adata.X.log1p()
    whole = adata.copy()
    mt.pp.rank_value_encode(whole, vocab, layer="raw")
    assert same(whole, ranks)
    # Other order of the genes; then some of the genes, whose ranks would not be those of the cells.
    turned = adata[:, ::-1].copy()
    mt.pp.rank_value_encode(turned, vocab, layer="raw")
    np.testing.assert_array_equal(turned.obs["n_genes_ranked"], whole.obs["n_genes_ranked"])
    with pytest.raises(ValueError, match=r"\.raw has 500 genes and \.var 300.*adata\.raw\.to_adata\(\)"):
        mt.pp.rank_value_encode(adata[:, :300].copy(), vocab, layer="raw")
    with pytest.raises(ValueError, match=r"Perhaps layer='raw'\?"):
        mt.pp.rank_value_encode(adata, vocab)
    del adata.X
    with pytest.raises(ValueError, match=r"no \.X\. Perhaps layer='raw'\?"):
        mt.pp.rank_value_encode(adata, vocab)
    # What follows takes them from there, too.
    assert mt.models.Vocabulary.from_anndata(_mapped(whole), layer="raw").sha256 == vocab.sha256


def _mapped(adata):
    mt.pp.map_genes(adata)
    return adata


def tenx_folder(folder, cells, prefix="", packed=True, types=None):
    """Files that Cell Ranger or STARsolo write, with the prefix that GEO gives them."""
    folder.mkdir()
    genes = pd.DataFrame({0: cells.var["ensembl_id"], 1: cells.var["symbol"], 2: types or "Gene Expression"})
    mmwrite(folder / "matrix.mtx", sp.coo_matrix(cells.X.T.astype(int)))
    genes.to_csv(folder / "features.tsv", sep="\t", header=False, index=False)
    pd.Series(cells.obs_names).to_csv(folder / "barcodes.tsv", header=False, index=False)
    for path in list(folder.iterdir()):
        target = folder / f"{prefix}{path.name}"
        path.rename(target)
        if packed:
            target.with_name(f"{target.name}.gz").write_bytes(gzip.compress(target.read_bytes()))
            target.unlink()
    return folder


def tenx_h5(path, cells):
    with h5py.File(path, "w") as file:
        X = cells.X
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(cells.obs_names, dtype="S")
        matrix["data"], matrix["shape"] = X.data.astype("i4"), np.array(X.shape[::-1], dtype="i4")
        matrix["indices"], matrix["indptr"] = X.indices.astype("i8"), X.indptr.astype("i8")
        features = matrix.create_group("features")
        features["id"] = np.array(cells.var["ensembl_id"], dtype="S")
        features["name"] = np.array(cells.var["symbol"], dtype="S")
        for name, value in [("feature_type", b"Gene Expression"), ("genome", b"GRCh38")]:
            features[name] = np.array([value] * cells.n_vars)
    return path


@pytest.mark.parametrize(("prefix", "packed"), [("GSM1_", True), ("", False)])
def test_tenx_folder(cells, vocab, ranks, tmp_path, prefix, packed):
    folder = tenx_folder(tmp_path / "sample.1", cells, prefix, packed)
    encoded = encode(folder, vocab)
    assert same(encoded, ranks)
    assert encoded.obs_names.equals(cells.obs_names)
    assert encoded.var["symbol"].tolist() == cells.var["symbol"].tolist()
    files = mt.pp.encode_files([folder], tmp_path / "encoded", vocab)
    assert Path(files["encoded"][0]).name == "sample.1.h5ad"


def test_tenx_h5(cells, vocab, ranks, tmp_path):
    path = tenx_h5(tmp_path / "filtered.H5", cells)
    assert same(encode(path, vocab), ranks)
    read = mt.pp.read_cells(path)
    assert read.var["feature_types"].eq("Gene Expression").all()
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut\.h5 cannot be read as an \.h5 file of 10x"):
        mt.pp.read_cells(tmp_path / "cut.h5")


def test_tenx_folder_that_does_not_fit(cells, tmp_path):
    folder = tenx_folder(tmp_path / "sample", cells, packed=False)
    names = (folder / "barcodes.tsv").read_text().splitlines()
    (folder / "barcodes.tsv").write_text("\n".join(names[:-1]))
    with pytest.raises(ValueError, match=r"matrix\.mtx has 60 cells and 500 genes, barcodes\.tsv 59"):
        mt.pp.read_cells(folder)
    (folder / "barcodes.tsv").write_text("\n".join([*names[:-1], names[0]]))
    with pytest.raises(ValueError, match="repeated barcodes"):
        mt.pp.read_cells(folder)
    text = (folder / "matrix.mtx").read_text()
    (folder / "matrix.mtx").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="cannot be read as a folder of 10x"):
        mt.pp.read_cells(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.rds", r'readRDS\("a\.rds"\)\n(.*\n)*.*write10xCounts\("a_10x"'),
        ("a.RData", r'get\(load\("a\.RData"\)\)'),
        ("a.loom", r'read_loom\("a\.loom"'),
        ("a.h5ad.gz", "is packed. Unpack it first"),
        ("a.csv", r"neither \.h5ad nor \.zarr, nor 10x output"),
    ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path, name, message):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=message):
        mt.pp.read_cells(tmp_path / name)


def test_other_folders_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="is a folder, but none of 10x"):
        mt.pp.read_cells(tmp_path)
    (tmp_path / "outs" / "filtered_feature_bc_matrix").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Give the matrix in it: .*outs.filtered_feature_bc_matrix\."):
        mt.pp.read_cells(tmp_path)


def test_h5ad_of_before_anndata_07(cells, vocab, ranks, tmp_path):
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:
        attributes = {"h5sparse_format": "csr", "h5sparse_shape": np.array(cells.shape)}
        file.create_group("X").attrs.update(attributes)
        for name in ("data", "indices", "indptr"):
            file[f"X/{name}"] = getattr(cells.X, name)
        for key, names in (("obs", cells.obs_names), ("var", cells.var["symbol"])):
            file[key] = np.array([(name.encode(),) for name in names], dtype=[("index", "S40")])
    encoded = encode(path, vocab)
    assert same(encoded, ranks)
    assert encoded.obs_names.equals(cells.obs_names)
    assert mt.pp.read_cells(path).shape == cells.shape


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_counts_stored_by_gene(plain, vocab, ranks, tmp_path, suffix):
    plain.X = sp.csc_matrix(plain.X)
    path = tmp_path / f"cells{suffix}"
    plain.write_h5ad(path) if suffix == ".h5ad" else plain.write_zarr(path)
    assert same(encode(path, vocab), ranks)


def test_half_precision(plain, vocab, ranks, tmp_path):
    plain.X = plain.X.toarray().astype(np.float16)
    plain.write_h5ad(tmp_path / "half.h5ad")
    assert same(encode(tmp_path / "half.h5ad", vocab), ranks)
    mt.pp.rank_value_encode(plain, vocab)
    assert same(plain, ranks)


def test_ranks_can_be_worked_with(plain, vocab, tmp_path):
    """Row pointers and columns are of one type, in what is written and in what is read."""
    plain.write_h5ad(tmp_path / "cells.h5ad")
    encoded = encode(tmp_path / "cells.h5ad", vocab)
    ranks = encoded.layers["rank"]
    assert ranks.indptr.dtype == ranks.indices.dtype
    assert encoded[::2].copy().n_obs == 30
    plain.X.indptr = plain.X.indptr.astype(np.int64)  # as other tools join files
    mt.pp.rank_value_encode(plain, vocab)
    assert (plain.layers["rank"] != ranks).nnz == 0


@pytest.mark.parametrize("value", [-7, 500, np.nan])
def test_columns_that_there_are_not(plain, vocab, tmp_path, value):
    path = tmp_path / "cells.h5ad"
    plain.write_h5ad(path)
    with h5py.File(path, "a") as file:
        indices = file["X/indices"][:].astype(type(value))
        indices[5:50] = value
        attributes = dict(file["X/indices"].attrs)
        del file["X/indices"]
        file["X/indices"] = indices
        file["X/indices"].attrs.update(attributes)
    with pytest.raises(ValueError, match="damaged"):
        encode(path, vocab)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad"]
    with pytest.raises(ValueError, match="damaged"):
        mt.pp.rank_value_encode(anndata.read_h5ad(path), vocab)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_row_pointers_that_do_not_fit(plain, vocab, tmp_path, suffix):
    path = tmp_path / f"cells{suffix}"
    plain.write_h5ad(path) if suffix == ".h5ad" else plain.write_zarr(path)
    with mt.pp._store.open_store(path, "a") as store:
        store["X/indptr"][30] = 1 << 30
    with pytest.raises(ValueError, match=r"cells.* is damaged: the row pointers of X do not fit"):
        encode(path, vocab)
    with pytest.raises(ValueError, match="row pointers"):
        mt.pp.read_cells(path)


def chunks(store, slot):
    """Files of an array."""
    return sorted(
        path
        for path in (store / slot).rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name != "zarr.json"
    )


@pytest.mark.parametrize("slot", ["X/data", "X/indices", "X/indptr", "obs/_index", "dense"])
def test_zarr_with_a_missing_chunk(plain, vocab, tmp_path, slot):
    """What is not there would be read as 0."""
    if slot == "dense":
        plain.X, slot = plain.X.toarray(), "X"
    store = tmp_path / "cells.zarr"
    plain.write_zarr(store)
    chunks(store, slot)[0].unlink()
    with pytest.raises(
        ValueError, match=rf"cells\.zarr is incomplete: 1 of \d+ chunks of {slot} are missing"
    ):
        encode(store, vocab)
    with pytest.raises(ValueError, match="incomplete"):
        mt.pp.read_cells(store)


def test_zarr_without_the_chunks_of_a_constant_column(plain, vocab, ranks, tmp_path):
    """Zarr does not write a column of zeros: nothing is missing."""
    plain.obs["zero"] = 0
    plain.obs["zero"] = plain.obs["zero"].astype(int)
    plain.write_zarr(tmp_path / "cells.zarr")
    assert not chunks(tmp_path / "cells.zarr", "obs/zero")
    assert same(encode(tmp_path / "cells.zarr", vocab), ranks)


@pytest.mark.parametrize("slot", ["X/data", "X/indptr", "obs/_index", "obs/cell_type/codes"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_zarr_with_a_chunk_cut_short(plain, vocab, tmp_path, slot, share):
    """Reading it ends in a violation of memory, or in anything."""
    store = tmp_path / "cells.zarr"
    with anndata.settings.override(zarr_write_format=2):  # which is compressed by blosc
        plain.write_zarr(store)
    chunk = chunks(store, slot)[0]
    os.truncate(chunk, int(chunk.stat().st_size * share))
    with pytest.raises(ValueError, match=r"cells\.zarr is damaged: .* is cut short"):
        encode(store, vocab)


@pytest.mark.parametrize("zarr_format", [3])
def test_zarr_of_format_3(plain, vocab, ranks, tmp_path, zarr_format):
    store = tmp_path / "cells.zarr"
    with anndata.settings.override(zarr_write_format=zarr_format):
        plain.write_zarr(store)
    assert same(encode(store, vocab), ranks)
    chunk = chunks(store, "X/data")[0]
    os.truncate(chunk, chunk.stat().st_size // 2)
    with pytest.raises(ValueError, match="cannot be read|cut short"):
        encode(store, vocab)
    chunk.unlink()
    with pytest.raises(ValueError, match="incomplete"):
        encode(store, vocab)


@pytest.mark.slow
def test_command_on_a_cut_zarr(plain, tmp_path):
    """One line and an exit code, no signal."""
    plain.write_zarr(tmp_path / "cells.zarr")
    chunk = chunks(tmp_path / "cells.zarr", "X/indptr")[0]
    os.truncate(chunk, chunk.stat().st_size // 2)
    command = [sys.executable, "-m", "maxtoki_toolkit.cli", "encode", "cells.zarr", "-o", "out"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "cut short" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


def test_counts_are_found_in_one_place():
    """Or some function would not know of `.raw`."""
    for path in Path(mt.__file__).parent.rglob("*.py"):
        assert path.name == "_counts.py" or "adata.layers[layer]" not in path.read_text(encoding="utf-8"), (
            path
        )
