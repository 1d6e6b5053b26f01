"""Are generated cells real ones? True cells in their place pass, cells of another kind do not."""

import importlib

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import on_copy
from scipy import sparse
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

import maxtoki_toolkit as mt
from maxtoki_toolkit.stats.classification import score_labels, shuffle_genes

KEYS = {"groupby": "cell_type", "donor_key": "donor_id"}
AGES = {"time_key": "age_months", "donor_key": "donor_id"}


@pytest.fixture(scope="module")
def model(tiny_clock):
    """A model that has the genes and reads 126 of a cell; what it learned does not matter here."""
    return tiny_clock


def prepare(adata, model, n_prompts=240):
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    adata.uns = {name: value for name, value in adata.uns.items() if name != "truth"}
    mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    mt.pp.sample_prompts(
        adata,
        time_key="age_months",
        task="cell",
        n_prompts=n_prompts,
        contexts="held_out",
        queries="held_out",
        sampling=mt.pp.PromptSampling(balance=1),
        **KEYS,
    )
    return adata


@pytest.fixture(scope="module")
def atlas(model):
    adata = mt.datasets.aging_atlas(4000, 40, n_genes=500, seed=3)
    common = adata.obs["cell_type"].value_counts().index[:5]
    return prepare(adata[adata.obs["cell_type"].isin(common)].copy(), model)


def as_generated(adata, rows):
    """True cells that pass for the generated ones, one a prompt."""
    table = mt.get.table(adata, "prompts")
    obs = {
        "prompt": table.index.astype(str).to_numpy(),
        "lapse": table["lapse"].to_numpy(),
        "group": table["group"].to_numpy(),
        "n_genes_ranked": adata.obs["n_genes_ranked"].to_numpy()[rows],
    }
    obs = pd.DataFrame(obs, index=[f"{i}_0" for i in range(len(rows))])
    chosen = anndata.AnnData(obs=obs, var=adata.var, layers={"rank": adata.layers["rank"][rows]})
    chosen.uns = {"rank_value_encode": adata.uns["rank_value_encode"]}
    return chosen


def others(adata, *, same_age=False, another_type=False, seed=0):
    """Held-out cells of the type that each prompt asks for (or another), and of its age, but not its query."""
    rng = np.random.default_rng(seed)
    table = mt.get.table(adata, "prompts")
    of_cell, age = adata.obs["cell_type"].to_numpy(dtype=str), adata.obs["age_months"].to_numpy()
    held_out, query = adata.obs["held_out"].to_numpy(), adata.obs_names.get_indexer(table["query"])
    types = np.unique(of_cell)
    partner = dict(zip(types, np.roll(types, -1), strict=True))
    found = []
    for row, asked in zip(table.itertuples(), query, strict=True):
        mine = (of_cell == (partner[row.group] if another_type else row.group)) & held_out
        mine[asked] = False
        if same_age:
            gap = np.abs(age - row.time)
            mine &= gap <= gap[mine].min()
        found.append(rng.choice(np.flatnonzero(mine)))
    return np.array(found)


def last_context(adata):
    table = mt.get.table(adata, "prompts")
    contexts = table[[c for c in table if c.startswith("context_")]].to_numpy(dtype=object)
    return adata.obs_names.get_indexer([[name for name in row if name][-1] for row in contexts])


def with_ranks(generated, ranks):
    cells = generated.copy()
    cells.layers["rank"] = sparse.csr_matrix(ranks.astype(np.uint16))
    cells.obs["n_genes_ranked"] = (ranks > 0).sum(axis=1)
    return cells


def shuffled(generated, seed=0):
    rng = np.random.default_rng(seed)
    ranks = generated.layers["rank"].toarray()
    for row in ranks:
        row[row > 0] = rng.permutation(row[row > 0])
    return with_ranks(generated, ranks)


def average(adata, generated):
    """The mean cell of each type, for each prompt."""
    ranks = adata.layers["rank"].toarray().astype(float)
    ranks[ranks == 0] = 500
    rows = {}
    for name in adata.obs["cell_type"].unique():
        mean = ranks[(adata.obs["cell_type"] == name).to_numpy()].mean(axis=0)
        rows[name] = np.argsort(np.argsort(mean)) + 1
    made = np.stack([rows[name] for name in generated.obs["group"]])
    return with_ranks(generated, np.where(made <= 126, made, 0))


def concordance(adata, model, generated, **settings):
    result = on_copy(
        mt.tl.annotation_concordance,
        adata,
        model,
        generated=generated,
        **KEYS,
        **{"n_permutations": 99} | settings,
    )
    return mt.get.table(result, "annotation_concordance").set_index("cells"), result


def ages(adata, model, generated, **settings):
    result = on_copy(
        mt.tl.generated_ages, adata, model, generated=generated, **AGES, **{"groupby": "cell_type"} | settings
    )
    return mt.get.table(result, "generated_ages").query("group == 'all'").set_index("cells"), result


def test_scores_of_labels():
    """As of scikit-learn, and with weights as if cells were left out."""
    rng = np.random.default_rng(0)
    asked, found = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    weights = np.ones((2, 60))
    weights[1, :20] = 0
    scores = score_labels(asked, found, 6, weights)
    for row, part in enumerate([slice(None), slice(20, None)]):
        assert scores.accuracy[row] == pytest.approx(accuracy_score(asked[part], found[part]))
        expected = f1_score(asked[part], found[part], labels=range(4), average="macro")
        assert scores.macro_f1[row] == pytest.approx(expected)
        each = precision_recall_fscore_support(asked[part], found[part], labels=range(4), zero_division=0)
        for name, values in zip(("precision", "recall", "f1"), each[:3], strict=True):
            np.testing.assert_allclose(getattr(scores, name)[row, :4], values)
    assert np.isnan(scores.recall[:, 4:]).all()
    assert np.isnan(scores.f1[:, 5]).all()


def test_shuffled_genes_stay_in_their_cells():
    X = sparse.random(30, 50, density=0.3, format="csr", random_state=np.random.default_rng(0))
    mixed = shuffle_genes(X, np.random.default_rng(1))
    assert ((mixed != 0) != (X != 0)).nnz == 0
    assert (mixed != X).nnz > 0.8 * X.nnz
    np.testing.assert_allclose(np.sort(mixed.toarray(), axis=1), np.sort(X.toarray(), axis=1))


def test_true_cells_of_the_type_reach_the_ceiling(atlas, model):
    scores, result = concordance(atlas, model, as_generated(atlas, others(atlas)))
    assert scores.loc["query", "accuracy"] > 0.9
    assert scores.loc["generated", "difference_low"] == 0
    assert scores.loc["query", "difference_low"] <= 0.02
    assert abs(scores.loc["query", "difference"]) < 0.05
    assert scores.loc["generated", "accuracy_low"] > scores.loc["permuted", "accuracy_high"]
    assert scores.loc["generated", "p_value"] == pytest.approx(0.01)
    assert scores["p_value"].notna().sum() == 1
    assert scores.loc["permuted", "accuracy"] == pytest.approx(0.2, abs=0.03)
    assert (scores["unit"] == "donor").all()
    assert (scores["n_units"] == 20).all()
    shares = scores[["accuracy", "accuracy_low", "accuracy_high", "macro_f1"]]
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)

    matrix, cells = mt.get.annotation_matrix(result), mt.get.table(result, "annotation_concordance", "cells")
    assert matrix.to_numpy().sum() == len(cells) == 240
    assert np.trace(matrix.to_numpy()) / 240 == pytest.approx(scores.loc["generated", "accuracy"])
    assert (cells["prompted"] == mt.get.table(atlas, "prompts")["group"].to_numpy()).all()
    types = (
        mt.get.table(result, "annotation_concordance", "types")
        .query("cells == 'generated'")
        .set_index("type")
    )
    for name in matrix.index:
        assert types.loc[name, "recall"] == pytest.approx(matrix.loc[name, name] / matrix.loc[name].sum())
        assert types.loc[name, "precision"] == pytest.approx(matrix.loc[name, name] / matrix[name].sum())


def test_cells_of_a_wrong_type_are_caught(atlas, model):
    scores, result = concordance(atlas, model, as_generated(atlas, others(atlas, another_type=True)))
    assert scores.loc["generated", "accuracy_high"] < 0.1
    assert scores.loc["query", "difference_high"] < -0.8
    assert scores.loc["generated", "p_value"] == 1
    matrix = mt.get.annotation_matrix(result)
    assert (np.diag(matrix) < 0.1 * matrix.sum(axis=1)).all()


def test_what_concordance_cannot_see(atlas, model):
    """A copy of the context and the average cell both reach the ceiling, as the notes say."""
    copied, _ = concordance(atlas, model, as_generated(atlas, last_context(atlas)))
    assert copied.loc["generated", "accuracy"] == copied.loc["context", "accuracy"]
    assert copied.loc["context", "difference_high"] == 0
    assert copied.loc["query", "difference_high"] > -0.02
    mean, _ = concordance(atlas, model, average(atlas, as_generated(atlas, others(atlas))))
    assert mean.loc["generated", "accuracy"] == 1


@pytest.mark.slow
def test_cells_that_know_no_type_are_at_chance(atlas, model):
    """Cells of random types: the p-value is above 0.05 as often as it should be."""
    p_values = []
    for seed in range(8):
        rows = np.random.default_rng(seed).permutation(others(atlas, seed=seed))
        scores, _ = concordance(atlas, model, as_generated(atlas, rows), rng=seed)
        p_values.append(scores.loc["generated", "p_value"])
        assert scores.loc["generated", "accuracy"] == pytest.approx(0.2, abs=0.08)
    assert np.mean(np.array(p_values) < 0.05) <= 0.25
    assert 0.2 < np.mean(p_values) < 0.8


def test_going_on_with_cells_and_without_donors(atlas, model):
    """Cells are the units then, and the classifier has not seen them."""
    part = atlas[::40].copy()
    generated = mt.tl.generate(part, model, n_given=100, max_genes=120)
    rest = atlas.copy()
    del rest.uns["prompts"]
    mt.tl.annotation_concordance(rest, model, generated=generated, groupby="cell_type", n_permutations=9)
    scores = mt.get.table(rest, "annotation_concordance").set_index("cells")
    assert (scores["unit"] == "prompt").all()
    assert (scores["n_units"] == part.n_obs).all()
    assert rest.uns["annotation_concordance"]["params"]["n_train_cells"] == rest.n_obs - part.n_obs
    assert scores.loc["query", "accuracy"] == scores.loc["context", "accuracy"]
    assert scores.loc["generated", "accuracy"] > 0.8
    with pytest.raises(ValueError, match="no age was asked for"):
        mt.tl.generated_ages(rest, model, generated=generated, **AGES)


def test_a_classifier_learns_from_true_cells_only(atlas, model):
    """True cells that pass for generated ones teach as much as others; genes shuffled less, a wrong type nothing."""
    found = {}
    real = as_generated(atlas, others(atlas))
    kinds = {
        "real": real,
        "shuffled": shuffled(real),
        "wrong": as_generated(atlas, others(atlas, another_type=True)),
    }
    for name, generated in kinds.items():
        mt.tl.train_on_generated(atlas, model, generated=generated, **KEYS, n_permutations=10)
        found[name] = mt.get.table(atlas, "train_on_generated").set_index("training")
    real = found["real"]
    assert real.loc["true", "macro_f1"] > 0.9
    assert real.loc["generated", "difference_low"] > -0.05
    assert abs(real.loc["generated", "difference"]) < 0.03
    assert real.loc["generated, genes shuffled", "difference_high"] < 0
    assert real.loc["labels permuted", "macro_f1"] == pytest.approx(0.2, abs=0.1)
    assert real.loc["generated", "p_value"] == pytest.approx(1 / 11)
    assert real.loc["context", "macro_f1"] > 0.85
    shuffled_cells = found["shuffled"]
    assert shuffled_cells.loc["generated", "difference_high"] < -0.02
    assert found["wrong"].loc["generated", "macro_f1"] < 0.05
    assert found["wrong"].loc["generated", "p_value"] > 0.5
    # The comparisons are the same, whatever was generated.
    assert found["wrong"].loc["true", "n_train_cells"] == 240
    assert real["n_test_cells"].nunique() == 1
    assert real.loc["true", "n_test_cells"] == (~atlas.obs["held_out"]).sum()

    donors = mt.get.table(atlas, "train_on_generated", "donors")
    assert donors.groupby("training")["n_cells"].sum().eq(real.loc["true", "n_test_cells"]).all()
    held_out = set(atlas.obs.loc[atlas.obs["held_out"], "donor_id"])
    assert not held_out & set(donors["donor"])


def test_ages_of_true_cells_are_found(atlas, model):
    """Cells of the right type and age are read as the queries are; copies of the context are not."""
    right, result = ages(atlas, model, as_generated(atlas, others(atlas, same_age=True)))
    assert right.loc["query", "r_low"] > 0.1
    assert right.loc["generated", "r"] == pytest.approx(right.loc["query", "r"], abs=0.12)
    assert right.loc["generated", "r"] > right.loc["generated", "r_null_high"]
    assert right.loc["generated", "p_value"] < 0.01
    assert right.loc["generated", "slope_low"] > 0
    copied, _ = ages(atlas, model, as_generated(atlas, last_context(atlas)))
    assert copied.loc["generated", "r"] == pytest.approx(copied.loc["context", "r"])
    assert copied.loc["generated", "r"] < right.loc["generated", "r"] / 2
    assert copied.loc["generated", "p_value"] > 0.01

    cells = mt.get.table(result, "generated_ages", "cells")
    assert cells.attrs["unit"] == "months"
    np.testing.assert_array_equal(cells["prompted"], mt.get.table(atlas, "prompts")["time"])
    assert np.corrcoef(cells["prompted"], cells["generated"])[0, 1] == pytest.approx(
        right.loc["generated", "r"]
    )
    groups = mt.get.table(result, "generated_ages").query("group != 'all'")
    assert (groups["q_value"] >= groups["p_value"]).all()
    assert right["q_value"].isna().all()
    clocks = result.uns["generated_ages"]["clocks"]
    assert (clocks["n_donors"] <= 20).all()


@pytest.mark.slow
def test_cells_of_any_age_are_not_matched(atlas, model):
    p_values = []
    for seed in range(5):
        found, _ = ages(atlas, model, as_generated(atlas, others(atlas, seed=seed)), groupby=[], rng=seed)
        p_values.append(found.loc["generated", "p_value"])
    assert np.mean(np.array(p_values) < 0.05) <= 0.4
    assert np.mean(p_values) > 0.15


def test_the_average_cell_and_other_lapses(atlas, model):
    """The average cell of a type has one age; after other lapses there is no true cell to compare with."""
    generated = average(atlas, as_generated(atlas, others(atlas)))
    found, _ = ages(atlas, model, generated)
    assert found.loc["generated", "spread"] < 0.5 * found.loc["query", "spread"]
    assert found.loc["generated", "p_value"] > 0.01
    generated.obs["lapse"] = 120
    later, _ = ages(atlas, model, generated)
    assert later.index.tolist() == ["generated", "context"]
    # The age asked for is that of the context and the lapse.
    assert later.loc["context", "r"] > 0.3
    assert later.loc["context", "bias"] < -60


def test_any_time_unit_without_donors(atlas, model):
    days = atlas.copy()
    days.obs["day"] = (days.obs["age_months"] * 2).astype(int)
    days.uns["prompts"]["prompts"][["lapse", "lapse_0", "lapse_1", "time"]] *= 2
    days.uns["prompts"]["params"]["donor_key"] = ""
    generated = as_generated(days, others(atlas, same_age=True))
    mt.tl.generated_ages(days, model, generated=generated, time_key="day", groupby=[])
    scores = mt.get.table(days, "generated_ages").set_index("cells")
    assert (scores["unit"] == "query cell").all()
    assert scores.loc["generated", "r"] > 0.2


def test_a_seed_repeats_and_a_part_is_enough(atlas, model):
    generated = as_generated(atlas, others(atlas))
    first, one = concordance(atlas, model, generated, rng=5)
    again, _ = concordance(atlas, model, generated, rng=5)
    pd.testing.assert_frame_equal(first, again)
    few = np.arange(atlas.n_obs) % 2 == 0
    _, half = concordance(atlas[few | atlas.obs["held_out"]].copy(), model, generated)
    n_all, n_half = (r.uns["annotation_concordance"]["params"]["n_train_cells"] for r in (one, half))
    assert n_half == (few & ~atlas.obs["held_out"]).sum() < n_all
    # A part of the generated cells can be looked at, in any order.
    part, _ = concordance(atlas, model, generated[100:40:-1].copy())
    assert part.loc["generated", "n_cells"] == 60


def test_what_is_refused(atlas, model):
    generated = as_generated(atlas, others(atlas))
    with pytest.raises(ValueError, match="None is left|none is left to compare with"):
        mt.tl.annotation_concordance(atlas[atlas.obs["held_out"]].copy(), model, generated=generated, **KEYS)
    with pytest.raises(KeyError, match="should come from mt.tl.generate"):
        mt.tl.annotation_concordance(atlas, model, generated=atlas, **KEYS)
    with pytest.raises(TypeError, match="Expected an AnnData"):
        mt.tl.annotation_concordance(atlas, model, generated="cells.h5ad", **KEYS)
    with pytest.raises(ValueError, match="generated has no cells"):
        mt.tl.annotation_concordance(atlas, model, generated=generated[:0].copy(), **KEYS)
    with pytest.raises(ValueError, match="differ in 'sex'"):
        mt.tl.annotation_concordance(atlas, model, generated=generated, groupby="sex")
    other = atlas.copy()
    mt.pp.sample_prompts(other, time_key="age_months", groupby="cell_type", task="cell", n_prompts=240, rng=1)
    with pytest.raises(ValueError, match="not generated from these prompts"):
        mt.tl.train_on_generated(other, model, generated=generated, **KEYS)
    elsewhere = generated.copy()
    elsewhere.uns["generate"] = {"params": {"prompts": "nope"}}
    with pytest.raises(KeyError, match="sample_prompts"):
        mt.tl.generated_ages(atlas, model, generated=elsewhere, **AGES)
    rare = atlas[(atlas.obs["cell_type"] != generated.obs["group"].iloc[0]) | atlas.obs["held_out"]].copy()
    with pytest.raises(ValueError, match="have no true cell of donors without a part"):
        mt.tl.annotation_concordance(rare, model, generated=generated, **KEYS)
    one = generated[(generated.obs["group"] == generated.obs["group"].iloc[0]).to_numpy()].copy()
    with pytest.raises(ValueError, match="Need two types"):
        mt.tl.train_on_generated(atlas, model, generated=one, **KEYS)
    with pytest.raises(ValueError, match="n_permutations must be at least 1"):
        mt.tl.train_on_generated(atlas, model, generated=generated, **KEYS, n_permutations=0)
    one_more = atlas[atlas.obs["held_out"] | (atlas.obs["donor_id"] == apart(atlas))].copy()
    with pytest.raises(ValueError, match="a clock needs 3"):
        mt.tl.generated_ages(one_more, model, generated=generated, **AGES, groupby=[])
    wrong = atlas.copy()
    wrong.obs["age_months"] += (np.arange(wrong.n_obs) % 7).astype(int)
    with pytest.raises(ValueError, match="Give the time_key that the prompts were drawn with"):
        mt.tl.generated_ages(wrong, model, generated=generated, **AGES)
    stranger = generated.copy()
    stranger.uns["generate"] = {"params": {"model_sha256": "0"}}
    with pytest.raises(ValueError, match="Another model"):
        mt.tl.generated_ages(atlas, model, generated=stranger, **AGES)


def apart(adata):
    return adata.obs.loc[~adata.obs["held_out"], "donor_id"].iloc[0]


def test_figures(atlas, model, tmp_path):
    """They show what the tables say, after a file too."""
    generated = as_generated(atlas, others(atlas))
    cells = atlas.copy()
    mt.tl.annotation_concordance(cells, model, generated=generated, **KEYS, n_permutations=9)
    mt.tl.train_on_generated(cells, model, generated=generated, **KEYS, n_permutations=2)
    mt.tl.generated_ages(cells, model, generated=generated, **AGES)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")

    ax = mt.pl.annotation_concordance(cells)
    np.testing.assert_allclose(ax.images[0].get_array().sum(axis=1), 100)
    counts = mt.get.annotation_matrix(cells).sum(axis=1)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [f"{name} ({n})" for name, n in counts.items()]

    for measure in ("macro_f1", "accuracy"):
        ax = mt.pl.train_on_generated(cells, measure=measure)
        heights = [patch.get_height() for patch in ax.patches]
        np.testing.assert_allclose(heights, mt.get.table(cells, "train_on_generated")[measure])
    with pytest.raises(ValueError, match="There is no measure"):
        mt.pl.train_on_generated(cells, measure="auc")

    figure = mt.pl.generated_ages(cells)
    read = mt.get.table(cells, "generated_ages", "cells")
    for ax, name in zip(figure.axes, ["generated", "query", "context"], strict=True):
        np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 1], read[name])
    assert "months" in figure.axes[0].get_xlabel()


@pytest.fixture(scope="module")
def small(model):
    adata = mt.datasets.aging_atlas(1800, 30, n_genes=500, seed=3)
    common = adata.obs["cell_type"].value_counts().index[:3]
    return prepare(adata[adata.obs["cell_type"].isin(common)].copy(), model, n_prompts=150)


def evaluate(adata, model, generated, **settings):
    """The summary by measure, and the cells with all results."""
    result = on_copy(mt.tl.evaluate_generated, adata, model, generated=generated, **settings)
    return mt.get.table(result, "evaluate_generated").set_index("measure"), result


def test_evaluation_tells_good_cells_from_bad_ones(small, model, monkeypatch, tmp_path):
    """True cells of the type and age asked for are near 1 throughout; cells of another type, genes shuffled, near 0."""
    monkeypatch.setattr(importlib.import_module("maxtoki_toolkit.tl.doublets"), "N_TREES", 25)
    cells = as_generated(small, others(small, same_age=True))
    good, result = evaluate(small, model, cells, intervals=((200, 620), (621, 1200)))
    assert (good.drop(index="pearson")["place"] > 0.6).all()
    # All audits have left their own results, and the summary repeats them.
    scores = mt.get.table(result, "annotation_concordance").set_index("cells")
    row = good.loc["accuracy"]
    assert (row["value"], row["best"], row["worst"]) == tuple(
        scores.loc[["generated", "query", "permuted"], "accuracy"]
    )
    assert (row["low"], row["high"]) == tuple(scores.loc["generated", ["accuracy_low", "accuracy_high"]])
    singlets = mt.get.table(result, "doublets", "singlets").set_index("population")["singlet_fraction"]
    assert good.loc["singlet_fraction", "value"] == singlets["queries"]
    assert (
        len(good.loc[["pearson"]]) == mt.get.table(result, "differential_rank", "scores")["group"].nunique()
    )
    result.write_h5ad(tmp_path / "cells.h5ad")
    ax = mt.pl.evaluate_generated(anndata.read_h5ad(tmp_path / "cells.h5ad"))
    assert len(ax.get_yticklabels()) == len(good)

    wrong = shuffled(as_generated(small, others(small, another_type=True)))
    unlabelled = small.copy()
    del unlabelled.obs["train"]
    with pytest.warns(UserWarning, match="generation_diversity: Did not find .obs"):
        bad, result = evaluate(unlabelled, model, wrong)
    assert (bad.loc[["accuracy", "macro_f1"], "place"] < 0.2).all()
    assert bad.loc["r", "place"] < good.loc["r", "place"]
    left_out = result.uns["evaluate_generated"]["params"]["left_out"]
    assert set(left_out) == {"generation_diversity", "differential_rank"}


def test_no_evaluation_of_another_models_cells(small, model):
    cells = as_generated(small, others(small))
    cells.uns["generate"] = {"params": {"model_sha256": "0"}}
    with pytest.raises(ValueError, match="Another model"):
        mt.tl.evaluate_generated(small, model, generated=cells)
