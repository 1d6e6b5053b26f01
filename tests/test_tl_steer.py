"""Steering: searches that know what they may not look at, and cells that go where they are led and stay cells."""

import dataclasses
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import on_copy

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.edits import cut_cells, edit_cells
from maxtoki_toolkit.tl._steering import get_steered

N_GENES = 30
GENES = [f"ENSG{i:011d}" for i in range(N_GENES)]
SPECIALS = ["<pad>", "<mask>", "<bos>", "<eos>"]
VOCAB = mt.models.Vocabulary({t: i for i, t in enumerate([*SPECIALS, *GENES])}, dict.fromkeys(GENES, 1.0))
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
DRIVER, MODULE = 20, [21, 22, 23, 24, 25]


def simulate(n, share, seed):
    """Cells of two kinds; in the perturbed ones a driver is at the top, its module above where it was, and others lower."""
    rng = np.random.default_rng(seed)
    perturbed = np.arange(n) < share * n
    order = np.random.default_rng(77).permutation(N_GENES).astype(float)
    order[DRIVER], order[MODULE] = 29, [17, 20, 23, 26, 28]
    place = np.tile(order, (n, 1))
    place[np.ix_(perturbed, [DRIVER])] = -3
    place[np.ix_(perturbed, MODULE)] -= 18
    place = place + rng.normal(size=place.shape) * 2.0
    counts = 40.0 * np.exp(-0.08 * place)
    obs = pd.DataFrame(
        {
            "perturbed": perturbed,
            "control": ~perturbed,
            "donor": [f"d{i % 6}" for i in range(n)],
        },
        index=[f"cell{seed}_{i}" for i in range(n)],
    )
    var = pd.DataFrame({"symbol": [f"g{i}" for i in range(N_GENES)], "ensembl_id": GENES}, index=GENES)
    adata = ad.AnnData(sp.csr_matrix(np.maximum(counts.round(), 1).astype(np.float32)), obs=obs, var=var)
    return adata


@pytest.fixture(scope="module")
def model():
    """Random weights: whatever they say, searches and chains must be right about it."""
    return mt.models.build_model(SHAPE, VOCAB, seed=1)


@pytest.fixture(scope="module")
def cells(model):
    adata = simulate(48, 0.5, 0)
    mt.pp.rank_value_encode(adata, model)
    return adata


SETS = {
    "readout": "embedding",
    "target": "perturbed",
    "donor_key": "donor",
    "genes": [f"g{i}" for i in range(12)],
    "n_cells": None,
    "n_null": 10,
    "n_anchors": 3,
}
RANKS = {
    "readout": "embedding",
    "target": "perturbed",
    "donor_key": "donor",
    "steers": True,
    "genes": ["g20"],
    "mode": "overexpress",
    "n_steps": 16,
    "n_chains": 2,
    "block_size": 4,
    "n_cells": 12,
    "n_anchors": 3,
}


def call(cells, model, **settings):
    """Search sets, or steer cells, with settings by their names, on a copy."""
    steers = settings.pop("steers", False)
    recipe, function = (
        (mt.tl.CellSampling, mt.tl.steer_cells) if steers else (mt.tl.GeneSetSearch, mt.tl.search_gene_sets)
    )
    made, settings = recipe.split(settings)
    on, settings = mt.tl.Cells.split(settings)
    return on_copy(function, cells, model, on=on, **{"sampling" if steers else "search": made}, **settings)


def steer(cells, model, **settings):
    """Short chains, which have not converged and say so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The chains have not converged")
        return call(cells, model, **settings)


def shift_by_hand(cells, model, names, genes, mode):
    """Distance gained by cells when genes are edited, computed one cell at a time."""
    steered = get_steered(
        cells,
        model,
        mt.tl.Cells(use=cells.obs_names.isin(names), target="perturbed"),
        readout="embedding",
        n_cells=None,
        n_anchors=3,
        key=None,
        rng=0,
    )
    token = model.vocab.token_id(genes)
    gained = []
    for i in range(len(steered.rows)):
        one = np.array([i])
        edited = edit_cells(
            steered.whole, one, np.zeros(len(token), int), token, mode, max_length=model.cell_length
        )
        start = cut_cells(steered.whole, model.cell_length)
        start = type(start)(
            start.tokens[start.indptr[i] : start.indptr[i + 1]], np.array([0, start.lengths[i]])
        )
        gained.append(float(steered.distance(start, one)[0] - steered.distance(edited.sequences, one)[0]))
    return gained


def test_chains_that_have_not_converged_say_so(cells, model):
    with pytest.warns(UserWarning, match=r"The chains have not converged \(R-hat [\d.]+, 1.1 at most"):
        call(cells, model, **RANKS)


def test_a_shift_is_what_it_says(cells, model):
    """The estimates are of the donors held out, and are those of the edit by hand."""
    found = steer(cells, model, method="greedy", max_size=2, **SETS)
    effects, genes = mt.get.table(found, "gene_sets"), mt.get.steer_genes(found, key="gene_sets")
    params = found.uns["gene_sets"]["params"]
    assert (params["n_searched"], params["n_judged"]) == (12, 12)
    first = effects.iloc[0]
    assert first["genes"] == genes.iloc[0]["gene"]  # greedy takes the best one first
    assert first["searched_shift"] == pytest.approx(genes["shift"].max())
    assert effects["kind"].tolist() == ["found", "found", "best singles", "best singles"]
    # All cells that may be steered, so that both parts are known.
    every = steer(cells, model, method="greedy", max_size=1, **{**SETS, "n_cells": None, "held_out": 0})
    row = mt.get.table(every, "gene_sets").iloc[0]
    names = cells.obs_names[cells.obs["control"]]
    by_hand = np.mean(shift_by_hand(cells, model, names, [row["genes"]], "delete"))
    assert row["shift"] == pytest.approx(by_hand, abs=1e-4)
    assert row["searched_shift"] == pytest.approx(by_hand, abs=1e-4)


def test_a_wider_beam_is_no_worse(cells, model):
    best = []
    for method in ("greedy", "beam"):
        effects = mt.get.table(
            steer(cells, model, method=method, max_size=3, beam_width=8, **SETS), "gene_sets"
        )
        effects = effects[(effects["kind"] == "found") & (effects["size"] == 3)]
        best.append(effects["searched_shift"].max())
        assert effects["q_value"].notna().all()
        assert (effects["n_units"] == 3).all()  # half of six donors
    assert best[1] >= best[0]


def test_genes_that_no_cell_has(cells, model):
    """An edit that changes nothing is not a shift of 0: it is not known. All others are exactly 0 where nothing changed."""
    lacking = cells.copy()
    X = lacking.layers["rank"].toarray()
    X[:, 3] = 0
    for row in X:
        row[row > 0] = np.argsort(np.argsort(row[row > 0])) + 1
    lacking.layers["rank"] = sp.csr_matrix(X)
    lacking.obs["n_genes_ranked"] = (X > 0).sum(axis=1)
    found = steer(lacking, model, method="greedy", max_size=1, **SETS)
    genes = mt.get.steer_genes(found, key="gene_sets").set_index("symbol")
    assert np.isnan(genes.loc["g3", "shift"])
    assert not genes.loc["g3", "took_effect"]
    assert genes.drop("g3")["shift"].notna().all()
    with pytest.raises(ValueError, match="nothing can be searched"):
        steer(lacking, model, **{**SETS, "genes": ["g3"]})


def test_chains_over_sets(cells, model):
    """The draws favour what scores well; the empty set is where the first chain starts, with a score of exactly 0."""
    settings = {**SETS, "method": "metropolis", "n_steps": 60, "max_size": 2, "temperature": 2}
    found = steer(cells, model, **settings)
    trace, genes = mt.get.table(found, "gene_sets", "trace"), mt.get.steer_genes(found, key="gene_sets")
    assert trace.groupby("chain").size().tolist() == [61] * 4
    first = trace[(trace["chain"] == 0) & (trace["step"] == 0)].iloc[0]
    assert (first["log_target"], first["size"]) == (0, 0)
    assert genes["inclusion"].between(0, 1).all()
    late, early = (
        trace[trace["step"] > 30]["log_target"].mean(),
        trace[trace["step"] == 0]["log_target"].mean(),
    )
    assert late > early
    params = found.uns["gene_sets"]["params"]
    assert params["rhat"] > 0.9
    assert params["effective_size"] > 1
    pd.testing.assert_frame_equal(
        mt.get.table(steer(cells, model, **settings), "gene_sets"), mt.get.table(found, "gene_sets")
    )
    weighed = steer(cells, model, **{**settings, "n_steps": 4, "likelihood_weight": 1.0})
    assert (mt.get.steer_genes(weighed, key="gene_sets")["shift"] != genes["shift"]).any()


def test_held_genes_stay(cells, model):
    """At the top, at each draw; deleted genes never come back; the layers hold what the tables say."""
    found = steer(cells, model, **RANKS)
    steered = mt.get.table(found, "steer", "cells")["cell"]
    ranks = pd.DataFrame(found.layers["steer_rank"].toarray(), found.obs_names, found.var["symbol"])
    assert (ranks.loc[steered, "g20"] == 1).all()
    assert (ranks.loc[~ranks.index.isin(steered)] == 0).all().all()
    for row in ranks.loc[steered].to_numpy():
        assert sorted(row[row > 0]) == list(range(1, (row > 0).sum() + 1))
    level = pd.DataFrame(found.layers["steer_level"].toarray(), found.obs_names, found.var["symbol"])
    np.testing.assert_allclose(level.loc[steered, "g20"], 1)
    genes = mt.get.steer_genes(found).set_index("symbol")
    assert genes.loc["g20", "held"]
    assert genes["held"].sum() == 1
    np.testing.assert_allclose(level.loc[steered].mean().loc[genes.index], genes["level_steered"], atol=1e-5)
    gone = steer(cells, model, **{**RANKS, "mode": "delete"})
    assert gone.layers["steer_level"].toarray()[:, 20].max() == 0
    assert gone.layers["steer_rank"].dtype == np.uint16


def test_nothing_is_nothing(cells, model):
    """No gene held and no step taken: each cell as it was, to the last number."""
    found = steer(cells, model, **{**RANKS, "genes": None, "n_steps": 0})
    rows = found.obs_names.get_indexer(mt.get.table(found, "steer", "cells")["cell"])
    np.testing.assert_array_equal(
        found.layers["steer_rank"][rows].toarray(), cells.layers["rank"][rows].toarray()
    )
    table = mt.get.table(found, "steer", "cells")
    for measure in ("log_likelihood", "distance"):
        for state in ("abrupt", "unsteered", "steered"):
            np.testing.assert_allclose(table[f"{measure}_{state}"], table[f"{measure}_start"], rtol=1e-6)
    assert not table["took_effect"].any()


def test_cells_are_on_their_own(cells, model):
    """A cell is steered alike in any company and order."""
    found = steer(cells, model, **{**RANKS, "use": "control", "n_cells": None})
    some = mt.get.table(found, "steer", "cells")["cell"].to_numpy()[[5, 2, 9]]
    part = cells[cells.obs["perturbed"] | cells.obs_names.isin(some)].copy()
    part = part[np.r_[np.arange(part.n_obs - 3), part.n_obs - 1, part.n_obs - 3, part.n_obs - 2]].copy()
    other = steer(part, model, **{**RANKS, "use": "control", "n_cells": None})
    columns = ["log_likelihood_steered", "distance_steered", "acceptance"]
    one, two = (
        mt.get.table(x, "steer", "cells").set_index("cell").loc[some, columns] for x in (found, other)
    )
    np.testing.assert_allclose(one, two, atol=1e-4)
    np.testing.assert_array_equal(
        other[some].layers["steer_rank"].toarray(), found[some].layers["steer_rank"].toarray()
    )


def test_likelihood_of_reference_cells(cells, model):
    """The distance is what the model says of the anchors after the cell, where it can read both."""
    with pytest.raises(ValueError, match="too few for two cells"):
        steer(cells, model, **{**RANKS, "readout": "likelihood"})
    model = dataclasses.replace(model, cell_length=32)
    found = steer(cells, model, **{**RANKS, "readout": "likelihood", "n_steps": 2, "n_cells": 3})
    assert found.uns["steer"]["params"]["unit"] == "nats a gene"
    table = mt.get.table(found, "steer", "cells")
    assert (table["distance_start"] > 0).all()
    assert table["distance_abrupt"].notna().all()


def test_refusals(cells, model):
    for settings, message in [
        ({"method": "annealing"}, "no method"),
        ({"readout": "happiness"}, "no readout"),
        ({"mode": "double"}, "no mode"),
        ({"target": None}, "needs cells"),
        ({"use": "perturbed"}, "led to itself"),
        ({"genes": ["g1", "g1"]}, "twice"),
        ({"genes": []}, "no gene to edit"),
        ({"burn_in": 1.0}, "burn_in"),
        ({"strength": 0}, "strength"),
        ({"n_cells": 1}, "cannot be divided"),
        ({"readout": "timelapse", "target": None}, "cannot tell time"),
    ]:
        with pytest.raises(ValueError, match=message):
            steer(cells, model, **{**SETS, **settings})
    with pytest.raises(KeyError, match="g99"):
        steer(cells, model, **{**SETS, "genes": ["g99"]})
    found = steer(cells, model, method="greedy", max_size=1, **SETS)
    with pytest.raises(KeyError, match="which mt.tl.search_gene_sets.* writes .steps of the chains"):
        mt.get.table(found, "gene_sets", "trace")
    with pytest.raises(KeyError, match=r"Run mt.tl.steer_cells"):
        mt.get.table(found, "steer", "cells")


def test_figures(cells, model):
    assert len(mt.pl.search_gene_sets(steer(cells, model, method="beam", max_size=2, **SETS)).axes) == 2
    axes = mt.pl.steer_cells(steer(cells, model, **RANKS)).axes
    assert len(axes) == 3
    assert "log-likelihood" in axes[0].get_ylabel()


def levels(adata, model):
    from maxtoki_toolkit.tl._rank_features import rank_features

    return np.asarray(rank_features(adata, model).todense())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_steered_cells_are_likelier_and_nearer_than_edits(tmp_path):
    """A planted response to a driver: cells with the driver on top, led to training cells, against the driver alone."""
    train, test = simulate(600, 0.5, 1), simulate(60, 0.5, 2)
    for adata in (train, test):
        mt.pp.rank_value_encode(adata, VOCAB)
    shape = {**SHAPE, "max_position_embeddings": 32, "initializer_range": 0.02}
    model = mt.train.pretrain(
        train,
        VOCAB,
        tmp_path,
        shape=shape,
        recipe=mt.train.PretrainRecipe.of(max_steps=250, batch_size=32, learning_rate=3e-3, device="cpu"),
    )
    both = ad.concat([train, test], merge="same")
    both.uns["rank_value_encode"] = train.uns["rank_value_encode"]
    both.obs["anchor"] = both.obs["perturbed"] & both.obs_names.isin(train.obs_names)
    both.obs["led"] = both.obs["control"] & both.obs_names.isin(test.obs_names)
    mt.tl.steer_cells(
        both,
        model,
        genes=["g20"],
        mode="overexpress",
        readout="embedding",
        on=mt.tl.Cells(use="led", target="anchor", donor_key="donor"),
        sampling=mt.tl.CellSampling.of(n_cells=12, n_steps=300, n_chains=2, proposal="position", strength=30),
    )
    effects = mt.get.table(both, "steer").set_index(["measure", "state"])
    steered = effects.xs("steered", level="state")
    assert steered.loc["log_likelihood", "difference_low"] > 0  # likelier than the edit alone
    assert steered.loc["distance", "difference_high"] < 0  # and nearer to the target
    # Nearer to true perturbed cells that neither the model nor the anchors have seen.
    true = levels(test[test.obs["perturbed"]].copy(), model).mean(axis=0)
    genes = mt.get.steer_genes(both).set_index("gene").loc[GENES]
    others = np.arange(N_GENES) != DRIVER
    error = {
        state: np.sqrt(((genes[f"level_{state}"].to_numpy() - true)[others] ** 2).mean())
        for state in ("start", "abrupt", "unsteered", "steered")
    }
    assert error["steered"] < 0.7 * error["abrupt"]
    assert error["steered"] < 0.9 * error["unsteered"]  # the model knows some of the response by itself
    rise = (genes["level_steered"] - genes["level_start"]).to_numpy()
    assert set(np.argsort(-rise)[:6]) == {DRIVER, *MODULE}
