"""Features beside the genes, columns of one gene, and the counts that everything is made of."""

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from anndata.utils import make_index_unique

import maxtoki_toolkit as mt
from maxtoki_toolkit._features import find_genes, gene_columns, gene_features
from maxtoki_toolkit._reference import gene_table
from maxtoki_toolkit.pp._ranked_counts import has_counts, ranked_counts, sum_genes
from maxtoki_toolkit.tl._asked_genes import ask_genes
from maxtoki_toolkit.tl._embedding_baselines import principal_components
from maxtoki_toolkit.tl._expression import log_expression
from maxtoki_toolkit.tl._gene_covariates import gene_covariates
from maxtoki_toolkit.tl._gene_pairs import expression_or_ranks
from maxtoki_toolkit.tl.attention import _genes

GENES = [*"CD4 CD14 CD19 TP53 RAB1A ACTB GAPDH TTN MYH7 DCN".split()]


@pytest.fixture(scope="module")
def ids():
    return gene_table().drop_duplicates("symbol").set_index("symbol")["ensembl_id"][GENES].tolist()


@pytest.fixture(scope="module")
def vocab(ids):
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *ids]
    return mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(ids, 1.0))


def make(X, var, **slots):
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(len(X))])
    return AnnData(sp.csr_matrix(np.asarray(X, np.float32)), obs=obs, var=var, **slots)


@pytest.fixture(scope="module")
def rna(ids):
    X = np.random.default_rng(0).integers(1, 9, (30, len(GENES)))
    return make(X, pd.DataFrame({"gene_ids": ids, "feature_types": "Gene Expression"}, index=GENES))


def with_tags(rna, names, ids, kind, column="feature_types", of_genes="Gene Expression"):
    """The cells with other features beside the genes, whose counts are far higher."""
    tags = pd.DataFrame({"gene_ids": ids, column: kind}, index=names)
    var = pd.concat([rna.var[["gene_ids"]].assign(**{column: of_genes}), tags])
    return make(np.hstack([rna.X.toarray(), np.full((rna.n_obs, len(names)), 500)]), var)


TAGS = {
    "antibodies": (["CD4_TotalSeqB", "CD14_TotalSeqB"], ["CD4", "CD14"], "Antibody Capture"),
    "antibodies with the names of genes": (["CD4-1", "CD14-1"], ["CD4", "CD14"], "Antibody Capture"),
    "hashtags": (["Hashtag1", "ACTB-1"], ["CD19", "ACTB"], "Multiplexing Capture"),
    "guides": (["TP53-1", "RAB1A-2"], ["TP53-1", "RAB1A-2"], "CRISPR Guide Capture"),
    "a kind of one's own": (["GAPDH-1", "TTN_x"], ["GAPDH", "TTN"], "my capture"),
}


@pytest.mark.parametrize("kind", TAGS)
def test_only_genes_are_ranked(rna, vocab, kind):
    alone, both = rna.copy(), with_tags(rna, *TAGS[kind])
    for adata in (alone, both):
        mt.pp.rank_value_encode(adata, vocab)
    n = rna.n_vars
    np.testing.assert_array_equal(both.layers["rank"][:, :n].toarray(), alone.layers["rank"].toarray())
    assert both.layers["rank"][:, n:].nnz == 0
    # What is ranked of the genes, not of all molecules.
    np.testing.assert_array_equal(both.obs["share_ranked"], alone.obs["share_ranked"])
    report = mt.get.table(both, "map_genes")["n_genes"]
    assert report[["genes", "dropped", "no_genes"]].tolist() == [n, 0, 2]


@pytest.mark.parametrize(
    ("column", "of_genes", "kind"),
    [
        ("feature_type", "Gene Expression", "Antibody Capture"),
        ("modality", "rna", "prot"),
        ("modality", "RNA", "ADT"),
        ("Feature Types", "gene_expression", "Peaks"),
        # CELLxGENE keeps the biotype there.
        ("feature_type", "protein_coding", "Antibody Capture"),
    ],
)
def test_whatever_the_column_is_called(rna, column, of_genes, kind):
    var = with_tags(rna, *TAGS["antibodies"][:2], kind, column, of_genes).var
    assert gene_features(var).tolist() == [True] * 10 + [False] * 2


def test_file_to_file(rna, vocab, tmp_path):
    both = with_tags(rna, *TAGS["antibodies"][:2], "prot", "modality", "rna")
    both.write_h5ad(tmp_path / "cells.h5ad")
    mt.pp.encode_file(tmp_path / "cells.h5ad", tmp_path / "ranks.h5ad", vocab)
    encoded = ad.read_h5ad(tmp_path / "ranks.h5ad")
    mt.pp.rank_value_encode(both, vocab)
    assert (encoded.layers["rank"] != both.layers["rank"]).nnz == 0
    assert encoded.layers["rank"][:, 10:].nnz == 0
    assert encoded.obs["share_ranked"].eq(1).all()


def test_biotypes_are_no_features(rna):
    var = rna.var.assign(feature_type=["protein_coding", "lncRNA"] * 5).drop(columns="feature_types")
    assert gene_features(var).all()


def test_features_without_a_type(rna, vocab):
    """Among genes alone they are genes; beside antibodies it has to be said."""
    var = rna.var.assign(feature_types=["Gene Expression"] * 9 + [np.nan])
    assert gene_features(var).all()
    var["feature_types"] = ["Gene Expression"] * 8 + ["Antibody Capture", np.nan]
    with pytest.raises(ValueError, match=r"empty for 1 features \(first: 'DCN'\).*Antibody Capture \(1\)"):
        mt.pp.map_genes(AnnData(var=var), vocab)


def test_peaks_are_known_by_their_names(ids, vocab):
    """Of 60 features 10 are genes, and all of these are found."""
    peaks = [f"chr1:{i}00-{i}50" for i in range(25)] + [f"X-{i}00-{i}50" for i in range(25)]
    adata = AnnData(var=pd.DataFrame(index=GENES + peaks))
    mt.pp.map_genes(adata, vocab, min_overlap=1.0)
    assert adata.var["ensembl_id"].tolist() == ids + [""] * 50
    with pytest.raises(ValueError, match="None of the 50 features is a gene"):
        mt.pp.map_genes(AnnData(var=pd.DataFrame(index=peaks)), vocab)
    only = AnnData(var=pd.DataFrame({"feature_types": ["Antibody Capture"]}, index=["CD4"]))
    with pytest.raises(ValueError, match=r"no|None of the 1 features.*Antibody Capture"):
        mt.pp.map_genes(only, vocab)


def test_a_number_is_cut_from_a_name_only_beside_the_name(ids):
    adata = AnnData(var=pd.DataFrame(index=["TP53-1", "ACTB", "ACTB-1", "DCN.1", f"{ids[1]}", f"{ids[1]}-1"]))
    mt.pp.map_genes(adata)
    assert adata.var["ensembl_id"].tolist() == ["", ids[5], ids[5], "", ids[1], ids[1]]


def test_ids_go_before_symbols():
    """Genes that share a symbol, as in a 10x file: each has its own id beside it."""
    table = gene_table()
    table = table[table["symbol"].isin(["MATR3", "TBCE", "PINX1", "ACTB", "TTN", "DCN"])]
    assert table["symbol"].duplicated().sum() >= 2
    var = pd.DataFrame({"gene_ids": table["ensembl_id"].to_numpy()})
    adata = AnnData(var=var.set_axis(make_index_unique(pd.Index(table["symbol"].to_numpy()))))
    vocab = mt.models.Vocabulary(
        {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *table["ensembl_id"][::-1]])},
        dict.fromkeys(table["ensembl_id"], 1.0),
    )
    for model in (None, vocab):
        mt.pp.map_genes(adata, model)
        assert adata.var["ensembl_id"].tolist() == adata.var["gene_ids"].tolist()
    assert adata.uns["map_genes"]["params"]["gene_key"] == "gene_ids"
    # Also where they stand in the column that ours takes the place of, and the vocabulary comes later.
    own = AnnData(var=adata.var[["gene_ids"]].rename(columns={"gene_ids": "ensembl_id"}))
    mt.pp.map_genes(own)
    mt.pp.map_genes(own, vocab)
    assert own.var["ensembl_id"].tolist() == var["gene_ids"].tolist()


def test_what_was_asked_for_holds_for_the_next_vocabulary(rna, ids, vocab, tmp_path):
    """A mapping is not undone when the cells are ranked, in memory and from a file."""
    adata = rna.copy()
    del adata.var["gene_ids"]
    adata.var_names = ["TTN", "titin", *GENES[2:6], *"abcd"]
    mt.pp.map_genes(adata, mapping={"TTN": ids[0], "titin": ids[7]})
    expected = [ids[0], ids[7], *ids[2:6], *[""] * 4]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    mt.pp.rank_value_encode(adata, vocab)
    assert adata.var["ensembl_id"].tolist() == expected
    mt.pp.encode_file(tmp_path / "cells.h5ad", tmp_path / "ranks.h5ad", vocab)
    assert ad.read_h5ad(tmp_path / "ranks.h5ad").var["ensembl_id"].tolist() == expected


def test_a_name_beside_ids_is_no_second_column_of_a_gene(ids):
    """Antibodies whose type was lost, and an old id whose symbol has gone to another gene."""
    var = pd.DataFrame(
        {"gene_ids": [*ids, "CD4", "ENSG99999999999"]}, index=[*GENES, "CD4_TotalSeqB", "ACTB-1"]
    )
    adata = AnnData(var=var)
    mt.pp.map_genes(adata)
    assert adata.var["ensembl_id"].tolist() == [*ids, "", "ENSG99999999999"]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "float32", "float64"])
def test_columns_of_a_gene_are_summed_exactly(dtype):
    X = np.array([[100, 7, 0, 90, 90], [0, 1, 2, 120, 0]]).astype(dtype)
    found = sum_genes(sp.csr_matrix(X), np.array([0, 1, -1, 0, 0]))
    np.testing.assert_array_equal(found.toarray(), [[280, 7, 0, 0, 0], [120, 1, 0, 0, 0]])
    assert found.has_canonical_format
    # Entries that a file repeats are summed likewise.
    twice = sp.csr_matrix((X[0, [0, 3, 4]], np.array([1, 0, 1]), np.array([0, 3])), shape=(1, 2))
    np.testing.assert_array_equal(sum_genes(twice, np.arange(2)).toarray(), [[90, 190]])


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_small_integers_do_not_wrap_around(ids, vocab, dtype):
    X = np.random.default_rng(0).integers(1, 60, (4, 11))
    X[:, 0], X[:, 10] = 120, 120
    var = pd.DataFrame(index=[*ids, f"{ids[0]}.7_PAR_Y"])
    ranks = []
    for kind in (dtype, "float64"):
        adata = AnnData(sp.csr_matrix(X.astype(kind)), var=var)
        mt.pp.rank_value_encode(adata, vocab)
        ranks.append(adata.layers["rank"].toarray())
    np.testing.assert_array_equal(*ranks)
    assert (ranks[0][:, 0] == 1).all()


def test_another_column_of_a_gene_takes_over(rna, ids, vocab):
    """The first of two columns is filtered away between mapping and ranking."""
    adata = make(rna.X.toarray(), pd.DataFrame(index=[*ids[:9], f"{ids[0]}.7"]))
    mt.pp.map_genes(adata, vocab)
    adata = adata[:, 1:].copy()
    mt.pp.rank_value_encode(adata, vocab)
    assert (adata.layers["rank"][:, -1].toarray() > 0).all()
    assert adata.var["token_id"].tolist() == vocab.token_id([*ids[1:9], ids[0]]).tolist()
    assert adata.obs["n_genes_ranked"].eq(9).all()


def test_lost_columns_of_the_mapping_are_found_anew(rna, vocab):
    adata = rna.copy()
    mt.pp.map_genes(adata, vocab)
    del adata.var["token_id"]
    adata.var["gene_status"] = adata.var["gene_status"].where(np.arange(10) > 0)
    mt.pp.rank_value_encode(adata, vocab)
    assert adata.obs["n_genes_ranked"].eq(10).all()


def test_genes_are_found_by_name_beside_their_antibodies(rna, ids, vocab):
    """`.var_names` of antibodies are symbols of genes; a second column stands for its gene."""
    both = with_tags(rna, ["tag1", "tag2"], ["CD4", "ACTB"], "Antibody Capture")
    both.var_names = [*ids, "CD4", "ACTB"]
    both.var["symbol"] = [*GENES, "", ""]
    mt.pp.rank_value_encode(both, vocab)
    assert find_genes(both, ["CD4", "ACTB"]).tolist() == [0, 5]
    asked = ask_genes(both, SimpleNamespace(vocab=vocab), ["CD4", "ACTB"])
    assert [token.tolist() for token in asked.tokens] == [[4], [9]]
    twice = make(rna.X.toarray(), pd.DataFrame(index=[*ids[:9], f"{ids[0]}.7"]))
    mt.pp.rank_value_encode(twice, vocab)
    assert find_genes(twice, [f"{ids[0]}.7"]).tolist() == [0]


def test_counts_are_those_that_were_ranked(rna, vocab):
    both = with_tags(rna, *TAGS["antibodies"])
    both.layers["counts"] = both.X.copy()
    mt.pp.rank_value_encode(both, vocab, layer="counts")
    both.X = both.X.log1p()
    expected = np.hstack([rna.X.toarray(), np.zeros((30, 2))])
    np.testing.assert_array_equal(ranked_counts(both).toarray(), expected)
    np.testing.assert_array_equal(ranked_counts(both, rows=np.array([3, 1])).toarray(), expected[[3, 1]])
    with pytest.raises(KeyError, match=r"Did not find .layers\['nope'\]. Available layers: ") as refusal:
        ranked_counts(both, "nope")
    assert "ranked" not in refusal.value.args[0].split("]")[-1]
    del both.layers["counts"]
    assert not has_counts(both, None)
    with pytest.raises(KeyError, match=r"\.layers\['counts'\].*ranked from it: say where the counts are now"):
        ranked_counts(both)
    mt.pp.rank_value_encode(rna := rna.copy(), vocab)
    rna.layers["counts"], rna.X = rna.X.copy(), rna.X.log1p()
    with pytest.raises(ValueError, match="looks log-normalised.*layer='counts'"):
        ranked_counts(rna)


def test_what_was_forced_is_read_as_it_is_but_not_as_whole_numbers(rna, vocab):
    adata = rna.copy()
    adata.X = adata.X * np.float32(10.5)
    with pytest.raises(ValueError, match="looks normalised"):
        ranked_counts(adata)
    mt.pp.rank_value_encode(adata, vocab, force=True)
    np.testing.assert_array_equal(ranked_counts(adata).toarray(), adata.X.toarray())
    with pytest.raises(ValueError, match="looks normalised"):
        ranked_counts(adata, whole=True)


def test_whatever_is_made_of_counts_is_made_of_those_that_were_ranked(rna, ids, vocab):
    """Not of a log-normalised `.X`, of antibodies, or of one of two columns of a gene."""
    split = np.full((30, 1), 3)
    X, n = np.hstack([rna.X.toarray() + 3, split]), rna.n_vars
    alone = make(X, pd.DataFrame(index=[*ids, f"{ids[0]}.7"]))
    whole = X.copy()
    whole[:, 0], whole[:, n] = X[:, 0] + 3, 0
    both = with_tags(rna, [f"{ids[0]}.7", *TAGS["antibodies"][0]], ["", "CD4", "CD14"], ["", "ADT", "ADT"])
    both.var.iloc[n, both.var.columns.get_loc("feature_types")] = "Gene Expression"
    both.X = sp.csr_matrix(np.hstack([X, np.full((30, 2), 500)]).astype(np.float32))
    both.layers["counts"] = both.X.copy()
    mt.pp.rank_value_encode(both, vocab, layer="counts")
    both.X = both.X.log1p()
    level = 1e4 * whole / whole.sum(axis=1, keepdims=True)
    cells, columns = np.arange(30), np.arange(n)
    found, what = expression_or_ranks(both, cells, columns, None)
    assert what == "log1p of counts per 10,000"
    np.testing.assert_allclose(found, np.log1p(level[:, :n]))
    np.testing.assert_allclose(log_expression([(both, cells)], cells)[:, : n + 1], np.log1p(level), rtol=1e-5)
    np.testing.assert_allclose(gene_covariates(both)["expression"], level.mean(axis=0)[:n])
    sequences = SimpleNamespace(tokens=vocab.gene_ids)
    genes, _ = _genes(both, SimpleNamespace(vocab=vocab), cells, sequences)
    np.testing.assert_allclose(genes["expression"], level.mean(axis=0)[:n])
    once = principal_components(both, n_pcs=3, seed=0)
    mt.pp.rank_value_encode(alone, vocab)
    np.testing.assert_allclose(np.abs(principal_components(alone, n_pcs=3, seed=0)), np.abs(once), atol=1e-3)

    del both.layers["counts"]
    with pytest.warns(UserWarning, match="Genes are matched on rank and detection.*ranked from it"):
        assert "expression" not in gene_covariates(both)
    with pytest.warns(UserWarning, match="median of the vocabulary: Did not find"):
        genes, _ = _genes(both, SimpleNamespace(vocab=vocab), cells, sequences)
    assert genes["expression"].eq(1).all()
    with pytest.raises(KeyError, match="say where the counts are now"):
        log_expression([(both, cells)], cells)


def test_medians_are_of_genes_alone(rna):
    both = with_tags(rna, *TAGS["antibodies"])
    vocabularies = []
    for adata in (rna.copy(), both):
        mt.pp.map_genes(adata)
        vocabularies.append(mt.models.Vocabulary.from_anndata(adata))
    assert vocabularies[0].sha256 == vocabularies[1].sha256


def test_columns_that_stand_for_genes(rna):
    var = rna.var.assign(ensembl_id=["a", "a", "", "", "b", "c", "d", "b", "b", None], gene_status="matched")
    assert gene_columns(var).tolist() == [0, 0, 2, 3, 4, 5, 6, 4, 4, 9]
    # An `ensembl_id` that is not ours says nothing.
    assert gene_columns(var.drop(columns="gene_status")).tolist() == list(range(10))
