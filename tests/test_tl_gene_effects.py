"""Effects of genes on genes: planted ones are found with their signs, places alone are none, and nulls are calibrated."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.stats import kstest, ttest_1samp

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.gene_effects import deletion_effects
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.stats.donors import mean_of_donors
from maxtoki_toolkit.stats.regulons import edge_signs, score_signs
from maxtoki_toolkit.tl.gene_effects import beyond_place

N_GENES, N_REGULONS, N_TARGETS = 60, 5, 8
SETTINGS = {"donor_key": "donor", "n_cells": 6, "n_permutations": 199}


@pytest.fixture(scope="module")
def made():
    """Cells, regulons, and a model whose sources raise half of their targets and lower the other half."""
    names = mt.datasets.aging_atlas(20, 10, n_genes=500).var_names[:N_GENES]
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(6), 8)
    log_mean = np.linspace(5.5, 3, N_GENES) + rng.normal(0, 0.8, (len(donor), N_GENES))
    counts = rng.poisson(np.exp(log_mean)) * (rng.random(log_mean.shape) < 0.85)
    obs = pd.DataFrame({"donor": donor.astype(str)}, index=[f"c{i}" for i in range(len(donor))])
    adata = AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=names))
    mt.pp.map_genes(adata)
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *names]
    vocab = mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(names, 1.0))
    shape = {
        "hidden_size": 32,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 96,
        "tie_word_embeddings": False,
    }
    model = mt.models.build_model(shape, vocab)
    mt.pp.rank_value_encode(adata, model)
    order = rng.permutation(N_GENES)
    sources, targets = (
        order[:N_REGULONS],
        order[N_REGULONS:][: N_REGULONS * N_TARGETS].reshape(N_REGULONS, -1),
    )
    sign = np.resize([1.0, -1.0], N_TARGETS)
    token = vocab.token_id(np.asarray(names)).astype(int)
    with torch.no_grad():
        embedding = torch.zeros_like(model.hf.model.embed_tokens.weight)
        embedding[:, 0] = 1  # what all tokens share
        head = torch.zeros_like(model.hf.lm_head.weight)
        attention = model.hf.model.layers[0].self_attn
        for weight in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            weight.weight.zero_()
        for i in range(N_REGULONS):
            embedding[token[sources[i]], 1 + i] = 1
            attention.v_proj.weight[i, 1 + i] = 1
            attention.o_proj.weight[10 + i, i] = 1
            head[token[targets[i]], 10 + i] = 4 * torch.tensor(sign, dtype=head.dtype)
        model.hf.model.embed_tokens.weight.copy_(embedding)
        model.hf.lm_head.weight.copy_(head)
        model.hf.model.layers[0].mlp.down_proj.weight.zero_()
    regulons = pd.DataFrame(
        {
            "source": np.repeat(names[sources], N_TARGETS),
            "target": names[targets.ravel()],
            "weight": np.tile(sign, N_REGULONS),
        }
    )
    return adata, model, regulons


@pytest.fixture(scope="module")
def found(made):
    """Effects, scored on what is planted and on exchanged targets."""
    adata, model, regulons = made
    adata = adata.copy()
    mt.tl.gene_effects(adata, model, regulons=regulons, **SETTINGS)
    exchanged = regulons.assign(target=np.random.default_rng(3).permutation(regulons["target"]))
    mt.tl.gene_effects(adata, model, regulons=exchanged, key_added="exchanged", **SETTINGS)
    return adata


def test_planted_effects_are_found_with_their_signs(found, made):
    table = mt.get.table(found, "gene_effects", "scores").set_index("predictor")
    assert table.loc["effect", "auroc"] > 0.95
    assert table.loc["effect", "q_value"] < 0.05
    assert table.loc["coexpression", "auroc"] < 0.65
    signs = mt.get.table(found, "gene_effects", "signs").set_index("predictor")
    assert signs.loc["effect", "concordance"] > 0.98
    assert signs.loc["effect", "q_value"] < 0.05 < signs.loc["coexpression", "p_value"]
    edges = mt.get.table(found, "gene_effects")
    sure = edges[edges["q_value"] < 0.01]
    assert sure["known"].head(20).mean() > 0.9  # others follow from all probabilities adding up to 1
    assert (np.sign(sure["effect"]) == sure["sign"])[sure["known"]].mean() > 0.98
    groups = mt.get.table(found, "gene_effects", "groups").iloc[0]
    assert groups["replication_effect"] > 0.5 > groups["replication_coexpression"]
    assert (groups["n_donors"], groups["n_cells"]) == (6, 36)


def test_regulons_that_mean_nothing_score_nothing(found):
    table = mt.get.table(found, "exchanged", "scores").set_index("predictor")
    assert (table.loc[["effect", "effect_marginal"], "q_value"] > 0.05).all()
    signs = mt.get.table(found, "exchanged", "signs")
    assert (signs["null_low"] <= signs["concordance"]).all()
    assert (signs["concordance"] <= signs["null_high"]).all()


def test_a_deletion_is_what_reading_the_cell_without_it_gives(made):
    adata, model, _ = made
    vocab = model.vocab
    torch.manual_seed(0)
    other = mt.models.build_model({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                                   "intermediate_size": 16, "max_position_embeddings": 96}, vocab)  # fmt: skip
    genes = np.arange(4, 40, dtype=np.int32)
    cell = np.r_[vocab["<bos>"], genes[[5, 2, 9, 30, 1]], vocab["<eos>"]]
    sequences = Sequences.of([cell, cell[[0, 3, 1, 6]]])
    targets = genes[[9, 20, 2]]
    effects = deletion_effects(other, sequences, targets, np.array([0, 0, 1]), np.array([2, 5, 1]))

    def probabilities(tokens):
        with torch.inference_mode():
            logits = other.hf(torch.from_numpy(tokens[None]).long().to(other.device)).logits[0].float()
        return torch.log_softmax(logits, 1).cpu().numpy()[:, targets]

    with_it, without = probabilities(cell), probabilities(np.delete(cell, 2))
    # Gene 9 is read at place 3: one place is left; gene 20 is not in the cell: those to its end.
    assert effects[0, 0] == pytest.approx(with_it[2, 0] - without[1, 0], abs=1e-5)
    assert effects[0, 1] == pytest.approx((with_it[2:6, 1] - without[1:5, 1]).mean(), abs=1e-5)
    assert np.isnan(effects[0, 2])  # the gene itself
    assert np.isnan(effects[1, 0])  # came before
    assert np.isnan(effects[2, 0])
    assert np.isfinite(effects[2, 1])


def test_what_place_explains_is_no_effect():
    place = np.arange(1, 101)
    slope = np.outer(np.exp(-place / 40), [1.0, -2.0]).astype(np.float32)
    compared = np.isin(place, np.linspace(1, 100, 24).round())
    left = beyond_place(slope, place, compared, 100 / 16)
    assert np.abs(left[10:90]).max() < 0.1 * np.abs(slope[10:90]).max()
    moved = slope.copy()
    moved[50, 0] += 1
    assert beyond_place(moved, place, compared, 100 / 16)[50, 0] == pytest.approx(left[50, 0] + 1, abs=1e-5)


def test_p_values_are_uniform_without_an_effect():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 4000))
    values[rng.random(values.shape) < 0.2] = np.nan
    found = mean_of_donors(values)
    assert kstest(found.p_value[np.isfinite(found.p_value)], "uniform").pvalue > 0.01
    assert ((found.low < 0) & (found.high > 0)).mean() == pytest.approx(0.95, abs=0.015)
    full = np.isfinite(values).all(axis=0)
    assert found.p_value[full] == pytest.approx(ttest_1samp(values[:, full], 0).pvalue)
    assert np.isnan(mean_of_donors(values[:2]).p_value).all()
    sign = np.zeros((6, 40), dtype=int)
    sign[:, :4], sign[:, 4:8] = 1, -1
    p = [score_signs({"x": rng.normal(size=sign.shape)}, sign, 99, rng)["p_value"][0] for _ in range(200)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.isnan(score_signs({"x": rng.normal(size=sign.shape)}, np.abs(sign), 99, rng)["p_value"]).all()


def test_results_do_not_depend_on_the_order_of_cells(found, made, tmp_path):
    adata, model, regulons = made
    other = adata[::-1].copy()
    mt.tl.gene_effects(other, model, regulons=regulons, **SETTINGS)
    one, two = (a.uns["gene_effects"]["matrix"] for a in (found, other))
    np.testing.assert_allclose(one, two, atol=1e-5)
    found.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(mt.get.table(again, "gene_effects"), mt.get.table(found, "gene_effects"))
    assert len(mt.pl.gene_network(again, key="gene_effects").axes) == 1
    assert len(mt.pl.gene_effects(again).axes) == 2


def test_refusals(made):
    adata, model, regulons = made
    with pytest.raises(ValueError, match="n_permutations must be at least 99"):
        mt.tl.gene_effects(adata.copy(), model, n_permutations=9)
    with pytest.raises(ValueError, match="n_cells=20 leaves 3 cells in the largest"):
        mt.tl.gene_effects(adata[:3].copy(), model, donor_key="donor")
    genes = pd.DataFrame({"gene": ["a", "b"], "ensembl_id": ["", ""], "symbol": ["A", "B"]})
    assert not edge_signs(pd.DataFrame({"source": ["a"], "target": ["b"]}), genes).any()
