"""Encoding collections: each file as alone, on this machine or on a Dask cluster."""

import json

import anndata
import numpy as np
import pytest

import maxtoki_toolkit as mt


@pytest.fixture(scope="module")
def vocab():
    adata = mt.datasets.aging_atlas(300, 10, n_genes=500)
    mt.pp.map_genes(adata)
    return mt.models.Vocabulary.from_anndata(adata)


@pytest.fixture
def paths(tmp_path):
    paths = []
    for seed in range(3):
        adata = mt.datasets.aging_atlas(60, 10, n_genes=500, seed=seed)
        plain = anndata.AnnData(adata.X, obs=adata.obs, var=adata.var[["symbol"]])
        paths.append(tmp_path / f"study{seed}.h5ad")
        plain.write_h5ad(paths[-1])
    return paths


def check(table, paths, vocab):
    assert table["source"].tolist() == [str(path) for path in paths]
    assert table["n_cells"].tolist() == [60, 60, 60]
    for path, encoded in zip(paths, table["encoded"], strict=True):
        expected = anndata.read_h5ad(path)
        mt.pp.rank_value_encode(expected, vocab)
        found = anndata.read_h5ad(encoded)
        assert found.obs_names.equals(expected.obs_names)
        assert (found.layers["rank"] != expected.layers["rank"]).nnz == 0


def test_each_file_as_alone_and_only_once(paths, vocab, tmp_path):
    output = tmp_path / "encoded"
    check(mt.pp.encode_files(paths, output, vocab), paths, vocab)
    written = {path: path.stat().st_mtime_ns for path in output.glob("*.h5ad")}
    # One is lost, one has changed since, one is as it was.
    (output / "study0.h5ad").unlink()
    changed = anndata.read_h5ad(paths[1])
    changed.X.data[:100] += 1
    changed.write_h5ad(paths[1])
    check(mt.pp.encode_files(paths, output, vocab), paths, vocab)
    again = {path: path.stat().st_mtime_ns for path in output.glob("*.h5ad")}
    assert [again[path] != written[path] for path in sorted(written)] == [True, True, False]
    manifest = json.loads((output / "manifest.json").read_text())["files"]
    assert sorted(manifest) == ["study0", "study1", "study2"]


def test_a_bad_file_does_not_stop_the_others(paths, vocab, tmp_path):
    adata = anndata.read_h5ad(paths[1])
    adata.X = np.log1p(adata.X)
    adata.write_h5ad(paths[1])
    with pytest.raises(ValueError, match=r"1 of 3 files were not encoded. .*study1.h5ad: .*"):
        mt.pp.encode_files(paths, tmp_path / "encoded", vocab)
    assert sorted(p.name for p in (tmp_path / "encoded").iterdir()) == [
        "manifest.json",
        "study0.h5ad",
        "study2.h5ad",
    ]


def test_what_cannot_be_collected_is_refused(paths, vocab, tmp_path):
    other = tmp_path / "more"
    other.mkdir()
    paths[0].rename(other / "study1.h5ad")
    with pytest.raises(ValueError, match="named 'study1'"):
        mt.pp.encode_files([paths[1], other / "study1.h5ad"], tmp_path / "encoded", vocab)
    with pytest.raises(FileNotFoundError, match="study0"):
        mt.pp.encode_files(paths, tmp_path / "encoded", vocab)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_on_a_dask_cluster(paths, vocab, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    check(mt.pp.encode_files(paths, tmp_path / "own", vocab, n_workers=2), paths, vocab)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        table = mt.pp.encode_files(paths, tmp_path / "by address", vocab, scheduler=address)
    check(table, paths, vocab)
