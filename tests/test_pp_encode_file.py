"""Encoding from file to file: same ranks, flat memory, nothing half-written."""

import subprocess
import sys

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix

import maxtoki_toolkit as mt


@pytest.fixture(scope="module")
def cells():
    adata = mt.datasets.aging_atlas(300, 10, n_genes=500, seed=3)
    mt.pp.map_genes(adata)
    return adata


@pytest.fixture(scope="module")
def vocab(cells):
    return mt.models.Vocabulary.from_anndata(cells)


@pytest.fixture
def path(cells, tmp_path):
    plain = anndata.AnnData(cells.X.copy(), obs=cells.obs.copy(), var=cells.var[["symbol"]].copy())
    plain.write_h5ad(tmp_path / "counts.h5ad")
    return tmp_path / "counts.h5ad"


def left(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("source", [".h5ad", ".zarr"])
@pytest.mark.filterwarnings("ignore::UserWarning:anndata", "ignore:.*zarr")
def test_same_as_in_memory(cells, vocab, path, suffix, source):
    if source == ".zarr":
        adata = anndata.read_h5ad(path)
        path = path.with_suffix(".zarr")
        adata.write_zarr(path)
    output = path.with_name(f"ranks{suffix}")
    mt.pp.encode_file(path, output, vocab, chunk_size=64)
    read = anndata.read_h5ad if suffix == ".h5ad" else anndata.read_zarr
    encoded = read(output)
    mt.pp.rank_value_encode(cells, vocab)
    assert (csr_matrix(encoded.layers["rank"]) != cells.layers["rank"]).nnz == 0
    assert encoded.layers["rank"].dtype == np.uint16
    assert encoded.X is None
    assert encoded.obs["cell_type"].tolist() == cells.obs["cell_type"].tolist()
    np.testing.assert_array_equal(encoded.obs["n_genes_ranked"], cells.obs["n_genes_ranked"])
    assert encoded.uns["map_genes"]["params"]["genes_sha256"] == vocab.genes_sha256
    model = mt.models.build_model(
        {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}, vocab
    )
    mt.tl.embed(encoded, model)
    assert encoded.obsm["X_maxtoki"].shape == (300, 16)


def test_dense_file(cells, vocab, tmp_path):
    anndata.AnnData(cells.X.toarray(), var=cells.var[["symbol"]]).write_h5ad(tmp_path / "dense.h5ad")
    mt.pp.encode_file(tmp_path / "dense.h5ad", tmp_path / "ranks.h5ad", vocab)
    mt.pp.rank_value_encode(cells, vocab)
    encoded = anndata.read_h5ad(tmp_path / "ranks.h5ad")
    assert (encoded.layers["rank"] != cells.layers["rank"]).nnz == 0


def test_truncated_file(path, vocab):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"counts\.h5ad cannot be read as h5ad .*copy or download it again"):
        mt.pp.encode_file(path, path.with_name("ranks.h5ad"), vocab)
    assert left(path.parent) == ["counts.h5ad"]


@pytest.mark.parametrize("row", [0, 200])
def test_failure_leaves_nothing(cells, vocab, tmp_path, row):
    """An empty cell in the first block, and one after blocks have been written."""
    X = cells.X.toarray()
    X[row] = 0
    anndata.AnnData(csr_matrix(X), var=cells.var[["symbol"]]).write_h5ad(tmp_path / "counts.h5ad")
    with pytest.raises(ValueError, match="express no gene of the vocabulary"):
        mt.pp.encode_file(tmp_path / "counts.h5ad", tmp_path / "ranks.h5ad", vocab, chunk_size=50)
    assert left(tmp_path) == ["counts.h5ad"]


def test_an_earlier_result_survives_a_failure(path, vocab, tmp_path):
    mt.pp.encode_file(path, tmp_path / "ranks.h5ad", vocab)
    before = (tmp_path / "ranks.h5ad").read_bytes()
    with pytest.raises(KeyError, match="Did not find layers/nope"):
        mt.pp.encode_file(path, tmp_path / "ranks.h5ad", vocab, layer="nope", overwrite=True)
    assert (tmp_path / "ranks.h5ad").read_bytes() == before


def test_what_cannot_be_streamed(cells, vocab, tmp_path):
    with pytest.raises(FileNotFoundError, match="Did not find"):
        mt.pp.encode_file(tmp_path / "none.h5ad", tmp_path / "ranks.h5ad", vocab)
    (tmp_path / "cells.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"neither \.h5ad nor \.zarr"):
        mt.pp.encode_file(tmp_path / "cells.csv", tmp_path / "ranks.h5ad", vocab)
    assert left(tmp_path) == ["cells.csv"]


def test_duplicate_cell_names(cells, vocab, tmp_path):
    adata = anndata.AnnData(cells.X, var=cells.var[["symbol"]])
    adata.obs_names = ["same"] * adata.n_obs
    adata.write_h5ad(tmp_path / "counts.h5ad")
    with pytest.raises(ValueError, match="299 cell names in the file are not unique"):
        mt.pp.encode_file(tmp_path / "counts.h5ad", tmp_path / "ranks.h5ad", vocab)
    assert left(tmp_path) == ["counts.h5ad"]


PEAK = """
import sys, anndata, maxtoki_toolkit as mt
mt.settings.progress = False
vocab = mt.models.Vocabulary.from_json(sys.argv[3] + "/token_dictionary.json",
                                       gene_medians=sys.argv[3] + "/gene_median_dictionary.json")
mt.pp.encode_file(sys.argv[1], sys.argv[2], vocab, chunk_size=500, overwrite=True)
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_cells(tmp_path):
    """Eight times the cells (about 180 MB more in memory) raise the peak by less than 25 MB."""
    small = mt.datasets.aging_atlas(4_000, 10, seed=1)
    mt.pp.map_genes(small)
    mt.models.Vocabulary.from_anndata(small).save(tmp_path)
    peaks = []
    for copies in (1, 8):
        adata = anndata.concat([small] * copies, index_unique="-")
        adata.var["symbol"] = small.var["symbol"]
        adata.write_h5ad(tmp_path / "counts.h5ad")
        del adata
        command = [sys.executable, "-c", PEAK, "counts.h5ad", "ranks.h5ad", str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        peaks.append(float(result.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 25, peaks
