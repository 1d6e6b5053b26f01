"""Proteins and peaks beside genes: genes stay as they are, kinds keep their places, and one is read from another."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.sequences import budgets
from maxtoki_toolkit.pp._modalities import kinds_of, protein_background
from maxtoki_toolkit.tl._cells import get_sequences
from maxtoki_toolkit.tl.translate import _score
from maxtoki_toolkit.train.corpus import Example, NextGeneCollator

N_PAIRS, N_OTHERS, N_CELLS = 8, 40, 120
SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 96,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def cells():
    """Genes and proteins of the same cells; protein i is there where gene i is."""
    rng = np.random.default_rng(0)
    names = mt.datasets.aging_atlas(20, 10, n_genes=500).var_names[: N_PAIRS + N_OTHERS]
    there = rng.random((N_CELLS, N_PAIRS)) < 0.5
    genes = np.column_stack([there * rng.integers(3, 9, there.shape), rng.poisson(2, (N_CELLS, N_OTHERS))])
    proteins = rng.poisson(np.where(there, 60, 3))
    obs = pd.DataFrame(
        {"donor": np.resize([f"d{i}" for i in range(6)], N_CELLS)},
        index=[f"c{i:03d}" for i in range(N_CELLS)],
    )
    adata = AnnData(genes.astype(np.float32), obs=obs, var=pd.DataFrame(index=names))
    columns = [f"P{i}" for i in range(N_PAIRS)]
    adata.obsm["protein"] = pd.DataFrame(proteins, index=obs.index, columns=columns)
    return adata, there


@pytest.fixture(scope="module")
def joint(cells):
    """The same in one AnnData, ranked, and a model that reads protein i from gene i."""
    adata = mt.pp.join_modalities(cells[0], proteins="protein")
    mt.pp.map_genes(adata)
    vocab = mt.models.Vocabulary.from_anndata(adata).with_modalities(mt.pp.modality_medians(adata))
    mt.pp.rank_value_encode(adata, vocab)
    model = mt.models.build_model(SHAPE, vocab)
    token = vocab.token_id(adata.var_names).astype(int)
    gene, protein = token[:N_PAIRS], token[-N_PAIRS:]
    with torch.no_grad():
        embedding = torch.zeros_like(model.hf.model.embed_tokens.weight)
        embedding[:, 0] = 1
        head = torch.zeros_like(model.hf.lm_head.weight)
        attention = model.hf.model.layers[0].self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            part.weight.zero_()
        model.hf.model.layers[0].mlp.down_proj.weight.zero_()
        for i in range(N_PAIRS):
            embedding[gene[i], 1 + i] = 1
            attention.v_proj.weight[i, 1 + i] = 1
            attention.o_proj.weight[20 + i, i] = 10
            head[protein[i], 20 + i] = 1
        model.hf.model.embed_tokens.weight.copy_(embedding)
        model.hf.lm_head.weight.copy_(head)
    return adata, model


def test_genes_keep_the_ranks_that_they_have_alone(cells, joint):
    alone = cells[0].copy()
    adata, model = joint
    vocab = mt.models.Vocabulary.from_anndata(mt.pp.keep_modalities(adata, modalities="rna"))
    mt.pp.rank_value_encode(alone, vocab)
    genes = sp.csr_matrix(adata.layers["rank"])[:, : alone.n_vars]
    assert (genes != sp.csr_matrix(alone.layers["rank"])).nnz == 0
    part = mt.pp.keep_modalities(adata, modalities="rna")
    with_mark = get_sequences(part, model)
    without = get_sequences(alone, mt.models.build_model(SHAPE, vocab))
    marked = with_mark.tokens != model.vocab["<rna>"]
    np.testing.assert_array_equal(with_mark.tokens[marked], without.tokens)


def test_kinds_follow_one_another_behind_their_marks(joint):
    adata, model = joint
    sequences, vocab = get_sequences(adata, model), model.vocab
    assert vocab.modalities == ("rna", "adt")
    for row in range(5):
        tokens = sequences.tokens[sequences.indptr[row] : sequences.indptr[row + 1]]
        kinds = vocab.modality_of_token[tokens]
        (at,) = np.flatnonzero(tokens == vocab["<adt>"])
        assert tokens[1] == vocab["<rna>"]
        assert (kinds[2:at] == 0).all()
        assert (kinds[at + 1 : -1] == 1).all()
        ranks = adata.layers["rank"][row].toarray()[0]
        order = np.argsort(np.where(ranks[-N_PAIRS:] > 0, ranks[-N_PAIRS:], 999), kind="stable")
        proteins = vocab.token_id(adata.var_names[-N_PAIRS:])[order][: (ranks[-N_PAIRS:] > 0).sum()]
        np.testing.assert_array_equal(tokens[at + 1 : -1], proteins)


def test_kinds_share_what_a_cell_has_room_for():
    assert budgets({"rna": 20_000, "adt": 20}, 128) == {"adt": 20, "rna": 104}
    assert budgets({"rna": 20_000, "adt": 20, "atac": 30_000}, 128) == {"adt": 20, "rna": 51, "atac": 52}
    assert budgets({"rna": 20_000}, 128) == {"rna": 125}


def test_a_protein_at_its_background_is_not_there(cells, joint):
    adata, there = joint[0], cells[1]
    ranked = adata.layers["rank"][:, -N_PAIRS:].toarray() > 0
    assert ranked[there].mean() > 0.93
    assert ranked[~there].mean() < 0.12
    one, other = (adata.layers["rank"][:, -N_PAIRS:].toarray() == rank for rank in (1, 2))
    assert there[one].mean() > 0.97
    assert there[other].mean() > 0.9
    background = protein_background(sp.csr_matrix(np.array([[0, 8], [1, 9], [90, 0], [99, 2]])))
    assert (background < 5000).all()


def test_rare_peaks_come_first_and_closed_ones_not_at_all(cells):
    rng = np.random.default_rng(1)
    odds = np.array([0.9, 0.5, 0.1])
    peaks = pd.DataFrame(rng.random((N_CELLS, 3)) < odds, index=cells[0].obs_names).astype(int)
    peaks.columns = ["chr1:1-2", "chr1:5-9", "chrX:3-7"]
    adata = mt.pp.join_modalities(cells[0], peaks=peaks)
    assert kinds_of(adata.var)[-3:].tolist() == ["atac"] * 3
    medians = mt.pp.modality_medians(adata)
    assert medians["atac"]["chr1:5-9"] == pytest.approx(peaks["chr1:5-9"].mean())
    vocab = mt.models.Vocabulary.from_anndata(adata_mapped(adata)).with_modalities(medians)
    mt.pp.rank_value_encode(adata, vocab)
    ranks = adata.layers["rank"][:, -3:].toarray()
    np.testing.assert_array_equal(ranks > 0, peaks.to_numpy() > 0)
    all_open = (ranks > 0).all(axis=1)
    assert (ranks[all_open] == [3, 2, 1]).all()


def adata_mapped(adata):
    """The cells with their genes mapped."""
    mt.pp.map_genes(adata)
    return adata


def test_a_feature_is_read_from_another_kind(joint):
    adata, model = joint
    adata = adata.copy()
    mt.tl.translate(adata, model, donor_key="donor")
    table = mt.get.table(adata, "translate").set_index("method")
    assert table.loc["model", "r"] > 0.7
    assert table.loc["model", "p_value"] == pytest.approx(1 / 200)
    assert table.loc["ridge", "r"] > 0.7
    assert table.loc["model", "r_low"] < table.loc["model", "r"] < table.loc["model", "r_high"]
    assert (table["n_units"] == 6).all()
    assert np.exp(adata.obsm["translate"]).sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-4)
    exchanged = adata.copy()
    order = np.random.default_rng(0).permutation(adata.n_obs)
    # Proteins of other cells: nothing is to be read.
    shuffled = exchanged.X.toarray()
    shuffled[:, -N_PAIRS:] = shuffled[order, -N_PAIRS:]
    exchanged.X = sp.csr_matrix(shuffled)
    mt.tl.translate(exchanged, model, donor_key="donor")
    null = mt.get.table(exchanged, "translate").set_index("method")
    assert null.loc["model", "null_low"] < null.loc["model", "r"] < null.loc["model", "null_high"]


def test_the_null_of_a_translation_is_calibrated():
    rng = np.random.default_rng(0)
    p = []
    for i in range(120):
        values = {name: rng.normal(size=(60, 5)) for name in ("model", "ridge")}
        p.append(_score(values, rng.normal(size=(60, 5)), np.arange(60) % 6, 49, i)[0]["p_value"][0])
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.08)


def test_kinds_are_left_out_and_come_in_random_order():
    marks = [100, 101]
    cell = np.array([2, 100, 5, 6, 7, 101, 50, 51, 3], dtype=np.int32)
    read = NextGeneCollator(0, 20, marks=marks, modality_dropout=0.4)
    found = [read._read(Example(cell, 0.0), np.random.default_rng(i)).tolist() for i in range(60)]
    assert {tuple(one) for one in found} == {
        (2, 100, 5, 6, 7, 101, 50, 51, 3),
        (2, 101, 50, 51, 100, 5, 6, 7, 3),
        (2, 100, 5, 6, 7, 3),
        (2, 101, 50, 51, 3),
    }
    left = NextGeneCollator(0, 20, marks=marks)
    assert left._read(Example(cell, 0.0), np.random.default_rng(0)).tolist() == cell.tolist()
    thinned = read._read(Example(np.r_[2, 100, np.arange(5, 90), 101, 50, 3], 0.9), np.random.default_rng(1))
    assert np.isin(thinned, marks).any()


def test_a_model_grows_by_proteins_and_goes_on_from_its_weights(cells, tmp_path):
    adata = mt.pp.join_modalities(cells[0], proteins="protein")
    mt.pp.map_genes(adata)
    genes = mt.models.Vocabulary.from_anndata(adata)
    base = mt.models.build_model(SHAPE, genes)
    vocab = genes.with_modalities(mt.pp.modality_medians(adata))
    grown = mt.models.extend_model(base, vocab)
    assert grown.max_length == grown.cell_length == base.max_length
    old = grown.hf.model.embed_tokens.weight[: genes.size]
    assert torch.equal(old, base.hf.model.embed_tokens.weight)
    mt.pp.rank_value_encode(adata, vocab)
    recipe = mt.train.PretrainRecipe.of(max_steps=2, batch_size=4, modality_dropout=0.3)
    trained = mt.train.pretrain(adata, vocab, tmp_path / "run", shape=grown, recipe=recipe)
    assert trained.vocab.modalities == ("rna", "adt")
    moved = (
        (trained.hf.model.embed_tokens.weight.cpu() - grown.hf.model.embed_tokens.weight.cpu()).abs().max()
    )
    assert 0 < moved < 0.01
    with pytest.raises(ValueError, match="has another vocabulary"):
        mt.train.pretrain(adata, vocab, tmp_path / "other", shape=base, recipe=recipe)
    timed = vocab.with_times(-5, 5)
    assert timed.modalities == ("rna", "adt")
    assert mt.models.extend_model(grown, timed, max_length=128).vocab.is_temporal


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_cells_survive_a_file_and_come_from_a_mudata(cells, joint, tmp_path):
    adata, model = joint
    adata.write_h5ad(tmp_path / "joint.h5ad")
    again = anndata.read_h5ad(tmp_path / "joint.h5ad")
    np.testing.assert_array_equal(get_sequences(again, model).tokens, get_sequences(adata, model).tokens)
    mt.tl.embed(again, model)
    mt.tl.embed(part := mt.pp.keep_modalities(again, modalities=["adt"]), model)
    assert not np.allclose(again[part.obs_names].obsm["X_maxtoki"], part.obsm["X_maxtoki"])
    protein = cells[0].obsm["protein"]
    mudata = SimpleNamespace(
        mod={"rna": cells[0], "prot": AnnData(protein.to_numpy()[::-1], obs=cells[0].obs[::-1][[]],
                                               var=pd.DataFrame(index=protein.columns))}
    )  # fmt: skip
    joined = mt.pp.join_modalities(mudata)
    np.testing.assert_array_equal(
        joined.X.toarray(), mt.pp.join_modalities(cells[0], proteins="protein").X.toarray()
    )


def test_paired_modalities_follow_their_genes():
    atlas = mt.datasets.aging_atlas(400, 10, n_genes=500)
    before = atlas.X.copy()
    found = mt.datasets.paired_modalities(atlas, n_peaks=60)
    assert (found.X[:, :500] != before).nnz == 0
    truth = found.uns["truth"]["proteins"]
    log = np.log1p(found[:, "adt:" + truth["protein"]].X.toarray())
    for i, (cell_type, gene) in enumerate(zip(truth["cell_type"], truth["gene"], strict=True)):
        has = (found.obs["subtype"] == cell_type) if not gene else (found.obs["cell_type"] == cell_type)
        assert log[has, i].mean() > log[~has, i].mean() + 0.8
    again = mt.datasets.paired_modalities(atlas, n_peaks=60)
    assert (again.X != found.X).nnz == 0
    with pytest.raises(ValueError, match="no cells of mt.datasets.aging_atlas"):
        mt.datasets.paired_modalities(mt.datasets.load("heart_nuclei"))


def test_refusals(cells, joint):
    adata, model = joint
    with pytest.raises(KeyError, match=r"Did not find .obsm\['adt'\]"):
        mt.pp.join_modalities(cells[0], proteins="adt")
    with pytest.raises(ValueError, match="nothing to join"):
        mt.pp.join_modalities(cells[0])
    bare = cells[0].copy()
    bare.obsm["peaks"] = np.zeros((N_CELLS, 3))
    with pytest.raises(TypeError, match="have no names"):
        mt.pp.join_modalities(bare, peaks="peaks")
    with pytest.raises(TypeError, match="peaks must be"):
        mt.pp.join_modalities(cells[0], peaks=np.zeros((N_CELLS, 3)))
    with pytest.raises(ValueError, match="of 120 cells are not among"):
        mt.pp.join_modalities(cells[0], proteins=cells[0].obsm["protein"].iloc[:50])
    with pytest.raises(ValueError, match="no proteins or peaks in 3 cells"):
        mt.pp.modality_medians(cells[0])
    with pytest.raises(ValueError, match="no features of kind 'atac'; there are rna, adt"):
        mt.pp.keep_modalities(adata, modalities="atac")
    with pytest.raises(ValueError, match="has 'adt' already"):
        model.vocab.with_modalities({"adt": {"P9": 1.0}})
    with pytest.raises(ValueError, match="no modality 'protein'"):
        model.vocab.with_modalities({"protein": {"P9": 1.0}})
    with pytest.raises(ValueError, match="does not know 'atac': its vocabulary has rna, adt"):
        mt.tl.translate(adata.copy(), model, target="atac")
    with pytest.raises(ValueError, match="these have adt"):
        mt.tl.translate(mt.pp.keep_modalities(adata, modalities="adt"), model)
