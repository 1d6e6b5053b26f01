"""Families of features: planted ones are found, independent features have none, order and batches do not matter."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.coactivation import count_coactivation, count_pairs
from maxtoki_toolkit.stats.coactivity import Counts, broader, resampled_phi, together
from maxtoki_toolkit.stats.families import Finder, agreement, overlap, stability
from maxtoki_toolkit.tl._cells import get_sequences

N_FAMILIES, SIZE, N_ALONE = 4, 6, 12
N_FEATURES = N_FAMILIES * SIZE + N_ALONE
TRUTH = np.repeat([*range(N_FAMILIES), -1], [SIZE] * N_FAMILIES + [N_ALONE])
N_GENES, N_READ = 3000, 100
FEW = {"n_bootstrap": 6}


def model_of(has):
    """A model whose state at a gene is its row of `has`, and the autoencoder that reads it as it is."""
    n_genes, width = has.shape
    genes = [f"ENSG{i:011d}" for i in range(n_genes)]
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    vocab = mt.models.Vocabulary({token: i for i, token in enumerate(tokens)}, dict.fromkeys(genes, 1.0))
    shape = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = mt.models.build_model({**shape, "max_position_embeddings": 128}, vocab)
    with torch.no_grad():
        for block in model.hf.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.hf.model.embed_tokens.weight[4:] = torch.from_numpy(has).float()
    card = {"block": 0, "site": "output", "model_sha256": model.identity, "model": "planted"}
    sae = mt.models.SparseAutoencoder(width, width, width, card=card).eval()
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(width))
    return model, sae


def cells_of(model, counts):
    adata = AnnData(csr_matrix(counts.astype(np.float32)))
    adata.var_names = [f"ENSG{i:011d}" for i in range(counts.shape[1])]
    adata.obs_names = [f"cell_{i}" for i in range(len(counts))]
    mt.pp.rank_value_encode(adata, model.vocab)
    return adata


@pytest.fixture(scope="module")
def planted():
    """Genes with features of one of four families, or none; cells that read more genes of one, by type."""
    rng = np.random.default_rng(0)
    family = np.where(rng.random(N_GENES) < 0.28, rng.integers(N_FAMILIES, size=N_GENES), -1)
    chance = np.where((family[:, None] == TRUTH) & (TRUTH >= 0), 0.7, 0.03)
    chance[:, TRUTH < 0] = 0.05
    model, sae = model_of((rng.random(chance.shape) < chance).astype(float))
    kind = rng.integers(N_FAMILIES, size=200)
    counts = np.zeros((200, N_GENES))
    for row, own in zip(counts, kind, strict=True):
        weight = np.where(family == own, 2.0, 1.0)
        read = rng.choice(N_GENES, N_READ, replace=False, p=weight / weight.sum())
        row[read] = rng.permutation(N_READ) + 1
    adata = cells_of(model, counts)
    adata.obs["kind"] = pd.Categorical([f"kind {i}" for i in kind])
    adata.obs["half"] = np.where(rng.random(200) < 0.5, "a", "b")
    adata.obs["donor_id"] = [f"donor {i}" for i in rng.integers(8, size=200)]
    return adata, model, sae, family


def found_of(planted, **settings):
    adata, model, sae, _ = planted
    mt.tl.feature_families(adata, model, sae, **{**FEW, **settings})
    return adata.uns["feature_families"]


def labels_of(result, group="all"):
    table = result["features"]
    own = table[table["group"] == group].set_index("feature")["family"]
    return own.reindex(range(N_FEATURES), fill_value=-1).to_numpy()


@pytest.mark.parametrize("on", ["genes", "cells"])
@pytest.mark.parametrize("method", ["leiden", "hierarchical"])
def test_planted_families_are_found(planted, method, on):
    result = found_of(planted, method=method, on=on)
    families = result["families"]
    found = labels_of(result)
    if on == "genes":
        assert families["size"].tolist() == [SIZE] * N_FAMILIES
        assert (found[TRUTH < 0] == -1).all()
        assert (families["support"] > 0.95).all()
        assert (result["features"]["stability"].dropna() > 0.95).all()
    assert adjusted_rand_score(TRUTH[TRUTH >= 0], found[TRUTH >= 0]) == 1
    assert families["supported"].all()
    assert (families["null_support"] < 0.5).all()
    inside = TRUTH[result["edges"][["feature_1", "feature_2"]].to_numpy()]
    assert (inside[:, 0] == inside[:, 1]).mean() > 0.9
    edges = result["edges"]
    assert ((edges["phi_low"] < edges["phi"]) & (edges["phi"] < edges["phi_high"])).all()


def test_top_genes_and_places_are_those_of_the_family(planted):
    adata, _, _, family = planted
    result = found_of(planted)
    of_gene = dict(zip(adata.var_names, family, strict=True))
    found = labels_of(result)
    for row in result["families"].itertuples():
        own = TRUTH[found == row.family]
        assert {of_gene[gene] for gene in row.top_genes.split(", ")} == {own[0]}
    features = result["features"]
    place = features.loc[features["place"] >= 0, "place"]
    assert sorted(place) == list(range(N_FAMILIES * SIZE))
    assert (features.sort_values("place").query("place >= 0")["family"].diff().fillna(0) != 0).sum() == 3
    tree = result["tree"]
    assert tree["n_families"].tolist()[-1] == N_FAMILIES
    assert (tree["height"].diff().dropna() >= 0).all()


def test_neither_order_nor_batches_matter(planted):
    adata, model, sae, _ = planted
    expected = found_of(planted, groupby="half")
    mixed = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    found = found_of((mixed, model, sae, None), groupby="half")
    for table in ("families", "features", "edges", "tree", "agreement"):
        pd.testing.assert_frame_equal(found[table], expected[table])
    unit = np.arange(adata.n_obs) % 7
    sequences = get_sequences(adata, model)
    one, other = (
        count_coactivation(model, sae, sequences, unit, unit % 2, max_tokens=n) for n in (200, 20_000)
    )
    for a, b in zip(one, other, strict=True):
        assert (a != b).sum() == 0
    # A pair at a place is a pair of features of its gene.
    has = model.hf.model.embed_tokens.weight[4:].detach().numpy() > 0
    read = adata.layers["rank"].toarray()[unit == 3] > 0
    expected = has.astype(int).T @ (read.sum(axis=0)[:, None] * has)
    np.testing.assert_array_equal(one.pairs[3 * N_FEATURES : 4 * N_FEATURES].toarray(), expected)


def test_groups_agree_and_donors_are_resampled(planted):
    result = found_of(planted, groupby="half", donor_key="donor_id")
    assert result["params"]["unit_of_inference"] == "donor"
    assert result["params"]["n_units"] == 8
    row = result["agreement"].iloc[0]
    assert row["rand"] > 0.9
    assert row["rand_null_high"] < 0.2
    assert row["p_value"] == row["q_value"] == 0.001
    assert set(result["families"]["group"]) == {"all", "a", "b"}
    by_kind = found_of(planted, groupby="kind")["families"]
    by_kind = by_kind[by_kind["group"] == "all"]
    assert by_kind["most_active"].nunique() == N_FAMILIES


def independent(seed, n_cells=240, n_places=60, width=30, broad=0.2):
    """Counts of features that are independent within cells, of which each has its own taste."""
    rng = np.random.default_rng(seed)
    chance = np.clip(rng.uniform(0.03, broad, width) * rng.lognormal(0, 0.5, (n_cells, width)), 0, 0.5)
    active = rng.random((n_cells, n_places, width)) < chance[:, None, :]
    cell, _, feature = np.nonzero(active)
    place = np.unique(np.argwhere(active)[:, :2] @ [n_places, 1], return_inverse=True)[1]
    unit = np.arange(n_cells) % 24
    pairs = count_pairs(place, feature, unit[cell], 24, width)
    return Counts(pairs, csr_matrix(active.sum(axis=1)), np.full(n_cells, n_places), unit), active


def test_independent_features_have_no_families():
    shares = []
    for seed in range(4):
        counts, _ = independent(seed)
        units = list(counts.units(np.arange(24), np.arange(30)))
        found = together(units)
        upper = np.triu_indices(30, 1)
        shares.append((found.p_value[upper] < 0.05).mean())
        assert (found.q_value[upper] > 0.01).all()
        covered = (found.low[upper] < 0) & (found.high[upper] > 0)
        assert covered.mean() > 0.9
        # As many edges as families would take are not found again.
        find = Finder("leiden", 1.0, 0.1, 0)
        weights = np.random.default_rng(seed).multinomial(24, np.full(24, 1 / 24), size=10)
        whole, *again = [
            find.again(phi, 40) for phi in resampled_phi(units, np.vstack([np.ones(24, int), weights]))
        ]
        assert overlap(whole, again).mean() < 0.6
        assert np.nanmean(stability(whole, again)) < 0.7
    assert 0.03 < np.mean(shares) < 0.06  # the t test is careful with pairs that are rarely together


def test_the_null_has_the_mean_and_variance_of_shuffled_places():
    counts, active = independent(0, n_cells=12, width=6, broad=0.4)
    rng = np.random.default_rng(0)
    unit = next(Counts(*counts[:3], counts.unit * 0).units(np.zeros(1, int), np.arange(6)))
    upper = np.triu_indices(6, 1)
    drawn = np.array([unit.shuffled(rng).observed[upper] for _ in range(1000)])
    shuffled = []
    for _ in range(1000):
        flat = rng.permuted(active, axis=1).reshape(-1, 6).astype(int)
        shuffled.append((flat.T @ flat)[upper])
    for null in (drawn, np.array(shuffled)):
        np.testing.assert_allclose(null.mean(axis=0), unit.expected[upper], rtol=0.05)
        np.testing.assert_allclose(null.var(axis=0), unit.variance[upper], rtol=0.2)


def test_broad_features_are_parents_of_narrow_ones():
    rng = np.random.default_rng(0)
    active = rng.random((200, 50, 6)) < 0.08
    active[..., 1] = active[..., 0] & (rng.random((200, 50)) < 0.3)
    cell, _, feature = np.nonzero(active)
    place = np.unique(np.argwhere(active)[:, :2] @ [50, 1], return_inverse=True)[1]
    unit = np.arange(200) % 20
    counts = Counts(
        count_pairs(place, feature, unit[cell], 20, 6),
        csr_matrix(active.sum(axis=1)),
        np.full(200, 50),
        unit,
    )
    parent, share, chance = broader(together(counts.units(np.arange(20), np.arange(6))), 0.5, 2.0, 0.05)
    assert parent.tolist() == [-1, 0, -1, -1, -1, -1]
    assert share[1] == 1
    assert chance[1] < 0.15


def test_agreement_of_unrelated_families_is_that_of_permuted_ones():
    rng = np.random.default_rng(0)
    drawn = rng.integers(5, size=(100, 2, 60))
    found = [agreement(*pair, 99, seed) for seed, pair in enumerate(drawn)]
    np.testing.assert_allclose(found[0]["rand"], adjusted_rand_score(*drawn[0]))
    np.testing.assert_allclose(found[0]["nmi"], normalized_mutual_info_score(*drawn[0]))
    p = np.array([row["p_value"] for row in found])
    assert (p < 0.05).mean() < 0.12
    assert abs(np.mean([row["rand"] for row in found])) < 0.01
    assert np.isnan(agreement(np.zeros(9, int), np.zeros(9, int), 9, 0)["rand"])


def test_the_figure_shows_the_tables(planted):
    adata, model, sae, _ = planted
    result = found_of(planted, groupby="kind")
    figure = mt.pl.feature_families(adata)
    left, right = figure.axes
    table = result["families"].query("group == 'all'")
    labels = [text.get_text() for text in right.get_yticklabels()]
    places = right.collections[-1].get_offsets()
    np.testing.assert_array_equal(right.get_yticks(), places[:, 1])
    np.testing.assert_allclose(places[:, 0], table["support"])
    for row, own in zip(table.itertuples(), labels, strict=True):
        assert own.startswith(f"{row.family} ({row.size})  {row.most_active}: {row.top_genes.split(', ')[0]}")
    assert len(left.lines) == len(table) - 1
    assert "24 features in 4 families" in left.get_title(loc="left")
    with pytest.raises(ValueError, match="There is no group 'b'; choose from all, kind 0"):
        mt.pl.feature_families(adata, group="b")
    found_of(planted, min_phi=1, key_added="none")
    with pytest.raises(ValueError, match="no three features are active together"):
        mt.pl.feature_families(adata, key="none")


def test_refusals(planted):
    adata, model, sae, _ = planted
    for settings, error, text in [
        ({"on": "tokens"}, ValueError, "There is no on 'tokens'; choose from genes, cells"),
        ({"method": "louvain"}, ValueError, "There is no method 'louvain'"),
        ({"groupby": "kinds"}, KeyError, r"Did not find \.obs\['kinds'\].*kind"),
        ({"min_phi": 2}, ValueError, "min_phi"),
    ]:
        with pytest.raises(error, match=text):
            mt.tl.feature_families(adata, model, sae, **settings)
    with pytest.raises(ValueError, match="20 are needed, got 5"):
        mt.tl.feature_families(adata[:5].copy(), model, sae)
    none = mt.models.SparseAutoencoder(N_FEATURES, 4, 4, card=sae.card).eval()
    torch.nn.init.constant_(none.encoder.bias, -1e3)
    with pytest.raises(ValueError, match="0 features are active at 20 genes or more"):
        mt.tl.feature_families(adata, model, none)
    other = mt.models.SparseAutoencoder(N_FEATURES, 4, 4, card={**sae.card, "model_sha256": "0" * 64})
    with pytest.raises(ValueError, match="states of another model"):
        mt.tl.feature_families(adata, model, other)
    few = adata.copy()
    few.obs["kind"] = np.where(np.arange(few.n_obs) < 10, "rare", "common")
    with pytest.warns(UserWarning, match="'rare' has 10 cells and is left out"):
        mt.tl.feature_families(few, model, sae, groupby="kind", **FEW)
    assert len(few.uns["feature_families"]["agreement"]) == 0
