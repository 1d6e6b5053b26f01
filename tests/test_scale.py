"""Cells by the thousand: each command, and the functions whose work grows with the cells."""

import dataclasses
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import anndata
import numpy as np
import pytest
import yaml

import maxtoki_toolkit as mt
from maxtoki_toolkit import pipeline

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
# From 4,096 (cosine) and 8,192 (Euclidean) cells on, scanpy looks for neighbours in another way.
SIZES = (3000, 9000)


def atlas(n_cells):
    adata = mt.datasets.aging_atlas(n_cells, 20, n_genes=500)
    del adata.uns["truth"]
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny temporal model, and files of cells."""
    path = tmp_path_factory.mktemp("scale")
    adata = atlas(max(SIZES))
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    small = mt.models.build_model({**SHAPE, "max_position_embeddings": 64}, vocab)
    model = mt.models.extend_model(small, vocab.with_times(-1200, 1200), max_length=256)
    model = dataclasses.replace(model, time_head=mt.models.TimeHead("expectation"))
    mt.models.save_model(model, path / "model")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return mt.load_model(folder / "model", device="cpu")


@pytest.fixture(scope="module", params=[SIZES[0], pytest.param(SIZES[1], marks=pytest.mark.slow)])
def cells(request, model):
    adata = atlas(request.param)
    mt.pp.rank_value_encode(adata, model)
    return adata


def maxtoki(folder, *arguments):
    """Run the command line in a process of its own; return the most memory of all so far, in GB."""
    run = subprocess.run(
        [sys.executable, "-m", "maxtoki_toolkit.cli", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def commands(folder, n_cells):
    """Run each command that reads cells on a file of that many; return the most memory, in GB."""
    adata = atlas(n_cells)
    adata.var["symbol"] = adata.var_names = np.where(
        np.arange(adata.n_vars) % 50, adata.var["symbol"].astype(str), "MALAT1"
    )
    adata.write_h5ad(folder / f"{n_cells}.h5ad")
    maxtoki(folder, "encode", f"{n_cells}.h5ad", "-o", f"encoded_{n_cells}", "--model", "model")
    assert anndata.read_h5ad(folder / f"encoded_{n_cells}" / f"{n_cells}.h5ad").n_obs == n_cells
    prompts = {"time_key": "age_months", "groupby": "cell_type", "donor_key": "donor_id", "n_prompts": 20}
    settings = {
        "cells": f"{n_cells}.h5ad",
        "model": "model",
        "device": "cpu",
        "output": f"screen_{n_cells}",
        "prompts": prompts,
        "perturb": {"genes": adata.var["symbol"].astype(str).tolist()[1:4], "mode": "overexpress"},
    }
    (folder / "screen.yaml").write_text(yaml.safe_dump(settings))
    maxtoki(folder, "screen", "-c", "screen.yaml")
    assert (folder / f"screen_{n_cells}" / "stats.csv").is_file()
    out = folder / f"embedded_{n_cells}"
    memory = maxtoki(
        folder,
        "embed",
        f"{n_cells}.h5ad",
        "-o",
        out,
        "--model",
        "model",
        "--color",
        "cell_type",
        "--device",
        "cpu",
    )
    embedded = anndata.read_h5ad(out / "embedded.h5ad")
    assert embedded.obs_names.equals(adata.obs_names)
    assert np.isfinite(embedded.obsm["X_umap"]).all()
    return memory


@pytest.mark.slow
def test_scanpy_reads_what_pynndescent_finds():
    """They have to agree on a kind of sparse matrix; from 8,192 cells on, neighbours are found in this way."""
    import scanpy as sc
    from pynndescent import PyNNDescentTransformer
    from sklearn.neighbors import NearestNeighbors

    class Found(PyNNDescentTransformer):
        """With neighbours from elsewhere, since its own search is compiled for a minute."""

        def fit_transform(self, X, y=None):
            self.n_samples_fit = len(X)
            distance, near = NearestNeighbors(n_neighbors=self.n_neighbors).fit(X).kneighbors(X)
            self.index_ = SimpleNamespace(neighbor_graph=(near.astype(np.int32), distance.astype(np.float32)))
            return self.transform(None)

    cells = anndata.AnnData(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    sc.pp.neighbors(cells, use_rep="X", transformer=Found(n_neighbors=5), n_neighbors=5, method="gauss")
    assert cells.obsp["distances"].nnz == 30 * 5  # itself among them


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("n_cells", SIZES[-1:])
def test_commands(folder, n_cells):
    commands(folder, n_cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.skipif("MAXTOKI_LONG" not in os.environ, reason="takes minutes; run with MAXTOKI_LONG=1")
def test_commands_on_50_000_cells(folder):
    """Memory grows by what is kept of each cell, not with pairs of cells."""
    assert commands(folder, 50_000) < 4


def test_embedding_and_its_neighbours(cells, model):
    mt.tl.embed(cells, model)
    mt.tl.neighbor_purity(cells, model, groupby="cell_type")
    scores = mt.get.table(cells, "neighbor_purity").set_index("embedding")
    assert (scores["n_cells"] == cells.n_obs).all()
    assert scores.loc["PCA", "purity"] > scores.loc["chance", "purity"]


@pytest.mark.slow
@pytest.mark.parametrize("cells", SIZES[:1], indirect=True)
def test_doublets(cells, model):
    mt.tl.doublets(cells, model, features=["expression", "size"])
    assert cells.obs["doublet_probability"].between(0, 1).all()
    assert np.isfinite(mt.get.table(cells, "doublets", "scores")["auroc"]).all()


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_gene_names_that_repeat(folder, model, monkeypatch):
    """They are embedded in several blocks, and put together."""
    cells = atlas(100)
    cells.var_names = np.where(np.arange(cells.n_vars) < 2, "MALAT1", cells.var["symbol"].astype(str))
    cells.write_h5ad(folder / "repeated.h5ad")
    monkeypatch.setattr(pipeline, "_summarise", lambda cells, *_, **__: cells)
    found = pipeline.embed_file(folder / "repeated.h5ad", folder / "repeated", model, chunk_size=40)
    assert found.obs_names.equals(cells.obs_names)
    assert found.layers["rank"].shape == (100, cells.n_vars)
