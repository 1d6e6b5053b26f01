"""A run that is killed, runs out of disk, fails or diverges: what is left is whole, and the same call goes on."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from transformers import TrainerState
from transformers.trainer import Trainer

import maxtoki_toolkit as mt
from maxtoki_toolkit.train import _checkpoints
from maxtoki_toolkit.train._checkpoints import finish, last_checkpoint, unfinished

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE |= {"max_position_embeddings": 16}
GENES = [f"ENSG{i:011d}" for i in range(100, 124)]
VOCAB = mt.models.Vocabulary(
    {token: i for i, token in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *GENES])},
    dict.fromkeys(GENES, 1.0),
)


def make_cells(seed=0):
    counts = np.random.default_rng(seed).poisson(3, (24, len(GENES))).astype(np.float32)
    adata = AnnData(csr_matrix(counts + 1))
    adata.var_names = GENES
    mt.pp.rank_value_encode(adata, VOCAB)
    return adata


@pytest.fixture(scope="module")
def cells():
    return make_cells()


def run(cells, output, **changes):
    settings = {"shape": SHAPE, "max_steps": 3, "save_every": 1, "batch_size": 4, "learning_rate": 1e-2}
    recipe, more = mt.train.PretrainRecipe.split({"device": "cpu"} | settings | changes)
    return mt.train.pretrain(cells, VOCAB, output, recipe=recipe, **more)


@pytest.fixture(scope="module")
def whole(cells, tmp_path_factory):
    """What a training gives that nothing happens to."""
    return run(cells, tmp_path_factory.mktemp("whole"))


def names(output):
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def stop_at(patch, n, error):
    """Raise while the n-th checkpoint is written: the weights are there, the state of the training is not."""
    original, written = TrainerState.save_to_json, []

    def save(self, path):
        written.append(path)
        if len(written) == n:
            raise error
        original(self, path)

    patch.setattr(TrainerState, "save_to_json", save)


def test_killed_while_a_checkpoint_is_written(cells, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 2, KeyboardInterrupt)
        # A process that is killed tidies nothing up.
        patch.setattr(_checkpoints, "drop_unfinished", lambda folder: None)
        with pytest.raises(KeyboardInterrupt):
            run(cells, tmp_path)
    assert names(tmp_path) == [".unfinished", "checkpoint-1"]
    assert (unfinished(tmp_path / "checkpoints") / "checkpoint-2" / "model.safetensors").is_file()
    assert run(cells, tmp_path).sha256 == whole.sha256
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_disk_full_while_a_checkpoint_is_written(cells, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 2, OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space left on device.*checkpoint-1 is kept: make room"):
            run(cells, tmp_path)
    assert names(tmp_path) == ["checkpoint-1"]
    assert run(cells, tmp_path).sha256 == whole.sha256


def checkpoint(folder, step):
    written = unfinished(folder) / f"checkpoint-{step}"
    written.mkdir(parents=True)
    (written / "weights").write_text("1, 2, 3")
    finish(folder, step)
    return folder / written.name


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_incomplete_checkpoint_is_left_out(tmp_path, damage):
    """As of a folder that was not copied to its end."""
    before, last = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    assert last_checkpoint(tmp_path) == last
    (last / "weights").write_text("1, 2") if damage == "cut" else (last / "weights").unlink()
    with pytest.warns(UserWarning, match="checkpoint-2 is incomplete"):
        assert last_checkpoint(tmp_path) == before
    shutil.rmtree(before)
    with pytest.warns(UserWarning, match="checkpoint-2 is incomplete"):
        assert last_checkpoint(tmp_path) is None


def test_steps_are_numbers(tmp_path):
    """The last two are kept, and the last of them is 12, not 8."""
    for step in (4, 8, 12):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-notes").mkdir()
    assert last_checkpoint(tmp_path).name == "checkpoint-12"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-12",
        "checkpoint-8",
        "checkpoint-notes",
    ]
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_failed_try_does_not_block_the_mended_one(cells, tmp_path, monkeypatch):
    """As long as nothing was trained, settings may change; afterwards they may not."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", lambda self, **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(cells, tmp_path, batch_size=3)
    assert run(cells, tmp_path, max_steps=1).sha256
    assert json.loads((tmp_path / "recipe.json").read_text())["batch_size"] == 4
    with pytest.raises(ValueError, match=r"other settings \(batch_size\)"):
        run(cells, tmp_path, max_steps=1, batch_size=3)


def test_other_cells_in_the_folder_of_a_run(cells, tmp_path):
    """Finished or not, and for as many cells: the model of the old ones does not come back as that of the new."""
    first = run(cells, tmp_path, max_steps=1, seed=np.int64(0))
    assert run(cells.copy(), tmp_path, max_steps=1).sha256 == first.sha256
    # In another order they are the same.
    assert run(cells[::-1].copy(), tmp_path, max_steps=1).sha256 == first.sha256
    for others in (make_cells(1), [cells[:12].copy(), cells[12:].copy()]):
        with pytest.raises(ValueError, match=r"other settings \(cells\)"):
            run(others, tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"other settings \(held_out\)"):
        run(cells, tmp_path, max_steps=1, held_out=cells[:4].copy())
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ValueError, match=r"other settings \(cells\)"):
        run(make_cells(1), tmp_path, max_steps=1)


def test_folder_that_was_never_trained_in(cells, tmp_path):
    """A model that is there for another reason is not given back as if it had been trained."""
    mt.models.save_model(mt.models.build_model(SHAPE, VOCAB), tmp_path / "model")
    with pytest.raises(ValueError, match="holds model, which mt.train did not write"):
        run(cells, tmp_path)
    assert not (tmp_path / "recipe.json").exists()


def test_training_that_diverges_says_so(cells, tmp_path):
    with pytest.raises(
        ValueError, match="training has diverged: the loss is .* at step .*lower learning_rate"
    ):
        run(cells, tmp_path, learning_rate=1e30, warmup=0.0, max_steps=20, save_every=100)
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="The model in training has weights that are NaN or infinite"):
        run(cells, tmp_path, learning_rate=1e30, warmup=0.0)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("learning_rate", "1e-4", "a number"),
        ("learning_rate", float("nan"), "a finite number"),
        ("learning_rate", None, "a number"),
        ("batch_size", 0, "at least 1"),
        ("batch_size", 2.5, "a whole number"),
        ("max_steps", True, "a whole number"),
        ("save_every", 0, "at least 1"),
        ("weight_decay", -1, "at least 0"),
        ("warmup", 1.5, "between 0 and 1"),
        ("seed", -1, "at least 0"),
    ],
)
def test_settings_that_make_no_sense(cells, tmp_path, name, value, what):
    with pytest.raises((ValueError, TypeError), match=f"^{name} must be {what}, got"):
        run(cells, tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


KILLED = """
import os, signal, sys
import maxtoki_toolkit as mt
mt.settings.progress = False
atlas = mt.datasets.aging_atlas(200, 10)
mt.pp.map_genes(atlas)
vocab = mt.models.Vocabulary.from_anndata(atlas)
mt.pp.rank_value_encode(atlas, vocab)
shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64)
def kill(event, arguments):
    if event == "open" and str(arguments[0]).endswith("rng_state.pth") and "-3" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "kill":
    sys.addaudithook(kill)
model = mt.train.temporal(
    atlas, mt.models.build_model(shape, vocab), "run", time_key="age_months", groupby="cell_type",
    recipe=mt.train.TemporalRecipe.of(max_length=512, max_steps=4, save_every=1, batch_size=4, device="cpu"),
)
print(model.is_temporal)
"""


@pytest.mark.slow
def test_killed_by_the_system(tmp_path):
    done = [
        subprocess.run(
            [sys.executable, "-c", KILLED, how], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        for how in ("kill", "go on")
    ]
    assert [run.returncode for run in done] == [-signal.SIGKILL, 0], done[1].stderr
    assert done[1].stdout.split()[-1] == "True"
    assert names(tmp_path / "run") == ["checkpoint-3", "checkpoint-4"]


def test_a_refused_training_leaves_nothing(cells, tmp_path):
    other = mt.models.build_model(SHAPE, VOCAB)
    timed = cells.copy()
    timed.obs["hours"] = np.arange(timed.n_obs) % 3
    with pytest.raises(ValueError, match="no zero_lapse"):
        mt.train.temporal(
            timed,
            other,
            output=tmp_path / "run",
            time_key="hours",
            time_unit="hours",
            groupby=[],
            recipe=mt.train.TemporalRecipe.of(zero_lapse="now"),
        )
    assert not (tmp_path / "run").exists()
