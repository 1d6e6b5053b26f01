"""Cells that a model writes, as an AnnData."""

import numpy as np
import pytest

import maxtoki_toolkit as mt


@pytest.fixture(scope="module")
def model():
    return mt.load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def cells(model):
    adata = mt.datasets.aging_atlas(400, 12, seed=6)
    mt.pp.map_genes(adata, model)
    mt.pp.rank_value_encode(adata, model)
    mt.pp.sample_prompts(
        adata,
        time_key="age_months",
        groupby="cell_type",
        donor_key="donor_id",
        task="cell",
        context_size=(1, 2),
        n_prompts=5,
    )
    return adata


def test_cells_after_a_lapse(cells, model, tmp_path):
    found = mt.tl.generate(cells, model, n_samples=3, max_genes=30)
    table = mt.get.table(cells, "prompts")
    assert found.n_obs == 15
    assert found.obs["prompt"].tolist() == [str(i) for i in range(5) for _ in range(3)]
    assert found.obs["sample"].tolist() == [0, 1, 2] * 5
    for name in ("lapse", "group", "donor"):
        assert found.obs[name].tolist() == np.repeat(table[name], 3).tolist()
    ranks = found.layers["rank"].toarray()
    n_genes = (ranks > 0).sum(axis=1)
    assert (found.obs["n_genes_ranked"] == n_genes).all()
    assert ((n_genes >= 1) & (n_genes <= 30)).all()
    for row, n in zip(ranks, n_genes, strict=True):
        assert sorted(row[row > 0]) == list(range(1, n + 1))
    assert (found.obs["log_likelihood"] < 0).all()
    assert found.uns["generate"]["params"]["model_sha256"] == model.identity
    # What comes out can go in.
    mt.tl.embed(found, model)
    assert np.isfinite(found.obsm["X_maxtoki"]).all()
    found.write_h5ad(tmp_path / "generated.h5ad")


def test_the_lapse_counts_and_a_seed_repeats(cells, model):
    settings = {"max_genes": 20, "rng": 1}
    soon = mt.tl.generate(cells, model, lapse=1, **settings)
    late = mt.tl.generate(cells, model, lapse=700, **settings)
    again = mt.tl.generate(cells, model, lapse=1, **settings)
    assert (soon.obs["lapse"] == 1).all()
    assert (soon.layers["rank"] != again.layers["rank"]).nnz == 0
    # The prompt is read: what follows is more or less likely.
    assert (soon.obs["log_likelihood"].to_numpy() != late.obs["log_likelihood"].to_numpy()).all()
    with pytest.raises(ValueError, match="have no token"):
        mt.tl.generate(cells, model, lapse=100_000)


def test_going_on_with_cells(cells, model):
    few = cells[:6].copy()
    found = mt.tl.generate(few, model, n_given=10, max_genes=25, n_samples=2)
    assert found.obs["prompt"].tolist() == np.repeat(few.obs_names, 2).tolist()
    assert (found.obs["n_genes_given"] == 10).all()
    token = few.var["token_id"].to_numpy()
    for i in range(12):
        given = np.flatnonzero(
            np.isin(few.layers["rank"][i // 2].toarray()[0], np.arange(1, 11)) & (token >= 0)
        )
        first = found.var["token_id"].to_numpy()[
            np.isin(found.layers["rank"][i].toarray()[0], np.arange(1, 11))
        ]
        assert set(token[given]) == set(first)
    nothing = mt.tl.generate(few[:1].copy(), model, n_given=0, n_samples=4, max_genes=10)
    assert (nothing.obs["n_genes_ranked"] >= 1).all()
    with pytest.raises(ValueError, match="n_given must be at least 0"):
        mt.tl.generate(few, model, n_given=-1)


def test_what_cannot_be_generated_is_refused(cells, model):
    other = cells.copy()
    mt.pp.sample_prompts(other, time_key="age_months", groupby="cell_type", n_prompts=3)
    with pytest.raises(ValueError, match="ask for lapses"):
        mt.tl.generate(other, model)
    del other.uns["prompts"]
    with pytest.raises(KeyError, match="sample_prompts"):
        mt.tl.generate(other, model)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = ["<pad>", "<mask>", "<bos>", "<eos>", *model.vocab.genes]
    vocab = mt.models.Vocabulary({token: i for i, token in enumerate(names)}, model.vocab.medians)
    stage1 = mt.models.build_model({**shape, "max_position_embeddings": 64}, vocab)
    with pytest.raises(ValueError, match="cannot tell time"):
        mt.tl.generate(cells, stage1)
    # A model without time can still go on with a cell.
    assert mt.tl.generate(cells[:2].copy(), stage1, n_given=3, max_genes=9).n_obs == 2
