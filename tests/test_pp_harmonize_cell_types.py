"""Labels against the Cell Ontology: its own names, labels of real files, what must not be guessed, levels."""

import json

import anndata
import networkx as nx
import numpy as np
import pandas as pd
import pytest

import maxtoki_toolkit as mt
from maxtoki_toolkit._ontology import SHORT, cell_ontology, kinds_of, match, nearest

# Labels of public files (10x, Seurat and scanpy tutorials, islets, brain) and what they mean; "" must not be guessed.
LABELS = {
    "CD4 T cells": "CD4-positive, alpha-beta T cell",
    "CD4+ T": "CD4-positive, alpha-beta T cell",
    "CD8+ T cells": "CD8-positive, alpha-beta T cell",
    "Naive CD4+ T": "naive thymus-derived CD4-positive, alpha-beta T cell",
    "CD14+ Monocytes": "CD14-positive monocyte",
    "FCGR3A+ Mono": "non-classical monocyte",
    "NK cells": "natural killer cell",
    "B": "B cell",
    "DC": "dendritic cell",
    "pDCs": "plasmacytoid dendritic cell",
    "Tregs": "regulatory T cell",
    "Megakaryocytes": "megakaryocyte",
    "Microglia": "microglial cell",
    "OPC": "oligodendrocyte precursor cell",
    "Excitatory_neurons": "glutamatergic neuron",
    "alpha": "pancreatic A cell",
    "beta cells": "type B pancreatic cell",
    "AT2": "pulmonary alveolar type 2 cell",
    "T lymphocyte": "T cell",
    "kupffer cells": "Kupffer cell",
    "unknown": "",
    "doublet": "",
    "hybrid": "",
    "0": "",
    "Cluster 3": "",
    "other immune": "",
    "": "",
}


def cells(labels):
    return anndata.AnnData(
        obs=pd.DataFrame({"cell_type": labels}, index=[f"c{i}" for i in range(len(labels))])
    )


@pytest.mark.parametrize("label", LABELS)
def test_labels_of_public_files(label):
    term = match(label).term
    assert (cell_ontology()["name"].get(term, "") if match(label).sure else "") == LABELS[label]


def test_every_term_is_found_by_its_name_and_id():
    table = cell_ontology()
    current = table[~table["obsolete"]]
    assert len(current) > 3000
    wrong = [name for term, name in current["name"].items() if match(name)[::2] != (term, True)]
    # Two terms whose names differ in punctuation alone.
    assert len(wrong) <= 2, wrong
    assert all(match(term).term == term for term in current.index)
    assert set(SHORT.values()) <= set(current["name"])


def test_obsolete_terms_are_replaced():
    table = cell_ontology()
    old = table[table["replaced_by"] != ""]
    assert len(old) > 50
    assert all(match(term)[:2] == (new, "replaced") for term, new in old["replaced_by"].items())
    assert match("CL:9999999").term == ""


def test_kinds_are_those_of_a_walk():
    """Beside the graph: parents of parents, one by one."""
    parents = {term: text.split("|") if text else [] for term, text in cell_ontology()["parents"].items()}

    def above(term):
        return {term}.union(*(above(parent) for parent in parents[term]))

    t_cell = match("T cell").term
    assert kinds_of(t_cell) == {term for term in parents if t_cell in above(term)}
    assert match("regulatory T cell").term in kinds_of(t_cell)
    assert match("B cell").term not in kinds_of(t_cell)


def test_nearest_is_the_fewest_steps_up():
    rng = np.random.default_rng(0)
    table = cell_ontology()
    terms = rng.choice(table.index[table["used"]], 60)
    level = [
        match(name).term
        for name in ("T cell", "lymphocyte", "leukocyte", "neuron", "epithelial cell", "cell")
    ]
    graph = nx.DiGraph(
        [(term, up) for term, text in table["parents"].items() for up in text.split("|") if up]
    )
    graph.add_nodes_from(table.index)
    for term, top in zip(terms, nearest(terms, level), strict=True):
        steps = {
            one: nx.shortest_path_length(graph, term, one) for one in level if nx.has_path(graph, term, one)
        }
        assert (top in steps and steps[top] == min(steps.values())) if steps else top == ""


def test_level_mapping_and_review():
    adata = cells(["CD56+ NK"] * 3 + ["Tregs"] * 2 + ["odd"] + ["blast"] * 2 + [None])
    with pytest.warns(
        UserWarning,
        match=r"1 labels \(1 cells\) name no term: 'odd'.*without their surface markers: 'CD56\+ NK'",
    ):
        mt.pp.harmonize_cell_types(adata, level=["T cell", "leukocyte"], mapping={"blast": "B cell"})
    assert adata.obs["cell_ontology"].tolist() == ["leukocyte"] * 3 + ["T cell"] * 2 + [""] + [
        "leukocyte"
    ] * 2 + [""]
    table = adata.uns["harmonize_cell_types"]["labels"].set_index("label")
    assert table.index[:2].tolist() == ["CD56+ NK", "odd"]  # unsure ones first, most cells first
    assert table["how"].to_dict() == {
        "CD56+ NK": "without markers",
        "odd": "",
        "Tregs": "synonym",
        "blast": "mapping",
    }
    assert table["n_cells"].to_dict() == {"CD56+ NK": 3, "odd": 1, "Tregs": 2, "blast": 2}
    # Nothing is warned of once labels are settled.
    mt.pp.harmonize_cell_types(
        adata, mapping={"blast": "", "odd": "", "CD56+ NK": "CL:0000623"}, level=["T cell", "leukocyte"]
    )
    assert adata.obs["cell_ontology"].tolist() == ["leukocyte"] * 3 + ["T cell"] * 2 + [""] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": ["T cel"]}, "The Cell Ontology has no 'T cel'. Did you mean 'T cell'"),
        ({"level": "fine"}, "level must be 'class' or 'subclass'"),
        ({"mapping": {"odd": "T cell"}}, "mapping has the label 'odd', which .obs"),
        ({"mapping": {"x1": "no such"}}, "The Cell Ontology has no 'no such'"),
        ({}, "None of the 2 labels .* names a term"),
    ],
)
def test_refused(settings, message):
    adata = cells(["x1", "x2"])
    with pytest.raises(ValueError, match=message):
        mt.pp.harmonize_cell_types(adata, **settings)
    assert list(adata.obs) == ["cell_type"]


def test_a_lineage_is_held_out():
    labels = ["Tregs", "CD4 T", "CD8+ T cells", "B", "NK", "CD14+ Mono"]
    adata = cells(labels * 4)
    adata.obs["donor"] = np.repeat(list("abcd"), 6)
    with pytest.warns(UserWarning, match="as kinds of 'T cell': 'CD4 T', 'CD8. T cells', 'Tregs'"):
        mt.pp.hold_out(adata, donor_key="donor", donors=0.0, groups={"cell_type": "T cell"})
    assert set(adata.obs.loc[adata.obs["held_out"], "cell_type"]) == {"Tregs", "CD4 T", "CD8+ T cells"}
    with pytest.warns(UserWarning, match="as kinds of 'lymphocyte'"):
        mt.pp.hold_out(adata, donor_key="donor", donors=0.0, groups={"cell_type": ["lymphocyte"]})
    assert set(adata.obs.loc[adata.obs["train"], "cell_type"]) == {"CD14+ Mono"}
    # A label of one study does not keep those of others in: "B" and "memory B cells" are kinds of B cell.
    adata.obs.loc[adata.obs_names[::6], "cell_type"] = "memory B cells"
    adata.obs.loc[adata.obs_names[1::6], "cell_type"] = "blob"
    with pytest.warns(UserWarning, match="'memory B cells'. 'blob' name no cell type for sure and stay"):
        mt.pp.hold_out(adata, donor_key="donor", donors=0.0, groups={"cell_type": ["B"]})
    assert set(adata.obs.loc[adata.obs["held_out"], "cell_type"]) == {"B", "memory B cells"}
    with pytest.raises(ValueError, match="no 'hepatocyte'; it has .* none names a kind of such a cell"):
        mt.pp.hold_out(adata, donor_key="donor", groups={"cell_type": "hepatocyte"})


def test_types_of_the_census(source):
    """All ids in use are known; names of earlier releases are found or left, never another cell's."""
    used = json.loads((source / "census_terms.json").read_text())
    ids = set(used["cell_type_ontology_term_id"])
    assert (
        ids - set(cell_ontology().index) <= {"unknown", "CL:0000000", ""}
        or len(ids - set(cell_ontology().index)) <= 1
    )
    found = [match(name) for name in used["cell_type"]]
    assert sum(one.term == "" for one in found) <= 18
    assert {one.term for one in found if one.term} <= ids
