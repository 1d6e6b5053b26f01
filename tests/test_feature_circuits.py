"""Effects, networks and mediators of features, in a model whose circuit is known."""

from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from helpers import on_copy
from scipy.sparse import csr_matrix, vstack

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.feature_network import feature_edges
from maxtoki_toolkit.models.mediation import match_places
from maxtoki_toolkit.models.sae_controls import gene_mask
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.stats.drivers import pagerank_drivers, replaced_rows, square, total_effects
from maxtoki_toolkit.stats.spectra import spectral_entropy as spectral_values
from maxtoki_toolkit.tl._readings import get_prompts, get_readings

N, GENES, CONSTANT, SIZE, SCALE = 6, 60, 300.0, 12, 500.0
FIRST, OUT = 1, 8  # dimensions: the features from FIRST on, what the time head reads
# What features of the first block make of those of the second, and what the lapse is made of.
CIRCUIT = np.zeros((N, N))
CIRCUIT[0, 1], CIRCUIT[0, 2], CIRCUIT[3, 4] = 0.5, 0.3, -0.2
READ = np.array([0.0, 1.0, 0.0, 0.0, 0.7, 0.0])


def coder(model, block):
    """An autoencoder whose features are the planted ones."""
    card = {"block": block, "site": "output", "model": model.name, "model_sha256": model.identity}
    sae = mt.models.SparseAutoencoder(SIZE, N, N, card=card)
    with torch.no_grad():
        for weight in (sae.encoder.weight, sae.W_dec):
            weight.zero_()
            weight[torch.arange(N), FIRST + torch.arange(N)] = 1.0
        sae.b_dec[0] = CONSTANT
    return sae.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def planted():
    """A model as good as linear: its second block adds the circuit, its third hands the mean of what is read to all later tokens."""
    rng = np.random.default_rng(0)
    genes = [f"ENSG{i:011d}" for i in range(GENES)]
    vocab = mt.models.Vocabulary(
        {token: i for i, token in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *genes])},
        dict.fromkeys(genes, 1.0),
    )
    shape = {"hidden_size": SIZE, "head_dim": SIZE, "intermediate_size": N, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": False}
    model = mt.models.extend_model(
        mt.models.build_model(shape, vocab), vocab.with_times(-900, 900), max_length=128
    )
    has = rng.random((GENES, N)) * (rng.random((GENES, N)) < 0.5)
    has[0] = [10.0, 0, 3, 0, 0, 0]
    rms = CONSTANT / np.sqrt(SIZE)
    head = mt.models.TimeHead("linear", hidden_size=SIZE, scale=SCALE)
    with torch.no_grad():
        table = model.hf.model.embed_tokens.weight
        table.zero_()
        table[:, 0] = CONSTANT
        table[model.vocab.gene_ids, FIRST : FIRST + N] = torch.from_numpy(has).float()
        for i, block in enumerate(model.hf.model.layers):
            attention = block.self_attn
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
                part.weight.zero_()
            for part in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
                part.weight.zero_()
            block.input_layernorm.weight.fill_(rms)
            block.post_attention_layernorm.weight.fill_(rms)
            if i == 1:
                # The gate is open: it reads the constant.
                block.mlp.gate_proj.weight[:, 0] = 10 / CONSTANT
                block.mlp.up_proj.weight[torch.arange(N), FIRST + torch.arange(N)] = 1.0
                block.mlp.down_proj.weight[FIRST : FIRST + N] = torch.from_numpy(CIRCUIT.T).float() / 10
            if i == 2:
                attention.v_proj.weight[0, FIRST : FIRST + N] = torch.from_numpy(READ).float()
                attention.o_proj.weight[OUT, 0] = 1.0
        model.hf.model.norm.weight.fill_(rms)
        head.linear.weight.zero_()
        head.linear.weight[0, OUT] = 1.0
        head.linear.bias.zero_()
    from dataclasses import replace

    model = replace(model, time_head=head)
    counts = np.zeros((80, GENES), np.float32)
    for cell in counts:
        cell[rng.choice(GENES, 15, replace=False)] = rng.permutation(15) + 1
    adata = AnnData(csr_matrix(counts))
    adata.var_names = genes
    adata.obs_names = [f"cell_{i}" for i in range(80)]
    adata.obs["donor_id"] = [f"D{i % 10}" for i in range(80)]
    adata.obs["age_months"] = (np.arange(80) % 10) * 30 + 300
    adata.obs["cell_type"] = "a"
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.pp.sample_prompts(
        adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", n_prompts=40, context_size=1
    )
    return model, adata, has


def activity(adata, names, has):
    """Sum of each feature over the genes of some cells."""
    there = adata[names].layers["rank"].toarray() > 0
    return there @ has


def test_scaling_a_feature_changes_the_lapse_as_the_circuit_says(planted):
    model, adata, has = planted
    read = on_copy(
        mt.tl.feature_effects,
        adata,
        model,
        coder(model, 0),
        features=range(N),
        doses=[0, 1, 2, 3],
        n_prompts=None,
    )
    effects = mt.get.table(read, "feature_effects").pivot(index="feature", columns="dose", values="effect")
    prompts = adata.uns["prompts"]["prompts"]
    both = activity(adata, prompts["context_0"], has) + activity(adata, prompts["query"], has)
    # <bos> genes <eos> lapse <boq> <bos> genes <eos> <eoq>, over which the last token's attention is spread.
    n_tokens = 2 * 17 + 2
    expected = SCALE * (both * ((np.eye(N) + CIRCUIT) @ READ)).mean(axis=0) / n_tokens
    assert (effects[1] == 0).all()
    for dose in (0, 2, 3):
        np.testing.assert_allclose(effects[dose], (dose - 1) * expected, rtol=0.02, atol=0.1)
    table = mt.get.table(read, "feature_effects")
    np.testing.assert_allclose(table["gradient"], table["effect"], rtol=0.02, atol=0.1)
    assert table.loc[table["dose"] == 1, "p_value"].isna().all()
    query = on_copy(
        mt.tl.feature_effects,
        adata,
        model,
        coder(model, 0),
        features=[1],
        doses=[0],
        where="query",
        n_prompts=None,
    )
    alone = SCALE * activity(adata, prompts["query"], has)[:, 1].mean() / n_tokens
    assert mt.get.table(query, "feature_effects")["effect"][0] == pytest.approx(-alone, rel=0.02)


def test_chosen_features_are_those_that_matter(planted):
    model, adata, _ = planted
    read = on_copy(mt.tl.feature_effects, adata, model, coder(model, 0), doses=[0.0])
    assert read.uns["feature_effects"]["params"]["chosen"] == "by gradient, on other donors"
    effects = mt.get.table(read, "feature_effects").set_index("feature")
    matters = ((np.eye(N) + CIRCUIT) @ READ) != 0
    assert (effects.loc[np.flatnonzero(matters), "effect"].abs() > 1).all()
    assert (effects.loc[np.flatnonzero(~matters), "effect"].abs() < 0.3).all()
    assert set(effects.index[:4]) == set(np.flatnonzero(matters))


def test_functions_of_the_logits_are_read_where_the_answer_begins(planted):
    """Of prompts that ask for a cell after its `<bos>`, since `<eoq>` says nothing but that a cell comes; of others at `<eoq>`."""
    model, adata, _ = planted
    for task, token in (("cell", "<bos>"), ("timelapse", "<eoq>")):
        cells = adata.copy()
        drawn = {"time_key": "age_months", "groupby": "cell_type", "n_prompts": 4, "context_size": 1}
        mt.pp.sample_prompts(cells, task=task, donor_key="donor_id", **drawn)
        first = get_prompts(cells, model, len, key=None, n_prompts=None, rng=0)
        sequences = get_readings(cells, model, len, *first).sequences
        assert set(sequences.tokens[sequences.indptr[1:] - 1]) == {model.vocab[token]}


def test_edits_of_nothing_and_edits_of_several_things(planted):
    model, adata, _ = planted
    sae = coder(model, 0)
    plain = on_copy(mt.tl.predict_timelapse, adata, model).uns["timelapse"]["prompts"]["predicted"]
    with mt.models.edited_features(model, sae, {0: 1.0, 3: 1.0}):
        same = on_copy(mt.tl.predict_timelapse, adata, model).uns["timelapse"]["prompts"]["predicted"]
    assert (same == plain).all()
    found = []
    for factors in ({0: 0.0}, {1: 3.0}, {0: 0.0, 1: 3.0}):
        with mt.models.edited_features(model, sae, factors):
            found.append(
                on_copy(mt.tl.predict_timelapse, adata, model).uns["timelapse"]["prompts"]["predicted"]
            )
    np.testing.assert_allclose(found[0] + found[1] - plain, found[2], rtol=1e-3)
    assert abs(found[0] - plain).max() > 1
    # With an edit of a head inside, both are made.
    with mt.models.edited_features(model, sae, {1: 3.0}):
        ablated = on_copy(mt.tl.ablate_heads, adata, model, heads=[(2, 0)], how="zero")
    effects = mt.get.table(ablated, "ablate_heads")
    assert effects["value_intact"][0] == pytest.approx(found[1].mean(), rel=1e-3)
    assert effects["value_intact"][0] + effects["change"][0] == pytest.approx(0, abs=0.5)
    again = on_copy(mt.tl.predict_timelapse, adata, model).uns["timelapse"]["prompts"]["predicted"]
    assert (again == plain).all()


def test_edges_are_those_of_the_circuit(planted):
    model, adata, has = planted
    read = on_copy(
        mt.tl.feature_network, adata, model, coder(model, 0), later=coder(model, 1), features=range(N)
    )
    edges = mt.get.table(read, "feature_network")
    genes = has[np.concatenate([row.indices for row in adata.layers["rank"]])]
    expected = np.zeros((N, N))
    for i in range(N):
        up, down = (np.where(np.arange(N) == i, factor, 1.0) for factor in (1.1, 0.9))
        made = [np.maximum((genes * factor) @ (np.eye(N) + CIRCUIT), 0) for factor in (up, down)]
        expected[i] = (made[0] - made[1]).mean(axis=0) / 0.2
    found = np.zeros((N, N))
    found[edges["source"], edges["target"]] = edges["effect"]
    # What norms add is a thousandth.
    np.testing.assert_allclose(found, expected, atol=2e-3)
    strong = edges["effect"].abs() > 0.01
    assert set(zip(edges["source"][strong], edges["target"][strong], strict=True)) == set(
        zip(*np.nonzero(expected), strict=True)
    )
    assert (edges["effect_low"] <= edges["effect"]).all()
    mt.tl.driver_features(read)
    drivers = mt.get.table(read, "driver_features")
    assert drivers["feature"][0] == 0
    assert drivers.attrs["n_null"] == 4 * N  # four directions a source, and no p below one in their number
    assert drivers["p_value"].min() >= 1 / (1 + 4 * N)
    with pytest.raises(ValueError, match="go from earlier to later"):
        mt.tl.feature_network(adata, model, coder(model, 1), later=coder(model, 0))


def test_edges_do_not_depend_on_batches(planted):
    model, adata, _ = planted
    sequences = Sequences.of([np.array([2, *range(4, 4 + n), 3]) for n in (5, 20, 11)])
    found = [
        feature_edges(
            model,
            coder(model, 0),
            coder(model, 1),
            sequences,
            np.arange(N)[:, None],
            n_null=2,
            max_tokens=budget,
        )
        for budget in (30, 5000)
    ]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert gene_mask(model).sum() == GENES


def test_families_are_scaled_together(planted):
    """Their effects are those of their features together, where the model is linear."""
    model, adata, _ = planted
    sae, later = coder(model, 0), coder(model, 1)
    found = {}
    for sources in ([0, 1, 3], [[0, 3], [1]]):
        read = on_copy(mt.tl.feature_network, adata, model, sae, later=later, features=sources)
        edges = mt.get.table(read, "feature_network")
        found[len(sources)] = edges.pivot(index="source", columns="target", values="effect").fillna(0)
        table = mt.get.table(read, "feature_network", "sources")
    np.testing.assert_allclose(found[2].loc[0], found[3].loc[[0, 3]].sum(), atol=2e-3)
    np.testing.assert_allclose(found[2].loc[1, [1]], found[3].loc[1, [1]], atol=2e-3)
    assert table["features"].tolist() == ["0, 3", "1"]
    mt.tl.driver_features(read)
    assert mt.get.table(read, "driver_features")["feature"][0] == 0
    with pytest.raises(ValueError, match="twice"):
        mt.tl.feature_network(adata, model, sae, later=later, features=[[0, 1], [1]])


def test_genes_that_a_feature_makes_likely(planted):
    model, adata, _ = planted
    weight = model.hf.lm_head.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        weight[model.vocab.gene_ids[7], FIRST + 2] = 4.0
        weight[model.vocab.gene_ids[9], FIRST + 2] = -4.0
    try:
        read = on_copy(mt.tl.feature_genes, adata, model, coder(model, 1), features=[2], n_genes=1)
    finally:
        weight.data.copy_(before)
    genes = mt.get.table(read, "feature_genes").set_index("direction")
    assert genes.loc["up", "gene"] == adata.var_names[7]
    assert genes.loc["down", "gene"] == adata.var_names[9]
    assert read.uns["feature_genes"]["params"]["direct_r"] > 0.99
    assert genes.loc["up", "z"] > 2


def test_mediators_are_the_features_on_the_way(planted):
    model, adata, _ = planted
    # The gene's feature 0 acts on the lapse through features 1 and 2 of the second block, of which 2 is not read.
    settings = {"genes": [adata.var_names[0]], "max_features": 2, "n_prompts": None}
    mt.pp.sample_prompts(
        adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", n_prompts=200, context_size=1
    )
    read = on_copy(mt.tl.feature_mediators, adata, model, coder(model, 1), **settings)
    effects = mt.get.table(read, "feature_mediators")
    greedy = effects[effects["kind"] == "greedy"]
    assert greedy["features"].iloc[0] == "1"
    # A gene more makes each of the others count less.
    assert greedy["put_back"].iloc[0] == pytest.approx(1, abs=0.15)
    single = effects[effects["kind"] == "single"].set_index("features")
    np.testing.assert_allclose(single["put_back"], single["gradient"], atol=0.05)
    assert abs(single["put_back"].get("2", 0)) < 0.05


def test_attributions_to_features_add_up(planted):
    model, adata, _ = planted
    sae = coder(model, 0)
    read = on_copy(mt.tl.attribute, adata, model, sae=sae, n_steps=4, n_prompts=None)
    features = mt.get.table(read, "attribute", "features").set_index("feature").sort_index()
    params = read.uns["attribute"]["params"]
    assert params["relative_residual"] < 1e-3
    # The model is as good as linear: the gradient alone says the same.
    assert params["gradient_residual"] < 0.02
    np.testing.assert_allclose(features["gradient"], features["attribution"], rtol=0.02, atol=0.1)
    edited = on_copy(mt.tl.feature_effects, adata, model, sae, features=range(N), doses=[0.0], n_prompts=None)
    effects = mt.get.table(edited, "feature_effects").set_index("feature")["effect"]
    np.testing.assert_allclose(features["attribution"], -effects, rtol=0.02, atol=0.1)
    prompts = mt.get.table(read, "attribute", "prompts")
    assert (prompts["value"] - prompts["baseline_value"]).mean() == pytest.approx(
        features["attribution"].sum(), rel=1e-3
    )
    assert "genes" not in read.uns["attribute"]


@pytest.mark.skipif(find_spec("captum") is None, reason="captum is not installed")
def test_a_feature_is_attributed_to_the_genes_that_have_it(planted):
    model, adata, has = planted
    read = on_copy(
        mt.tl.attribute, adata, model, sae=coder(model, 1), readout=1, baseline="pad", n_prompts=None
    )
    assert read.uns["attribute"]["params"]["unit"] == "activation"
    genes = mt.get.table(read, "attribute", "genes")
    made = (has @ (np.eye(N) + CIRCUIT))[adata.var_names.get_indexer(genes["gene"]), 1]
    np.testing.assert_allclose(genes["attribution"], made / 15, rtol=0.05, atol=2e-3)


def test_places_are_matched_by_gene():
    before = Sequences.of([np.array([2, 10, 11, 12, 3]), np.array([2, 10, 3])])
    after = Sequences.of([np.array([2, 12, 10, 13, 3]), np.array([2, 11, 10, 3])])
    segments = np.zeros(len(before.tokens), int), np.zeros(len(after.tokens), int)
    assert match_places(before, after, *segments).tolist() == [0, 3, 1, -1, 4, 0, -1, 1, 2]
    other = segments[1].copy()
    other[:5] = 1
    assert match_places(before, after, segments[0], other)[:5].tolist() == [-1] * 5


def test_pagerank_on_reversed_edges_finds_what_starts_effects():
    chain = np.zeros((5, 5))
    chain[0, 1] = chain[1, 2] = chain[2, 3] = chain[3, 4] = 1.0
    assert pagerank_drivers(chain).argmax() == 0
    assert pagerank_drivers(chain).sum() == pytest.approx(1)
    rng = np.random.default_rng(0)
    agreement = []
    for _ in range(20):
        weight = rng.normal(size=(12, 12)) * (rng.random((12, 12)) < 0.2) * 0.3
        np.fill_diagonal(weight, 0)
        truth = pd.Series(total_effects(weight))
        agreement.append(truth.corr(pd.Series(pagerank_drivers(np.abs(weight))), method="spearman"))
    assert np.mean(agreement) > 0.5


def test_total_effects_follow_all_paths():
    weight = np.zeros((3, 3))
    weight[0, 1], weight[1, 2], weight[0, 2] = 0.5, 0.4, -0.2
    assert total_effects(weight).tolist() == pytest.approx([0.5 + 0.0, 0.4, 0])


def test_scores_with_edges_of_another_direction():
    weight = csr_matrix([[3.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    none = csr_matrix((2, 3))
    score = pagerank_drivers(square(weight))[:2]
    assert (replaced_rows(weight, none) < score).all()
    np.testing.assert_allclose(replaced_rows(weight, weight), score)
    rng = np.random.default_rng(0)
    own, other = (csr_matrix(rng.random((7, 9)) * (rng.random((7, 9)) < 0.3)) for _ in range(2))
    for i, found in enumerate(replaced_rows(own, other)):
        mixed = vstack([own[:i], other[i], own[i + 1 :]])
        assert found == pytest.approx(pagerank_drivers(square(mixed))[i])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, a: mt.tl.feature_effects(a, m, coder(m, 0), features=[N]), "no feature 6"),
        (lambda m, a: mt.tl.feature_effects(a, m, coder(m, 0), features=[]), "numbers of features"),
        (lambda m, a: mt.tl.feature_effects(a, m, coder(m, 0), where="contexts"), "context"),
        (lambda m, a: mt.tl.feature_effects(a, m, coder(m, 0), doses=[]), "doses"),
        (lambda m, a: mt.tl.feature_mediators(a, m, coder(m, 0), genes=["none"]), "Did not find the gene"),
        (lambda m, a: mt.tl.driver_features(a), "feature_network"),
        (lambda m, a: mt.tl.attribute(a, m, readout=3), "give its autoencoder"),
        (lambda m, a: mt.tl.attribute(a, m, readout=9, sae=coder(m, 0)), "no feature 9"),
    ],
)
def test_refused(planted, call, said):
    with pytest.raises((ValueError, KeyError, TypeError), match=said):
        call(planted[0], planted[1].copy())


def test_entropy_of_singular_values():
    assert spectral_values(np.eye(4)) == pytest.approx(np.log(4))
    assert spectral_values(np.ones((3, 5))) == pytest.approx(0, abs=1e-6)
    assert np.isnan(spectral_values(np.zeros((2, 2))))
    both = np.stack([np.eye(3), np.ones((3, 3))])
    assert spectral_values(both).tolist() == pytest.approx([np.log(3), 0], abs=1e-6)


def test_entropy_follows_a_course(planted):
    """Cells that gain features one after the other; without a course, nothing is found."""
    model, _, has = planted
    rng = np.random.default_rng(3)
    counts = np.zeros((40, GENES), np.float32)
    time = np.arange(40) // 10
    few = np.argsort((has > 0).sum(axis=1), kind="stable")[:20]
    for cell, when in zip(counts, time, strict=True):
        pool = few[:8] if when < 2 else np.setdiff1d(np.arange(GENES), few)
        cell[rng.choice(pool, 6, replace=False)] = rng.permutation(6) + 1
    adata = AnnData(csr_matrix(counts))
    adata.var_names = [f"ENSG{i:011d}" for i in range(GENES)]
    adata.obs_names = [f"cell_{i}" for i in range(40)]
    adata.obs["pseudotime"] = time.astype(float)
    adata.obs["shuffled"] = rng.permutation(time).astype(float)
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    settings = {"later": coder(model, 1), "n_bins": 4, "n_permutations": 99}
    found = on_copy(mt.tl.spectral_entropy, adata, model, coder(model, 0), time_key="pseudotime", **settings)
    bins = mt.get.table(found, "spectral_entropy")
    assert bins["entropy"][:2].max() < bins["entropy"][2:].min()
    assert found.uns["spectral_entropy"]["params"]["p_value"] == 0.01
    assert (bins["entropy_low"] <= bins["entropy_high"]).all()
    null = on_copy(mt.tl.spectral_entropy, adata, model, coder(model, 0), time_key="shuffled", **settings)
    assert null.uns["spectral_entropy"]["params"]["p_value"] > 0.05
    with pytest.raises(ValueError, match="3 are needed"):
        mt.tl.spectral_entropy(
            adata, model, coder(model, 0), time_key="pseudotime", later=coder(model, 1), n_cells=8
        )


def test_genes_are_found_that_move_a_feature_and_leave_another(planted):
    model, adata, has = planted
    settings = {"n_candidates": 8, "max_size": 2, "n_cells": None}
    found = on_copy(mt.tl.search_features, adata, model, coder(model, 0), target={1: -1.0}, **settings)
    effects = mt.get.table(found, "search_features").set_index(["kind", "size"])
    assert effects.loc[("gradient", 1), "shift"] > 3 * abs(effects.loc[("random", 1), "shift"])
    assert effects.loc[("gradient", 2), "shift"] > effects.loc[("gradient", 1), "shift"]
    assert effects.loc[("gradient", 2), "q_value"] < 0.05
    # Means over the genes that are left: what a gene does is a little more than its own share.
    assert found.uns["search_features"]["params"]["promise_r"] > 0.9
    genes = mt.get.table(found, "search_features", "genes")
    assert (has[adata.var_names.get_indexer(genes["gene"][:3]), 1] > 0.3).all()
    kept = on_copy(
        mt.tl.search_features,
        adata,
        model,
        coder(model, 0),
        target={1: -1.0},
        avoid=[0],
        bound=0.05,
        **settings,
    )
    assert (mt.get.table(kept, "search_features").query("kind == 'gradient'")["searched"].notna()).all()
    one, other = (
        mt.get.table(part, "search_features").set_index(["kind", "size"]).loc[("gradient", 2), "searched"]
        for part in (kept, found)
    )
    assert one <= other
    up = on_copy(
        mt.tl.search_features, adata, model, coder(model, 0), target={2: 1.0}, mode="overexpress", **settings
    )
    first = mt.get.table(up, "search_features")["genes"][0]
    assert has[adata.var_names.get_loc(first), 2] >= np.sort(has[:, 2])[-3]
    with pytest.raises(ValueError, match="to be moved and to be avoided"):
        mt.tl.search_features(adata, model, coder(model, 0), target={1: -1.0}, avoid=[1])


def test_figures(planted):
    model, adata, _ = planted
    cells = adata.copy()
    sae, later = coder(model, 0), coder(model, 1)
    mt.tl.feature_effects(cells, model, sae, features=[0, 1], doses=[0, 2])
    ax = mt.pl.feature_effects(cells)
    assert ax.get_ylabel() == "change of the predicted lapse (months)"
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    effects = mt.get.table(cells, "feature_effects").query("feature == 1")["effect"].tolist()
    assert lines["feature 1"].tolist() == pytest.approx([effects[0], 0, effects[1]])
    with pytest.raises(KeyError, match="Feature 5 was not edited"):
        mt.pl.feature_effects(cells, features=[5])
    mt.tl.feature_effects(cells, model, sae, features=range(4), doses=[0, 2])
    table = cells.uns["feature_effects"]["effects"]
    within = table.loc[table["feature"] != 2, ["effect_low", "effect_high"]].abs().to_numpy().max()
    table.loc[table["feature"] == 2, ["effect", "effect_low", "effect_high"]] = 1e6
    ax = mt.pl.feature_effects(cells)
    assert within < ax.get_ylim()[1] < 1.5 * within  # one feature far out does not press the others flat
    assert [text.get_text() for text in ax.texts] == ["1e+06", "1e+06"]
    mt.tl.feature_network(cells, model, sae, later=later, features=range(N))
    mt.tl.driver_features(cells)
    points = mt.pl.driver_features(cells).collections[0].get_offsets()
    assert sorted(points[:, 1]) == pytest.approx(sorted(mt.get.table(cells, "driver_features")["pagerank"]))
    mt.tl.spectral_entropy(cells, model, sae, later=later, time_key="age_months", n_bins=2, n_permutations=19)
    assert mt.pl.spectral_entropy(cells).get_xlabel() == "age_months"


def test_features_of_clean_prompts_bring_back_what_they_carry(planted):
    model, adata, _ = planted
    settings = {"corrupted": "replace_query", "level": "feature", "n_prompts": None, "align": "tokens"}
    cells = adata.copy()
    mt.pp.sample_prompts(
        cells, time_key="age_months", groupby="cell_type", donor_key="donor_id", n_prompts=60, context_size=1
    )
    mt.tl.patch(cells, model, sae=coder(model, 1), **settings)
    effects = mt.get.table(cells, "patch").pivot(index="feature", columns="segment", values="effect")
    # The lapse is read from features 1 and 4 of the second block, as much as each varies; other features, and contexts, carry nothing.
    query = effects["query"]
    assert query[[1, 4]].sum() == pytest.approx(1, abs=0.05)
    assert query.drop([1, 4]).abs().max() < 0.02
    assert effects["context_0"].abs().max() < 0.02
    ax = mt.pl.patch(cells)
    assert (ax.get_ylabel(), len(ax.get_yticks())) == ("feature", N)
    with pytest.raises(ValueError, match="needs an autoencoder"):
        mt.tl.patch(cells, model, **settings)
