"""Columns are guessed from their names, said in a line, and overruled by naming them."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp import _columns
from maxtoki_toolkit.reports import _allow, _sources
from maxtoki_toolkit.reports._parameters import read_parameters

CELLXGENE = {
    "donor_id": ["a", "b"],
    "development_stage": ["40-year-old human stage", "fifth decade human stage"],
    "disease": ["normal", "pulmonary fibrosis"],
    "cell_type": ["fibroblast", "fibroblast"],
    "sex": ["male", "female"],
    "assay": ["10x 3' v3", "10x 3' v3"],
}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            CELLXGENE,
            {
                "donor_key": "donor_id",
                "time_key": "development_stage",
                "cell_type_key": "cell_type",
                "condition_key": "disease",
                "sex_key": "sex",
            },
        ),
        ({"PatientID": ["a", "b"], "Age": [30, 60]}, {"donor_key": "PatientID", "time_key": "Age"}),
        # What says nothing is passed over: one time, text without ages, dates, one condition.
        ({"age_months": [3, 3], "age": ["67y", "70y"]}, {"time_key": "age"}),
        (
            {"development_stage_ontology_term_id": ["HsapDv:0000139", "HsapDv:0000149"]},
            {"time_key": "development_stage_ontology_term_id"},
        ),
        ({"age": ["8 weeks", "10 weeks"]}, {}),
        ({"age": ["8 weeks", "10 weeks"], "organism": ["Mus musculus"] * 2}, {"time_key": "age"}),
        ({"age": ["old", "young"], "diagnosis": ["x", "x"]}, {}),
        ({"age": pd.to_datetime(["2020-01-01", "2021-01-01"])}, {}),
    ],
)
def test_guesses(columns, expected):
    assert _columns.guess_columns(pd.DataFrame(columns)) == expected


def test_controls_and_units():
    for values, expected in [
        (["normal", "COVID-19"], "normal"),
        (["CTRL", "IPF"], "CTRL"),
        (["a", "b"], None),
    ]:
        assert _columns.guess_control(pd.Series(values)) == expected
    for name, values, expected in [
        ("age_months", [500, 600], "months"),
        ("age", [40, 60], "years"),
        ("age", [400, 600], "months"),
        ("age", [3135, 4145], None),  # bands that lost their dashes
        ("Hours", [0, 24], "hours"),
        ("development_stage", ["40-year-old"], "months"),
        ("course", [0, 1], None),
    ]:
        assert _columns.guess_unit(pd.Series(values, name=name)) == expected


def test_numbers_and_text_are_the_same_label():
    obs = pd.DataFrame({"leiden": pd.Categorical(["0", "1", "2"]), "n": [0.0, 1.0, 2.0]})
    for column in obs:
        assert _columns.has_values(obs, {column: [0, "1"]}).tolist() == [True, True, False]
    assert _columns.has_values(obs, {}).all()
    adata = mt.datasets.aging_atlas(120, 10, n_genes=500)
    adata.obs["cluster"] = adata.obs["cell_type"].astype("category").cat.codes.astype(str)
    assert mt.reports.cells_with(adata, {"cluster": [0]}).sum() == (adata.obs["cluster"] == "0").sum()
    mt.pp.hold_out(adata, donor_key="donor_id", groups={"cluster": [0]})
    assert adata.obs["held_out_groups"].equals(adata.obs["cluster"] == "0")
    with pytest.raises(ValueError, match="No cell has cluster="):
        mt.reports.cells_with(adata, {"cluster": ["none"]})


@cache
def known(name):
    return read_parameters(_sources.read_source(name).notebook)


def test_parameters_of_a_cellxgene_file():
    """Names of the file for all that a notebook asks for, but not for what was named; nothing of the atlas is left."""
    obs = pd.DataFrame(CELLXGENE)
    found = _allow.guess_parameters(known("fig5_age_acceleration"), {"donor_key": "mine"}, obs)
    assert found == {
        "condition_key": "disease",
        "control": "normal",
        "time_key": "development_stage",
        "time_unit": "months",
        "groupby": ["cell_type"],
        "match_by": ["sex"],
        "batch_key": "",
    }
    years = obs.assign(age=[40, 60]).drop(columns="development_stage")
    found = _allow.guess_parameters(known("fig5_age_acceleration"), {}, years)
    assert (found["time_key"], found["time_unit"], found["tolerance"]) == ("age", "years", 5)


@pytest.mark.parametrize("name", sorted(_sources.notebook_paths()))
def test_refusals_name_columns_of_the_file(name):
    """Without ages, what cannot be made says which column is missing and which there are, and asks for nobody else's cell types."""
    obs = pd.DataFrame(CELLXGENE).drop(columns="development_stage")
    parameters = known(name)
    values = {key: value for key, value in _allow._OWN.items() if key in parameters}
    why = _allow._why_not(name, parameters, values | _allow.guess_parameters(parameters, {}, obs), obs, [])
    if "time_key" in parameters:
        assert "no column of .obs was found to hold ages or times (time_key); .obs has 'donor_id'" in why
        assert "demo models" not in why
    foreign = (
        "CD8 T cell",
        "CD4 T cell",
        "cardiomyocyte",
        "monocyte",
        "macrophage",
        "natural killer cell",
        "mural cell",
    )
    assert not [kind for kind in foreign if kind in why]


def test_one_name_for_a_column_in_all_notebooks():
    names = {key for name in _sources.notebook_paths() for key in known(name) if key.endswith("_key")}
    assert names == {
        "batch_key",
        "cell_type_key",
        "condition_key",
        "donor_key",
        "library_key",
        "perturbation_key",
        "plate_key",
        "sex_key",
        "time_key",
        "tissue_key",
        "truth_key",
        "well_key",
    }
    types = {
        (key, known(name)[key].type)
        for name in _sources.notebook_paths()
        for key in ("groupby", "cells", "time_key", "covariates")
        if key in known(name)
    }
    assert types == {("groupby", "list"), ("cells", "dict"), ("time_key", "str"), ("covariates", "list")}


def test_times_are_read_from_text(tmp_path):
    """Whole months, or the unit of the model; cells without a time are left out and counted."""
    adata = mt.datasets.aging_atlas(40, 10, n_genes=500)
    adata.uns = {}
    stage = np.array(["40-year-old human stage"] * adata.n_obs, dtype=object)
    stage[:2], stage[2] = "adult", "third decade human stage"
    adata.obs["stage"] = stage
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.warns(UserWarning, match=r"2 of \d+ cells have no time in .obs\['stage'\]"):
        found = mt.reports.read_cells(tmp_path / "cells.h5ad", time_key="stage", time_unit="months")
    assert found.n_obs == adata.n_obs - 2
    assert found.obs["stage"].dtype == np.int64
    assert found.obs["stage"].tolist()[:2] == [294, 480]
    with pytest.raises(ValueError, match="ages, and those are not told in hours"):
        mt.reports.read_cells(tmp_path / "cells.h5ad", time_key="stage", time_unit="hours")
    with pytest.raises(ValueError, match=r"no column 'age' \(time_key\)"):
        mt.reports.read_cells(tmp_path / "cells.h5ad", time_key="age")


def test_functions_guess_too():
    adata = mt.datasets.aging_atlas(200, 30, n_genes=500)
    with pytest.warns(
        UserWarning,
        match="condition_key='condition', time_key='age_months', donor_key='donor_id', control='control'",
    ):
        mt.pp.match_ages(adata)
    params = adata.uns["matched_ages"]["params"]
    assert (params["condition_key"], params["control"]) == ("condition", "control")
    adata.obs = adata.obs.rename(columns={"condition": "arm"})
    with pytest.raises(ValueError, match="Give condition_key=: no column was found for it; .obs has .*'arm'"):
        mt.pp.match_ages(adata)
    adata.obs["arm"] = adata.obs["arm"].astype(str).replace("control", "reference")
    with pytest.raises(ValueError, match=r"Give control=: .obs\['arm'\] has .*'reference'"):
        mt.pp.match_ages(adata, condition_key="arm", time_key="age_months", donor_key="donor_id")


# What a function is told where it guesses.
GUESSED = {
    "pp.hold_out": {"donor_key": "donor_id"},
    "pp.holdout_intervals": {"time_key": "age_months", "donor_key": "donor_id", "intervals": 0, "n_permutations": 1},
    "pp.sample_prompts": {"time_key": "age_months", "groupby": "cell_type", "donor_key": "donor_id", "n_prompts": 20},
    "tl.expression_age_slope": {"time_key": "age_months", "donor_key": "donor_id"},
    "tl.perturbation_metrics": {
        "predicted": "same", "perturbation_key": "condition", "control": "control", "donor_key": "donor_id", "n_bootstrap": 2,
    },
}  # fmt: skip
_COLUMNS = ("time_key", "donor_key", "groupby", "perturbation_key", "control")


@pytest.mark.filterwarnings("ignore:.X holds counts")
@pytest.mark.parametrize("name", GUESSED)
def test_what_is_guessed_is_what_would_be_named(name, encoded):
    space, function = name.split(".")
    run, found = getattr(getattr(mt, space), function), []
    for given in (GUESSED[name], {key: v for key, v in GUESSED[name].items() if key not in _COLUMNS}):
        adata = encoded.copy()
        run(adata, **given)
        found.append((adata.obs, adata.uns.get(function, adata.uns.get("prompts"))))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    assert found[0][1]["params"] == found[1][1]["params"]
    for key, table in found[0][1].items():
        if isinstance(table, pd.DataFrame):
            pd.testing.assert_frame_equal(table, found[1][1][key])


@pytest.fixture(scope="module")
def encoded():
    adata = mt.datasets.aging_atlas(300, 20, n_genes=500)
    adata.layers["same"] = adata.X
    mt.pp.map_genes(adata)
    mt.pp.rank_value_encode(adata, mt.models.Vocabulary.from_anndata(adata))
    return adata


def test_prompts_of_a_cellxgene_file_need_no_names(encoded):
    adata = encoded.copy()
    adata.obs["development_stage"] = [f"{age // 12}-year-old stage" for age in adata.obs["age_months"]]
    del adata.obs["age_months"]
    guess = "time_key='development_stage', groupby='cell_type', donor_key='donor_id'"
    with pytest.warns(UserWarning, match=guess), pytest.warns(UserWarning, match="Read .* as ages in months"):
        mt.pp.sample_prompts(adata, n_prompts=10)
    stored = adata.uns["prompts"]
    assert stored["params"]["time_key"] == "development_stage_months"
    assert (stored["prompts"]["time"] % 12 == 0).all()
    assert "donor" in stored["prompts"]


def test_one_donor_is_none_unless_it_is_named(encoded):
    adata = encoded[encoded.obs["cell_type"] == "fibroblast"].copy()
    adata.obs["donor_id"] = "one"
    mt.pp.sample_prompts(adata, n_prompts=5)
    assert adata.uns["prompts"]["params"]["donor_key"] == ""
    mt.pp.sample_prompts(adata, n_prompts=5, donor_key="donor_id")
    assert adata.uns["prompts"]["params"]["donor_key"] == "donor_id"


@pytest.mark.parametrize("value", ["PBS", "DMSO", "normal", "Healthy control", "non-targeting", "CTRL"])
def test_controls_by_their_names(value):
    assert _columns.guess_control(pd.Series([value, "drug", None])) == value


def test_the_column_that_says_most_of_the_times(encoded):
    """Stages that are mostly "adult" stand back behind ages in numbers."""
    obs = encoded.obs.rename(columns={"age_months": "age"})
    stages = np.array(["human adult stage"] * len(obs), dtype=object)
    stages[:40] = [f"{age}-year-old stage" for age in range(20, 60)]
    obs["development_stage"] = stages
    assert _columns.guess_columns(obs)["time_key"] == "age"
    obs["development_stage"] = [f"{age // 12}-year-old stage" for age in obs["age"]]
    assert _columns.guess_columns(obs)["time_key"] == "development_stage"


def test_the_column_that_has_a_control():
    """As of a study with the drug in one column and the arm in another."""
    obs = pd.DataFrame({"treatment": ["0.2 uM drug", "solvent"] * 2, "condition": ["drug", "ctrl"] * 2})
    found = _columns.find_columns(obs, perturbation_key=None, control=None)
    assert found == {"perturbation_key": "condition", "control": "ctrl"}
    found = _columns.find_columns(obs, perturbation_key=None, control="solvent")
    assert found == {"perturbation_key": "treatment", "control": "solvent"}
    assert _columns.guess_control(pd.Series(["0.2 uM panobinostat", "vehicle (DMSO)"])) == "vehicle (DMSO)"
    assert _columns.guess_control(pd.Series(["control day 1", "control day 2", "drug"])) is None  # which one?


def test_units_of_ages_by_their_range():
    years = pd.Series([34, 71], name="age")
    with pytest.warns(UserWarning, match=r"Read .obs\['age'\] as years, by its range. Pass time_unit="):
        assert _columns.find_unit(years, None) == "years"
    assert _columns.find_unit(years, "months") == "months"
    assert _columns.find_unit(years.rename("age_yr"), None) == "years"  # its name says so
    assert _columns.find_unit(years.rename("stage"), None) == "months"


def test_what_is_suggested_is_the_users(encoded):
    obs = encoded.obs[["n_genes_ranked", "share_ranked"]].assign(train=True, depth=np.arange(encoded.n_obs))
    with pytest.raises(ValueError, match=r"Give time_key=: no column was found for it; .obs has 'depth'\."):
        _columns.find_columns(obs, time_key=None)
    with pytest.raises(ValueError, match=r"or groupby=\[\] for one group"):
        _columns.find_columns(obs, groupby=None)
