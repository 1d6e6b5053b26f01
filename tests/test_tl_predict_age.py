"""Ages read from cells: intervals that hold for new donors, and reasons where there is no age."""

import numpy as np
import pandas as pd
import pytest
from helpers import on_copy

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats.age_intervals import calibrate, reach
from maxtoki_toolkit.tl._contexts import draw_contexts

SETTINGS = {
    "time_key": "age_months",
    "donor_key": "donor_id",
    "sampling": mt.tl.AgeSampling(n_contexts=2, context_size=2),
}


def simulate(rng, n_donors, slope=0.5, donor_sd=30.0, cell_sd=60.0, n_cells=(1, 30)):
    """Readings that shrink the age, with errors of donors and of cells."""
    age = rng.integers(240, 960, n_donors).astype(float)
    size = rng.integers(*n_cells, n_donors)
    donor = np.repeat(np.arange(n_donors), size)
    read = 300 + slope * (
        age[donor] + rng.normal(0, donor_sd, n_donors)[donor] + rng.normal(0, cell_sd, len(donor))
    )
    return read, age[donor], donor.astype(str), age


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_intervals_hold_for_new_donors(coverage):
    rng = np.random.default_rng(0)
    cells, donors = [], []
    for _ in range(150):
        found = calibrate(*simulate(rng, 24)[:3], coverage)
        read, age, donor, of_donor = simulate(rng, 20)
        error = np.abs(found.apply(read, np.full(len(read), "new")) - age)
        # A donor counts once, however many cells there are.
        inside = pd.Series(error <= found.cell_reach).groupby(donor).mean()
        cells.append(inside.mean())
        mean = pd.Series(found.apply(read, np.full(len(read), "new"))).groupby(donor).mean()
        known = pd.Series(age).groupby(donor).first()
        donors.append((np.abs(mean - known) <= found.donor_reach).mean())
    assert np.mean(cells) == pytest.approx(coverage, abs=0.04)
    assert np.mean(donors) == pytest.approx(coverage, abs=0.04)


def test_shrunken_readings_become_ages():
    read, age, donor, _ = simulate(np.random.default_rng(1), 60, donor_sd=5, cell_sd=10)
    found = calibrate(read, age, donor, 0.9)
    assert found.slope == pytest.approx(2, rel=0.05)
    assert found.r > 0.98
    assert found.median_error < 0.1 * found.median_error_mean_age


def test_donors_of_known_age_are_read_without_themselves():
    read, age, donor, _ = simulate(np.random.default_rng(2), 12)
    found = calibrate(read, age, donor, 0.9)
    for name in np.unique(donor):
        others = donor != name
        weight = 1 / pd.Series(donor[others]).map(pd.Series(donor[others]).value_counts()).to_numpy()
        slope, intercept = np.polyfit(read[others], age[others], 1, w=np.sqrt(weight))
        mine = donor == name
        assert found.apply(read[mine], donor[mine]) == pytest.approx(intercept + slope * read[mine])


def test_nothing_is_read_from_noise():
    rng = np.random.default_rng(3)
    n_read = 0
    for _ in range(200):
        read, age, donor, _ = simulate(rng, 15, slope=0.0)
        read = read + rng.normal(0, 5, 15)[donor.astype(int)] + rng.normal(0, 10, len(read))
        n_read += calibrate(read, age, donor, 0.9).r_low > 0
    assert n_read <= 0.05 * 200


def test_few_donors_have_no_interval():
    assert np.isnan(reach(np.arange(8.0), np.arange(8), 0.9))
    assert reach(np.arange(9.0), np.arange(9), 0.9) == 8


def test_contexts_are_of_distinct_donors_and_ages_in_any_order():
    rng = np.random.default_rng(0)
    donor = np.repeat([f"d{i}" for i in range(9)], 4)
    time = np.repeat(np.arange(9) // 2 * 12, 4)
    names = np.array([f"cell{i}" for i in range(36)])
    settings = {"n": 12, "size": 3, "seed": [0, 7]}
    contexts = draw_contexts(np.argsort(names), donor, time, **settings)
    counts = pd.Series(donor[np.concatenate(contexts)]).value_counts().reindex(np.unique(donor)).fillna(0)
    assert all(len(set(time[c])) == len(set(donor[c])) == 3 for c in contexts)
    assert counts.max() - counts.min() <= 3
    order = rng.permutation(36)
    again = draw_contexts(np.argsort(names[order]), donor[order], time[order], **settings)
    assert [list(names[c]) for c in contexts] == [list(names[order][c]) for c in again]


@pytest.fixture(scope="module")
def model():
    return mt.load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def atlas(model):
    adata = mt.datasets.aging_atlas(480, 24, seed=5)
    adata = adata[adata.obs["cell_type"].isin(["fibroblast", "monocyte", "natural killer cell"])].copy()
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    adata.obs["control"] = adata.obs["condition"] == "control"
    return adata


@pytest.fixture(scope="module")
def read(atlas, model):
    return on_copy(mt.tl.predict_age, atlas, model, **SETTINGS, groupby="cell_type", reference="control")


def test_every_cell_has_an_age_or_its_group_a_reason(read):
    groups = mt.get.table(read, "predict_age", "groups").set_index("group")
    for group, part in read.obs.groupby("cell_type", observed=True):
        if groups.loc[group, "reason"] == "":
            assert part["predicted_age"].notna().all()
            width = part["predicted_age_high"] - part["predicted_age_low"]
            assert width.to_numpy() == pytest.approx(2 * groups.loc[group, "cell_reach"])
        elif "not read" in groups.loc[group, "reason"]:
            assert part["predicted_age"].isna().all()


def test_donors_are_means_of_their_cells(read):
    donors = mt.get.table(read, "predict_age")
    assert donors.attrs["unit"] == "months"
    row = donors[donors["predicted"].notna()].iloc[0]
    cells = read.obs[(read.obs["donor_id"] == row["donor"]) & (read.obs["cell_type"] == row["group"])]
    assert row["predicted"] == pytest.approx(cells["predicted_age"].mean())
    assert row["n_cells"] == len(cells)
    assert row["known"] == cells["age_months"].iloc[0]
    assert row["reference"] == cells["control"].iloc[0]


def test_order_of_the_cells_does_not_matter(atlas, model, read):
    order = np.random.default_rng(0).permutation(atlas.n_obs)
    again = on_copy(
        mt.tl.predict_age, atlas[order].copy(), model, **SETTINGS, groupby="cell_type", reference="control"
    )
    expected = read.obs["predicted_age"].loc[again.obs_names]
    assert again.obs["predicted_age"].to_numpy() == pytest.approx(expected.to_numpy(), abs=0.01, nan_ok=True)


def test_a_reference_elsewhere_is_the_same_reference(atlas, model, read):
    controls = atlas[atlas.obs["control"]].copy()
    others = atlas[~atlas.obs["control"]].copy()
    del others.obs["age_months"]
    mt.tl.predict_age(others, model, **SETTINGS, groupby="cell_type", reference=controls)
    expected = read.obs["predicted_age"].loc[others.obs_names]
    assert others.obs["predicted_age"].to_numpy() == pytest.approx(expected.to_numpy(), abs=0.01, nan_ok=True)
    assert mt.get.table(others, "predict_age")["known"].isna().all()


def test_groups_without_reference_have_a_reason(atlas, model):
    adata = atlas.copy()
    adata.obs["control"] &= adata.obs["cell_type"] != "monocyte"
    mt.tl.predict_age(adata, model, **SETTINGS, groupby="cell_type", reference="control")
    groups = mt.get.table(adata, "predict_age", "groups").set_index("group")
    assert groups.loc["monocyte", "reason"].startswith("0 reference donors")
    assert adata.obs.loc[adata.obs["cell_type"] == "monocyte", "predicted_age"].isna().all()


def test_ages_that_are_not_known_are_asked_for(atlas, model):
    adata = atlas.copy()
    adata.obs["age"] = adata.obs["age_months"].where(adata.obs["control"])
    settings = SETTINGS | {"time_key": "age"}
    mt.tl.predict_age(adata, model, **settings, groupby="cell_type")
    mt.tl.predict_age(atlas, model, **SETTINGS, groupby="cell_type", reference="control", key_added="named")
    assert adata.obs["predicted_age"].to_numpy() == pytest.approx(atlas.obs["named"].to_numpy(), nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coverage": 1.0}, "coverage must be"),
        ({"reference": np.zeros(3, bool)}, "reference must be"),
    ],
)
def test_bad_input_is_refused(atlas, model, change, message):
    with pytest.raises(ValueError, match=message):
        mt.tl.predict_age(atlas, model, **SETTINGS | change, groupby="cell_type")


def test_sampling_is_checked():
    with pytest.raises(ValueError, match="n_contexts must be at least 1"):
        mt.tl.AgeSampling(n_contexts=0)


def test_figure_names_what_is_not_read(read):
    figure = mt.pl.predicted_ages(read)
    groups = mt.get.table(read, "predict_age", "groups")
    assert len(figure.axes) == max((groups["reason"].str.contains("not read|needed") == False).sum(), 1)  # noqa: E712
