"""Screens by plate: planted faults are found, clean plates are not flagged, and refusals."""

import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats.plates import at_border, distance_between, plate_shape, read_wells

SETTINGS = {
    "plate_key": "plate",
    "well_key": "well",
    "perturbation_key": "drug",
    "control": "DMSO",
    "groupby": "line",
}


def run(adata, **settings):
    mt.tl.flag_plates(adata, **{**SETTINGS, **settings})
    return mt.get.table(adata, "flag_plates").set_index("plate")


def test_none_of_twenty_clean_plates_is_flagged():
    adata = mt.datasets.drug_screen(2, 10, n_plates=20, cells_per_well=4, effect=1.8)
    plates = run(adata)
    assert len(plates) == 20
    assert not plates["flagged"].any()
    tests = mt.get.table(adata, "flag_plates", "tests")
    for test, found in tests.groupby("test"):
        assert found["p_value"].notna().all(), test
        if test.startswith("edge"):
            # Nothing is there: p values are spread evenly.
            assert 0.25 < found["p_value"].mean() < 0.75
            assert (found["p_value"] < 0.05).mean() <= 0.2
    found = tests.set_index("test").loc["concordance"]
    assert (found["value"] > 0.6).all()
    assert (found["null"].abs() < 0.15).all()


def test_planted_faults_are_found():
    adata = mt.datasets.drug_screen(
        2, 10, n_plates=12, cells_per_well=4, effect=1.8, failed_plates=[3], edge_plates=[8], seed=1
    )
    # And a plate whose drugs were mixed up.
    on = (adata.obs["plate"] == "P06").to_numpy()
    names = [f"drug{i + 1}" for i in range(10)]
    other = dict(zip(names, names[3:] + names[:3], strict=True)) | {"DMSO": "DMSO"}
    drug = adata.obs["drug"].astype(str)
    adata.obs["drug"] = np.where(on, drug.map(other), drug)
    plates = run(adata)
    assert plates.index[plates["flagged"]].tolist() == ["P04", "P06", "P09"]
    assert plates.loc["P04", "reasons"] == "overlap, concordance"
    assert plates.loc["P06", "reasons"] == "concordance"
    assert plates.loc["P09", "reasons"] == "edge: depth, edge: expression"
    wells = mt.get.table(adata, "flag_plates", "wells").set_index("plate")
    assert wells.loc["P04", "overlap"].mean() > 0.7
    assert wells.loc["P01", "overlap"].mean() < 0.3
    assert wells.loc["P01", "overlap"].isna().sum() == 16
    deep = wells.loc["P09"].groupby("edge")["depth"].mean()
    assert deep[True] < 0.75 * deep[False]
    figure = mt.pl.flag_plates(adata)
    assert figure.axes[0].get_title().startswith("P04: overlap, concordance")
    assert len(figure.axes) == 1 + 5 + 1
    with pytest.raises(KeyError, match="P99"):
        mt.pl.flag_plates(adata, plate="P99")
    with pytest.raises(ValueError, match="value must be one of"):
        mt.pl.flag_plates(adata, value="color")


def test_only_what_is_known_to_act_is_judged():
    """Half of the drugs do nothing: the overlap of all says little, that of the others is fine."""
    adata = mt.datasets.drug_screen(1, 8, n_plates=2, cells_per_well=5, effect=2.0)
    idle = mt.datasets.drug_screen(1, 8, n_plates=2, cells_per_well=5, effect=0.0)
    some = adata.obs["drug"].isin(["drug1", "drug2", "drug3", "drug4", "drug5"]).to_numpy()
    adata.X = idle.X.multiply(some[:, None]).tocsr() + adata.X.multiply(~some[:, None]).tocsr()
    assert "overlap" in run(adata).loc["P01", "reasons"]
    plates = run(adata, active=["drug6", "drug7", "drug8"])
    assert not plates["flagged"].any()
    assert "overlap" not in run(adata, max_overlap=0.99).loc["P01", "reasons"]
    with pytest.raises(ValueError, match="active names 'drug9'"):
        run(adata, active=["drug9"])
    tests = mt.get.table(adata, "flag_plates", "tests").set_index("test")
    assert tests.loc["concordance", "p_value"].isna().all()  # of two plates, either may be wrong


def test_names_of_wells():
    row, column = read_wells(np.array(["A1", "a01", "B_12", "H12"]))
    assert (row.tolist(), column.tolist()) == ([0, 0, 1, 7], [0, 0, 11, 11])
    assert plate_shape(row, column) == (8, 12)
    assert plate_shape(np.array([15]), np.array([0])) == (16, 24)
    assert at_border(row, column, (8, 12)).tolist() == [True] * 4
    assert not at_border(np.array([1]), np.array([1]), (8, 12)).any()
    with pytest.raises(ValueError, match=r"2 of 3 wells have no name .* \(first: 'well7'\)"):
        read_wells(np.array(["A01", "well7", "Z03"]))


def test_distance_has_its_rate():
    rng = np.random.default_rng(0)
    edge = np.arange(40) < 15
    p_values = []
    for _ in range(200):
        found, null = distance_between(rng.normal(size=(40, 4)), edge, 99, rng)
        p_values.append((1 + (null >= found).sum()) / 100)
    assert 0.03 <= (np.array(p_values) <= 0.1).mean() <= 0.18
    values = rng.normal(size=(40, 4))
    by_hand = ((values[edge].mean(axis=0) - values[~edge].mean(axis=0)) ** 2).sum()
    assert distance_between(values, edge, 1, rng)[0] == pytest.approx(by_hand)


def test_refusals():
    adata = mt.datasets.drug_screen(1, 4, n_plates=1, n_wells=24, cells_per_well=2)
    with pytest.raises(ValueError, match="No plate has both controls"):
        run(adata, control="vehicle")
    twice = adata.copy()
    twice.obs["drug"] = pd.Series(
        np.where(np.arange(twice.n_obs) == 0, "drug9", twice.obs["drug"]), twice.obs_names
    )
    with pytest.raises(ValueError, match="more than one of the perturbations"):
        run(twice)
    with pytest.raises(KeyError, match="plates"):
        run(adata, plate_key="plates")
    with pytest.raises(ValueError, match="max_overlap must be between 0 and 1, got 30"):
        run(adata, max_overlap=30)
    for settings, match in [
        ({"n_wells": 100}, "n_wells must be one of"),
        ({"n_drugs": 90}, "do not go into"),
        ({"n_lines": 9}, "too few for 9 lines"),
        ({"edge_plates": [4]}, "no plate 4"),
    ]:
        with pytest.raises(ValueError, match=match):
            mt.datasets.drug_screen(**settings)


def test_the_screen_is_as_planted():
    adata = mt.datasets.drug_screen(2, 6, n_plates=2, cells_per_well=12, interaction=1.0, seed=4)
    effects = adata.uns["truth"]["effects"]
    again = mt.datasets.drug_screen(2, 6, n_plates=2, cells_per_well=12, interaction=1.0, seed=5)
    pd.testing.assert_frame_equal(effects, again.uns["truth"]["effects"])
    X = adata.X.toarray()
    X = np.log2(1e4 * X / X.sum(axis=1, keepdims=True) + 1)
    for kind, part in adata.obs.groupby("kind", observed=True):
        rows = adata.obs_names.isin(part.index)
        change = pd.Series(
            X[rows & (adata.obs["drug"] == "drug1")].mean(axis=0)
            - X[rows & (adata.obs["drug"] == "DMSO")].mean(axis=0),
            adata.var_names,
        )
        for other in "AB":
            planted = effects[(effects["drug"] == "drug1") & (effects["kind"] == other)]
            r = np.corrcoef(change[planted["ensembl_id"]], planted["log2_fold"])[0, 1]
            assert (r > 0.85) == (kind == other)
