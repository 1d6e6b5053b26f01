"""Intervals in which genes turn over: found where they are planted, nowhere else, and held out."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from helpers import on_copy
from scipy import stats

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats.turnover import fit_lines, rank_scores, two_lines

N_TURNING, N_RISING, N_GENES = 12, 12, 120


def course(*, seed=0, planted=True, per_donor=False, n_donors=30, n_cells=20, donor_sd=0.15):
    """Ranks of cells whose first genes peak or dip at 50 of 100, and whose next ones rise or level off."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), n_cells)
    time = rng.permutation(np.linspace(0, 100, n_donors).astype(int))[donor]
    if per_donor:
        time = rng.integers(0, 6, len(donor)) * 20
    log_mean = rng.normal(0, 1, N_GENES) + rng.normal(0, donor_sd, (n_donors, N_GENES))[donor]
    if planted:
        sign = np.resize([1, -1], N_TURNING)
        log_mean[:, :N_TURNING] += 2 * sign * np.exp(-(((time - 50) / 18) ** 2) / 2)[:, None]
        rising = slice(N_TURNING, N_TURNING + N_RISING)
        log_mean[:, rising] += 2 * np.minimum(time / 50, 1)[:, None]
    counts = rng.poisson(np.exp(log_mean))
    ranks = np.argsort(np.argsort(-(counts + rng.random(counts.shape) * 1e-3), axis=1), axis=1) + 1
    ranks[counts == 0] = 0
    obs = pd.DataFrame(
        {"time": time, "donor": donor.astype(str), "kind": np.resize(["a", "b"], len(donor))},
        index=[f"c{i}" for i in range(len(donor))],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    return AnnData(obs=obs, var=var, layers={"rank": sp.csr_matrix(ranks.astype(np.uint16))})


@pytest.mark.parametrize("donor_key", ["donor", None])
def test_planted_turns_are_found(donor_key):
    # Cells are evidence of their own only where donors do not differ.
    adata = course(donor_sd=0 if donor_key is None else 0.15)
    mt.pp.holdout_intervals(adata, time_key="time", donor_key=donor_key, n_bins=7)
    genes = mt.get.table(adata, "holdout_intervals", "genes")
    planted = {f"g{i}" for i in range(N_TURNING)}
    assert len(planted & set(genes["gene"])) >= 0.8 * N_TURNING
    assert (~genes["gene"].isin(planted)).mean() <= 0.1
    number = genes["gene"].str[1:].astype(int)
    right = np.where(number % 2 == 0, "peak", "dip") == genes["direction"]
    assert right[genes["gene"].isin(planted)].all()
    found = mt.get.table(adata, "holdout_intervals")
    (chosen,) = found[found["held_out"]].itertuples()
    assert chosen.first <= 60
    assert chosen.last >= 40
    assert chosen.n_turning == chosen.n_peak + chosen.n_dip == found["n_turning"].max()
    assert chosen.p_value == pytest.approx(0.05)
    assert found["n_turning_null"].max() < 1
    inside = adata.obs["time"].between(chosen.first, chosen.last)
    assert (adata.obs["held_out_times"] == inside).all()
    assert (adata.obs["train"] == ~inside).all()
    assert not adata.obs["held_out_donors"].any()
    assert adata.uns["hold_out"]["params"]["times"] == [[chosen.first, chosen.last]]


def test_what_only_levels_off_does_not_turn():
    """A knot between two lines that share it would call these."""
    adata = course(seed=1)
    mt.pp.holdout_intervals(adata, time_key="time", donor_key="donor", intervals=0)
    levelling = {f"g{i}" for i in range(N_TURNING, N_TURNING + N_RISING)}
    assert not levelling & set(mt.get.table(adata, "holdout_intervals", "genes")["gene"])
    assert adata.obs["train"].all()


def test_nothing_planted_nothing_found():
    found = 0
    for seed in range(8):
        adata = course(seed=seed, planted=False, n_cells=8)
        mt.pp.holdout_intervals(adata, time_key="time", donor_key="donor", intervals=0, n_permutations=1)
        found += len(mt.get.table(adata, "holdout_intervals", "genes")) > 0
    assert found <= 1
    with pytest.raises(ValueError, match="genes turn over in only 0 of 6"):
        mt.pp.holdout_intervals(adata, time_key="time", donor_key="donor", n_permutations=0)
    assert "held_out" in adata.obs  # of the last look


def test_p_values_are_those_of_two_lines():
    rng = np.random.default_rng(0)
    time = np.repeat(np.arange(8.0), 3)
    Y = rng.normal(size=(24, 4)) + np.abs(time - 4)[:, None] * [0, 1, -1, 0.3]
    before, after, p = two_lines(sp.csr_matrix(Y), time, 4, 4)
    for g in range(4):
        one, other = (stats.linregress(time[m], Y[m, g]) for m in (time <= 4, time >= 4))
        assert before[g] == pytest.approx(one.slope)
        assert after[g] == pytest.approx(other.slope)
        tail = [
            stats.t.sf(sign * fit.slope / fit.stderr, 13 if fit is one else 10)
            for fit, sign in ((one, 1), (other, -1))
        ]
        dip = [1 - t for t in tail]
        assert p[g] == pytest.approx(min(1, 2 * min(max(tail), max(dip))))


def test_donors_at_several_times_have_a_level_each():
    import statsmodels.api as sm

    rng = np.random.default_rng(1)
    donor = np.repeat(np.arange(4), 5)
    time = np.tile(np.arange(5.0), 4)
    Y = rng.normal(size=(20, 3)) + 5 * donor[:, None]
    slope, t, df = fit_lines(Y, time, donor)
    X = np.column_stack([time, donor[:, None] == np.arange(4)]).astype(float)
    for g in range(3):
        fit = sm.OLS(Y[:, g], X).fit()
        assert (slope[g], t[g], df) == pytest.approx((fit.params[0], fit.tvalues[0], fit.df_resid))
    np.testing.assert_allclose(slope, fit_lines(sp.csr_matrix(Y), time, donor)[0])


def test_a_time_course_of_few_times():
    """Donors at all times: cells of the interval are held out, not the donors."""
    adata = course(per_donor=True)
    mt.pp.holdout_intervals(adata, time_key="time", donor_key="donor", groupby="kind", n_permutations=1)
    found = mt.get.table(adata, "holdout_intervals")
    assert found["first"].tolist() == found["last"].tolist() == [20, 40, 60, 80] * 2
    assert set(found["group"]) == {"a", "b"}
    assert found.loc[found["held_out"], "first"].isin([40, 60]).all()
    assert adata.obs["donor"][adata.obs["train"]].nunique() == 30
    assert not adata.obs.loc[adata.obs["held_out"], "time"].isin([0, 20, 80, 100]).any()


def test_named_intervals_and_files(tmp_path):
    adata = course()
    result = on_copy(
        mt.pp.holdout_intervals, adata, time_key="time", intervals=[(40, 60), (70, 80)], n_permutations=1
    )
    assert "held_out" not in adata.obs
    assert mt.get.table(result, "holdout_intervals")["held_out"].all()
    assert (
        result.obs["held_out"] == (adata.obs["time"].between(40, 60) | adata.obs["time"].between(70, 80))
    ).all()
    result.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(
        mt.get.table(read, "holdout_intervals"), mt.get.table(result, "holdout_intervals")
    )
    # What was found can be given to hold_out, with donors.
    times = [tuple(pair) for pair in read.uns["hold_out"]["params"]["times"]]
    mt.pp.hold_out(read, donor_key="donor", time_key="time", times=times)
    assert read.obs["held_out_donors"].any()


def test_what_is_refused():
    adata = course(n_donors=8, n_cells=2)
    with pytest.raises(ValueError, match="No cell has a time before and after 0 to 10"):
        mt.pp.holdout_intervals(adata, time_key="time", intervals=[(0, 10)])
    with pytest.raises(ValueError, match="Cannot hold out 9 intervals"):
        mt.pp.holdout_intervals(adata, time_key="time", intervals=9)
    with pytest.raises(ValueError, match="n_bins must be at least 3"):
        mt.pp.holdout_intervals(adata, time_key="time", n_bins=2)
    few = adata[adata.obs["donor"].isin(list("01234"))].copy()
    with pytest.raises(ValueError, match="No group has 6 samples"):
        mt.pp.holdout_intervals(few, time_key="time", donor_key="donor", intervals=0)
    del adata.layers["rank"]
    with pytest.raises(KeyError, match="Did not find .layers"):
        mt.pp.holdout_intervals(adata, time_key="time")


def test_scores_of_ranks():
    ranks = sp.csr_matrix(np.array([[1, 2, 0, 4, 3], [0, 0, 1, 0, 0]], np.uint16))
    np.testing.assert_allclose(rank_scores(ranks).toarray(), [[1, 0.75, 0, 0.25, 0.5], [0, 0, 1, 0, 0]])


@pytest.mark.slow
def test_myoblasts():
    """Real cells: which genes peak or dip within three days is known of a few."""
    adata = mt.datasets.load("myoblast_timecourse")
    vocab = mt.models.Vocabulary.from_anndata(on_copy(mt.pp.map_genes, adata), force=True)
    mt.pp.rank_value_encode(adata, vocab, force=True)
    mt.pp.holdout_intervals(adata, time_key="Hours", n_permutations=5)
    found = mt.get.table(adata, "holdout_intervals")
    assert found["first"].tolist() == [24, 48]
    assert found["n_turning"].max() > 20
    assert found["n_turning_null"].max() <= 1
