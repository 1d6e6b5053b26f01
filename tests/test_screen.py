"""The screen of a file of settings: tables, figures, and refusals of what is not known."""

import inspect
import re
import textwrap
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import maxtoki_toolkit as mt
from maxtoki_toolkit import cli
from maxtoki_toolkit import screen as module
from maxtoki_toolkit._shards import job_digest, open_shards, parts_folder, shard_path
from maxtoki_toolkit.cli import app
from maxtoki_toolkit.screen import read_settings, run_screen


@pytest.fixture
def settings(tmp_path):
    """Settings of a small screen, and how to write them."""
    mt.datasets.aging_atlas(120, 10, n_genes=500).write_h5ad(tmp_path / "cells.h5ad")
    prompts = {
        "time_key": "age_months",
        "groupby": "cell_type",
        "donor_key": "donor_id",
        "n_prompts": 4,
        "context_size": 1,
    }
    perturb = {"genes": ["FOXO3", "KLF2", "CD74"], "mode": "overexpress"}
    return {
        "cells": str(tmp_path / "cells.h5ad"),
        "output": str(tmp_path / "out"),
        "model": "demo",
        "prompts": prompts,
        "perturb": perturb,
        "stats": {"min_donors": 2},
    }


def write(settings, tmp_path):
    path = tmp_path / "screen.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.filterwarnings("ignore:No gene could be compared", "ignore:The time of the demo model")
def test_screen(settings, tmp_path):
    path = write(settings, tmp_path)
    result = CliRunner().invoke(app, ["screen", "-c", str(path)])
    assert result.exit_code == 0, result.output
    assert "3 genes read" in result.output
    out = tmp_path / "out"
    assert {"effects.csv.gz", "stats.csv", "controls.csv", "ranked.png", "ranked.pdf"} <= {
        p.name for p in out.iterdir()
    }
    effects = pd.read_csv(out / "effects.csv.gz")
    assert len(effects) == 12
    assert set(effects["effect_unit"]) == {"months"}
    for name in ("stats", "controls"):
        assert set(pd.read_csv(out / f"{name}.csv")["effect_unit"]) == {"years"}
    # Called again, it reads what is there.
    before = (out / "effects.csv.gz").stat().st_mtime_ns
    assert CliRunner().invoke(app, ["screen", "-c", str(path)]).exit_code == 0
    assert (out / "effects.csv.gz").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "x"}, "unknown settings: cell"),
        ({"perturb": {"genes": "all", "modes": "delete"}}, "perturb has unknown settings: modes"),
        ({"perturb": {}}, "lacks perturb: genes"),
        ({"perturb": {"genes": "all", "readout": "embedding"}}, "has no meaning"),
        ({"stats": ["n_null"]}, "stats in"),
        ({"model": None}, "model must be a text, got None"),
        ({"layer": 1}, "layer must be a text or null, got 1"),
        ({"stats": {"n_null": "many"}}, "stats: n_null must be a whole number, got 'many'"),
        ({"stats": {"n_null": True}}, "n_null must be a whole number, got True"),
        ({"stats": {"housekeeping": "GAPDH"}}, "housekeeping must be a list, got 'GAPDH'"),
        ({"perturb": {"genes": 1}}, "genes must be a text or a list or `name: value`, got 1"),
        ({"perturb": {"genes": "all", "k": 0.5}}, "k must be"),
    ],
)
def test_refusals(settings, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_settings(write(settings | change, tmp_path))


def test_types_that_are_allowed(settings, tmp_path):
    """Numbers where a list may be, whole numbers where others may be, null."""
    settings["prompts"] |= {"balance": 1, "groupby": [], "context_size": [1, 2], "forward": True}
    settings["perturb"] = {"genes": {"both": ["FOXO3", "KLF2"]}, "mode": "shift", "k": -5, "donor_key": None}
    assert read_settings(write(settings, tmp_path)) == settings


def test_the_model_is_asked_for(settings, tmp_path):
    del settings["model"]
    with pytest.raises(ValueError, match=r"screen\.yaml lacks model\."):
        read_settings(write(settings, tmp_path))


def test_the_example_of_the_docs_and_of_the_help(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "how_to.md").read_text()
    (example,) = (part for part in re.findall(r"```yaml\n(.+?)```", page, re.DOTALL) if "perturb:" in part)
    (tmp_path / "screen.yaml").write_text(example)
    settings = read_settings(tmp_path / "screen.yaml")
    assert set(settings["prompts"]) == {"time_key", "groupby", "donor_key", "n_prompts"}
    assert textwrap.indent(example.strip(), "    ") in textwrap.indent(inspect.getdoc(cli.screen), "    ")


@pytest.fixture
def loaded(monkeypatch):
    """A screen that ends where the model has been loaded and the cells are read: `RuntimeError`."""

    def map_genes(adata, model):
        raise RuntimeError(f"{model}: {adata.n_obs} cells")

    monkeypatch.setattr(module, "load_model", lambda source, **_: source)
    monkeypatch.setattr(module.pp, "map_genes", map_genes)


@pytest.mark.parametrize("name", ["demo", "demo-cells"])
def test_the_time_of_the_demo_model_is_no_time_of_cells(settings, tmp_path, loaded, name):
    path = write(settings | {"model": name}, tmp_path)
    with pytest.warns(UserWarning, match="that of a simulation"), pytest.raises(RuntimeError, match=name):
        run_screen(path)
    # Not where no time is read.
    del settings["prompts"]
    single = settings | {"perturb": {"genes": "all", "readout": "embedding"}, "model": name}
    with pytest.raises(RuntimeError, match=name):
        run_screen(write(single, tmp_path))


def test_a_model_of_ones_own_gives_no_warning(settings, tmp_path, loaded):
    with pytest.raises(RuntimeError, match="runs/clock/model: 120 cells"):
        run_screen(write(settings | {"model": "runs/clock/model"}, tmp_path))


@pytest.mark.filterwarnings("ignore:.*zarr", "ignore::UserWarning:anndata")
def test_cells_in_zarr(settings, tmp_path, loaded):
    ad.read_h5ad(settings["cells"]).write_zarr(tmp_path / "cells.zarr")
    change = {"model": "own", "cells": str(tmp_path / "cells.zarr")}
    with pytest.raises(RuntimeError, match="own: 120 cells"):
        run_screen(write(settings | change, tmp_path))


def test_what_is_no_screen_stays(settings, tmp_path, loaded):
    path, theirs = write(settings | {"model": "own"}, tmp_path), tmp_path / "out" / "stats.csv"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"holds stats\.csv, which maxtoki screen did not write"):
            run_screen(path, overwrite=overwrite)
    assert theirs.read_text() == "theirs"
    inside = settings | {"model": "own", "cells": str(tmp_path / "out" / "effects.csv.gz" / "cells.h5ad")}
    Path(inside["cells"]).parent.mkdir()
    Path(settings["cells"]).rename(inside["cells"])
    with pytest.raises(ValueError, match="would replace the input"):
        run_screen(write(inside, tmp_path))


def test_files_that_are_not_there_or_not_what_they_should_be(settings, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Did not find nothere\.h5ad\."):
        run_screen(write(settings | {"cells": "nothere.h5ad"}, tmp_path))
    with pytest.raises(FileNotFoundError, match=r"Did not find none\.yaml\."):
        read_settings("none.yaml")
    path = tmp_path / "screen.yaml"
    path.write_text("cells: x\n  output: y\n")
    with pytest.raises(ValueError, match=r"screen\.yaml is not valid YAML: mapping .* \(line 2, column 9\)"):
        read_settings(path)
    path.write_text("cells: \x00")
    with pytest.raises(ValueError, match="is not valid YAML: unacceptable character"):
        read_settings(path)
    path.write_text("cells")
    with pytest.raises(ValueError, match="must hold settings as `name: value`"):
        read_settings(path)


def test_a_screen_that_is_stopped_says_what_is_kept(settings, tmp_path, monkeypatch):
    path, effects = write(settings, tmp_path), tmp_path / "out" / "effects.csv.gz"

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_screen", stopped)

    def message():
        result = CliRunner().invoke(app, ["screen", "-c", str(path)])
        assert result.exit_code == 130
        return result.stderr

    assert message() == "maxtoki: stopped before the first part was done.\n"
    folder = parts_folder(effects)
    with open_shards(folder, 3, {}) as todo:
        assert message() == "maxtoki: stopped before the first part was done.\n"
        shard_path(folder, todo[0], job_digest(3, {})).write_text("")
    kept = f"1 of 3 parts are kept in {folder}"
    assert message() == f"maxtoki: stopped; {kept}. The same command goes on.\n"
    (folder / "manifest.json").unlink()
    effects.write_text("")
    assert message() == f"maxtoki: stopped; {effects} is complete. The same command goes on.\n"
