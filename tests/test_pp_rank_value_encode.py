"""Rank value encoding against an oracle in plain float64, and what it refuses."""

import anndata
import numpy as np
import pytest
from anndata import AnnData
from helpers import on_copy
from scipy.sparse import csc_matrix, csr_matrix

import maxtoki_toolkit as mt
from maxtoki_toolkit.pp import _rank


def make_vocab(n_genes, seed=0):
    genes = [f"ENSG{i:011d}" for i in range(n_genes)]
    medians = np.exp(np.random.default_rng(seed).normal(0, 1, n_genes))
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    return mt.models.Vocabulary(
        {t: i for i, t in enumerate(tokens)}, dict(zip(genes, medians.tolist(), strict=True))
    )


def make(matrix, ids=None):
    adata = AnnData(matrix)
    adata.var_names = ids or [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    return adata


@pytest.fixture
def vocab():
    return make_vocab(300)


@pytest.fixture
def adata():
    rng = np.random.default_rng(1)
    return make(csr_matrix(rng.poisson(rng.gamma(0.5, 2.0, (200, 320))).astype(np.float32)))


def oracle(counts, medians):
    """Rank one cell at a time, in float64, ties in column order."""
    ranks = np.zeros(counts.shape, np.uint16)
    for row, cell in zip(ranks, np.asarray(counts, np.float64), strict=True):
        genes = np.flatnonzero((cell > 0) & ~np.isnan(medians))
        order = np.argsort(-(cell[genes] / medians[genes]), kind="stable")
        row[genes[order]] = np.arange(1, len(genes) + 1)
    return ranks


def medians_of(vocab, n):
    return np.concatenate([vocab.median_of_token[4:], np.full(n - len(vocab.genes), np.nan)])


def test_equals_the_oracle(adata, vocab):
    mt.pp.rank_value_encode(adata, vocab)
    ranks = adata.layers["rank"]
    assert isinstance(ranks, csr_matrix)
    assert ranks.dtype == np.uint16
    expected = oracle(adata.X.toarray(), medians_of(vocab, 320))
    np.testing.assert_array_equal(ranks.toarray(), expected)
    np.testing.assert_array_equal(adata.obs["n_genes_ranked"], (expected > 0).sum(axis=1))
    share = adata.X[:, :300].toarray().sum(axis=1) / adata.X.toarray().sum(axis=1)
    np.testing.assert_allclose(adata.obs["share_ranked"], share, rtol=1e-6)


@pytest.mark.parametrize("convert", [np.asarray, csc_matrix, lambda X: csr_matrix(X.astype(np.uint16))])
def test_storage_does_not_matter(adata, vocab, convert):
    mt.pp.rank_value_encode(adata, vocab)
    other = make(convert(adata.X.toarray()), list(adata.var_names))
    mt.pp.rank_value_encode(other, vocab)
    assert (other.layers["rank"] != adata.layers["rank"]).nnz == 0


@pytest.mark.parametrize("row", [0, 20, 199])
def test_an_empty_cell_is_named_wherever_it_is(adata, vocab, row):
    counts = adata.X.toarray()
    counts[row, :300] = 0  # what is left, the model does not know
    with pytest.raises(ValueError, match=f"1 of 200 cells express no gene of the vocabulary .first: '{row}'"):
        mt.pp.rank_value_encode(make(csr_matrix(counts), list(adata.var_names)), vocab)


def test_empty_cells_anywhere_in_a_block_have_no_ranks(adata, vocab):
    counts = adata.X.toarray()
    medians = medians_of(vocab, 320)
    for rows in ([0], [199], [0, 198, 199], [5], range(200)):
        some = counts.copy()
        some[list(rows)] = 0
        ranks = _rank.rank_csr(csr_matrix(some), medians)
        np.testing.assert_array_equal(ranks.toarray(), oracle(some, medians))


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_blocks_and_threads_do_not_matter(adata, vocab, chunk_size, n_jobs, monkeypatch):
    monkeypatch.setattr(mt.settings, "n_jobs", n_jobs)
    monkeypatch.setattr(_rank, "_CHUNK", 4096)
    monkeypatch.setattr(_rank, "_BLOCK", 512)
    mt.pp.rank_value_encode(adata, vocab, chunk_size=chunk_size)
    expected = oracle(adata.X.toarray(), medians_of(vocab, 320))
    np.testing.assert_array_equal(adata.layers["rank"].toarray(), expected)


def test_ties_go_by_column():
    vocab = mt.models.Vocabulary(make_vocab(6).tokens, {f"ENSG{i:011d}": 1.0 for i in range(6)})
    adata = make(np.array([[1, 2, 1, 0, 2, 1]], np.float32))
    mt.pp.rank_value_encode(adata, vocab)
    assert adata.layers["rank"].toarray().tolist() == [[3, 1, 4, 0, 2, 5]]


def test_values_closer_than_the_sort_key_are_told_apart():
    """The key has 48 bits; ratios that differ by less are sorted in full precision, ties included."""
    gap = 1e-14
    medians = [1.0, 1.0 - gap, 1.0 + gap, 1.0, 1.0 - gap]
    vocab = mt.models.Vocabulary(make_vocab(5).tokens, {f"ENSG{i:011d}": m for i, m in enumerate(medians)})
    adata = make(np.ones((3, 5), np.float32))
    mt.pp.rank_value_encode(adata, vocab)
    assert adata.layers["rank"].toarray().tolist() == [[3, 1, 5, 4, 2]] * 3


def test_columns_of_one_gene_are_summed(vocab):
    ids = [f"ENSG{i:011d}" for i in (0, 1, 0, 2)]
    adata = make(csr_matrix(np.array([[1, 9, 5, 3], [0, 1, 4, 0], [2, 0, 0, 1]], np.float32)), ids)
    mt.pp.rank_value_encode(adata, vocab)
    merged = np.array([[6, 9, 3], [4, 1, 0], [2, 0, 1]])
    expected = oracle(merged, medians_of(vocab, 300)[:3])
    np.testing.assert_array_equal(adata.layers["rank"].toarray()[:, [0, 1, 3]], expected)
    assert adata.layers["rank"][:, 2].nnz == 0


def test_stored_zeros_are_not_ranked(vocab):
    X = csr_matrix(np.array([[1.0, 2.0, 3.0]]))
    X.data[1] = 0
    adata = make(X)
    mt.pp.rank_value_encode(adata, vocab)
    assert adata.layers["rank"].toarray()[0, 1] == 0
    assert adata.layers["rank"].nnz == 2


def test_unsorted_and_repeated_entries(vocab):
    X = csr_matrix((np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    adata = make(X)
    mt.pp.rank_value_encode(adata, vocab)
    expected = oracle(np.array([[2, 0, 5]]), medians_of(vocab, 300)[:3])
    np.testing.assert_array_equal(adata.layers["rank"].toarray(), expected)


def test_layer_and_copy(adata, vocab):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    result = on_copy(mt.pp.rank_value_encode, adata, vocab, layer="counts")
    assert "rank" not in adata.layers
    np.testing.assert_array_equal(
        result.layers["rank"].toarray(), oracle(adata.layers["counts"].toarray(), medians_of(vocab, 320))
    )
    assert result.uns["rank_value_encode"]["params"]["layer"] == "counts"


def test_backed(adata, vocab, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    mt.pp.rank_value_encode(adata, vocab)
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    mt.pp.rank_value_encode(backed, vocab, chunk_size=33)
    assert (backed.layers["rank"] != adata.layers["rank"]).nnz == 0
    backed.file.close()


BAD = {
    "log-normalised": (lambda X: np.log1p(X / X.sum(1, keepdims=True) * 1e4), "looks log-normalised"),
    "scaled": (lambda X: (X - X.mean(0)) / (X.std(0) + 1), "negative values .*as scaled data do"),
    "CPM": (lambda X: X / X.sum(1, keepdims=True) * 1e6, r"looks normalised \(CPM, TPM, FPKM\)"),
    "NaN": (lambda X: np.where(X == 3, np.nan, X), "NaN or infinite"),
    "infinite": (lambda X: np.where(X == 3, np.inf, X), "NaN or infinite"),
    "negative": (lambda X: np.where(X == 3, -1, X), "negative values"),
    "negative integers": (lambda X: np.where(X == 3, -1, X).astype(int), "negative values"),
    "empty cell": (lambda X: X * (np.arange(len(X)) != 5)[:, None], "1 of 200 cells express no gene .*'5'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_and_nothing_is_written(adata, vocab, kind):
    change, message = BAD[kind]
    bad = make(csr_matrix(change(adata.X.toarray())), list(adata.var_names))
    with pytest.raises(ValueError, match=message):
        mt.pp.rank_value_encode(bad, vocab)
    assert "rank" not in bad.layers
    assert "n_genes_ranked" not in bad.obs
    assert "rank_value_encode" not in bad.uns


def test_force_accepts_linear_values(adata, vocab):
    mt.pp.rank_value_encode(adata, vocab)
    cpm = make(csr_matrix(adata.X / adata.X.sum(axis=1) * 1e6), list(adata.var_names))
    mt.pp.rank_value_encode(cpm, vocab, force=True)
    # Scaling a cell does not change its order, but for ties that rounding breaks.
    assert (cpm.layers["rank"].toarray() == adata.layers["rank"].toarray()).mean() > 0.99


def test_forced_logarithms_are_warned_of(adata, vocab):
    logged = make(adata.X.log1p(), list(adata.var_names))
    with pytest.warns(UserWarning, match="looks log-normalised.*not those of the counts"):
        mt.pp.rank_value_encode(logged, vocab, force=True)
    with pytest.raises(ValueError, match="looks log-normalised") as refusal:
        mt.pp.rank_value_encode(logged, vocab)
    assert "force" not in str(refusal.value)


def test_hint_at_the_raw_counts(adata, vocab):
    adata.layers["raw_counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    with pytest.raises(ValueError, match="Perhaps layer='raw_counts'"):
        mt.pp.rank_value_encode(adata, vocab)
    with pytest.raises(KeyError, match="Available layers"):
        mt.pp.rank_value_encode(adata, vocab, layer="nope")


def test_duplicate_cell_names(adata, vocab):
    adata.obs_names = ["a"] * adata.n_obs
    with pytest.raises(ValueError, match="199 cell names are not unique .*obs_names_make_unique"):
        mt.pp.rank_value_encode(adata, vocab)


def test_another_vocabulary_maps_anew(adata, vocab):
    mt.pp.rank_value_encode(adata, vocab)
    mt.pp.rank_value_encode(adata, make_vocab(40))
    assert adata.layers["rank"].max() <= 40
    with pytest.raises(ValueError, match="was made for other genes"):
        mt.pp.rank_value_encode(adata, make_vocab(10))


def test_heart_nuclei_and_the_published_dictionary(shared):
    """All of each cell's expressed vocabulary genes, in the order of a float64 oracle."""
    data = shared / "data"
    vocab = mt.models.Vocabulary.from_json(
        data / "token_dictionary_v1.json", gene_medians=data / "gene_median_dictionary_v1.json"
    )
    adata = anndata.read_h5ad(data / "heart_nuclei_700.h5ad")
    mt.pp.rank_value_encode(adata, vocab)
    medians = np.array([vocab.medians[g] if g in vocab.tokens else np.nan for g in adata.var_names])
    np.testing.assert_array_equal(adata.layers["rank"].toarray(), oracle(adata.X.toarray(), medians))
    expressed = (adata.X[:, ~np.isnan(medians)] > 0).sum(axis=1).A1
    assert (adata.obs["n_genes_ranked"] / expressed).min() >= 0.98
