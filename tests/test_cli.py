"""The command line, on a user's file and on a user's mistakes."""

import os
import signal
import sys
import time
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit import cli
from maxtoki_toolkit._files import atomic

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and cells named by symbols as 10x delivers them."""
    path = tmp_path_factory.mktemp("cli")
    adata = mt.datasets.aging_atlas(150, 10, n_genes=500)
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata)
    mt.models.save_model(
        mt.models.build_model({**SHAPE, "max_position_embeddings": 64}, vocab), path / "model"
    )
    user = anndata.AnnData(adata.X.copy(), obs=adata.obs[["cell_type"]].copy())
    user.var_names = adata.var["symbol"].to_numpy()
    user.write_h5ad(path / "mine.h5ad")
    return path


def run(capsys, *arguments):
    """Exit code, output and errors of the command."""
    code = 0
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["maxtoki", *map(str, arguments)])
            patch.setattr(warnings, "formatwarning", warnings.formatwarning)
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.filterwarnings(
    "ignore:The set_bad function:PendingDeprecationWarning"
)  # scanpy's use of matplotlib
def test_embed(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    code, out, _ = run(
        capsys, "embed", "mine.h5ad", "--model", "model", "--color", "cell_type", "--device", "cpu"
    )
    assert code == 0
    assert "150 cells in" in out
    results = folder / "mine_maxtoki"
    assert sorted(path.name for path in results.iterdir()) == [
        "cells.csv",
        "embedded.h5ad",
        *(f"encoding_report.{suffix}" for suffix in ("pdf", "png")),
        "maxtoki.json",
        *(f"{name}.{suffix}" for name in ("rank_heatmap", "umap") for suffix in ("pdf", "png")),
    ]
    adata = anndata.read_h5ad(results / "embedded.h5ad")
    mine = anndata.read_h5ad("mine.h5ad")
    assert adata.obs_names.equals(mine.obs_names)
    assert adata.X is None
    model = mt.load_model("model")
    mt.pp.rank_value_encode(mine, model)
    mt.tl.embed(mine, model)
    np.testing.assert_allclose(adata.obsm["X_maxtoki"], mine.obsm["X_maxtoki"], atol=2e-6)
    table = pd.read_csv(results / "cells.csv", index_col="cell")
    assert {"maxtoki_leiden", "maxtoki_umap1", "maxtoki_umap2", "n_genes_ranked", "cell_type"} <= set(table)
    assert len(table) == 150


@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")
def test_clusters_of_the_user_stay(folder, capsys, tmp_path):
    mine = anndata.read_h5ad(folder / "mine.h5ad")
    mine.obs["leiden"] = pd.Categorical("mine " + mine.obs["cell_type"].astype(str))
    mine.obs["umap1"] = 7
    mine.write_h5ad(tmp_path / "mine.h5ad")
    options = ["--color", "leiden", "--model", folder / "model", "-o", tmp_path / "out"]
    code, _, err = run(capsys, "embed", tmp_path / "mine.h5ad", *options)
    assert code == 0, err
    table = pd.read_csv(tmp_path / "out" / "cells.csv", index_col="cell")
    assert table["leiden"].tolist() == mine.obs["leiden"].tolist()
    assert (table["umap1"] == 7).all()
    assert table["maxtoki_leiden"].notna().all()


def mistakes(folder):
    counts = anndata.read_h5ad(folder / "mine.h5ad")
    logged = counts.copy()
    logged.X = logged.X.log1p()
    logged.write_h5ad(folder / "logged.h5ad")
    (folder / "cut.h5ad").write_bytes((folder / "mine.h5ad").read_bytes()[:5000])
    (folder / "notes.txt").write_text("hello")
    return {
        "logged.h5ad": (["logged.h5ad"], "looks log-normalised"),
        "cut.h5ad": (["cut.h5ad"], "may be cut short"),
        "none.h5ad": (["none.h5ad"], "Did not find none.h5ad"),
        "notes.txt": (["notes.txt"], "neither .h5ad nor .zarr"),
        "column": (
            ["mine.h5ad", "--color", "type"],
            "Did not find .obs['type']. Available columns: ['cell_type']",
        ),
        "layer": (["mine.h5ad", "--layer", "counts"], "Did not find layers/counts"),
        "model": (["mine.h5ad", "--model", "modle"], "Did not find a model 'modle'"),
        "medians": (["mine.h5ad", "--tokens", "t.json"], "Give --tokens and --medians together"),
    }


def test_mistakes_give_one_line_and_leave_nothing(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    for name, (arguments, message) in mistakes(folder).items():
        code, _, err = run(capsys, "embed", "--model", "model", "--output", "out", *arguments)
        assert code == 1, name
        assert message in err, name
        assert len(err.strip().splitlines()) == 1, err
        assert not (folder / "out").exists()
        assert not list(folder.glob(".out*"))
        assert not list(folder.glob("out*"))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_cancelled_job_cleans_up(tmp_path, capsys, monkeypatch):
    def app():
        with atomic(tmp_path / "out.csv") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    monkeypatch.setattr(cli, "app", app)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(capsys)[0] == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


def test_a_warning_is_one_line(capsys, monkeypatch):
    def app():
        for category in (UserWarning, FutureWarning):
            print(warnings.formatwarning("Look here.", category, "file.py", 1), end="", file=sys.stderr)

    monkeypatch.setattr(cli, "app", app)
    _, _, err = run(capsys)
    assert err == "maxtoki: warning: Look here.\nfile.py:1: FutureWarning: Look here.\n"


def test_version_and_help(capsys):
    assert run(capsys, "--version") == (0, f"{mt.__version__}\n", "")
    code, out, _ = run(capsys, "--help")
    assert "demo" in out
    assert "embed" in out
    assert run(capsys, "nonsense")[0] == 2


def test_convert(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    code, out, _ = run(capsys, "convert", "model", "nemo")
    assert code == 0
    assert "is in nemo/, in the layout megatron." in out
    assert (folder / "nemo" / "weights" / ".metadata").is_file()
    assert run(capsys, "convert", "nemo", "back")[0] == 0
    dictionaries = [folder / "model" / f"{n}_dictionary.json" for n in ("token", "gene_median")]
    options = ["--tokens", dictionaries[0], "--medians", dictionaries[1]]
    assert run(capsys, "convert", "nemo", "copy", "--to", "megatron", *options)[0] == 0
    assert run(capsys, "convert", "copy", "again", *options)[0] == 0
    for name in ("back", "again"):
        assert (folder / name / "model.safetensors").read_bytes() == (
            folder / "model" / "model.safetensors"
        ).read_bytes()
    assert mt.load_model("back").vocab.sha256 == mt.load_model("model").vocab.sha256


def test_mistakes_in_convert(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    (tmp_path / "lost" / "weights").mkdir(parents=True)
    for arguments, message in [
        (["model", "model"], "model exists and is not empty"),
        (["model", "out", "--to", "onnx"], "There is no layout 'onnx'"),
        (["model", "out", "--tokens", "t.json"], "Give --tokens and --medians together"),
        (["modle", "out"], "Did not find a model 'modle'"),
        ([tmp_path / "lost", "out"], "Did not find token_dictionary.json"),
    ]:
        before = sorted(folder.rglob("*"))
        code, _, err = run(capsys, "convert", *arguments)
        assert code == 1, arguments
        assert message in err
        assert len(err.strip().splitlines()) == 1, err
        assert sorted(folder.rglob("*")) == before
