"""What tells one input from another."""

import os
import shutil

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from maxtoki_toolkit.pp import _identity
from maxtoki_toolkit.pp._identity import input_identity

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:anndata", "ignore:.*zarr")
TIME = 10**18


def cells():
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(sp.random(60, 40, 0.5, format="csr", random_state=1, dtype=np.float32))
    adata.obs["age"] = rng.integers(20, 90, 60)
    adata.obs["donor"] = [f"d{i % 3}" for i in range(60)]
    adata.layers["counts"] = sp.csr_matrix(rng.poisson(1, (60, 40)).astype(np.float32))
    adata.raw = adata.copy()
    return adata


def write(adata, path):
    """Always of one time, so that only the content differs."""
    if path.is_dir():
        shutil.rmtree(path)
    (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path)
    for part in [path, *path.rglob("*")]:
        os.utime(part, ns=(TIME, TIME))
    return input_identity(path)


def changes():
    """Corrections that leave the size of the file as it is."""
    ages, donors, layer, raw, genes, matrix = (cells() for _ in range(6))
    ages.obs["age"] += 12
    donors.obs["donor"] = donors.obs["donor"].to_numpy()[::-1]
    layer.layers["counts"].data[-1] += 1
    raw.raw.X.data[0] += 1
    genes.var_names = genes.var_names[::-1]
    matrix.X.data[7] += 1
    return {
        "cells_sha256": [ages, donors],
        "counts_sha256": [layer, raw, matrix],
        "genes_sha256": [genes],
    }


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_content_counts(tmp_path, suffix):
    path = tmp_path / f"cells{suffix}"
    first = write(cells(), path)
    assert write(cells(), path) == first
    assert first["time_ns"] == TIME
    for name, others in changes().items():
        for other in others:
            found = write(other, path)
            assert {key for key in first if found[key] != first[key]} - {"size"} >= {name}


def test_time_and_place(tmp_path):
    path = tmp_path / "cells.h5ad"
    first = write(cells(), path)
    assert input_identity(path.rename(tmp_path / "renamed.h5ad")) == first
    os.utime(tmp_path / "renamed.h5ad", ns=(TIME + 1, TIME + 1))
    assert input_identity(tmp_path / "renamed.h5ad") != first


def test_a_large_matrix_is_sampled_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(_identity, "_WHOLE", 100)
    monkeypatch.setattr(_identity, "_SLICE", 16)
    first = write(cells(), tmp_path / "cells.h5ad")
    for place in (0, -1):
        changed = cells()
        changed.X.data[place] += 1
        assert write(changed, tmp_path / "cells.h5ad")["counts_sha256"] != first["counts_sha256"]
