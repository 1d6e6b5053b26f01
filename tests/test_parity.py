"""What the original makes of our inputs (`data/parity.json`), and of its own where the development data are.

Groups about rank value encoding, dictionaries and the model's shape. Where this package differs on purpose,
the case says so and asserts the difference.
"""

import anndata
import numpy as np
import pytest
from helpers import on_copy
from scipy.sparse import csr_matrix

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.sequences import cell_sequences
from maxtoki_toolkit.models.vocabulary import _as_time
from maxtoki_toolkit.pp._rank import rank_csr


@pytest.fixture(scope="module")
def published(shared):
    data = shared / "data"
    return mt.models.Vocabulary.from_json(
        data / "token_dictionary_v1.json", gene_medians=data / "gene_median_dictionary_v1.json"
    )


def ranked_tokens(values, tokens):
    """Token order by the rank kernel, with all medians 1."""
    ranks = rank_csr(csr_matrix(np.array([values], dtype=float)), np.ones(len(values)))
    return [tokens[column] for column in ranks.indices[np.argsort(ranks.data)]]


@pytest.mark.parametrize("group", ["rank_genes", "tokenize_cell"])
def test_ranking(parity, group):
    for case in parity[group]["cases"]:
        assert ranked_tokens(case["values"], case["tokens"]) == case["expected"]


def test_token_dict_key_conversion(parity):
    for case in parity["token_dict_key_conversion"]["cases"]:
        for (key, _, number), (expected, kind, expected_number) in zip(
            case["input_items"], case["expected_items"], strict=True
        ):
            found = _as_time(key) if isinstance(key, str) else key
            assert (found, type(found).__name__, number) == (expected, kind, expected_number)


def test_numeric_maps(parity):
    """Which ids are time tokens and what they mean; the original's arrays are padded to 32."""
    group = parity["numeric_maps"]
    tokens = {_as_time(token): number for token, number in group["token_dictionary"].items()}
    genes = [token for token in tokens if isinstance(token, str) and token.startswith("GENE")]
    vocab = mt.models.Vocabulary(tokens, dict.fromkeys(genes, 1.0))
    (case,) = group["cases"]
    mask, values = np.zeros(32, dtype=bool), np.zeros(32)
    mask[vocab.time_ids] = True
    values[vocab.time_ids] = vocab.time_values
    assert mask.tolist() == case["mask"]
    assert values.tolist() == case["values"]


def test_released_vocabulary(parity, published):
    (case,) = parity["released_vocabulary"]["cases"]
    assert published.size == case["base_size"]
    for token, number in (case["ids"] | case["special"]).items():
        assert published[token] == number
    for gene, median in case["medians"].items():
        assert published.medians[gene] == median
    temporal = published.with_times(-1500, 1499)
    assert temporal.size == case["temporal_size"]
    for token, number in case["temporal_ids"].items():
        assert temporal[_as_time(token)] == number


def test_time_dictionary_differs_on_purpose(parity):
    """The original's generator puts the query marks before the lapses, unlike the authors' own dictionary.

    This package makes the authors' layout (lapses, then marks). The lapses are the same, and a dictionary
    that has lapses already, for which the original gives three tokens one id, is refused.
    """
    first, second = parity["time_dictionary"]["cases"]
    base = {"<pad>": 0, "<mask>": 1, "<bos>": 2, "<eos>": 3, "G0": 4, "G1": 5}
    vocab = mt.models.Vocabulary(base, {"G0": 1.0, "G1": 1.0})
    ours = {
        str(token): number for token, number in vocab.with_times(0, first["max_timepoint"]).tokens.items()
    }
    assert set(ours) == set(first["saved"])
    assert sorted(ours.values()) == sorted(first["saved"].values())
    assert (first["saved"]["<boq>"], ours["<boq>"]) == (6, 9)
    collisions = second["saved"]
    assert collisions["<boq>"] == collisions["<eoq>"] == collisions["-1"]
    with pytest.raises(ValueError, match="has time tokens already"):
        vocab.with_times(-1, 1).with_times(-1, 1)


# Cases in which the original does what this package refuses or repairs, and what becomes of them here.
DEVIATIONS = {
    "QUIRK exact duplicate id in var is not collapsed": "summed, so no token repeats",
    "QUIRK CSR entry [0,0] is a STORED zero: reference keeps it as a (last-ranked) token": "not ranked",
    "QUIRK collapse_gene_ids False crashes": "there is no such option",
}


def cells_of(case):
    matrix = np.array(case["matrix"])
    X = csr_matrix(matrix) if case["storage"] == "csr" else matrix
    if "STORED zero" in case["name"]:
        X = csr_matrix(np.where(matrix == 0, -1.0, matrix))
        X.data[X.data == -1] = 0
        keep = X.copy()
        keep.eliminate_zeros()
        # Only the entry [0, 0] is stored as a zero.
        stored = csr_matrix(
            (np.r_[0.0, keep.data], np.r_[0, keep.indices], keep.indptr + [0, 1, 1, 1, 1]), X.shape
        )
        X = stored
    adata = anndata.AnnData(X)
    adata.obs_names = [f"c{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene{i}" for i in range(adata.n_vars)]
    adata.var["ensembl_id"] = case["ensembl_id"]
    return adata


def encode(adata, vocab, mapping, max_length):
    """Tokens of each cell, and its ranked counts as the original stores them (log counts per 10,000)."""
    mt.pp.map_genes(adata, vocab, gene_key="ensembl_id", mapping=mapping)
    mt.pp.rank_value_encode(adata, vocab)
    token = adata.var["token_id"].to_numpy()
    cells = cell_sequences(adata.layers["rank"], token, vocab, max_length=max_length)
    return [part.tolist() for part in np.split(cells.tokens, cells.indptr[1:-1])]


def test_rank_value_encoding(parity, published):
    checked = []
    for case in parity["rank_value_encoding"]["cases"]:
        name, run = case["name"], case["run"]
        if "error" in case["expected"]:
            checked.append(name)
            continue
        adata = cells_of(case)
        mapping = {key: gene for key, gene in run.get("mapping", {}).items() if isinstance(gene, str)}
        # The original drops cells without genes and shifts the others; here they are an error to act on.
        mapped = on_copy(mt.pp.map_genes, adata, published, gene_key="ensembl_id", mapping=mapping)
        known = mapped.var["ensembl_id"].isin(published.genes).to_numpy()
        empty = np.asarray(adata.X[:, known].sum(axis=1)).ravel() == 0
        if empty.any():
            with pytest.raises(ValueError, match="express no gene of the vocabulary"):
                encode(adata.copy(), published, mapping, 4096)
        adata = adata[~empty].copy()
        expected = case["expected"]["value"]
        assert [row["unique_cell_id"] for row in expected] == adata.obs_names.tolist()
        found = encode(adata, published, mapping, run.get("model_input_size", 4096))
        for tokens, row in zip(found, expected, strict=True):
            wanted = row["input_ids"]
            if "exact duplicate" in name:
                assert len(set(tokens)) == len(tokens)
                assert set(tokens) == set(wanted)
            elif "STORED zero" in name:
                assert [token for token in wanted if token in tokens] == tokens
                assert len(wanted) - len(tokens) == (4 in wanted and row["unique_cell_id"] == "c0")
            else:
                assert tokens == wanted
            if "counts" in row:
                check_counts(adata, row, published)
        checked.append(name)
    assert {name for name in checked if name.startswith("QUIRK")} == set(DEVIATIONS)
    assert len(checked) == len(parity["rank_value_encoding"]["cases"])


def check_counts(adata, row, vocab):
    """The original can store log1p(counts per 10,000) in rank order; here scanpy's normalisation gives them."""
    cell = adata[row["unique_cell_id"]]
    counts = np.asarray(cell.X.todense() if hasattr(cell.X, "todense") else cell.X).ravel()
    per_gene = {}
    for gene, count in zip(adata.var["ensembl_id"], counts, strict=True):
        per_gene[gene] = per_gene.get(gene, 0) + count
    logs = [np.log1p(per_gene[vocab.gene_of_token[t]] / counts.sum() * 1e4) for t in row["input_ids"][1:-1]]
    np.testing.assert_allclose(logs, row["counts"][1:-1], rtol=1e-9)


def test_versioned_ids_differ_on_purpose(published):
    """The original maps no versioned id and drops every cell; here the version is cut."""
    adata = anndata.AnnData(np.array([[3.0, 1.0]]))
    adata.var_names = ["ENSG00000000003.15", "ENSG00000000419.14"]
    assert encode_names(adata, published) == [[2, 4, 6, 3]]


def encode_names(adata, vocab):
    mt.pp.rank_value_encode(adata, vocab)
    cells = cell_sequences(adata.layers["rank"], adata.var["token_id"].to_numpy(), vocab, max_length=4096)
    return [part.tolist() for part in np.split(cells.tokens, cells.indptr[1:-1])]


def test_collate_pretrain(parity):
    """Tokens and targets are the original's; what differs on purpose is named.

    There the last token is trained to predict `<pad>` and padding is labelled 0; here neither is a target.
    Positions are transformers' own (0, 1, ...); a start other than 0 and a least length are not offered.
    """
    from maxtoki_toolkit.train.corpus import IGNORED, Example, NextGeneCollator

    for case in parity["collate_pretrain"]["cases"]:
        expected = case["expected"]["value"]
        batch = NextGeneCollator(0, 100)([Example(np.array(cell, np.int32), 0.0) for cell in case["batch"]])
        width = batch["input_ids"].shape[1]
        assert batch["input_ids"].tolist() == [row[:width] for row in expected["tokens"]]
        for labels, row, cell in zip(
            batch["labels"].tolist(), expected["labels"], case["batch"], strict=True
        ):
            assert labels[: len(cell) - 1] == row[: len(cell) - 1]
            assert row[len(cell) - 1] == 0
            assert set(labels[len(cell) - 1 :]) <= {IGNORED}
