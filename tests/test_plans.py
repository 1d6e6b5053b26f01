"""Plans against what is really computed: operations that torch counts, tokens that the engine reads, the time of a run."""

import sys
import time

import numpy as np
import pytest
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import maxtoki_toolkit as mt
from maxtoki_toolkit.cli import app
from maxtoki_toolkit.models import engine
from maxtoki_toolkit.models.costs import Shape, Work, flops, generation, plan, reading
from maxtoki_toolkit.models.generation import generate_cells
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.pipeline import plan_embedding
from maxtoki_toolkit.screen import run_screen
from maxtoki_toolkit.tl.perturb import set_up

PROMPTS = {"time_key": "age_months", "groupby": "cell_type", "donor_key": "donor_id", "n_prompts": 2}


@pytest.fixture(scope="module")
def atlas():
    return mt.datasets.aging_atlas(200, 10, n_genes=500)


@pytest.fixture
def cells(atlas, tiny_clock):
    adata = atlas.copy()
    mt.pp.map_genes(adata, tiny_clock)
    mt.pp.rank_value_encode(adata, tiny_clock)
    mt.pp.sample_prompts(adata, **PROMPTS)
    return adata


@pytest.fixture
def read(monkeypatch):
    """Tokens of every sequence that the engine reads from now on, one a batch: nothing is padded."""
    found, pad = [], engine.pad

    def record(*args, **kwargs):
        tokens = pad(*args, **kwargs)
        found.append(tokens.shape[1])
        return tokens

    monkeypatch.setattr(engine, "pad", record)
    monkeypatch.setattr(mt.settings, "max_tokens", 1)
    return found


def counted(compute, shape, lengths):
    """Operations that torch counts, less those of attention to later tokens, which plans leave out."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    later = sum(n * (n - 1) / 2 for n in lengths)
    return counter.get_total_flops() - 4 * shape.layers * shape.heads * shape.head_dim * later


def test_embedding(cells, tiny_clock, read):
    shape = Shape.of(tiny_clock.hf.config)
    found = counted(lambda: mt.tl.embed(cells, tiny_clock), shape, read)
    lengths = np.minimum(cells.obs["n_genes_ranked"] + 2, tiny_clock.cell_length)
    assert sum(read) == reading(lengths).tokens
    assert found == pytest.approx(flops(shape, reading(lengths)), rel=0.03)


SOME = ["FOXO3", "KLF2", "LTB", "CCL5", "NKG7", "CD14"]
SCREENS = {
    "all genes": {"genes": "all"},
    "controls": {"genes": ["FOXO3", ("KLF2", "LTB")], "mode": "overexpress", "n_controls": 2},
    "contexts": {"genes": SOME, "mode": "delete", "on": "context"},
    "doses": {"genes": SOME, "mode": "shift", "k": [-10, 10]},
    "likelihood": {"genes": SOME, "readout": "likelihood"},
    "likelihood of targets": {"genes": SOME, "readout": "likelihood", "target": True},
    "embedding": {"genes": SOME, "readout": "embedding"},
    "embedding of targets": {"genes": SOME, "readout": "embedding", "target": True},
}


@pytest.mark.parametrize("name", SCREENS)
def test_screen(cells, tiny_clock, read, name):
    """With what prompts and edits share read once; of genes that a cell has not, nothing."""
    settings = dict(SCREENS[name])
    if "readout" in settings:
        chosen = {"use": np.arange(cells.n_obs) < 4, "donor_key": "donor_id"}
        if settings.pop("target", False):
            chosen["target"] = cells.obs["age_months"].to_numpy() > 600
        settings["on"] = mt.tl.Cells(**chosen)
    work = set_up(cells, tiny_clock, **settings).work()
    assert not read
    shape = Shape.of(tiny_clock.hf.config)
    found = counted(lambda: mt.tl.perturb(cells, tiny_clock, **settings), shape, read)
    assert sum(read) == work.tokens
    assert found == pytest.approx(flops(shape, work), rel=0.03)
    if name == "all genes":
        whole = set_up(cells, tiny_clock, **settings)._make(0).sequences.lengths.sum()
        assert work.tokens < 0.5 * whole


def test_large_screens_are_counted_by_some_of_their_parts(cells, tiny_clock, monkeypatch):
    monkeypatch.setattr(sys.modules["maxtoki_toolkit.tl._screen"], "_TOKENS", 4000)
    screen = set_up(cells, tiny_clock, genes="all")
    assert screen.n_parts > 12
    whole = sum((screen._work(screen._make(number)) for number in range(screen.n_parts)), Work(0, 0))
    assert screen.work().tokens == pytest.approx(whole.tokens, rel=0.15)


def test_generation(tiny_model):
    """Prompts at once, then a token after the other with all before it kept."""
    rng, n, length, n_genes = np.random.default_rng(0), 4, 30, 20
    tokens = np.stack([rng.permutation(tiny_model.vocab.gene_ids)[:length] for _ in range(n)])
    tokens[:, 0] = tiny_model.vocab["<bos>"]
    prompts = Sequences.of(list(tokens))
    made = []
    shape = Shape.of(tiny_model.hf.config)
    settings = {"n_samples": 2, "max_genes": length - 1 + n_genes}
    found = counted(
        lambda: made.append(generate_cells(tiny_model, prompts, **settings)), shape, prompts.lengths
    )
    assert not made[0].finished.any()
    work = generation(prompts.lengths, n_genes, n_samples=2)
    assert found == pytest.approx(flops(shape, work), rel=0.05)
    assert work.tokens == n * (length + 2 * (n_genes - 1))


def test_work_adds_up():
    one, two = reading([10, 20], [0, 5], scored=[1, 1]), generation([8], 4)
    assert one == Work(25, 10 * 11 / 2 + 20 * 21 / 2 - 5 * 6 / 2, 2)
    assert two == Work(8 + 3, 36 + 9 + 10 + 11, 4, 3, 30, 3)
    assert (one + two).tokens == 36
    assert (one * 2).pairs == 2 * one.pairs
    assert two.at_once == reading([8])
    assert generation([8], 1) == reading([8], scored=1)


def test_memory_holds_up_what_is_written():
    """A GPU that writes one token at a time waits for its memory, the less the more cells it writes side by side."""
    shape = Shape(11, 1232, 2464, 8, 8, 154, 20275, False)
    from maxtoki_toolkit.models.costs import UTILISATION, cost, n_weights

    few, many = (
        cost(shape, generation([100] * n, 1000), batch=1 << 17, gpu="H100", half=True) for n in (1, 100)
    )
    assert "3.35 TB/s of H100 in bfloat16" in few.rests_on
    assert few.hours * 3600 > 999 * 2 * n_weights(shape) / 3.35e12 / UTILISATION
    assert many.hours < 20 * few.hours
    assert "TB/s" not in cost(shape, reading([1000]), batch=1 << 17, gpu="H100").rests_on


@pytest.fixture
def folder(atlas, tiny_clock, tmp_path):
    mt.models.save_model(tiny_clock, tmp_path / "model")
    atlas.write_h5ad(tmp_path / "cells.h5ad")
    mt.pp.encode_file(tmp_path / "cells.h5ad", tmp_path / "encoded.h5ad", tiny_clock)
    screen = {"cells": "cells.h5ad", "model": "model", "output": "out", "prompts": PROMPTS}
    screen |= {"perturb": {"genes": "all"}, "stats": {"min_donors": 2}}
    (tmp_path / "screen.yaml").write_text(yaml.safe_dump(screen))
    return tmp_path


def planned(*arguments):
    """Rows of the table, by their names."""
    result = CliRunner().invoke(app, [*arguments, "--plan", "--gpu", "L4", "--hourly-price", "3600"])
    assert result.exit_code == 0, result.output
    return {line[:20].strip(): line[20:].strip() for line in result.stdout.splitlines()}


@pytest.mark.parametrize("name", ["cells.h5ad", "encoded.h5ad"])
def test_plan_of_embedding(folder, cells, tiny_clock, monkeypatch, name):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    found = planned("embed", name, "--model", "model", "--device", "cpu")
    lengths = np.minimum(cells.obs["n_genes_ranked"] + 2, tiny_clock.cell_length)
    assert found["tokens"] == f"{lengths.sum():,}"
    assert "30% of the 30.3 TFLOP/s of L4 in float32: assumed" in found["rests on"]
    assert sorted(folder.rglob("*")) == before
    # Of a large file, some blocks stand for all.
    some = plan_embedding(name, tiny_clock, chunk_size=7, gpu="L4")
    assert some.tokens == pytest.approx(lengths.sum(), rel=0.05)
    assert some.hours == pytest.approx(some.petaflop * 1e15 / (0.3 * 30.3e12) / 3600)


@pytest.mark.filterwarnings("ignore:No gene could be compared", "ignore:.*donors")
def test_plan_of_a_screen(folder, monkeypatch, read):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    found = planned("screen", "-c", "screen.yaml")
    assert sorted(folder.rglob("*")) == before
    assert not read
    run_screen("screen.yaml")
    assert found["tokens"] == f"{sum(read):,}"


def test_an_unknown_gpu_is_refused_at_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for arguments in (["embed", "cells.h5ad", "--model", "model"], ["screen", "-c", "screen.yaml"]):
        result = CliRunner().invoke(app, [*arguments, "--plan", "--gpu", "H300"])
        assert "no numbers for 'H300'" in str(result.exception)


@pytest.mark.slow
def test_time_is_that_of_a_run(tmp_path):
    """From what was measured, within a factor of two."""
    adata, model = mt.datasets.aging_atlas(1500, 10, n_genes=1500), mt.load_model("demo", device="cpu")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    before = plan_embedding(tmp_path / "cells.h5ad", model).hours
    start = time.perf_counter()
    mt.tl.embed(adata, model)
    took = time.perf_counter() - start
    # Other work on the machine slows either of them.
    hours = (before + plan_embedding(tmp_path / "cells.h5ad", model).hours) / 2
    assert 0.5 < hours * 3600 / took < 2
    writes = plan(model, generation([300] * 20, 100))
    assert "measured here" in writes.rests_on
    assert 0 < writes.hours < 1
