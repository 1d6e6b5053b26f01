"""Tutorials and notebooks: in step with their sources, run, tidy; and run by papermill on other data."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("tutorials/*.py"), *ROOT.glob("notebooks/*.py")])
NOTEBOOKS = [source for source in SOURCES if source.parent.name == "notebooks"]
PRESETS = sorted(ROOT.glob("notebooks/presets/*.yaml"))
# `.ci/notebooks.py` runs all of them with these.
QUICK = yaml.safe_load((ROOT / ".ci" / "quick.yaml").read_text())
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|var|opt|mnt|usr)/|[A-Z]:\\\\")


def name_of(path):
    return path.stem


def parameters(source):
    """Names and defaults of the cell tagged `parameters`."""
    import jupytext

    cells = [cell for cell in jupytext.read(source).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, "one cell tagged parameters"
    return cells[0].source


def execute(name, folder, **values):
    import papermill

    path = ROOT / "notebooks" / f"{name}.ipynb"
    # papermill only warns of parameters that a notebook does not have.
    assert set(values) <= set(papermill.inspect_notebook(path))
    papermill.execute_notebook(
        path,
        folder / "out.ipynb",
        parameters=values,
        kernel_name="python3",
        progress_bar=False,
        cwd=folder,
    )


def test_all_are_listed():
    listed = (ROOT / "notebooks" / "README.md").read_text()
    assert {source.stem for source in SOURCES} == set(QUICK)
    for path in [*NOTEBOOKS, *PRESETS]:
        assert path.name.replace(".py", ".ipynb") in listed


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
class TestNotebook:
    def test_is_its_source_and_was_run(self, source):
        """Code and text of the .ipynb are those of the .py beside it; no cell failed or was left out."""
        import jupytext
        import nbformat

        cells = jupytext.read(source).cells
        notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
        assert [cell.source for cell in notebook.cells] == [cell.source for cell in cells]
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        assert not [output for output in outputs if output.get("name") == "stderr"]
        assert any("image/png" in output.get("data", {}) for output in outputs)

    def test_parameters_are_explained(self, source):
        """Each has a type and a comment, which `maxtoki report NAME --help-notebook` shows."""
        text = parameters(source)
        lines = text.splitlines()
        for statement in ast.parse(text).body:
            assert isinstance(statement, ast.AnnAssign), "a parameter without a type"
            value = lines[statement.lineno - 1 : statement.end_lineno]
            assert any("# " in line for line in value), f"{statement.target.id} has no comment"

    def test_is_tidy(self, source):
        """Nothing of the machine that ran it, and no more than a reader wants to load."""
        path = source.with_suffix(".ipynb")
        text = path.read_text()
        assert path.stat().st_size < 1_000_000
        assert "application/vnd.jupyter.widget-view+json" not in text
        for content in (source.read_text(), text):
            assert not (found := ABSOLUTE.findall(content)), found


@pytest.mark.parametrize("path", PRESETS, ids=name_of)
def test_presets_name_parameters(path):
    """Each preset sets parameters of the notebook of its name, and says what the paper leaves open."""
    notebook = path.name.split(".")[0]
    known = {s.target.id for s in ast.parse(parameters(ROOT / "notebooks" / f"{notebook}.py")).body}
    preset = yaml.safe_load(path.read_text())
    assert set(preset) <= known
    assert "unknown" in preset.values()
    named = re.findall(r"data_manifests/([\w-]+\.yaml)", path.read_text())
    assert named, "which data are these of?"
    assert all((ROOT / "data_manifests" / name).is_file() for name in named)


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_quick_names_parameters(source):
    known = {statement.target.id for statement in ast.parse(parameters(source)).body}
    assert set(QUICK[source.stem]) <= known


def test_presets_pass_on_what_the_training_knows():
    import maxtoki_toolkit as mt

    preset = yaml.safe_load((ROOT / "notebooks" / "presets" / "train_stage2_temporal.yaml").read_text())
    assert set(preset["more"]) <= set(mt.train.TemporalRecipe.names())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_fig1_on_ones_own_cells(tmp_path):
    """Counts and ages in years, and none of the columns of the atlas."""
    import numpy as np

    import maxtoki_toolkit as mt

    cells = mt.datasets.aging_atlas(900, 40, seed=5)
    cells.obs = cells.obs.rename(columns={"donor_id": "person", "cell_type": "type"})
    cells.obs["years"] = (cells.obs["age_months"] // 12).astype(np.int64)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    own = {"path": str(tmp_path / "cells.h5ad"), "time_key": "years", "time_unit": "years"}
    own |= {"donor_key": "person", "groupby": ["type"], "batch_key": "", "held_out_ages": [[40, 49]]}
    own |= {"held_out_groups": {"type": ["fibroblast"]}, "no_ageing": {}}
    execute("fig1_timelapse", tmp_path, output="out", **own, n_prompts=40, n_train_prompts=100)
    assert (tmp_path / "out" / "scores.csv").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_corpus_whose_ages_are_years(tmp_path):
    """Donors are drawn at the ages that they have, in the unit of the model inside."""
    import pandas as pd

    import maxtoki_toolkit as mt

    cells = mt.datasets.aging_atlas(300, 20, n_genes=800, seed=5)
    cells.obs["age"] = (cells.obs.pop("age_months") // 12).astype(int)
    cells.obs["sex"] = cells.obs["sex"].astype(str).str.upper().str[0]
    ages = set(cells.obs["age"])
    cells.write_h5ad(tmp_path / "cells.h5ad")
    own = {"path": str(tmp_path / "cells.h5ad"), "time_key": "age", "time_unit": "years", "output": "out"}
    execute("fig1_corpus_and_prompts", tmp_path, **own)
    table = pd.read_csv(tmp_path / "out" / "composition.csv")
    assert set(table["age_years"]) == ages
    assert set(table["sex"]) == {"female", "male"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_fig5_teaches_a_model_first(tmp_path):
    """On half of the controls, which are then left out."""
    import pandas as pd

    import maxtoki_toolkit as mt

    cells = mt.datasets.aging_atlas(1200, 40, seed=5)
    cells = cells[cells.obs["cell_type"].isin(["fibroblast", "monocyte"])].copy()
    cells.obs["years"] = (cells.obs["age_months"] // 12).astype(int)
    controls = cells.obs.loc[cells.obs["condition"] == "control", "donor_id"].nunique()
    del cells.obs["age_months"], cells.obs["batch"], cells.uns["truth"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    own = {"path": str(tmp_path / "cells.h5ad"), "time_key": "years", "time_unit": "years", "tolerance": 8}
    mt.reports.run("fig5_age_acceleration", tmp_path, **own, train_steps=3, n_queries=2, n_contexts=1)
    donors = pd.read_csv(tmp_path / "fig5_age_acceleration_files" / "donors.csv")
    left = donors.loc[~donors["case"], "donor"].nunique()
    assert 0 < left <= controls / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_fig5_on_a_file_of_cellxgene(tmp_path):
    """With the names of CELLxGENE's schema nothing has to be named."""
    import pandas as pd

    import maxtoki_toolkit as mt

    cells = mt.datasets.aging_atlas(1000, 40, seed=5)
    cells = cells[cells.obs["cell_type"].isin(["fibroblast", "monocyte"])].copy()
    years = (cells.obs.pop("age_months") // 12).astype(int).astype(str)
    condition = cells.obs.pop("condition").astype(str)
    cells.obs["development_stage"] = pd.Categorical(years + "-year-old human stage")
    cells.obs["disease"] = pd.Categorical(condition.where(condition != "control", "normal"))
    cells.uns = {}
    cells.write_h5ad(tmp_path / "cells.h5ad")
    own = {"path": str(tmp_path / "cells.h5ad"), "train_steps": 2, "n_queries": 2, "n_contexts": 1}
    mt.reports.run("fig5_age_acceleration", tmp_path, **own, min_donors=2)
    donors = pd.read_csv(tmp_path / "fig5_age_acceleration_files" / "donors.csv")
    assert set(donors["condition"]) <= set(condition) - {"control"}
    assert donors["time"].between(15, 100).all()  # years, which text was read as


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_adapters(tmp_path):
    execute("train_stage2_temporal", tmp_path, lora_rank=4, output="out", **QUICK["train_stage2_temporal"])
    assert (tmp_path / "out" / "model" / "time_head.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_training_from_files(tmp_path):
    """Stage 1 with train and test cells in files of their own, as the preset has them."""
    import maxtoki_toolkit as mt

    for name, seed in {"train": 1, "test": 2}.items():
        mt.datasets.aging_atlas(200, 10, n_genes=500, seed=seed).write_h5ad(tmp_path / f"{name}.h5ad")
    vocab = mt.load_model("demo").vocab
    vocab.save(tmp_path)
    execute(
        "train_stage1_pretraining",
        tmp_path,
        path="train.h5ad",
        held_out_path="test.h5ad",
        tokens="token_dictionary.json",
        medians="gene_median_dictionary.json",
        output="out",
        **QUICK["train_stage1_pretraining"],
    )
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
