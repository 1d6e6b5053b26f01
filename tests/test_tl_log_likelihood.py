"""How likely a model finds cells."""

import numpy as np
import pytest
import torch
from helpers import on_copy

import maxtoki_toolkit as mt
from maxtoki_toolkit.demo import held_out_nuclei


@pytest.fixture(scope="module")
def model():
    return mt.load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def cells(model):
    adata = mt.datasets.load("heart_nuclei")
    adata = adata[held_out_nuclei()[:30]].copy()
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    return adata


def test_it_is_the_mean_over_the_genes_that_are_read(cells, model, monkeypatch):
    found = on_copy(mt.tl.log_likelihood, cells, model)
    ranks = cells.layers["rank"][4].toarray()[0]
    order = np.argsort(np.where(ranks > 0, ranks, 65_535), kind="stable")[: model.cell_length - 2]
    tokens = torch.tensor([2, *cells.var["token_id"].to_numpy()[order][: (ranks > 0).sum()], 3])
    with torch.inference_mode():
        p = model.hf(tokens[None]).logits[0].log_softmax(dim=1)
    expected = p[torch.arange(len(tokens) - 2), tokens[1:-1]].mean()
    assert found.obs["log_likelihood"].iloc[4] == pytest.approx(expected.item(), abs=1e-4)
    monkeypatch.setattr(mt.settings, "max_tokens", 200)
    small = on_copy(mt.tl.log_likelihood, cells, model)
    np.testing.assert_allclose(small.obs["log_likelihood"], found.obs["log_likelihood"], atol=1e-4)


def test_cells_that_were_held_out_are_likelier_than_shuffled_ones(cells, model):
    """The planted truth: the same genes of a cell in any order; the null: an untrained model, which does not care."""
    shuffled, rng = cells.copy(), np.random.default_rng(0)
    ranks = shuffled.layers["rank"]
    for start, stop in zip(ranks.indptr[:-1], ranks.indptr[1:], strict=True):
        ranks.data[start:stop] = rng.permutation(ranks.data[start:stop])
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    untrained = mt.models.build_model({**shape, "max_position_embeddings": 128}, model.vocab)
    for m, better in ((model, True), (untrained, False)):
        real = on_copy(mt.tl.log_likelihood, cells, m).obs["log_likelihood"].to_numpy()
        other = on_copy(mt.tl.log_likelihood, shuffled, m).obs["log_likelihood"].to_numpy()
        if better:
            assert (real > other + 0.5).all()
        else:
            np.testing.assert_allclose(real, other, atol=0.05)
            np.testing.assert_allclose(real, -np.log(model.vocab.size), atol=0.05)
