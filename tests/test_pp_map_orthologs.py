"""Genes of another species: pairs against a slow oracle, what is ambiguous, what is refused."""

import anndata
import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit._reference import gene_table, orthologs_of_mouse
from maxtoki_toolkit.pp.map_orthologs import choose, find_pairs

KNOWN = gene_table().set_index("symbol")["ensembl_id"]


def cells(names, **columns):
    adata = anndata.AnnData(np.ones((3, len(names)), dtype=np.float32))
    adata.var_names = names
    for key, values in columns.items():
        adata.var[key] = values
    return adata


def test_known_genes_by_symbol_and_by_id():
    """Among them some whose human symbol is another than theirs in upper case."""
    expected = {"Actb": "ACTB", "mt-Nd1": "MT-ND1", "Cdkn2a": "CDKN2A", "Trp53": "TP53", "Tceb3": ""}
    adata = cells(list(expected))
    mt.pp.map_orthologs(adata)
    assert adata.var["human_symbol"].tolist() == list(expected.values())
    ids = cells(["ENSMUSG00000029580.14", "ENSMUSG00000064341", "ENSMUSG99999999999", "ACTB"])
    mt.pp.map_orthologs(ids)
    assert ids.var["ensembl_id"].tolist() == [KNOWN["ACTB"], KNOWN["MT-ND1"], "", ""]
    assert ids.var["ortholog"].tolist() == ["one_to_one", "one_to_one", "none", "none"]


@pytest.mark.parametrize("ambiguous", ["drop", "best"])
def test_pairs_are_those_of_an_oracle(ambiguous):
    """Random tables of few genes, so that every kind of sharing occurs."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        pairs = (
            pd.DataFrame(rng.integers(0, 8, (10, 2)), columns=["gene", "human"]).astype(str).drop_duplicates()
        )
        names = pd.Series(rng.permutation(10).astype(str))
        human, kind = choose(find_pairs(names, pairs), len(names), ambiguous)
        of = {name: pairs.loc[pairs["gene"] == name, "human"].tolist() for name in names}
        for i, name in enumerate(names):
            others = {h for other in names if other != name for h in of[other]}
            sure = len(of[name]) == 1 and of[name][0] not in others
            wanted = of[name][0] if sure or (of[name] and ambiguous == "best") else ""
            assert human[i] == wanted
            assert kind[i] == (
                "none"
                if not of[name]
                else "one_to_one"
                if sure
                else {"drop": "ambiguous", "best": "best"}[ambiguous]
            )


def test_mouse_cells_are_ranked_as_their_orthologues():
    """The same counts under mouse names and under human names give the same ranks."""
    model = mt.load_model("demo")
    pairs = orthologs_of_mouse()
    once = pairs[~pairs["gene"].duplicated(keep=False) & ~pairs["human"].duplicated(keep=False)]
    once = once[once["human"].isin(model.vocab.genes)].iloc[::20]
    counts = np.random.default_rng(0).poisson(2, (5, len(once))).astype(np.float32)
    mouse, human = anndata.AnnData(counts.copy()), anndata.AnnData(counts.copy())
    mouse.var_names, human.var_names = once["symbol"].to_list(), once["human"].to_list()
    mt.pp.map_orthologs(mouse, model)
    mt.pp.rank_value_encode(mouse, model)
    mt.pp.rank_value_encode(human, model)
    assert (mouse.layers["rank"] != human.layers["rank"]).nnz == 0
    assert (mouse.var["ensembl_id"].to_numpy() == human.var_names).all()


def test_ids_stay_when_genes_are_mapped_for_another_model():
    """H19 is a mouse gene without an orthologue in the table, and no human H19."""
    adata = cells(["Actb", "H19", "Gapdh", "Trp53"])
    mt.pp.map_orthologs(adata)
    before = adata.var["ensembl_id"].tolist()
    assert before[1] == ""
    for _ in range(2):
        mt.pp.map_genes(adata, mt.load_model("demo"))
        assert adata.var["ensembl_id"].tolist() == before


def test_best_pair_and_what_was_lost():
    adata = cells(["Cd8b1", "Actb", "Xyz1"])
    mt.pp.map_orthologs(adata, ambiguous="best")
    assert adata.var["human_symbol"].tolist() == ["CD8B", "ACTB", ""]
    result = adata.uns["map_orthologs"]
    assert result["report"]["n_genes"].to_dict() == {"one_to_one": 1, "best": 1, "ambiguous": 0, "none": 1}
    table = result["ambiguous"].set_index("symbol")
    assert set(table["gene"]) == {"Cd8b1"}
    assert table["used"].to_dict() == {"CD8B": True, "CD8B2": False}
    mt.pp.map_orthologs(adata)
    assert adata.uns["map_orthologs"]["report"]["n_genes"]["ambiguous"] == 1
    assert adata.var["human_symbol"].tolist() == ["", "ACTB", ""]


def test_other_species_by_a_table():
    table = pd.DataFrame({"gene": ["ACTB_RAT", "TTN_RAT"], "human": [KNOWN["ACTB"], KNOWN["TTN"]]})
    adata = cells(["TTN_RAT", "ACTB_RAT", "other"])
    mt.pp.map_orthologs(adata, species="rat", orthologs=table)
    assert adata.var["human_symbol"].tolist() == ["TTN", "ACTB", ""]
    assert adata.uns["map_genes"]["params"]["species"] == "rat"


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["ACTB", "TTN"], {}, "Only 0.0% of 2 genes have a mouse orthologue.*map_genes"),
        (["Actb"], {"species": "rat"}, "Only the orthologues of mouse ship.*'rat'"),
        (["Actb"], {"orthologs": pd.DataFrame({"a": ["b"]})}, r"columns gene and human, got \['a'\]"),
        (
            ["Actb"],
            {"orthologs": pd.DataFrame({"gene": ["Actb"], "human": ["ACTB"]})},
            "None of the 1 ids in the column human",
        ),
        (["Actb"], {"ambiguous": "all"}, "ambiguous"),
    ],
)
def test_refused(names, settings, message):
    adata = cells(names)
    with pytest.raises(ValueError, match=message):
        mt.pp.map_orthologs(adata, **settings)
    assert not adata.uns
    assert list(adata.var) == []


def test_mouse_brain(source):
    """A panel of 1,122 genes: nearly all have an orthologue."""
    adata = anndata.read_h5ad(source / "mouse_brain_merfish_1000.h5ad")
    mt.pp.map_orthologs(adata, mt.load_model("demo"))
    assert adata.uns["map_orthologs"]["report"]["n_genes"].to_dict() == {
        "one_to_one": 1072,
        "best": 0,
        "ambiguous": 8,
        "none": 42,
    }
