"""Folders of Hugging Face `datasets`: what the original's tools write is read, and written again bit by bit."""

import json

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit._arrow import open_dataset
from maxtoki_toolkit.train._cells import read_cells

N = 40


@pytest.fixture(scope="module")
def vocab():
    genes = [f"ENSG{i:011d}" for i in range(60)]
    tokens = {token: i for i, token in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *genes])}
    return mt.models.Vocabulary(tokens, dict.fromkeys(genes, 1.5))


def rows(vocab, n=N, seed=0):
    """Cells as the original's tokenizer has them, with values and columns of several types."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 50, n)
    cells = [[2, *rng.permutation(vocab.gene_ids)[:size].tolist(), 3] for size in sizes]
    return pa.table(
        {
            "input_ids": pa.array(cells, pa.list_(pa.int32())),
            "counts": pa.array([[0.0, *rng.random(size), 0.0] for size in sizes], pa.list_(pa.float64())),
            "donor": pa.array([f"d{i % 3}" for i in range(n)]),
            "is_female": pa.array(rng.random(n) < 0.5),
            "share": pa.array(rng.random(n).astype(np.float32)),
            "time": pa.array(rng.integers(100, 900, n).astype(np.int64)),
            "unique_cell_id": pa.array([f"cell_{n - i}" for i in range(n)]),
            "time_group": pa.array([f"g{i % 2}" for i in range(n)]),
            "length": pa.array([len(cell) for cell in cells], pa.int64()),
        }
    )


def save(table, folder, *, n_files=2, **state):
    """As `Dataset.save_to_disk` lays a folder out."""
    folder.mkdir(parents=True)
    step = -(-len(table) // n_files)
    names = [f"data-{i:05d}-of-{n_files:05d}.arrow" for i in range(n_files)]
    for i, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(i * step, step), max_chunksize=7)
    files = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", **state}
    (folder / "state.json").write_text(json.dumps(files))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize("through_file", [False, True])
def test_original_to_anndata_and_back(vocab, tmp_path, through_file):
    """Names, order, types and every value, also by way of an h5ad file."""
    table = rows(vocab)
    adata = mt.pp.read_dataset(save(table, tmp_path / "in.dataset"), vocab)
    assert adata.obs_names.tolist() == table["unique_cell_id"].to_pylist()
    row = table["input_ids"][5].as_py()
    ranks = adata[5].layers["rank"].toarray()[0]
    assert (
        vocab.genes[np.argsort(np.where(ranks, ranks, 999))][: len(row) - 2].tolist()
        == vocab.gene_of_token[row[1:-1]].tolist()
    )
    if through_file:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    mt.pp.write_dataset(adata, vocab, output=tmp_path / "out.dataset")
    found = open_dataset(tmp_path / "out.dataset")
    assert found.schema.remove_metadata() == table.schema
    assert found.combine_chunks().to_pydict() == table.to_pydict()


def test_missing_values_and_types_stay(vocab, tmp_path):
    table = rows(vocab).append_column("bmi", pa.array([None, *range(N - 1)], pa.int32()))
    table = table.append_column("note", pa.array([None, *["x"] * (N - 1)]))
    adata = mt.pp.read_dataset(save(table, tmp_path / "in.dataset"), vocab)
    mt.pp.write_dataset(adata, vocab, output=tmp_path / "out.dataset")
    found = open_dataset(tmp_path / "out.dataset")
    for name in ("bmi", "note"):
        assert found[name].type == table[name].type
        assert found[name].to_pylist() == table[name].to_pylist()


def test_layout_is_that_of_datasets(vocab, tmp_path):
    """What `load_from_disk` looks for: state, features by name, and an Arrow stream that says the same."""
    adata = mt.pp.read_dataset(save(rows(vocab), tmp_path / "in.dataset"), vocab)
    folder = tmp_path / "out.dataset"
    mt.pp.write_dataset(adata, vocab, output=folder, max_length=20)
    state = json.loads((folder / "state.json").read_text())
    assert [(folder / file["filename"]).is_file() for file in state["_data_files"]] == [True]
    features = json.loads((folder / "dataset_info.json").read_text())["features"]
    assert features["input_ids"] == {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"}
    assert [features[name]["dtype"] for name in ("share", "donor", "is_female", "time")] == [
        "float32",
        "string",
        "bool",
        "int64",
    ]
    table = open_dataset(folder)
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"] == features
    assert list(features) == table.column_names
    assert max(table["length"].to_pylist()) == 20
    assert all(row[-1] == 3 for row in table["input_ids"].to_pylist())


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets", reason="the package datasets is not installed")


def test_datasets_reads_what_we_write(datasets, vocab, tmp_path):
    table = rows(vocab)
    adata = mt.pp.read_dataset(save(table, tmp_path / "in.dataset"), vocab)
    mt.pp.write_dataset(adata, vocab, output=tmp_path / "out.dataset")
    found = datasets.load_from_disk(str(tmp_path / "out.dataset"))
    assert found.to_dict() == table.to_pydict()


def test_what_datasets_saves_comes_back_bit_by_bit(datasets, vocab, tmp_path):
    """Saved by the package in two files, read, written, and loaded by it again: features, order, types, every value."""
    table = rows(vocab).append_column("bmi", pa.array([None, *range(N - 1)], pa.int32()))
    table = table.select([*(name for name in table.column_names if name != "length"), "length"])
    theirs = datasets.Dataset(table)
    theirs.save_to_disk(str(tmp_path / "in.dataset"), num_shards=2)
    assert len(list((tmp_path / "in.dataset").glob("*.arrow"))) == 2
    adata = mt.pp.read_dataset(tmp_path / "in.dataset", vocab)
    mt.pp.write_dataset(adata, vocab, output=tmp_path / "out.dataset")
    found = datasets.load_from_disk(str(tmp_path / "out.dataset"))
    assert found.features == theirs.features
    assert found.data.table.schema.remove_metadata() == theirs.data.table.schema.remove_metadata()
    assert found.data.table.combine_chunks().equals(theirs.data.table.combine_chunks())


def test_datasets_with_rows_picked_or_splits(datasets, vocab, tmp_path):
    """Rows that the package has picked are read once it has written them out; of several splits one is asked for."""
    picked = datasets.Dataset(rows(vocab)).select([7, 3, 30])
    picked.save_to_disk(str(tmp_path / "picked"))
    adata = mt.pp.read_dataset(tmp_path / "picked", vocab)
    assert adata.obs_names.tolist() == picked["unique_cell_id"][:]
    datasets.DatasetDict({"train": picked}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match="several splits.*train"):
        mt.pp.read_dataset(tmp_path / "splits", vocab)
    assert mt.pp.read_dataset(tmp_path / "splits" / "train", vocab).n_obs == 3


def test_time_and_group(vocab, tmp_path):
    adata = mt.pp.read_dataset(save(rows(vocab), tmp_path / "in.dataset"), vocab)
    adata.obs = adata.obs.rename(columns={"time": "age"}).drop(columns="time_group")
    mt.pp.write_dataset(adata, vocab, output=tmp_path / "out", time_key="age", groupby=["donor", "is_female"])
    found = open_dataset(tmp_path / "out")
    assert found["time"].to_pylist() == adata.obs["age"].tolist()
    assert found["time_group"].to_pylist()[0] == f"d0_{adata.obs['is_female'].iloc[0]}"
    mt.pp.write_dataset(adata, vocab, output=tmp_path / "all", groupby=[])
    assert set(open_dataset(tmp_path / "all")["time_group"].to_pylist()) == {"all"}


def set_tokens(table, row, tokens):
    cells = table["input_ids"].to_pylist()
    cells[row] = tokens
    return table.set_column(0, "input_ids", pa.array(cells, pa.list_(pa.int32()))).drop_columns("counts")


def test_what_would_be_wrong_is_refused(vocab, tmp_path):
    table = rows(vocab)
    wrong = {
        "no cells of this vocabulary.*first is row 4": set_tokens(table, 4, [2, 5, 6]),
        "first is row 5, which begins": set_tokens(table, 5, [2, 5, 64, 3]),
        "row 6": set_tokens(table, 6, [2, 5, 2, 6, 3]),
        "row 7": set_tokens(table, 7, [2, 3]),
        "1 rows of .* have a gene twice .the first is row 8": set_tokens(table, 8, [2, 5, 9, 5, 3]),
        "has no column 'input_ids'": table.drop_columns("input_ids"),
        "not unique": table.set_column(6, "unique_cell_id", pa.array(["a"] * N)),
        "not of one length": table.set_column(1, "counts", pa.array([[0.0]] * N)),
    }
    for i, (message, bad) in enumerate(wrong.items()):
        with pytest.raises((ValueError, KeyError), match=message):
            mt.pp.read_dataset(save(bad, tmp_path / str(i)), vocab)


def test_damaged_and_other_folders_are_refused(vocab, tmp_path):
    folder = save(rows(vocab), tmp_path / "in.dataset")
    with pytest.raises(ValueError, match="order of rows beside"):
        mt.pp.read_dataset(save(rows(vocab), tmp_path / "i", _indices_files=[{"filename": "x"}]), vocab)
    whole = (folder / "data-00001-of-00002.arrow").read_bytes()
    (folder / "data-00001-of-00002.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="data-00001-of-00002.arrow cannot be read"):
        mt.pp.read_dataset(folder, vocab)
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match="several splits.*train"):
        mt.pp.read_dataset(tmp_path / "both", vocab)
    other = mt.models.Vocabulary(vocab.tokens, dict.fromkeys(vocab.genes, 2.0))
    adata = mt.pp.read_dataset(save(rows(vocab), tmp_path / "ok"), vocab)
    mt.pp.write_dataset(adata, vocab, output=tmp_path / "ours")
    with pytest.raises(ValueError, match="another vocabulary"):
        mt.pp.read_dataset(tmp_path / "ours", other)
    with pytest.raises(ValueError, match="another vocabulary"):
        mt.pp.write_dataset(adata, other, output=tmp_path / "no")
    assert not (tmp_path / "no").exists()
    adata.obs["mixed"] = pd.Series([1, "a"] * (N // 2), index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match="'mixed' holds values of several kinds"):
        mt.pp.write_dataset(adata, vocab, output=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_training_reads_folders_as_the_cells_in_them(vocab, tmp_path):
    """The same sequences in the same order, from the folder and from memory, whole and cut."""
    folder = save(rows(vocab), tmp_path / "in.dataset")
    adata = mt.pp.read_dataset(folder, vocab)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = mt.models.build_model({**shape, "max_position_embeddings": 64}, vocab)
    for i, max_length in enumerate((64, 12)):
        found, table = read_cells(folder, model, tmp_path, i, max_length=max_length)
        expected, cells = read_cells(adata, model, tmp_path, 9, max_length=max_length)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.indptr, expected.indptr)
        assert table.obs_names.tolist() == cells.obs_names.tolist()
        assert table.obs["donor"].tolist() == cells.obs["donor"].tolist()
    recipe = mt.train.PretrainRecipe.of(max_steps=2, batch_size=4, device="cpu")
    trained = [
        mt.train.pretrain(
            cells, vocab, tmp_path / name, shape={**shape, "max_position_embeddings": 64}, recipe=recipe
        )
        for name, cells in [("a", folder), ("b", adata)]
    ]
    assert trained[0].sha256 == trained[1].sha256


def test_needs_pyarrow(vocab, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"\.\[files\]"):
        mt.pp.read_dataset(tmp_path, vocab)
