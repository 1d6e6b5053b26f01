"""`maxtoki prompts`, `predict` and `generate`: from all kinds of files, in parts, the same as in memory."""

import os
import time
import warnings
from multiprocessing import get_context

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_cli import run
from test_datasets_folders import save
from test_parity_prompts import make_vocab

import maxtoki_toolkit as mt
from maxtoki_toolkit import batch
from maxtoki_toolkit._arrow import open_dataset
from maxtoki_toolkit.models.generation import tokens_in
from maxtoki_toolkit.models.sequences import Sequences

SETTINGS = {
    "time_key": "age_months",
    "groupby": ["cell_type"],
    "donor_key": "donor_id",
    "n_prompts": 24,
    "context_size": (1, 2),
}
DRAWN = ["--time-key", "age_months", "--groupby", "cell_type", "--donor-key", "donor_id", "--n-prompts", "24"]
DRAWN += ["--min-context", "1", "--max-context", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_clock):
    """A clock, and the same cells as counts, encoded, as zarr, and as a folder of datasets."""
    path = tmp_path_factory.mktemp("batch")
    mt.models.save_model(tiny_clock, path / "clock")
    adata = mt.datasets.aging_atlas(100, 10, n_genes=500)
    del adata.uns["truth"]
    adata.write_h5ad(path / "counts.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the next version of zarr
        adata.write_zarr(path / "counts.zarr")
    mt.pp.encode_file(path / "counts.h5ad", path / "encoded.h5ad", tiny_clock)
    mt.pp.rank_value_encode(adata, tiny_clock)
    mt.pp.write_dataset(adata, tiny_clock, output=path / "cells.dataset")
    for task in ("timelapse", "cell"):
        mt.pp.sample_prompts(adata, task=task, **SETTINGS)
        mt.pp.write_paragraphs(adata, tiny_clock, output=path / task)
        anndata.AnnData(
            adata.X, obs=adata.obs, var=adata.var[["symbol"]], uns={"prompts": adata.uns["prompts"]}
        ).write_h5ad(path / f"{task}.h5ad")
    return path


@pytest.fixture(scope="module")
def lapses(folder, tiny_clock):
    """What is predicted in memory."""
    adata = mt.pp.read_cells(folder / "timelapse.h5ad")
    mt.pp.rank_value_encode(adata, tiny_clock)
    mt.tl.predict_timelapse(adata, tiny_clock)
    return mt.get.table(adata, "timelapse")


@pytest.fixture(scope="module")
def written(folder, tiny_clock):
    """What is generated in memory."""
    adata = mt.pp.read_cells(folder / "cell.h5ad")
    mt.pp.rank_value_encode(adata, tiny_clock)
    return mt.tl.generate(adata, tiny_clock, n_samples=2, max_genes=9, rng=5)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("counts.h5ad", "cell"),
        ("counts.zarr", "timelapse"),
        ("encoded.h5ad", "cell"),
        ("cells.dataset", "timelapse"),
    ],
)
def test_prompts_of_any_file_are_those_of_memory(folder, tiny_clock, tmp_path, name, task):
    """Row by row what `mt.pp.write_paragraphs` writes."""
    out = tmp_path / task
    assert batch.prompt_file(folder / name, out, tiny_clock, sampling={**SETTINGS, "task": task}) == 24
    assert open_dataset(out).to_pydict() == open_dataset(folder / task).to_pydict()


def test_prompts_by_command(folder, capsys, tmp_path):
    """Once more: it is there. With another seed it would be another."""
    command = [
        "prompts",
        folder / "encoded.h5ad",
        "-o",
        tmp_path / "out",
        "--model",
        folder / "clock",
        *DRAWN,
    ]
    for _ in range(2):
        code, text, err = run(capsys, *command)
        assert code == 0, err
        assert "24 prompts are in" in text
    assert open_dataset(tmp_path / "out").to_pydict() == open_dataset(folder / "timelapse").to_pydict()
    code, _, err = run(capsys, *command, "--seed", 1)
    assert code == 1
    assert "made from something else (rng)" in err


@pytest.mark.parametrize(("name", "to"), [("timelapse", "parquet"), ("timelapse.h5ad", "h5ad")])
def test_lapses_are_those_of_memory(folder, tiny_clock, lapses, tmp_path, name, to):
    found = batch.predict_file(folder / name, tmp_path / "out", tiny_clock, to=to, chunk_size=16)
    table = anndata.read_h5ad(found).obs if to == "h5ad" else pd.read_parquet(found)
    assert table["prompt"].tolist() == list(range(24))
    np.testing.assert_allclose(table["predicted"], lapses["predicted"], atol=2e-3)
    np.testing.assert_allclose(table["p_non_numeric"], lapses["p_non_numeric"], atol=1e-5)
    assert table["lapse"].tolist() == lapses["lapse"].tolist()
    assert table["query"].tolist() == lapses["query"].tolist()
    assert set(table["unit"]) == {tiny_clock.time_head.unit}
    assert not list(tmp_path.glob("*.shards"))
    if to == "parquet":
        assert pq.ParquetFile(found).num_row_groups == 2  # written block by block


@pytest.mark.parametrize(
    ("name", "to"), [("cell", "parquet"), pytest.param("cell.h5ad", "h5ad", marks=pytest.mark.slow)]
)
def test_generated_cells_are_those_of_memory(folder, tiny_clock, written, tmp_path, monkeypatch, name, to):
    """Token by token, in whatever block they are."""
    monkeypatch.setattr(batch, "_GENERATED", 16)
    how = {"n_samples": 2, "max_genes": 9}
    found = batch.generate_file(folder / name, tmp_path / "out", tiny_clock, sampling=how, rng=5, to=to)
    if to == "parquet":
        cells = pd.read_parquet(found)
        expected = [[2, *genes, 3] for genes in genes_of(written)]
        assert [row.tolist() for row in cells["input_ids"]] == expected
    else:
        cells = anndata.read_h5ad(found)
        assert (cells.layers["rank"] != written.layers["rank"]).nnz == 0
        assert cells.obs_names.tolist() == written.obs_names.tolist()
        cells = cells.obs
    np.testing.assert_allclose(cells["log_likelihood"], written.obs["log_likelihood"], rtol=1e-5)
    assert cells["finished"].tolist() == written.obs["finished"].tolist()


def genes_of(adata):
    token = adata.var["token_id"].to_numpy()
    for row in range(adata.n_obs):
        ranks = adata.layers["rank"][[row]]
        yield token[ranks.indices[np.argsort(ranks.data)]].tolist()


@pytest.mark.parametrize(
    "name",
    [
        "cells.dataset",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("counts.h5ad", "encoded.h5ad")),
    ],
)
def test_cells_are_gone_on_with(folder, tiny_clock, capsys, tmp_path, name):
    adata = mt.pp.read_cells(folder / "counts.h5ad")
    mt.pp.rank_value_encode(adata, tiny_clock)
    expected = mt.tl.generate(adata[:20].copy(), tiny_clock, n_given=3, max_genes=8, rng=1, temperature=0.5)
    options = [
        "--model",
        folder / "clock",
        "--n-given",
        3,
        "--max-genes",
        8,
        "--seed",
        1,
        "--temperature",
        0.5,
    ]
    code, text, err = run(capsys, "generate", folder / name, "-o", tmp_path / "out", "--limit", 20, *options)
    assert code == 0, err
    assert "cells.h5ad is there" in text
    found = anndata.read_h5ad(tmp_path / "out" / "cells.h5ad")
    assert found.n_obs == 20
    assert found.obs["prompt"].tolist() == expected.obs["prompt"].tolist()
    assert list(genes_of(found)) == list(genes_of(expected))


def test_original_rows_with_and_without_answers(folder, tiny_clock, lapses, tmp_path):
    """Both tasks in one folder, prompts alone or with answers: the same lapses for the rows that ask for them."""
    lapse, cell = (
        open_dataset(folder / task).select(["input_ids", "response_len"]) for task in ("timelapse", "cell")
    )
    rows = lapse["input_ids"].to_pylist()
    parts = [
        pa.table({"input_ids": pa.array(some, pa.list_(pa.int32()))})
        for some in (
            [row[:-1] for row in rows[:20]],
            cell["input_ids"].to_pylist()[:5],
            rows[20:],
        )
    ]
    found = batch.predict_file(
        save(pa.concat_tables(parts), tmp_path / "in"), tmp_path / "out", tiny_clock, chunk_size=7
    )
    table = anndata.read_h5ad(found).obs
    assert table["prompt"].tolist() == [*range(20), *range(25, 29)]
    np.testing.assert_allclose(table["predicted"], lapses["predicted"], atol=2e-3)


def test_parity_find_eoq_batch(parity, tmp_path):
    """`find_eoq_batch`: two `<eoq>` are an error, as there; a row without one is, too, where there all others shift."""
    vocab = make_vocab(parity["compose_example"]["token_dictionary"])
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = mt.models.build_model({**shape, "max_position_embeddings": 64}, vocab)
    several, missing = parity["find_eoq_batch"]["cases"]
    for case, message in [(several, "has 2"), (missing, "has 0")]:
        rows = [[vocab["<boq>"], *row] for row in case["tokens"]]
        with pytest.raises(ValueError, match=message):
            batch._cut(Sequences.of([np.array(row) for row in rows]), model, tmp_path, 0)
    # Where each row has one, it is found where the original finds it, and the task is that of its question.
    lapse, cell = [2, 5, 3, 14, 2, 6, 3, 15, 20], [2, 5, 3, 14, 20, 15, 2, 6, 3]
    found, timelapse = batch._cut(Sequences.of([np.array(lapse), np.array(cell)]), model, tmp_path, 0)
    assert found.lengths.tolist() == [8, 6]
    assert timelapse.tolist() == [True, False]


def test_predict_by_command(folder, lapses, capsys, tmp_path):
    """The first ones, as a table."""
    options = ["--model", folder / "clock", "--limit", 13, "--to", "parquet", "--device", "cpu"]
    code, text, err = run(capsys, "predict", folder / "timelapse", "-o", tmp_path / "out", *options)
    assert code == 0, err
    assert "lapses.parquet is there" in text
    table = pd.read_parquet(tmp_path / "out" / "lapses.parquet")
    np.testing.assert_allclose(table["predicted"], lapses["predicted"][:13], atol=2e-3)


def test_processes_share_the_job(folder, tiny_clock, lapses, tmp_path, monkeypatch):
    """Two of three do their shares; the last one finds all of it there, and writes."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        found = batch.predict_file(folder / "timelapse", tmp_path / "out", tiny_clock, chunk_size=8)
        assert (found is None) == (rank < 2)
    np.testing.assert_allclose(anndata.read_h5ad(found).obs["predicted"], lapses["predicted"], atol=2e-3)


def test_it_goes_on_and_says_what_is_there(folder, tiny_clock, lapses, tmp_path, monkeypatch):
    asked = []
    read = batch.read_lapses

    def fails_once(model, sequences):
        asked.append(len(sequences))
        if len(asked) == 3:
            raise RuntimeError("the node went down")
        return read(model, sequences)

    monkeypatch.setattr(batch, "read_lapses", fails_once)
    with pytest.raises(RuntimeError, match="went down"):
        batch.predict_file(folder / "timelapse", tmp_path / "out", tiny_clock, chunk_size=5)
    assert not (tmp_path / "out").exists()
    found = batch.predict_file(folder / "timelapse", tmp_path / "out", tiny_clock, chunk_size=5)
    assert asked == [5] * 5 + [4]  # the two blocks that were done are not done again
    np.testing.assert_allclose(anndata.read_h5ad(found).obs["predicted"], lapses["predicted"], atol=2e-3)
    before = found.stat().st_mtime_ns
    assert batch.predict_file(folder / "timelapse", tmp_path / "out", tiny_clock).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="made from something else .limit"):
        batch.predict_file(folder / "timelapse", tmp_path / "out", tiny_clock, limit=3)


def test_what_would_be_wrong_is_refused(folder, tiny_model, tiny_clock, tmp_path):
    rows = open_dataset(folder / "timelapse")["input_ids"].to_pylist()[:6]
    boq, eoq, bos = (tiny_clock.vocab[mark] for mark in ("<boq>", "<eoq>", "<bos>"))

    def having(row, tokens):
        changed = [*rows[:row], tokens, *rows[row + 1 :]]
        return pa.table({"input_ids": pa.array(changed, pa.list_(pa.int32()))})

    cases = {
        "row 2 has 0.* no prompts": having(2, [t for t in rows[2] if t != eoq]),
        "row 3 has 2": having(3, [*rows[3], eoq]),
        "the first is row 4": having(4, [bos, 5, 3, boq, 5, 3, eoq]),
        "the first is row 1": having(1, [bos, 99_999, 3, boq, bos, 5, 3, eoq]),
        "longer than the 512 tokens": having(5, [bos, *[5] * 600, 3, boq, bos, 5, 3, eoq]),
    }
    for i, (message, table) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=message):
            batch.predict_file(save(table, tmp_path / str(i)), tmp_path / "out", tiny_clock)
    with pytest.raises(ValueError, match="They may be cells: Draw prompts first"):
        batch.predict_file(folder / "cells.dataset", tmp_path / "out", tiny_clock)
    with pytest.raises(ValueError, match=r"has no prompts in uns\['prompts'\]"):
        batch.predict_file(folder / "encoded.h5ad", tmp_path / "out", tiny_clock)
    with pytest.raises(ValueError, match="cell: No prompt of the input asks for this"):
        batch.predict_file(folder / "cell", tmp_path / "out", tiny_clock)
    assert not (tmp_path / "out.shards").exists()  # the right command can use the name
    with pytest.raises(ValueError, match=r"another vocabulary than that of 'demo'\. Give the model"):
        batch.predict_file(folder / "timelapse", tmp_path / "out", mt.load_model("demo"))
    with pytest.raises(ValueError, match="of another kind: they ask for cells"):
        batch.predict_file(folder / "cell.h5ad", tmp_path / "no", tiny_clock)
    with pytest.raises(ValueError, match="cannot tell time"):
        batch.predict_file(folder / "timelapse", tmp_path / "no", tiny_model)
    with pytest.raises(ValueError, match="no format 'csv'"):
        batch.predict_file(folder / "timelapse", tmp_path / "no", tiny_clock, to="csv")
    other = mt.models.Vocabulary(tiny_clock.vocab.tokens, dict.fromkeys(tiny_clock.vocab.genes, 2.0))
    changed = mt.models.build_model(
        {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "max_position_embeddings": 512,
        },
        other,
    )
    import dataclasses

    changed = dataclasses.replace(changed, time_head=mt.models.TimeHead("expectation"))
    with pytest.raises(ValueError, match="another vocabulary"):
        batch.predict_file(folder / "timelapse", tmp_path / "no", changed)
    assert not (tmp_path / "no").exists()


def test_memory_of_keys_and_values(tiny_clock):
    """In bytes what the cache takes."""
    config = tiny_clock.hf.config
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert tokens_in(tiny_clock, 1000 * each / 1e9) == 1000


@pytest.mark.slow
def test_cells_do_not_depend_on_that_memory(tiny_clock, folder, tmp_path, written):
    how = {"n_samples": 2, "max_genes": 9, "max_tokens": 600}
    out = tmp_path / "out"
    found = anndata.read_h5ad(batch.generate_file(folder / "cell", out, tiny_clock, sampling=how, rng=5))
    assert (found.layers["rank"] != written.layers["rank"]).nnz == 0


def test_encode_to_dataset(folder, tiny_clock, capsys, tmp_path):
    """A block at a time, the same folder as from memory, with the original's names."""
    options = [
        "--model",
        folder / "clock",
        "--time-key",
        "age_months",
        "--groupby",
        "cell_type",
        "--groupby",
        "sex",
    ]
    command = [
        "encode",
        folder / "counts.h5ad",
        "-o",
        tmp_path / "out",
        "--to-dataset",
        "--max-length",
        40,
        *options,
    ]
    code, _, err = run(capsys, *command)
    assert code == 0, err
    assert run(capsys, *command)[0] == 0  # it is there
    adata = mt.pp.read_cells(folder / "counts.h5ad")
    mt.pp.rank_value_encode(adata, tiny_clock)
    mt.pp.write_dataset(
        adata,
        tiny_clock,
        output=tmp_path / "memory",
        time_key="age_months",
        groupby=["cell_type", "sex"],
        max_length=40,
    )
    found = open_dataset(tmp_path / "out" / "counts.dataset")
    assert found.to_pydict() == open_dataset(tmp_path / "memory").to_pydict()
    assert {"input_ids", "time", "unique_cell_id", "time_group", "length"} <= set(found.column_names)


def predict_alone(path, output, model):
    """What a process that is killed does."""
    torch.set_num_threads(1)  # those of the process that it is a copy of are not there
    batch.predict_file(path, output, model, chunk_size=2, to="parquet")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_killed_at_any_moment_it_loses_nothing(folder, tiny_clock, lapses, tmp_path):
    """Ten times kill -9, at moments over the whole run; what is done is kept, and the table is that of one run."""
    shards, kept = tmp_path / "out.shards", 0
    given = (folder / "timelapse", tmp_path / "out", tiny_clock)
    for number in np.linspace(0, 11, 10).astype(int):
        process = get_context("fork").Process(target=predict_alone, args=given)
        process.start()
        begin = time.time()
        while process.is_alive() and time.time() - begin < 60 and len(list(shards.glob("0*.h5ad"))) <= number:
            time.sleep(0.002)
        time.sleep(0.003 * number)  # within a block
        process.kill()
        process.join()
        left = len(list(shards.glob("0*.h5ad")))
        assert left >= kept or (tmp_path / "out").exists()
        kept = left
    found = batch.predict_file(*given, chunk_size=2, to="parquet")
    table = pd.read_parquet(found)
    assert table["prompt"].tolist() == list(range(24))
    np.testing.assert_allclose(table["predicted"], lapses["predicted"], atol=2e-3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lapses.parquet", "maxtoki.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def predict_all(paths, output, model, task=None):
    """What a task of a SLURM array does: its share of each file; without a number, one process that does all."""
    torch.set_num_threads(1)
    if task is not None:
        os.environ |= {
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_COUNT": "2",
            "SLURM_ARRAY_TASK_MAX": "1",
        }
    how = {"chunk_size": 2, "to": "parquet", "share_array": task is not None}
    return [batch.predict_file(path, output / path.name, model, **how) for path in paths]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_tasks_share_fifty_files_and_one_is_killed(folder, tiny_clock, tmp_path):
    """Of two tasks one gets SIGKILL midway and is given again: every file has the table that one process makes, bit by bit."""
    drawn = SETTINGS | {"n_prompts": 200}
    batch.prompt_file(folder / "encoded.h5ad", tmp_path / "all", tiny_clock, sampling=drawn)
    rows, out = open_dataset(tmp_path / "all"), tmp_path / "out"
    paths = [save(rows.slice(4 * i, 4), tmp_path / "asked" / f"{i:02d}", n_files=1) for i in range(50)]

    def start(task):
        process = get_context("fork").Process(target=predict_all, args=(paths, out, tiny_clock, task))
        process.start()
        return process

    kept, killed = start(0), start(1)
    begin = time.time()
    while time.time() - begin < 60 and len(list(out.glob("*/lapses.parquet"))) < 10:
        time.sleep(0.002)
    killed.kill()
    kept.join()
    killed.join()
    assert (kept.exitcode, killed.exitcode) == (0, -9)
    written = len(list(out.glob("*/lapses.parquet")))
    assert 10 <= written < 50
    again = start(1)
    again.join()
    assert again.exitcode == 0
    found = [pd.read_parquet(out / path.name / "lapses.parquet") for path in paths]
    expected = [pd.read_parquet(path) for path in predict_all(paths, tmp_path / "alone", tiny_clock)]
    pd.testing.assert_frame_equal(pd.concat(found), pd.concat(expected), check_exact=True)
    assert len(pd.concat(found)) == 200
    assert not list(out.glob("*.shards"))
