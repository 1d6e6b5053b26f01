"""Holding out donors, times and groups, without overlap and without a donor on both sides."""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import on_copy

import maxtoki_toolkit as mt

REASONS = ["held_out_groups", "held_out_times", "held_out_donors"]
COLUMNS = ["train", "held_out", *REASONS]


@pytest.fixture
def adata():
    """20 donors, one age each, 12 cells of 3 types each."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "donor": np.repeat([f"d{i:02}" for i in range(20)], 12),
            "age": np.repeat(rng.permutation(20) * 12, 12),
            "cell_type": pd.Categorical(np.tile(["B", "T", "NK"], 80)),
            "sex": np.tile(["f", "m"], 120),
        },
        index=[f"c{i}" for i in range(240)],
    )
    return AnnData(np.zeros((240, 1), np.float32), obs=obs)


def donors_of(adata, column):
    return set(adata.obs.loc[adata.obs[column], "donor"])


SETTINGS = {
    "donors": {},
    "named": {"donors": ["d03", "d11"]},
    "times": {"time_key": "age", "times": [(0, 24), (200, 216)]},
    "groups": {"groups": {"cell_type": ["NK"], "sex": ["f"]}},
    "all": {
        "donors": 0.3,
        "time_key": "age",
        "times": [(60, 72)],
        "groups": {"cell_type": ["T"]},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("rng", [0, 1])
def test_parts_do_not_overlap(adata, name, rng):
    mt.pp.hold_out(adata, donor_key="donor", rng=rng, **SETTINGS[name])
    masks = adata.obs[COLUMNS]
    assert {dtype.kind for dtype in masks.dtypes} == {"b"}
    assert (masks["train"] != masks["held_out"]).all()
    assert (masks[REASONS].sum(axis=1) == masks["held_out"]).all()
    assert masks["train"].any()
    sides = [donors_of(adata, column) for column in ("train", "held_out_times", "held_out_donors")]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_a_share_of_the_donors(adata):
    mt.pp.hold_out(adata, donor_key="donor", donors=0.25)
    assert len(donors_of(adata, "held_out_donors")) == 5
    assert adata.obs["held_out"].sum() == 60
    assert adata.uns["hold_out"]["params"]["donors"] == sorted(donors_of(adata, "held_out_donors"))
    mt.pp.hold_out(adata, donor_key="donor", donors=0.0, groups={"cell_type": ["B"]})
    assert not donors_of(adata, "held_out_donors")


def test_the_seed_chooses(adata):
    chosen = []
    for rng in (0, 0, 1, 2, 3):
        mt.pp.hold_out(adata, donor_key="donor", rng=rng)
        chosen.append(frozenset(donors_of(adata, "held_out_donors")))
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 2


@pytest.mark.parametrize("rng", range(5))
def test_donors_are_spread_over_the_times(adata, rng):
    """One of each four donors in order of age."""
    mt.pp.hold_out(adata, donor_key="donor", donors=0.25, time_key="age", rng=rng)
    ages = sorted(adata.obs.loc[adata.obs["held_out_donors"], "age"].unique())
    assert [age // 48 for age in ages] == [0, 1, 2, 3, 4]


def test_a_donor_with_a_held_out_time_is_held_out_whole(adata):
    # The donor was seen twice.
    adata.obs.loc[adata.obs["donor"] == "d05", "age"] = [300] * 2 + [0] * 10
    mt.pp.hold_out(adata, donor_key="donor", donors=["d06"], time_key="age", times=[(300, 400)])
    assert donors_of(adata, "held_out_times") == {"d05"}
    assert adata.obs["held_out_times"].sum() == 12
    assert donors_of(adata, "held_out_donors") == {"d06"}


def test_ranges_include_both_ends(adata):
    mt.pp.hold_out(adata, donor_key="donor", donors=[], time_key="age", times=[(24, 48)])
    assert sorted(adata.obs.loc[adata.obs["held_out"], "age"].unique()) == [24, 36, 48]
    # A share is of the donors that are left.
    mt.pp.hold_out(adata, donor_key="donor", donors=0.5, time_key="age", times=[(0, 9 * 12)])
    assert len(donors_of(adata, "held_out_donors")) == 5


def test_groups_of_all_donors(adata):
    mt.pp.hold_out(adata, donor_key="donor", donors=["d00"], groups={"cell_type": ["NK", "B"]})
    assert set(adata.obs.loc[adata.obs["train"], "cell_type"]) == {"T"}
    assert len(donors_of(adata, "held_out_groups")) == 20
    assert set(adata.obs.loc[adata.obs["held_out_donors"], "cell_type"]) == {"T"}


def test_names_may_be_numbers_or_one(adata):
    adata.obs["number"] = adata.obs["donor"].str[1:].astype(int)
    adata.obs["cluster"] = adata.obs["cell_type"].cat.codes.astype(int)
    mt.pp.hold_out(adata, donor_key="number", donors=[3, 11], groups={"cluster": [1]})
    assert donors_of(adata, "held_out_donors") == {"d03", "d11"}
    assert set(adata.obs.loc[adata.obs["held_out_groups"], "cluster"]) == {1}
    mt.pp.hold_out(adata, donor_key="donor", donors="d03", groups={"cell_type": "NK"})
    assert donors_of(adata, "held_out_donors") == {"d03"}
    with pytest.raises(ValueError, match=r"has no donor '77'; it has '0', '1', '10'"):
        mt.pp.hold_out(adata, donor_key="number", donors=[3, 77])


def test_what_is_recorded_survives_a_file(adata, tmp_path):
    mt.pp.hold_out(adata, donor_key="donor", **SETTINGS["all"])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(read.obs[COLUMNS], adata.obs[COLUMNS])
    params = read.uns["hold_out"]["params"]
    for column in COLUMNS:
        assert params[f"n_cells_{column}"] == adata.obs[column].sum()
    assert np.array(params["times"]).tolist() == [[60, 72]]
    assert list(params["groups"]["cell_type"]) == ["T"]
    assert list(params["donors"]) == sorted(donors_of(adata, "held_out_donors"))
    adata.uns.clear()
    adata.obs = adata.obs.drop(columns=COLUMNS)
    mt.pp.hold_out(adata, donor_key="donor", donors=["d01"])
    adata.write_h5ad(tmp_path / "plain.h5ad")
    assert anndata.read_h5ad(tmp_path / "plain.h5ad").uns["hold_out"]["params"]["time_key"] == ""


def test_copy(adata):
    other = on_copy(mt.pp.hold_out, adata, donor_key="donor")
    assert set(COLUMNS) <= set(other.obs)
    assert not set(COLUMNS) & set(adata.obs)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"donor_key": "patient"}, KeyError, r"Did not find \.obs\['patient'\]"),
        ({"time_key": "weeks"}, KeyError, r"Did not find \.obs\['weeks'\]"),
        ({"groups": {"tissue": ["skin"]}}, KeyError, r"Did not find \.obs\['tissue'\]"),
        ({"donors": ["d00", "d77"]}, ValueError, r"\.obs\['donor'\] has no donor 'd77'"),
        ({"donors": 1.0}, ValueError, r"must be in \[0, 1\), got 1.0"),
        ({"donors": -0.1}, ValueError, r"must be in \[0, 1\), got -0.1"),
        ({"times": [(1, 2)]}, ValueError, "No cell has a time from 1 to 2: .obs..age.. is from 0 to 228"),
        (
            {"time_key": "age", "times": [(60, 72), (5, 7)]},
            ValueError,
            r"No cell has a time from 5 to 7: \.obs\['age'\] is from 0 to 228",
        ),
        ({"groups": {"cell_type": ["Glia"]}}, ValueError, r"has no 'Glia'; it has \['B', 'NK', 'T'\]"),
        ({"groups": {"sex": ["f", "m"]}}, ValueError, "Everything is held out: nothing is left to train on"),
    ],
)
def test_refusals(adata, settings, error, message):
    with pytest.raises(error, match=message):
        mt.pp.hold_out(adata, **{"donor_key": "donor", **settings})
    assert not adata.uns
    assert not set(COLUMNS) & set(adata.obs)


def test_coverage_marks_what_is_held_out():
    """A field a type and time; one line where some cells are held out, two where all are."""
    cells = mt.datasets.aging_atlas(600, 12, n_genes=500)
    mt.pp.hold_out(cells, donor_key="donor_id", donors=0.0, groups={"cell_type": ["macrophage"]})
    fig = mt.pl.coverage(cells, time_key="age_months", groupby="cell_type", study_key="batch")
    panels = [ax for ax in fig.axes if ax.get_title()]
    assert [ax.get_title().split(" ")[0] for ax in panels] == sorted(cells.obs["batch"].unique())
    assert fig.get_supxlabel() == "age (years)"
    types = [text.get_text() for text in panels[0].get_yticklabels()]
    for ax, (_, part) in zip(panels, cells.obs.groupby("batch", observed=True), strict=True):
        shown = np.ma.filled(ax.collections[0].get_array(), np.nan)
        assert np.nansum(shown) == len(part)
        per_type = part["cell_type"].value_counts().reindex(types).to_numpy()
        assert (np.nansum(shown, axis=1) == np.nan_to_num(per_type)).all()
        rows = [round(np.mean(line.get_ydata())) for line in ax.lines]
        fields = np.isfinite(shown[types.index("macrophage")]).sum()
        assert rows == [types.index("macrophage")] * 2 * fields
