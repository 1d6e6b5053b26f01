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


@pytest.mark.slow  # umap is compiled for half a minute
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


@pytest.mark.slow
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
    counts[:3].write_h5ad(folder / "few.h5ad")
    return {
        "logged.h5ad": (["logged.h5ad"], "looks log-normalised"),
        "cut.h5ad": (["cut.h5ad"], "may be cut short"),
        "none.h5ad": (["none.h5ad"], "Did not find none.h5ad"),
        "few.h5ad": (["few.h5ad"], "few.h5ad has 3 cells: neighbours, UMAP and clusters need 4"),
        "notes.txt": (["notes.txt"], "neither .h5ad nor .zarr"),
        "column": (
            ["mine.h5ad", "--color", "type"],
            "Did not find .obs['type']. Available columns: ['cell_type']. Did you mean 'cell_type'?",
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


def test_hints_are_flags(folder, capsys, monkeypatch, tmp_path):
    """What Python calls layer='counts' and force=True."""
    monkeypatch.chdir(tmp_path)
    counts = anndata.read_h5ad(folder / "mine.h5ad")
    logged = counts.copy()
    logged.X = logged.X.log1p()
    raw = logged.copy()
    raw.raw = counts
    raw.write_h5ad("raw.h5ad")
    logged.layers["counts"] = counts.X
    logged.write_h5ad("logged.h5ad")
    tpm = counts.copy()
    tpm.X = tpm.X * 30.5
    tpm.write_h5ad("tpm.h5ad")
    for name, hint in {
        "logged": "Perhaps --layer counts?",
        "raw": "Perhaps --layer raw?",
        "tpm": "for those, pass --force.",
    }.items():
        for command in ("encode", "embed"):
            code, _, err = run(
                capsys, command, f"{name}.h5ad", "--model", folder / "model", "--output", "out"
            )
            assert code == 1
            assert hint in err, err
            assert "='" not in err
    assert (
        run(capsys, "encode", "raw.h5ad", "--layer", "raw", "--model", folder / "model", "-o", "out")[0] == 0
    )
    ranks = anndata.read_h5ad("out/raw.h5ad").layers["rank"]
    mt.pp.rank_value_encode(counts, mt.load_model(folder / "model"))
    assert (ranks != counts.layers["rank"]).nnz == 0


@pytest.mark.parametrize(
    ("command", "layer", "force"),
    [
        (["embed"], "--layer counts", "--force"),
        (["report"], "-p layer=counts", "-p force=true"),
        (["screen"], "layer: counts", "force: true"),
        (["train", "temporal"], "layer: counts", "force: true"),
        (["demo"], "layer='counts'", "force=True"),
    ],
)
def test_messages_in_the_words_of_the_command(monkeypatch, command, layer, force):
    monkeypatch.setattr("sys.argv", ["maxtoki", *command])
    message = "Perhaps layer='counts'? Pass force=True, after f(adata, layer='x', force=True)."
    assert cli._in_flags(message) == f"Perhaps {layer}? Pass {force}, after f(adata, layer='x', force=True)."


def test_import(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cells = anndata.read_h5ad(folder / "mine.h5ad")
    cells[:70].write_h5ad("a.h5ad")
    cells[70:, 5:].write_h5ad("b.h5ad")
    (tmp_path / "samples.csv").write_text("path,sample,age\na.h5ad,A,30\nb.h5ad,B,70\n")
    code, out, _ = run(capsys, "import", "samples.csv", "-o", "cells.h5ad")
    assert code == 0
    assert "A: 70 cells, 500 genes\nB: 80 cells, 495 genes; lacks 5 genes of other samples" in out
    assert "150 cells of 2 samples are in cells.h5ad." in out
    assert anndata.read_h5ad("cells.h5ad").obs["age"].value_counts().to_dict() == {70: 80, 30: 70}
    code, _, err = run(capsys, "import", "samples.csv", "-o", "cells.h5ad")
    asked = "Give another one, or ask for it to be replaced: --overwrite."
    assert (code, err) == (1, f"maxtoki: cells.h5ad exists. {asked}\n")
    assert run(capsys, "import", "samples.csv", "-o", "cells.h5ad", "--overwrite")[0] == 0


def test_a_warning_is_one_line(capsys, monkeypatch):
    def app():
        for category in (UserWarning, FutureWarning):
            print(warnings.formatwarning("Look here.", category, "file.py", 1), end="", file=sys.stderr)

    monkeypatch.setattr(type(cli.app), "__call__", lambda self: app())
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
