"""Jobs in shards: every one made once, by whichever process, and put together by one."""

import json
import shutil
import subprocess
import sys

import anndata
import numpy as np
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit import pipeline
from maxtoki_toolkit._shards import (
    count_shards,
    job_digest,
    open_shards,
    process_index,
    shard_path,
    take_shards,
)
from maxtoki_toolkit.pipeline import embed_file

VARIABLES = ("WORLD_SIZE", "RANK", *(f"SLURM_ARRAY_TASK_{n}" for n in ("COUNT", "ID", "MIN", "MAX", "STEP")))

pytestmark = pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def array(monkeypatch, task, tasks, step=1):
    """As SLURM tells a task of an array."""
    for name, value in {
        "ID": task,
        "COUNT": len(tasks),
        "MIN": min(tasks),
        "MAX": max(tasks),
        "STEP": step,
    }.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_processes_are_counted(monkeypatch):
    assert process_index() == (0, 1)
    array(monkeypatch, 7, range(5, 9))
    # Only where it is asked for.
    assert process_index() == (0, 1)
    assert process_index(share_array=True) == (2, 4)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert process_index() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    assert process_index() == (3, 8)
    assert process_index(share_array=True) == (2 * 8 + 3, 4 * 8)


def test_arrays_with_steps_and_gaps(monkeypatch):
    with pytest.raises(ValueError, match="this process is none"):
        process_index(share_array=True)
    steps = range(1, 8, 2)
    found = []
    for task in steps:
        array(monkeypatch, task, steps, step=2)
        found.append(process_index(share_array=True))
    assert found == [(0, 4), (1, 4), (2, 4), (3, 4)]
    array(monkeypatch, 3, [1, 3, 7])
    with pytest.raises(ValueError, match=r"3 tasks between 1 and 7: with gaps .* --array=0-2"):
        process_index(share_array=True)


def make(folder, numbers, n, recipe, digest=None):
    for number in numbers:
        shard_path(folder, number, digest or job_digest(n, recipe)).write_text("")


def test_shards_are_shared_out_and_gone_on_with(tmp_path, monkeypatch):
    folder, made, recipe = tmp_path / "job", [], {"a": (1, 2)}
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        with open_shards(folder, 5, recipe) as todo:
            made.append(todo)
            make(folder, todo, 5, recipe)
        with take_shards(folder, 5, recipe) as paths:
            assert (paths is None) == (rank == 1)
            if paths:
                assert [path.name[:6] for path in paths] == [f"{i:06d}" for i in range(5)]
                assert all(path.exists() for path in paths)
    assert made == [[1, 3], [0, 2, 4]]
    assert not list(tmp_path.iterdir())


def test_what_is_done_stays_done(tmp_path):
    folder, recipe = tmp_path / "job", {"a": 1}

    def interrupted():
        with open_shards(folder, 3, recipe) as todo:
            make(folder, todo[:1], 3, recipe)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ValueError, match=r"other settings \(a\)"), open_shards(folder, 3, {"a": 2}):
        pass
    assert count_shards(folder) == (1, 3)
    with open_shards(folder, 3, recipe) as todo:
        assert todo == [1, 2]
        make(folder, todo, 3, recipe)
    # Putting them together fails: nothing is lost.
    with pytest.raises(RuntimeError), take_shards(folder, 3, recipe):
        raise RuntimeError
    with open_shards(folder, 3, recipe) as todo:
        assert todo == []
    with take_shards(folder, 3, recipe) as paths:
        assert len(paths) == 3
    assert not list(tmp_path.iterdir())


def test_parts_of_another_job_are_not_adopted(tmp_path):
    folder, recipe, other = tmp_path / "job", {"a": 1}, {"a": 2}
    with open_shards(folder, 3, recipe) as todo:
        make(folder, todo[:2], 3, recipe)
    # Nothing says what they are of.
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="Delete the folder"), open_shards(folder, 3, other):
        pass
    with open_shards(folder, 3, recipe) as todo:
        assert todo == [2]
    with open_shards(folder, 3, other, overwrite=True) as todo:
        assert todo == [0, 1, 2]
        make(folder, todo, 3, other)
    with take_shards(folder, 3, other) as paths:
        assert len(paths) == len(list(folder.glob("0*"))) == 3
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_user_is_left_alone(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "thesis.docx").write_text("theirs")
    for overwrite in (False, True):
        with (
            pytest.raises(ValueError, match=r"no part of a job \(thesis\.docx\)"),
            open_shards(folder, 3, {}, overwrite=overwrite),
        ):
            pass
    assert [path.name for path in folder.iterdir()] == ["thesis.docx"]


def test_nothing_is_left_of_a_job_that_did_nothing(tmp_path):
    with pytest.raises(ValueError, match="no counts"), open_shards(tmp_path / "job", 3, {}):
        raise ValueError("no counts")
    assert not list(tmp_path.iterdir())
    assert count_shards(tmp_path / "job") == (0, 0)


def test_one_process_at_a_time(tmp_path, monkeypatch):
    folder, recipe = tmp_path / "job", {"a": 1}
    with open_shards(folder, 2, recipe) as todo:
        with pytest.raises(ValueError, match="Another process is at work"), open_shards(folder, 2, recipe):
            pass
        make(folder, todo, 2, recipe)
    with take_shards(folder, 2, recipe) as paths:
        assert paths
        with take_shards(folder, 2, recipe, wait=False) as others:
            assert others is None
        with pytest.raises(ValueError, match="Another process is at work"), open_shards(folder, 2, recipe):
            pass
        # Those that share a job go on meanwhile.
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        with open_shards(folder, 2, recipe) as todo:
            assert todo == []
    assert not list(tmp_path.iterdir())


def summarise(cells, output, *_, **__):
    """In the place of clusters and figures."""
    cells.write_h5ad(output / "embedded.h5ad")
    return cells


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "cells.h5ad"
    mt.datasets.load("heart_nuclei")[:90, ::8].copy().write_h5ad(path)
    return path


def test_a_file_in_shards_is_as_one(counts, tmp_path, monkeypatch):
    # What follows the embedding takes all cells, in shards or not: tests/test_cli.py looks at it.
    monkeypatch.setattr(pipeline, "_summarise", summarise)
    model = mt.load_model("demo", device="cpu")
    whole = embed_file(counts, tmp_path / "whole", model)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, n in ((1, None), (0, 90)):
        monkeypatch.setenv("RANK", str(rank))
        found = embed_file(counts, tmp_path / "parts", model, chunk_size=20)
        assert (found is None) == (n is None)
    assert found.obs_names.equals(whole.obs_names)
    np.testing.assert_allclose(found.obsm["X_maxtoki"], whole.obsm["X_maxtoki"], atol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts", "whole"]
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    assert found.uns["embed"]["params"]["model_sha256"] == model.identity


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_made_is_read_and_nothing_else_replaced(counts, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_summarise", summarise)
    model, out = mt.load_model("demo", device="cpu"), tmp_path / "out"
    embed_file(counts, out, model)
    monkeypatch.setattr(pipeline.tl, "embed", None)  # nothing is embedded again
    assert embed_file(counts, out, model, chunk_size=30).n_obs == 90
    with pytest.raises(ValueError, match=r"made from something else \(force\).*overwrite=True"):
        embed_file(counts, out, model, force=True)
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "_summarise", summarise)
    embed_file(counts, out, model, force=True, overwrite=True)
    assert names(tmp_path) == ["out"]
    # An input is never replaced, nor is what lies beside it.
    (out / "thesis.docx").write_text("theirs")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"did not write \(thesis\.docx\)"):
            embed_file(counts, out, model, force=True, overwrite=overwrite)
        with pytest.raises(ValueError, match="would replace the input"):
            embed_file(counts, counts.parent, model, overwrite=overwrite)


def test_an_array_shares_only_where_it_is_asked_to(counts, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_summarise", summarise)
    model = mt.load_model("demo", device="cpu")
    array(monkeypatch, 3, range(10))
    assert embed_file(counts, tmp_path / "alone", model).n_obs == 90
    found = []
    for task in (4, 0, 2):
        array(monkeypatch, task, [0, 2, 4], step=2)
        found.append(embed_file(counts, tmp_path / "shared", model, chunk_size=30, share_array=True))
    assert [one is None for one in found] == [True, True, False]
    assert names(tmp_path) == ["alone", "shared"]


@pytest.mark.filterwarnings("ignore::UserWarning:anndata", "ignore:.*zarr")
def test_another_input_under_the_same_name(tmp_path, monkeypatch):
    """Parts made from a store that was replaced meanwhile are not joined with those of the new one."""
    monkeypatch.setattr(pipeline, "_summarise", summarise)
    model, nuclei = mt.load_model("demo", device="cpu"), mt.datasets.load("heart_nuclei")[:, ::8]
    path, out = tmp_path / "cells.zarr", tmp_path / "out"
    old, new = nuclei[:40].copy(), nuclei[:40].copy()
    new.X = nuclei[40:80].X.copy()
    old.write_zarr(path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert embed_file(path, out, model, chunk_size=20) is None
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "_summarise", summarise)
    shutil.rmtree(path)
    new.write_zarr(path)
    with pytest.raises(ValueError, match=r"parts of a job with other settings \(input\)"):
        embed_file(path, out, model, chunk_size=20)
    found = embed_file(path, out, model, chunk_size=20, overwrite=True)
    mt.pp.rank_value_encode(new, model)
    mt.tl.embed(new, model)
    np.testing.assert_allclose(found.obsm["X_maxtoki"], new.obsm["X_maxtoki"], atol=1e-4)


@pytest.mark.slow
def test_launched_on_two_processes(counts, tmp_path):
    """`accelerate launch` on two processes gives the cells of one, in the file's order."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "29517"]
    result = subprocess.run(
        [*launch, "-m", "maxtoki_toolkit.cli", "embed", str(counts), "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = anndata.read_h5ad(tmp_path / "out" / "embedded.h5ad")
    assert found.obs_names.equals(anndata.read_h5ad(counts).obs_names)
    expected = anndata.read_h5ad(counts)
    model = mt.load_model("demo", device="cpu")
    mt.pp.rank_value_encode(expected, model)
    mt.tl.embed(expected, model)
    np.testing.assert_allclose(found.obsm["X_maxtoki"], expected.obsm["X_maxtoki"], atol=1e-4)
    assert not (tmp_path / "out.shards").exists()
    assert json.loads(json.dumps(found.uns["embed"]["params"]["layer"])) == -1
