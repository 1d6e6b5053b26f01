"""The Cell Ontology: terms, how labels name them, and which are kinds of which."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from ._reference import resource

_ID = re.compile(r"CL[:_](\d{7})")
# What labels in files mean by a word or two that the ontology writes out, or knows as something else ("alpha
# cell").
SHORT = {
    "alpha cell": "pancreatic A cell",
    "astro": "astrocyte",
    "at1 cell": "pulmonary alveolar type 1 cell",
    "at2 cell": "pulmonary alveolar type 2 cell",
    "atrial cardiomyocyte": "regular atrial cardiac myocyte",
    "b memory": "memory B cell",
    "b naive": "naive B cell",
    "beta cell": "type B pancreatic cell",
    "cardiomyocyte": "cardiac muscle cell",
    "cd14 mono": "CD14-positive monocyte",
    "cd14 monocyte": "CD14-positive monocyte",
    "cd16 mono": "non-classical monocyte",
    "cd16 monocyte": "non-classical monocyte",
    "cd4 memory t cell": "CD4-positive, alpha-beta memory T cell",
    "cd4 naive": "naive thymus-derived CD4-positive, alpha-beta T cell",
    "cd4 naive t cell": "naive thymus-derived CD4-positive, alpha-beta T cell",
    "cd4 t cell": "CD4-positive, alpha-beta T cell",
    "cd4 t helper2": "T-helper 2 cell",
    "cd8 cytotoxic t cell": "CD8-positive, alpha-beta cytotoxic T cell",
    "cd8 memory t cell": "CD8-positive, alpha-beta memory T cell",
    "cd8 naive": "naive thymus-derived CD8-positive, alpha-beta T cell",
    "cd8 naive t cell": "naive thymus-derived CD8-positive, alpha-beta T cell",
    "cd8 t cell": "CD8-positive, alpha-beta T cell",
    "cdc cell": "conventional dendritic cell",
    "cytotoxic cd8 t cell": "CD8-positive, alpha-beta cytotoxic T cell",
    "dc cell": "dendritic cell",
    "delta cell": "pancreatic D cell",
    "duct cell": "duct epithelial cell",
    "ductal cell": "duct epithelial cell",
    "endothelium": "endothelial cell",
    "epsilon cell": "pancreatic epsilon cell",
    "excitatory neuron": "glutamatergic neuron",
    "fcgr3a mono": "non-classical monocyte",
    "fibro": "fibroblast",
    "gamma cell": "pancreatic PP cell",
    "gamma delta t cell": "gamma-delta T cell",
    "gdt cell": "gamma-delta T cell",
    "hsc cell": "hematopoietic stem cell",
    "hspc cell": "hematopoietic multipotent progenitor cell",
    "inhibitory neuron": "GABAergic neuron",
    "lec cell": "endothelial cell of lymphatic vessel",
    "lymphatic ec cell": "endothelial cell of lymphatic vessel",
    "lymphatic endothelial cell": "endothelial cell of lymphatic vessel",
    "macro": "macrophage",
    "mait cell": "mucosal-associated invariant T cell",
    "memory cd4": "CD4-positive, alpha-beta memory T cell",
    "memory cd4 t cell": "CD4-positive, alpha-beta memory T cell",
    "memory cd8": "CD8-positive, alpha-beta memory T cell",
    "memory cd8 t cell": "CD8-positive, alpha-beta memory T cell",
    "microglia": "microglial cell",
    "mk": "megakaryocyte",
    "mono": "monocyte",
    "naive b": "naive B cell",
    "naive cd4 t cell": "naive thymus-derived CD4-positive, alpha-beta T cell",
    "naive cd8 t cell": "naive thymus-derived CD8-positive, alpha-beta T cell",
    "naive t cell": "naive T cell",
    "nk cell": "natural killer cell",
    "nkt cell": "mature NK T cell",
    "oligo": "oligodendrocyte",
    "opc cell": "oligodendrocyte precursor cell",
    "pdc cell": "plasmacytoid dendritic cell",
    "rbc": "erythrocyte",
    "red blood cell": "erythrocyte",
    "smc cell": "smooth muscle cell",
    "stroma": "stromal cell",
    "t helper 1 cell": "T-helper 1 cell",
    "t helper 2 cell": "T-helper 2 cell",
    "t helper cell": "helper T cell",
    "t helper1": "T-helper 1 cell",
    "t helper2": "T-helper 2 cell",
    "t reg cell": "regulatory T cell",
    "tfh cell": "T follicular helper cell",
    "th cell": "helper T cell",
    "th1 cell": "T-helper 1 cell",
    "th17 cell": "T-helper 17 cell",
    "th2 cell": "T-helper 2 cell",
    "treg cell": "regulatory T cell",
    "ventricular cardiomyocyte": "regular ventricular cardiac myocyte",
    "vsmc": "vascular associated smooth muscle cell",
}
_MARKER = re.compile(
    r"\b(?:cd|hla)-?\d*[a-z]*\d*(?:\+|-|hi|lo|dim|bright|pos|neg)*(?=[\s/,;_]|$)", re.IGNORECASE
)


class Match(NamedTuple):
    """A term, how it was found ("" where it was not), and whether that leaves no doubt."""

    term: str
    how: str
    sure: bool


@cache
def cell_ontology() -> pd.DataFrame:
    """Terms of the Cell Ontology (release 2026-03-26), by their ids.

    Returns
    -------
    `name`; `synonyms` and `parents`, joined by "|"; `replaced_by`, for obsolete terms; booleans `obsolete`
    and `used` (in the CELLxGENE Census); `level` "class" or "subclass" for terms of CELLxGENE's lists of
    these.
    """
    table = pd.read_csv(resource("cell_ontology.csv.gz"), dtype=str, keep_default_na=False, index_col="id")
    return table.assign(obsolete=table["obsolete"] == "1", used=table["used"] == "1")


@cache
def _graph():
    """Edges from a term to what it is a kind of (a networkx.DiGraph)."""
    import networkx as nx

    parents = cell_ontology()["parents"]
    graph = nx.DiGraph()
    graph.add_nodes_from(parents.index)
    graph.add_edges_from(
        (term, parent) for term, text in parents.items() for parent in text.split("|") if parent
    )
    return graph


@cache
def _names() -> dict[str, tuple[str, str]]:
    """Normalised name to term and how: its own name, our short forms, and synonyms that one term alone has."""
    table = cell_ontology()
    current = table[~table["obsolete"]]
    synonyms = current["synonyms"].str.split("|").explode()
    synonyms = synonyms[synonyms != ""]
    by_synonym = pd.DataFrame({"term": synonyms.index, "key": [normalize(text) for text in synonyms]})
    # A word for a cell of one species, or of no cell in use, is often another cell's word elsewhere.
    by_synonym = by_synonym[current.loc[by_synonym["term"], "used"].to_numpy()].drop_duplicates()
    by_synonym = by_synonym[~by_synonym["key"].duplicated(keep=False)]
    found = {key: (term, "synonym") for term, key in by_synonym.itertuples(index=False)}
    of_name = {normalize(name): term for term, name in current["name"].items()}
    found |= {short: (of_name[normalize(name)], "short form") for short, name in SHORT.items()}
    return found | {key: (term, "name") for key, term in of_name.items()}


def normalize(label: str) -> str:
    """Lower case, words apart by single spaces; "CD14+" as the ontology writes it, "CD14-positive"."""
    return re.sub(r"[\s_/,;()-]+", " ", label.lower().replace("+", "-positive ")).strip()


def _forms(text: str) -> list[str]:
    """A normalised label, in the singular, with "cell" after it."""
    forms = [text, text.removesuffix("s")] if text else []
    return list(dict.fromkeys(forms + [f"{form} cell" for form in forms if not form.endswith(" cell")]))


def match(label: str) -> Match:
    """Term that a label names: by id, name, short form or synonym, also with "cell" added or surface markers left out."""
    table = cell_ontology()
    if found := _ID.fullmatch(label.strip()):
        term = f"CL:{found[1]}"
        if term not in table.index:
            return Match("", "", sure=False)
        if table.at[term, "obsolete"]:
            return Match(table.at[term, "replaced_by"], "replaced", sure=bool(table.at[term, "replaced_by"]))
        return Match(term, "id", sure=True)
    names = _names()
    for form in _forms(normalize(label)) + _forms(normalize(label.replace("+", ""))):
        if form in names:
            return Match(*names[form], sure=True)
    # What surface markers say is lost without them: the term is a wider one at best.
    for form in _forms(normalize(_MARKER.sub(" ", label))):
        if form in names:
            return Match(names[form][0], "without markers", sure=False)
    return Match("", "", sure=False)


def suggestions(label: str, n: int = 3) -> list[str]:
    """Names of terms that are spelt like a label."""
    from difflib import get_close_matches

    names = _names()
    text = normalize(_MARKER.sub(" ", label)) or normalize(label)
    close = get_close_matches(text, names, n=3 * n, cutoff=0.6)
    return list(dict.fromkeys(cell_ontology().at[names[key][0], "name"] for key in close))[:n]


def find_term(name: str) -> str:
    """Id of the term with this id or name, or an error with near ones."""
    found = match(name)
    if not found.sure:
        near = ", ".join(map(repr, suggestions(name)))
        raise ValueError(f"The Cell Ontology has no {name!r}." + (f" Did you mean {near}?" if near else ""))
    return found.term


def kinds_of(term: str) -> set[str]:
    """The term and all its descendants."""
    import networkx as nx

    return {term} | nx.ancestors(_graph(), term)


def kinds_above(term: str) -> dict[str, int]:
    """What the term is a kind of, itself among it, and how many steps up that is."""
    import networkx as nx

    return dict(nx.single_source_shortest_path_length(_graph(), term))


def nearest(terms: np.ndarray, level: list[str]) -> np.ndarray:
    """Which term of `level` each term is, or is a kind of: the nearest above it, "" for none.

    Of several that are equally near the one with the fewest kinds, which says most.
    """
    size = {top: len(kinds_of(top)) for top in level}
    found = {}
    for term in np.unique(terms[terms != ""]):
        above = kinds_above(term)
        found[term] = min(
            (top for top in level if top in above), key=lambda t: (above[t], size[t], t), default=""
        )
    return np.array([found.get(term, "") for term in terms], dtype=object)


def term_distances(terms: list[str]) -> np.ndarray:
    """Steps between terms: from one up to the nearest kind that both are, and down to the other; NaN for "".

    Examples
    --------
    >>> term_distances([find_term(name) for name in ("T cell", "CD4-positive, alpha-beta T cell", "B cell")])
    array([[0., 3., 3.],
           [3., 0., 6.],
           [3., 6., 0.]])
    """
    known = [term for term in dict.fromkeys(terms) if term]
    above = {term: kinds_above(term) for term in known}
    place = {term: i for i, term in enumerate(sorted({top for found in above.values() for top in found}))}
    steps = np.full((len(terms), max(len(place), 1)), np.inf)
    for row, term in enumerate(terms):
        if term:
            steps[row, [place[top] for top in above[term]]] = list(above[term].values())
    found = np.stack([(steps + row).min(axis=1) for row in steps])
    return np.where(np.isfinite(found), found, np.nan)
