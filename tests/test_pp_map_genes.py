"""Gene names to Ensembl ids and tokens."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import on_copy

import maxtoki_toolkit as mt

NAMES = ["TTN", "MYH7", "DCN", "VWF", "PTPRC", "ACTB", "GAPDH", "CD3D", "NKX2-5", "C1orf112"]


def make(var_names, **columns):
    adata = AnnData(np.ones((2, len(var_names)), np.float32))
    adata.var_names = var_names
    for key, values in columns.items():
        adata.var[key] = values
    return adata


@pytest.fixture(scope="module")
def ids():
    adata = make(NAMES)
    mt.pp.map_genes(adata)
    return adata.var["ensembl_id"].tolist()


@pytest.fixture(scope="module")
def vocab(ids):
    genes = ids[:8]
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    return mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(genes, 1.0))


def status(adata):
    return adata.var["gene_status"].tolist()


def test_symbols(ids):
    assert ids[0] == "ENSG00000155657"
    assert all(gene.startswith("ENSG") for gene in ids)


def test_ids_versions_and_mixtures(ids):
    adata = make([ids[0], f"{ids[1]}.14", ids[2].lower(), "VWF", "ENSG00000185960.15_PAR_Y", "nonsense"])
    mt.pp.map_genes(adata)
    assert adata.var["ensembl_id"].tolist() == [ids[0], ids[1], ids[2], ids[3], "ENSG00000185960", ""]
    assert status(adata) == ["matched", "versioned", "matched", "matched", "versioned", "dropped"]
    report = mt.get.table(adata, "map_genes")["n_genes"]
    assert report[["genes", "matched", "versioned", "retired", "dropped"]].tolist() == [6, 3, 2, 0, 1]


def test_tokens(ids, vocab):
    adata = make(NAMES)
    mt.pp.map_genes(adata, vocab)
    assert adata.var["token_id"].tolist() == [*range(4, 12), -1, -1]
    assert status(adata)[-2:] == ["dropped", "dropped"]
    assert mt.get.table(adata, "map_genes").loc["in_vocabulary", "n_genes"] == 8


def test_the_best_column_is_found_and_gaps_are_filled(ids):
    adata = make(["0", "1", "2"], names=["TTN", "??", "DCN"], other=["", ids[1], ""])
    mt.pp.map_genes(adata)
    assert adata.var["ensembl_id"].tolist() == ids[:3]
    assert adata.uns["map_genes"]["params"]["gene_key"] == "names"
    mt.pp.map_genes(adata, gene_key="names")
    assert adata.var["ensembl_id"].tolist() == [ids[0], "", ids[2]]


def test_ids_of_a_column_are_kept_when_the_vocabulary_comes_later(ids, vocab):
    """Names of the authors' own beside ids: the ids count, also after `ensembl_id` was rewritten."""
    adata = make(["TTN", "my gene", *NAMES[2:]], ensembl_id=[*ids[:9], ""])
    mt.pp.map_genes(adata)
    assert adata.var["ensembl_id"].tolist() == ids
    mt.pp.rank_value_encode(adata, vocab)
    assert adata.var["ensembl_id"].tolist() == ids
    assert adata.var["token_id"].tolist()[:8] == vocab.gene_ids.tolist()


def test_categorical_columns(ids):
    adata = make(["0", "1"], names=pd.Categorical(["TTN", "MYH7"]))
    mt.pp.map_genes(adata)
    assert adata.var["ensembl_id"].tolist() == ids[:2]


def test_retired_ids_are_rescued_by_their_symbol(ids):
    adata = make(["ENSG99999999999", "ENSG99999999998", ids[2]], symbol=["TTN", "??", "DCN"])
    mt.pp.map_genes(adata)
    assert adata.var["ensembl_id"].tolist() == [ids[0], "ENSG99999999998", ids[2]]
    assert status(adata) == ["retired", "retired", "matched"]


def test_vocabulary_knows_ids_that_gencode_retired():
    tokens = {"<pad>": 0, "<mask>": 1, "<bos>": 2, "<eos>": 3, "ENSG99999999999": 4}
    vocab = mt.models.Vocabulary(tokens, {"ENSG99999999999": 1.0})
    adata = make(["ENSG99999999999"])
    mt.pp.map_genes(adata, vocab)
    assert (adata.var["token_id"].item(), status(adata)) == (4, ["matched"])


def test_duplicates_share_an_id_and_the_first_has_the_token(ids, vocab):
    adata = make(["TTN", ids[0], "TTN-1", "DCN"])
    mt.pp.map_genes(adata, vocab)
    assert adata.var["ensembl_id"].tolist() == [ids[0]] * 3 + [ids[2]]
    assert adata.var["token_id"].tolist() == [4, -1, -1, 6]
    assert mt.get.table(adata, "map_genes").loc["duplicated", "n_genes"] == 2
    assert adata.n_vars == 4


def test_mapping_goes_first(ids, vocab):
    adata = make(["titin", "OLD", "DCN"])
    mt.pp.map_genes(adata, vocab, mapping={"titin": ids[0], "OLD": ids[1], "DCN": ids[4]})
    assert adata.var["ensembl_id"].tolist() == [ids[0], ids[1], ids[4]]


def test_case():
    """Upper-cased human symbols are found; mouse symbols do not pass as human ones."""
    adata = make(["C1ORF112", "Actb", "actb", "ACTB"])
    mt.pp.map_genes(adata)
    assert (adata.var["ensembl_id"] != "").tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Actb", "Gapdh", "Cd3d", "Ttn", "Myh7"], "look like mouse genes"),
        ([f"ENSMUSG{i:011d}" for i in range(5)], "look like mouse genes"),
        ([f"ENSDARG{i:011d}" for i in range(5)], r"another species \(ENSDARG\)"),
        ([str(i) for i in range(5)], "a numeric index or Entrez ids"),
        (["x_a", "x_b", "x_c"], "neither human gene symbols nor Ensembl ids"),
    ],
)
def test_no_overlap_names_the_cause(names, message):
    adata = make(names)
    with pytest.raises(ValueError, match=f"Only 0 of {len(names)} genes.*{message}"):
        mt.pp.map_genes(adata)
    assert "ensembl_id" not in adata.var
    assert "map_genes" not in adata.uns


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (
            [f"ENSMUSG{i:011d}" for i in range(20)],
            r"20 of 30 genes are of another species \(mouse; e.g. 'ENSMUSG0",
        ),
        ([f"Gene{i}a" for i in range(12)], "12 of 22 genes are of another species .mouse; e.g. 'Gene0a'"),
        ([f"ENSDARG{i:011d}" for i in range(12)], r"another species \(ENSDARG"),
    ],
)
def test_two_species_are_warned_of(others, message, vocab):
    with pytest.warns(UserWarning, match=f"{message}.*share_ranked"):
        mt.pp.rank_value_encode(make([*NAMES, *others]), vocab)


def test_two_species_in_a_file(tmp_path, vocab):
    adata = make([*NAMES, *(f"ENSMUSG{i:011d}" for i in range(20))])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.warns(UserWarning, match="20 of 30 genes are of another species"):
        mt.pp.encode_file(tmp_path / "cells.h5ad", tmp_path / "ranks.h5ad", vocab)


def test_names_with_the_genome_before_them(ids):
    """As 10x writes them for two species; what the message says mends it."""
    adata = make([*(f"GRCh38_{name}" for name in NAMES), *(f"mm10___Gene{i}a" for i in range(5))])
    with pytest.raises(ValueError, match="genome before them .GRCh38_, mm10___.; keep") as refusal:
        mt.pp.map_genes(adata)
    code = str(refusal.value).split("cut the prefix: ")[1].removesuffix(".")
    adata = execute(code, adata)
    mt.pp.map_genes(adata)
    assert adata.var["ensembl_id"].tolist() == ids
    with pytest.raises(ValueError, match="of no human genome"):
        mt.pp.map_genes(make([f"mm10_Gene{i}a" for i in range(5)]))


def execute(code, adata):
    scope = {"adata": adata}
    exec(code, scope)
    return scope["adata"]


def test_wrong_column_and_wrong_vocabulary(vocab):
    adata = make(NAMES, label=list("abcdefghij"))
    with pytest.raises(ValueError, match=r"\.var_names names 10 genes: leave gene_key out"):
        mt.pp.map_genes(adata, gene_key="label")
    with pytest.raises(KeyError, match="Columns with text"):
        mt.pp.map_genes(adata, gene_key="nope")
    other = make(["CDH5", "PECAM1", "COL1A1"])
    with pytest.raises(ValueError, match="was made for other genes"):
        mt.pp.map_genes(other, vocab)


def test_copy_leaves_the_original_alone(vocab):
    adata = make(NAMES)
    result = on_copy(mt.pp.map_genes, adata, vocab)
    assert "token_id" in result.var
    assert "token_id" not in adata.var


def test_what_is_not_a_model():
    with pytest.raises(TypeError, match="Expected a model"):
        mt.pp.map_genes(make(NAMES), {"a": 1})


@pytest.mark.parametrize(
    ("name", "share"),
    [("heart_nuclei_700", 0.58), ("pbmc3k_raw", 0.53), ("pbmc_facs_3874", 0.80), ("hto_doublets_2000", 0.60)],
)
def test_real_data_and_the_published_vocabulary(shared, name, share):
    import anndata

    data = shared / "data"
    vocab = mt.models.Vocabulary.from_json(
        data / "token_dictionary_v1.json", gene_medians=data / "gene_median_dictionary_v1.json"
    )
    adata = anndata.read_h5ad(data / f"{name}.h5ad")
    # The files name their genes twice; only what a user's file would hold is left.
    keep = [key for key in ("feature_name", "symbol") if key in adata.var]
    adata.var = adata.var[keep]
    mt.pp.map_genes(adata, vocab)
    assert (adata.var["token_id"] >= 0).mean() > share


def test_mouse_data_is_refused(shared):
    import anndata

    adata = anndata.read_h5ad(shared / "data" / "mouse_brain_merfish_1000.h5ad")
    with pytest.raises(ValueError, match="look like mouse genes"):
        mt.pp.map_genes(adata)


@pytest.mark.parametrize("mapping", ["names.json", ["TTN"], 3])
def test_a_mapping_is_a_table(mapping):
    with pytest.raises(TypeError, match=r"mapping must be a dictionary"):
        mt.pp.map_genes(make(NAMES), mapping=mapping)


def test_columns_of_the_user_are_kept():
    """A column that has one of our names holds something else: it stays under another."""
    adata = mt.datasets.aging_atlas(50, 10, n_genes=500)
    given = [f"{name}.3" for name in adata.var_names]
    adata.var["ensembl_id"], adata.var["token_id"] = given, 7
    for _ in range(2):
        mt.pp.map_genes(adata, mt.models.Vocabulary.from_anndata(adata) if "map_genes" in adata.uns else None)
    assert adata.var["ensembl_id_given"].tolist() == given
    assert (adata.var["token_id_given"] == 7).all()
    assert (adata.var["token_id"] != 7).any()
    assert adata.var["ensembl_id"].tolist() == list(adata.var_names)
