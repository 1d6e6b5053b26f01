"""Outputs: what exists stays, unless we wrote it and were asked to replace it; an input always."""

import json
import os
import subprocess
import sys

import anndata
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit._files import atomic
from maxtoki_toolkit._outputs import MARK, check_output, claim, new_output, read_mark
from maxtoki_toolkit.results.effects_file import find_effects, write_effects

JOB = {"input": "a", "k": (1, 2)}


def write(path, content="ours"):
    """What a function would write to the temporary path."""
    if path.suffix == ".h5ad":
        anndata.AnnData(uns={"content": content}).write_h5ad(path)
    elif path.suffix == ".zarr":
        anndata.AnnData(uns={"content": content}).write_zarr(path)
    else:
        (path / "table.csv").write_text(content)


def content(path):
    if path.suffix == ".h5ad":
        return anndata.read_h5ad(path).uns["content"]
    return (
        anndata.read_zarr(path).uns["content"] if path.suffix == ".zarr" else (path / "table.csv").read_text()
    )


def make(path, content="ours", **settings):
    with new_output(path, by="f", **settings) as temporary:
        write(temporary, content)


def theirs(path):
    """Somebody else's, of this name."""
    if path.suffix == ".h5ad":
        write(path, "theirs")
    else:
        path.mkdir()
        (path / "thesis.docx").write_text("theirs")


@pytest.fixture(params=["out", "out.h5ad", "out.zarr"])
def path(request, tmp_path):
    return tmp_path / request.param


@pytest.mark.filterwarnings("ignore::UserWarning:anndata", "ignore:.*zarr")
def test_ours_is_replaced_when_asked(path, tmp_path):
    assert not check_output(path, by="f", job=JOB)
    make(path, job=JOB)
    assert check_output(path, by="f", job=JOB)
    assert read_mark(path, "f")["job"] == {"input": "a", "k": [1, 2]}
    with pytest.raises(ValueError, match=r"was made from something else \(k\).*overwrite=True"):
        check_output(path, by="f", job={**JOB, "k": 3})
    with pytest.raises(ValueError, match="was not written by g"):
        check_output(path, by="g", overwrite=True)
    with pytest.raises(ValueError, match=r"exists\. Give another one"):
        make(path, "new")
    make(path, "new", overwrite=True)
    assert content(path) == "new"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.filterwarnings("ignore::UserWarning:anndata", "ignore:.*zarr")
def test_what_is_not_ours_is_never_replaced(path):
    theirs(path)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="was not written by f: it stays as it is"):
            make(path, overwrite=overwrite)
    assert (path / "thesis.docx").exists() if path.is_dir() else content(path) == "theirs"


@pytest.mark.filterwarnings("ignore::UserWarning:anndata", "ignore:.*zarr")
def test_their_file_in_our_folder_stays(path):
    if path.suffix == ".h5ad":
        # Read and written again by its owner, it is theirs.
        make(path)
        anndata.read_h5ad(path).write_h5ad(path)
    else:
        make(path)
        (path / "thesis.docx").write_text("theirs")
    with pytest.raises(ValueError, match="it stays as it is"):
        make(path, overwrite=True)


@pytest.mark.filterwarnings("ignore::UserWarning:anndata", "ignore:.*zarr")
def test_inputs_are_never_replaced(path):
    make(path)
    for given in (path, path / "embedded.h5ad", path.parent):
        with pytest.raises(ValueError, match="would replace the input"):
            make(path, overwrite=True, inputs=[given])
    make(path, overwrite=True, inputs=[path.parent / "other.h5ad"])


def test_what_appears_meanwhile_stays(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(ValueError, match="it stays as it is"), new_output(path, by="f") as temporary:  # noqa: PT012
        write(temporary)
        theirs(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "thesis.docx"]


def test_names_in_a_folder_that_others_use(tmp_path):
    (tmp_path / "thesis.docx").write_text("theirs")
    claim(tmp_path, ["a.csv", "b.csv"], by="f", job=JOB)
    (tmp_path / "a.csv").write_text("ours")
    claim(tmp_path, ["a.csv"], by="f", job=JOB)
    with pytest.raises(ValueError, match=r"made from something else \(input, k\)"):
        claim(tmp_path, ["a.csv"], by="f", job={})
    claim(tmp_path, ["b.csv"], by="f", job={})
    with pytest.raises(ValueError, match=r"holds a\.csv, thesis\.docx, which g did not write"):
        claim(tmp_path, ["a.csv", "thesis.docx"], by="g", overwrite=True)
    claim(tmp_path, ["c.csv"], by="g")
    assert set(json.loads((tmp_path / MARK).read_text())) == {"f", "g"}
    with pytest.raises(ValueError, match="is a file"):
        claim(tmp_path / "a.csv", ["x"], by="f")


KILLED = """
import os, signal, sys
from maxtoki_toolkit._files import atomic
with atomic(sys.argv[1]) as temporary:
    if sys.argv[2] == "folder":
        temporary.mkdir()
        (temporary / "a").write_text("half")
    else:
        temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_goes(tmp_path, kind):
    path = tmp_path / "out.csv"
    subprocess.run([sys.executable, "-c", KILLED, str(path), kind], check=False)
    (tmp_path / ".out.notes.csv").write_text("theirs")
    (left,) = set(tmp_path.iterdir()) - {tmp_path / ".out.notes.csv"}
    assert left.name.startswith(".out.")
    with atomic(path) as temporary:
        # That of a process that lives stays.
        with atomic(path) as other:
            other.write_text("first")
        temporary.write_text("second")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.notes.csv", "out.csv"]
    assert path.read_text() == "second"


def test_a_folder_about_to_be_replaced_comes_back(tmp_path):
    """A process was killed when it had put the old folder aside, and not yet the new one in its place."""
    path, child = tmp_path / "out", subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    make(path)
    with atomic(path) as temporary:
        owner = temporary.name.split(".")[2].replace(f"-{os.getpid()}-", f"-{child.pid}-")
        path.rename(tmp_path / f".out.{owner}.old")
        check_output(tmp_path / "out", by="f", overwrite=True)
        assert content(path) == "ours"
        temporary.mkdir()
        write(temporary, "new")
    assert content(path) == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def made():
    adata = mt.datasets.aging_atlas(40, 10, n_genes=500)
    mt.pp.map_genes(adata)
    return adata, mt.models.Vocabulary.from_anndata(adata)


@pytest.fixture
def small(made):
    """Cells that may be changed, and their vocabulary."""
    return made[0].copy(), made[1]


def test_columns_of_the_user_stay(small):
    adata, vocab = small
    for name in ("n_genes_ranked", "share_ranked"):
        theirs = adata.copy()
        theirs.obs[name] = 7
        with pytest.raises(ValueError, match=rf"\.obs has '{name}' already.*Rename it"):
            mt.pp.rank_value_encode(theirs, vocab)
        assert (theirs.obs[name] == 7).all()
        assert "rank" not in theirs.layers
    theirs = adata.copy()
    theirs.layers["rank"] = theirs.X.copy()
    with pytest.raises(ValueError, match="a layer 'rank' already"):
        mt.pp.rank_value_encode(theirs, vocab)
    # Ours are written again: with the record of how, and after anndata.concat, which drops it.
    mt.pp.rank_value_encode(adata, vocab)
    mt.pp.rank_value_encode(adata, vocab)
    both = anndata.concat([adata[:20], adata[20:]], merge="same")
    assert not both.uns
    both.X = both.X[::-1]
    mt.pp.rank_value_encode(both, vocab)


def test_other_slots_of_the_user_stay(small):
    adata, vocab = small
    adata.obs["train"] = "maybe"
    with pytest.raises(ValueError, match=r"\.obs has 'train' already"):
        mt.pp.hold_out(adata, donor_key="donor_id")
    assert (adata.obs["train"] == "maybe").all()
    adata.uns["rank_value_encode"] = {"notes": "mine"}
    with pytest.raises(ValueError, match=r"\.uns\['rank_value_encode'\] holds something of yours"):
        mt.pp.rank_value_encode(adata, vocab)
    assert adata.uns["rank_value_encode"] == {"notes": "mine"}
    assert "rank" not in adata.layers
    assert "n_genes_ranked" not in adata.obs
    adata.obs["doublet"] = "singlet"
    with pytest.raises(ValueError, match=r"\.obs has 'doublet' already"):
        mt.tl.doublets(adata, mt.load_model("demo", device="cpu"))


def test_a_vocabulary_is_not_written_over_another(small, tmp_path):
    _, vocab = small
    vocab.save(tmp_path)
    vocab.save(tmp_path)
    (tmp_path / "token_dictionary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"token_dictionary\.json exists, and is of another vocabulary"):
        vocab.save(tmp_path)
    assert (tmp_path / "token_dictionary.json").read_text() == "{}"


def test_models_sums_and_runs_leave_folders_of_the_user_alone(small, tmp_path):
    adata, vocab = small
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = mt.models.build_model(shape, vocab)
    mt.pp.rank_value_encode(adata, vocab)
    for path in (tmp_path / "mine", tmp_path / "mine.zarr"):
        path.mkdir()
        (path / "thesis.docx").write_text("theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("theirs")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="was not written by mt.models.save_model"):
            mt.models.save_model(model, tmp_path / "mine", overwrite=overwrite)
        with pytest.raises(ValueError, match="was not written by mt.tl.attention"):
            mt.tl.attention(adata, model, path=tmp_path / "mine.zarr", overwrite=overwrite)
    with pytest.raises(ValueError, match=r"must end with \.zarr"):
        mt.tl.attention(adata, model, path=tmp_path / "mine")
    with pytest.raises(ValueError, match=r"holds recipe\.json, which mt\.train did not write"):
        mt.train.pretrain(
            adata, vocab, tmp_path / "run", shape=shape, recipe=mt.train.PretrainRecipe.of(max_steps=1)
        )
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["recipe.json"] + ["thesis.docx"] * 2
    # Ours are replaced when that is asked for.
    mt.models.save_model(model, tmp_path / "model")
    with pytest.raises(ValueError, match="overwrite=True"):
        mt.models.save_model(model, tmp_path / "model")
    mt.models.save_model(model, tmp_path / "model", overwrite=True)
    assert mt.load_model(tmp_path / "model").vocab.sha256 == vocab.sha256


def test_raw_counts_are_not_replaced_by_their_ranks(small, tmp_path):
    adata, vocab = small
    adata.write_h5ad(tmp_path / "cells.h5ad")
    before = (tmp_path / "cells.h5ad").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="would replace the input"):
            mt.pp.encode_files([tmp_path / "cells.h5ad"], tmp_path, vocab, overwrite=overwrite)
        with pytest.raises(ValueError, match="would replace the input"):
            mt.pp.encode_file(tmp_path / "cells.h5ad", tmp_path / "cells.h5ad", vocab, overwrite=overwrite)
    assert (tmp_path / "cells.h5ad").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cells.h5ad"]
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "manifest.json").rename(tmp_path / "out" / "manifest.json")
    with pytest.raises(ValueError, match=r"manifest\.json exists and was not written by"):
        mt.pp.encode_files([tmp_path / "cells.h5ad"], tmp_path / "out", vocab)


def test_effects_of_another_screen_or_of_the_user_stay(tmp_path):
    path, table = tmp_path / "effects.csv", pd.DataFrame({"gene": ["a"], "effect": [1.0]})
    path.write_text("theirs")
    with pytest.raises(ValueError, match="exists and is no screen"):
        find_effects(path, {"mode": "delete"}, overwrite=True)
    path.unlink()
    write_effects(path, table, {"mode": "delete"}, "months")
    assert find_effects(path, {"mode": "delete"})
    with pytest.raises(ValueError, match=r"other settings or data \(mode\).*overwrite=True"):
        find_effects(path, {"mode": "shift"})
    assert not find_effects(path, {"mode": "shift"}, overwrite=True)
    # Killed between the note and the table: it is made again.
    written = path.read_bytes()
    path.unlink()
    assert not find_effects(path, {"mode": "delete"})
    path.write_bytes(written + b"b,2.0,months\n")
    with pytest.raises(ValueError, match="has changed since it was written"):
        find_effects(path, {"mode": "delete"}, overwrite=True)
    (tmp_path / "effects.csv.json").write_text("[]")
    with pytest.raises(ValueError, match=r"effects\.csv\.json exists and is of no screen"):
        find_effects(path, {"mode": "delete"}, overwrite=True)
