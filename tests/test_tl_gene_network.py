"""Gene networks: planted attention is found, places alone make no edges, and regulons that mean nothing score nothing."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from sklearn.metrics import average_precision_score, roc_auc_score

import maxtoki_toolkit as mt
from maxtoki_toolkit.models import attention
from maxtoki_toolkit.models.attention import pair_classes, place_steps, stream_pairs
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.stats.regulons import Ranked, permuted_edges, scorable, score_regulons
from maxtoki_toolkit.tl._cells import get_sequences

PLANTED, NEARBY, UNIFORM = (0, 0), (0, 1), (0, 2)
SIZE = 16  # of a head
N_GENES, N_REGULONS, N_TARGETS = 80, 6, 8
SETTINGS = {"groupby": "kind", "donor_key": "donor", "n_cells": 12, "n_permutations": 199}


@pytest.fixture(scope="module")
def made():
    """Cells, regulons, and a model of one layer with a head from targets to their regulator, and one for what is near."""
    names = mt.datasets.aging_atlas(20, 10, n_genes=500).var_names[:N_GENES]
    rng = np.random.default_rng(0)
    n_donors, n_cells = 8, 24
    donor = np.repeat(np.arange(n_donors), n_cells)
    # Genes have ranks of their own, in which cells differ.
    log_mean = np.linspace(5.5, 3, N_GENES) + rng.normal(0, 0.5, (len(donor), N_GENES))
    counts = rng.poisson(np.exp(log_mean)) * (rng.random(log_mean.shape) < 0.9)
    obs = pd.DataFrame(
        {"donor": donor.astype(str), "kind": np.resize(["a", "b"], len(donor))},
        index=[f"c{i}" for i in range(len(donor))],
    )
    adata = AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=names))
    mt.pp.map_genes(adata)
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *names]
    vocab = mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(names, 1.0))
    shape = {
        "hidden_size": 64,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "head_dim": SIZE,
        "max_position_embeddings": 96,
        # From the fourth rotation on they stand still over a cell.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e12},
    }
    model = mt.models.build_model(shape, vocab)
    mt.pp.rank_value_encode(adata, model)
    order = rng.permutation(N_GENES)
    sources = np.sort(order[:N_REGULONS])
    targets = order[N_REGULONS : N_REGULONS * (1 + N_TARGETS)].reshape(N_REGULONS, N_TARGETS)
    _set_by_hand(model, vocab, names, sources, targets)
    regulons = pd.DataFrame(
        {"source": np.repeat(names[sources], N_TARGETS), "target": names[targets.ravel()], "weight": 1.0}
    )
    return adata, model, regulons


def _set_by_hand(model, vocab, names, sources, targets):
    token = vocab.token_id(np.asarray(names)).astype(int)
    with torch.no_grad():
        embedding = torch.zeros_like(model.hf.model.embed_tokens.weight)
        embedding[:, 0] = 1  # what all tokens share
        feature = torch.ones(len(embedding), dtype=torch.long)
        for i in range(N_REGULONS):
            feature[token[sources[i]]] = 2 + i
            feature[token[targets[i]]] = 2 + N_REGULONS + i
        embedding[torch.arange(len(embedding)), feature] = 1
        model.hf.model.embed_tokens.weight.copy_(embedding)
        part = model.hf.model.layers[0].self_attn
        for weight in (part.q_proj, part.k_proj, part.v_proj, part.o_proj):
            weight.weight.zero_()
        unit = (64 / 2) ** -0.5  # a feature after the norm is 1 over this
        still = [3, 4, 5, 6, 7, 11]
        for i in range(N_REGULONS):
            part.q_proj.weight[still[i], 2 + N_REGULONS + i] = unit * 2 * SIZE**0.5
            part.k_proj.weight[still[i], 2 + i] = unit
        # The second rotation turns by 0.03 a token.
        part.q_proj.weight[SIZE + 1, 0] = unit * 60 * SIZE**0.5
        part.k_proj.weight[SIZE + 1, 0] = unit


def neighbours(adata, n=N_TARGETS):
    """Regulons of nothing but place: a source's targets come right after it in most cells."""
    # Genes are sorted by their mean count.
    sources = np.arange(5, 65, 10)
    return pd.DataFrame(
        {
            "source": np.repeat(adata.var_names[sources], n),
            "target": adata.var_names[(sources[:, None] + np.arange(1, n + 1)).ravel()],
        }
    )


@pytest.fixture(scope="module")
def found(made):
    """Networks of the planted head, of the one for what is near, and of all heads."""
    adata, model, regulons = made
    adata = adata.copy()
    for key, heads, known in [
        ("gene_network", [PLANTED], regulons),
        ("all", None, regulons),
        ("near", [NEARBY], neighbours(adata)),
        ("uniform", [UNIFORM], neighbours(adata)),
    ]:
        mt.tl.gene_network(adata, model, heads=heads, regulons=known, key_added=key, **SETTINGS)
    mt.tl.gene_network(
        adata, model, heads=[PLANTED], regulons=regulons, directed=True, key_added="directed", **SETTINGS
    )
    return adata


def scores(adata, key="gene_network", group="a"):
    table = mt.get.table(adata, key, "scores")
    return table[table["group"] == group].set_index("predictor")


def test_planted_edges_are_recovered(found, made):
    planted = set(zip(made[2]["source"], made[2]["target"], strict=True))
    for key in ("gene_network", "directed", "all"):
        for group in ("a", "b"):
            row = scores(found, key, group).loc["attention"]
            assert row["auroc"] > 0.95
            assert row["auroc_low"] > 0.9
            assert row["average_precision"] > 0.8 > 0.5 > row["null_average_precision"]
            assert row["q_value"] < 0.05
            assert row["difference_low"] > 0.2
            assert row["n_sources"] == N_REGULONS
            # A target that always ranks above its source cannot look at it.
            assert (row["n_edges"] == N_REGULONS * N_TARGETS) == (key != "directed")
    # Nobody planted coexpression.
    assert 0.35 < scores(found).loc["coexpression", "auroc"] < 0.65
    edges = mt.get.table(found, "directed").query("group == 'a'").head(30)
    pairs = list(zip(edges["source"], edges["target"], strict=True))
    assert np.mean([pair in planted for pair in pairs]) > 0.95
    assert edges["known"].tolist() == [pair in planted for pair in pairs]
    np.testing.assert_allclose(edges["log2_ratio"], np.log2(edges["mass"] / edges["expected"]), atol=1e-4)
    # The target sees its source with exp(2) times the weight of others.
    assert edges["log2_ratio"].median() == pytest.approx(2 / np.log(2), rel=0.2)
    assert (edges[["half_1", "half_2"]].dropna() > 1.5).all(axis=None)
    groups = found.uns["gene_network"]["groups"].set_index("group")
    assert groups.loc["a", "n_donors"] == 8
    assert groups.loc["a", "replication_attention"] > abs(groups.loc["a", "replication_coexpression"])


def test_without_direction_each_pair_is_there_once(found):
    edges = mt.get.table(found, "gene_network").query("group == 'a'")
    assert not edges.attrs["directed"]
    pairs = [frozenset(p) for p in zip(edges["source"], edges["target"], strict=True)]
    assert len(set(pairs)) == len(pairs)
    matrix = found.uns["gene_network"]["matrix"]
    # Sources and targets.
    assert matrix.shape == (2, N_REGULONS * (1 + N_TARGETS), N_REGULONS * (1 + N_TARGETS))
    np.testing.assert_array_equal(matrix, matrix.transpose(0, 2, 1))
    assert not np.array_equal(*(found.uns["directed"]["matrix"][[0, 0]] * [[[1]], [[0]]]))


def test_places_alone_make_no_edges(found):
    """The sum of weights finds genes that stand next to each other; what is left over the expectation does not."""
    for group in ("a", "b"):
        near = scores(found, "near", group)
        assert near.loc["attention_sum", "auroc"] > 0.8
        assert near.loc["attention", "auroc"] == pytest.approx(0.5, abs=0.1)
        assert near.loc["attention", "auroc_low"] < 0.5 < near.loc["attention", "auroc_high"]
        uniform = scores(found, "uniform", group)
        assert uniform.loc["attention", ["auroc", "p_value"]].tolist() == [0.5, 1]
    matrix = found.uns["uniform"]["matrix"]
    np.testing.assert_allclose(matrix[np.isfinite(matrix)], 0, atol=1e-4)


@pytest.mark.parametrize("block", [1 << 12, 1 << 26])
def test_sums_are_those_of_the_whole_matrices(made, block, monkeypatch):
    adata, made_by_hand, _ = made
    monkeypatch.setattr(attention, "_BLOCK", block)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "initializer_range": 0.4,
    }
    model = mt.models.build_model(shape, made_by_hand.vocab)
    sequences = get_sequences(adata[:5].copy(), model)
    n_genes, heads, unit = 30, [(0, 1), (1, 0), (1, 3)], np.array([0, 3, 3, 0, 3])
    gene = np.where(model.vocab.gene_of_token != "", n_genes, -1)
    gene[4 : 4 + n_genes] = np.arange(n_genes)
    code, steps = gene[sequences.tokens], place_steps(96)
    mass, places = np.zeros((4, n_genes, n_genes)), None
    for part in stream_pairs(model, sequences, code, n_genes, unit, heads=heads, max_tokens=200):
        places = np.zeros((2, 4, part.places.shape[2])) if places is None else places
        mass[part.units] += part.pairs
        places[:, part.units] += part.places
    expected, level = np.zeros_like(mass), np.zeros_like(places)
    model.hf.set_attn_implementation("eager")
    for row in range(5):
        mine = slice(sequences.indptr[row], sequences.indptr[row + 1])
        tokens = sequences.tokens[mine].astype(int)
        with torch.inference_mode():
            whole = model.hf(torch.tensor(tokens)[None], output_attentions=True).attentions
        weights = sum(whole[i][0, j] for i, j in heads).numpy()
        for q in range(len(tokens)):
            for k in range(q):
                a, b = code[mine][[q, k]]
                if min(a, b) < 0:
                    continue
                level[0, unit[row], pair_classes(q, k, steps)] += weights[q, k] * (q + 1)
                level[1, unit[row], pair_classes(q, k, steps)] += 1
                if max(a, b) < n_genes:
                    expected[unit[row], a, b] += weights[q, k]
    np.testing.assert_allclose(mass, expected, atol=1e-5)
    np.testing.assert_array_equal(places[1], level[1])
    np.testing.assert_allclose(places[0], level[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="genes has 3 entries"):
        next(stream_pairs(model, sequences, code[:3], n_genes, unit, heads=heads))
    long = Sequences(np.full(97, 5, dtype=np.int32), np.array([0, 97]))
    with pytest.raises(ValueError, match="more than the 96"):
        next(stream_pairs(model, long, np.zeros(97, dtype=int), 1, np.zeros(1, dtype=int), heads=heads))


def test_neither_batches_nor_order_change_the_result(found, made, monkeypatch):
    adata, model, regulons = made
    other = adata[np.random.default_rng(3).permutation(adata.n_obs)].copy()
    monkeypatch.setattr(mt.settings, "max_tokens", 100)
    mt.tl.gene_network(other, model, heads=[PLANTED], regulons=regulons, **SETTINGS)
    one, two = (a.uns["gene_network"] for a in (found, other))
    np.testing.assert_allclose(one["matrix"], two["matrix"], atol=1e-4)
    columns = ["auroc", "average_precision", "auroc_low"]
    np.testing.assert_allclose(one["scores"][columns], two["scores"][columns], atol=0.01)


def test_scores_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    # With ties.
    values = rng.integers(0, 6, (2, 5, 40)).astype(float)
    pairs = rng.random((5, 40)) < 0.8
    edges = pairs & (rng.random((5, 40)) < 0.3)
    ranked = Ranked(values, pairs)
    auroc, precision = ranked.auroc(edges), ranked.average_precision(edges)
    for p in range(2):
        for s in range(5):
            truth, score = edges[s, pairs[s]], values[p, s, pairs[s]]
            assert auroc[p, s] == pytest.approx(roc_auc_score(truth, score))
            assert precision[p, s] == pytest.approx(average_precision_score(truth, score))


def test_the_null_moves_and_keeps_degrees():
    rng = np.random.default_rng(0)
    pairs = rng.random((12, 60)) < 0.9
    edges = pairs & (rng.random((12, 60)) < np.linspace(0.05, 0.5, 60))
    drawn = list(permuted_edges(edges, pairs, 20, rng))
    for one in drawn:
        np.testing.assert_array_equal(one.sum(axis=0), edges.sum(axis=0))
        np.testing.assert_array_equal(one.sum(axis=1), edges.sum(axis=1))
        assert not (one & ~pairs).any()
    assert np.mean([(one & ~edges).sum() / edges.sum() for one in drawn]) > 0.3
    assert len({one.tobytes() for one in drawn}) == 20


def test_regulons_that_mean_nothing_are_called_at_the_stated_rate():
    """Targets differ in how many sources they have, and a predictor that knows it has a high AUROC, which is no finding."""
    rng = np.random.default_rng(1)
    p, auroc = [], []
    n, n_sources = 40, 8
    for _ in range(40):
        hub = rng.normal(-1.2, 1, n)
        known = np.zeros((n, n), dtype=bool)
        odds = rng.normal(0, 0.5, (n_sources, 1)) + hub + 0.3
        known[:n_sources] = rng.random((n_sources, n)) < 1 / (1 + np.exp(-odds))
        values = {
            "coexpression": rng.normal(size=(n, n)),
            "hubs": np.tile(hub, (n, 1)),
        }
        seen = rng.random((n, n)) < 0.9
        table = score_regulons(values, known, seen, 99, rng, reference="coexpression").set_index("predictor")
        p.append(table["p_value"])
        auroc.append(table["auroc"])
    called = (np.array(p) < 0.1).mean(axis=0)
    assert np.mean(auroc, axis=0)[1] > 0.65
    # 40 draws: 0.1 on average, up to 0.2 in 98% of cases.
    assert (called <= 0.2).all()
    assert (called > 0.01).any()


def test_what_can_be_scored():
    known, seen = np.zeros((20, 20), dtype=bool), np.ones((20, 20), dtype=bool)
    for source in range(3):
        known[source, 5 + 4 * source : 9 + 4 * source] = True
    known[3, 17:19] = True  # too few
    rows, columns, edges, pairs = scorable(known, seen)
    np.testing.assert_array_equal(rows, [0, 1, 2])
    np.testing.assert_array_equal(columns, np.arange(5, 17))
    assert edges.sum() == 12
    seen[0, 5:7] = False  # two of its targets are left
    assert scorable(known, seen)[0].tolist() == [1, 2]
    assert (
        len(
            score_regulons({"x": np.ones((20, 20))}, known, seen, 99, np.random.default_rng(0), reference="x")
        )
        == 0
    )


def test_planted_drivers_of_the_atlas_are_coexpressed():
    """Counts know the drivers' targets; an untrained model does not."""
    adata = mt.datasets.aging_atlas(600, 10, n_genes=500, seed=2)
    drivers = adata.uns["truth"]["drivers"]
    regulons = drivers.rename(columns={"tf": "source"})
    mt.pp.map_genes(adata)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    }
    model = mt.models.build_model(shape, mt.models.Vocabulary.from_anndata(adata))
    mt.pp.rank_value_encode(adata, model)
    mt.tl.gene_network(adata, model, donor_key="donor_id", n_cells=30, regulons=regulons, n_permutations=199)
    table = mt.get.table(adata, "gene_network", "scores").set_index("predictor")
    assert table.loc["coexpression", "auroc"] > 0.55
    assert table.loc["coexpression", "q_value"] < 0.05
    assert table.loc["attention", "q_value"] > 0.05
    assert table.loc["attention", "difference"] < -0.05


def test_results_survive_a_file(found, tmp_path):
    found.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    for name in ("edges", "scores", "groups", "genes"):
        again, expected = (mt.get.table(adata, "gene_network", name) for adata in (read, found))
        pd.testing.assert_frame_equal(again, expected, check_dtype=False)
    assert len(mt.pl.gene_network(read).axes) == 2


def test_figure(found):
    figure = mt.pl.gene_network(found, key="near")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][0] == "attention over expectation"
    assert figure.axes[0].get_title(loc="left").startswith("a, 96 cells of 8 donors")
    assert figure.axes[0].get_xlabel() == "AUROC, mean over sources"


def test_few_cells_and_no_counts(made):
    """A group without pairs has no scores; ranks stand in for counts."""
    adata, model, regulons = made
    adata = adata.copy()
    adata.obs = adata.obs.drop(columns="donor")
    adata.obs["kind"] = np.where(np.arange(adata.n_obs) < 4, "few", "many")
    del adata.X
    mt.tl.gene_network(adata, model, groupby="kind", n_cells=60, regulons=regulons, n_permutations=99)
    result = adata.uns["gene_network"]
    assert result["params"]["expression"] == "ranks"
    assert result["groups"]["n_pairs"].tolist()[0] == 0
    assert set(mt.get.table(adata, "gene_network")["group"]) == {"many"}
    assert set(mt.get.table(adata, "gene_network", "scores")["group"]) == {"many"}
    assert mt.get.table(adata, "gene_network", "groups")["n_donors"].eq(0).all()


def test_what_is_refused(made):
    adata, model, regulons = made
    adata = adata.copy()
    adata.obs = adata.obs.drop(columns="donor")

    def refuse(match, error=ValueError, **settings):
        with pytest.raises(error, match=match):
            mt.tl.gene_network(adata, model, **settings)

    refuse("n_cells must be at least 1", n_cells=0)
    refuse("n_permutations must be at least 99", n_permutations=5)
    refuse("Available columns", KeyError, groupby="nothing")
    refuse(r"There is no head \(0, 4\); this model has 1 layers of 4 heads", heads=[(0, 4)])
    refuse("heads is empty", heads=[])
    refuse("Did not find the gene 'XYZ'", KeyError, genes=["XYZ"])
    refuse("1 of the genes are read", genes=adata.var_names[:1])
    refuse("no column 'source'", regulons=regulons.rename(columns={"source": "tf"}))
    refuse("must be a DataFrame", TypeError, regulons={"source": []})
    refuse("None of the 48 edges", regulons=regulons.assign(weight=0))
    refuse("No group has 3 sources with 3 targets", regulons=regulons.head(10))
    refuse("is read together in 10 cells", n_cells=5)
    with pytest.raises(KeyError, match="Run mt.tl.gene_network"):
        mt.get.table(adata, "gene_network")
    assert "gene_network" not in adata.uns
    mt.tl.gene_network(adata, model, n_cells=20)
    with pytest.raises(KeyError, match="lacks 'scores', which mt.tl.gene_network.*with regulons"):
        mt.get.table(adata, "gene_network", "scores")
