"""Jobs in shards: every one made once, by whichever process, and put together by one."""

import json
import subprocess
import sys

import anndata
import numpy as np
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit import _shards, pipeline
from maxtoki_toolkit._shards import count_shards, open_shards, process_index, shard_path, take_shards
from maxtoki_toolkit.pipeline import embed_file

VARIABLES = ("WORLD_SIZE", "RANK", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN")

pytestmark = pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_processes_are_counted(monkeypatch):
    assert process_index() == (0, 1)
    for name, value in {"ID": 7, "COUNT": 4, "MIN": 5}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert process_index() == (2, 4)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert process_index() == (3, 8)


def test_shards_are_shared_out_and_gone_on_with(tmp_path, monkeypatch):
    folder, made = tmp_path / "job", []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        with open_shards(folder, 5, {"a": (1, 2)}) as todo:
            made.append(todo)
            for number in todo:
                shard_path(folder, number).write_text("")
        with take_shards(folder, 5) as paths:
            assert (paths is None) == (rank == 1)
            if paths:
                assert [path.stem for path in paths] == [f"{i:06d}" for i in range(5)]
                assert all(path.exists() for path in paths)
    assert made == [[1, 3], [0, 2, 4]]
    assert not list(tmp_path.iterdir())


def test_what_is_done_stays_done(tmp_path):
    folder = tmp_path / "job"

    def interrupted():
        with open_shards(folder, 3, {"a": 1}) as todo:
            shard_path(folder, todo[0]).write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ValueError, match=r"other settings \(a\)"), open_shards(folder, 3, {"a": 2}):
        pass
    assert count_shards(folder) == (1, 3)
    with open_shards(folder, 3, {"a": 1}) as todo:
        assert todo == [1, 2]
        for number in todo:
            shard_path(folder, number).write_text("")
    # Putting them together fails, or is killed: nothing is lost.
    with pytest.raises(RuntimeError), take_shards(folder, 3):
        raise RuntimeError
    folder.rename(_shards._taken(folder))
    with open_shards(folder, 3, {"a": 1}) as todo:
        assert todo == []
    with take_shards(folder, 3) as paths:
        assert len(paths) == 3


def test_nothing_is_left_of_a_job_that_did_nothing(tmp_path):
    with pytest.raises(ValueError, match="no counts"), open_shards(tmp_path / "job", 3, {}):
        raise ValueError("no counts")
    assert not list(tmp_path.iterdir())
    assert count_shards(tmp_path / "job") == (0, 0)


def summarise(cells, output, *_, **__):
    """In the place of clusters and figures."""
    output.mkdir()
    cells.write_h5ad(output / "embedded.h5ad")
    return cells


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "cells.h5ad"
    mt.datasets.load("heart_nuclei")[:90].copy().write_h5ad(path)
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
    expected = mt.datasets.load("heart_nuclei")[:90].copy()
    model = mt.load_model("demo", device="cpu")
    mt.pp.rank_value_encode(expected, model)
    mt.tl.embed(expected, model)
    np.testing.assert_allclose(found.obsm["X_maxtoki"], expected.obsm["X_maxtoki"], atol=1e-4)
    assert not (tmp_path / "out.shards").exists()
    assert json.loads(json.dumps(found.uns["embed"]["params"]["layer"])) == -1
