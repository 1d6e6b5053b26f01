"""The vocabulary: published dictionaries, time tokens, and one built from data."""

import json
import pickle

import numpy as np
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.vocabulary import _as_time

SPECIALS = {"<pad>": 0, "<mask>": 1, "<bos>": 2, "<eos>": 3}
GENES = {"ENSG00000000003": 4, "ENSG00000000005": 5}
MEDIANS = {"ENSG00000000003": 1.5, "ENSG00000000005": 0.5}


def test_tokens_and_medians():
    vocab = mt.models.Vocabulary(SPECIALS | GENES, MEDIANS | {"ENSG00000000419": 9.0})
    assert vocab.size == 6
    assert list(vocab.genes) == list(GENES)
    assert vocab.token_id(["ENSG00000000005", "FOO", ""]).tolist() == [5, -1, -1]
    np.testing.assert_array_equal(vocab.median_of_token[4:], [1.5, 0.5])
    assert np.isnan(vocab.median_of_token[:4]).all()
    assert vocab.gene_of_token.tolist() == ["", "", "", "", *GENES]
    assert not vocab.is_temporal


@pytest.mark.parametrize(
    ("tokens", "medians", "message"),
    [
        ({"<pad>": 0, "<bos>": 2} | GENES, MEDIANS, "lacks <mask>, <eos>"),
        (SPECIALS | {"ENSG00000000003": 3}, MEDIANS, "one id to several tokens"),
        (SPECIALS | GENES, {"ENSG00000000003": 1.5}, "1 of 2 genes .* no positive median"),
        (SPECIALS | GENES, MEDIANS | {"ENSG00000000005": 0.0}, "no positive median"),
        (SPECIALS | GENES, MEDIANS | {"ENSG00000000005": float("inf")}, "no positive median"),
        (SPECIALS | GENES | {5: 6}, MEDIANS, "1 integer keys but lacks <boq> or <eoq>"),
    ],
)
def test_bad_dictionaries(tokens, medians, message):
    with pytest.raises(ValueError, match=message):
        mt.models.Vocabulary(tokens, medians)


def test_with_times():
    vocab = mt.models.Vocabulary(SPECIALS | GENES, MEDIANS).with_times(-2, 3)
    assert vocab.is_temporal
    assert vocab.time_values.tolist() == [-2, -1, 0, 1, 2, 3]
    assert vocab.time_ids.tolist() == [6, 7, 8, 9, 10, 11]
    assert (vocab["<boq>"], vocab["<eoq>"], vocab[0]) == (12, 13, 8)
    with pytest.raises(ValueError, match="has time tokens already"):
        vocab.with_times(0, 1)
    with pytest.raises(ValueError, match="must include 0"):
        mt.models.Vocabulary(SPECIALS | GENES, MEDIANS).with_times(1, 5)


def test_save_and_read(tmp_path):
    vocab = mt.models.Vocabulary(SPECIALS | GENES, MEDIANS).with_times(-1, 1)
    vocab.save(tmp_path)
    read = mt.models.Vocabulary.from_json(
        tmp_path / "token_dictionary.json", gene_medians=tmp_path / "gene_median_dictionary.json"
    )
    assert read.sha256 == vocab.sha256
    assert read.tokens == vocab.tokens
    assert mt.models.Vocabulary(SPECIALS | GENES, MEDIANS).sha256 != vocab.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(SPECIALS), "is a Python pickle, which can run code"),
        (b"{", "is not valid JSON"),
        (b"[1, 2]", "is not a token dictionary"),
        (b'{"<pad>": "zero"}', "is not a token dictionary"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        mt.models.Vocabulary.from_json(path, gene_medians=path)


def test_pickle_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w').close()",))

    (tmp_path / "tokens.json").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="pickle"):
        mt.models.Vocabulary.from_json(tmp_path / "tokens.json", gene_medians=tmp_path / "tokens.json")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    matrix = rng.poisson(rng.gamma(1.0, 2.0, (500, 30))).astype(np.float32)
    adata = AnnData(csr_matrix(matrix))
    adata.var["ensembl_id"] = [f"ENSG{i:011d}" for i in range(30)]
    return adata


def test_medians_of_non_zeros(counts):
    vocab = mt.models.Vocabulary.from_anndata(counts)
    dense = counts.X.toarray()
    dense = dense / dense.sum(axis=1, keepdims=True) * 1e4
    dense[dense == 0] = np.nan
    exact = np.nanmedian(dense, axis=0)
    found = np.array([vocab.medians[gene] for gene in counts.var["ensembl_id"]])
    np.testing.assert_allclose(found, exact, rtol=0.01)


def test_streaming_does_not_matter(counts):
    whole = mt.models.Vocabulary.from_anndata(counts)
    pieces = mt.models.Vocabulary.from_anndata(counts[::-1].copy(), chunk_size=7)
    assert whole.sha256 == pieces.sha256


def test_rare_and_unnamed_genes_stay_out(counts):
    dense = counts.X.toarray()
    dense[:, 3] = 0
    dense[:2, 3] = 5
    counts.X = csr_matrix(dense)
    counts.var.loc[counts.var_names[4], "ensembl_id"] = ""
    vocab = mt.models.Vocabulary.from_anndata(counts, min_cells=3)
    assert len(vocab.genes) == 28
    assert vocab.tokens[vocab.genes[0]] == 4
    with pytest.raises(ValueError, match="at least 1000 cells"):
        mt.models.Vocabulary.from_anndata(counts, min_cells=1000)


def test_duplicated_columns_are_summed(counts):
    merged = counts[:, :29].copy()
    merged.X = csr_matrix(merged.X.toarray() + np.pad(counts.X[:, [29]].toarray(), ((0, 0), (0, 28))))
    counts.var.loc[counts.var_names[29], "ensembl_id"] = counts.var["ensembl_id"].iloc[0]
    assert (
        mt.models.Vocabulary.from_anndata(counts).sha256 == mt.models.Vocabulary.from_anndata(merged).sha256
    )


def test_from_anndata_needs_mapped_genes():
    with pytest.raises(KeyError, match="Run mt.pp.map_genes"):
        mt.models.Vocabulary.from_anndata(AnnData(np.ones((2, 2))))


def test_number_like_keys():
    assert [_as_time(key) for key in ("3", "-12", "5.0", "2.5", "1_000", " 3 ", "ENSG001")] == [
        3,
        -12,
        5,
        "2.5",
        "1_000",
        " 3 ",
        "ENSG001",
    ]


def test_published_temporal_dictionary(shared):
    data = shared / "data"
    base = mt.models.Vocabulary.from_json(
        data / "token_dictionary_v1.json", gene_medians=data / "gene_median_dictionary_v1.json"
    )
    assert (base.size, len(base.genes), base.is_temporal) == (20_275, 20_271, False)
    expected = json.loads((data / "token_dictionary_temporal.json").read_text())
    assert {str(token): number for token, number in base.with_times(-1500, 1499).tokens.items()} == expected
    read = mt.models.Vocabulary.from_json(
        data / "token_dictionary_temporal.json", gene_medians=data / "gene_median_dictionary_v1.json"
    )
    assert read.is_temporal
    np.testing.assert_array_equal(read.time_ids, 21_775 + read.time_values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.log1p(x / 7), "looks log-normalised"),
        (lambda x: -x, "negative values"),
        (lambda x: x / 7 + 30, "looks normalised"),
    ],
)
def test_medians_are_of_counts(counts, change, message):
    """Medians of anything else would be off many times over."""
    other = csr_matrix(change(counts.X.toarray()))
    ids = [f"ENSG{i:011d}" for i in range(counts.shape[1])]
    with pytest.raises(ValueError, match=message):
        mt.models.Vocabulary.from_counts([other], ids)
    adata = AnnData(other)
    adata.var["ensembl_id"] = ids
    with pytest.raises(ValueError, match=message):
        mt.models.Vocabulary.from_anndata(adata)
    if "looks normalised" in message:
        assert len(mt.models.Vocabulary.from_anndata(adata, force=True).genes)
