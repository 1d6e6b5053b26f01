"""Cells of many overlapping types whose expression follows the Cell Ontology, for benchmarks of annotation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from maxtoki_toolkit._ontology import _graph, cell_ontology, find_term, kinds_of

# Branches that the labels are of, and those that no label is of.
KNOWN = ("leukocyte", "neuron", "epithelial cell")
FAR = ("muscle cell", "connective tissue cell", "endothelial cell", "germ cell")
PER_TERM = 12  # genes that a term turns up
N_GENES = 2000
DEPTH = 4000  # counts a cell, the median
FOLD = 20.0  # how much a term turns its genes up
DONOR_SD = 0.25  # of the log expression of a gene between donors
LABELLED_ABOVE = 0.25  # share of the cells that are labelled by a wider term


class Planted(NamedTuple):
    """What is simulated."""

    reference: AnnData
    """Cells of known donors, with `cell_type` (names of terms), `truth` (the term that made them) and `donor_id`."""
    query: AnnData
    """Cells of other donors: of the same terms, and of "near" and "far" ones that no reference cell is of (`kind`)."""


def plant(
    medians: pd.Series,
    *,
    n_labels: int = 160,
    n_cells: int = 4000,
    n_donors: int = 20,
    n_query: int = 1500,
    seed: int = 0,
) -> Planted:
    """Simulate counts of cells whose types are terms of the Cell Ontology.

    A term turns up genes of its own beside those of all terms that it is a kind of, so that terms are as alike as
    they are near. A quarter of the cells bear a wider label than they could: labels overlap.
    """
    rng = np.random.default_rng(seed)
    known, near, far = _terms(n_labels, rng)
    names = cell_ontology()["name"]
    medians = medians.iloc[np.sort(rng.permutation(len(medians))[:N_GENES])]
    # Around what the model takes for usual, so that what a type turns up is what ranks high.
    base = np.log(medians.to_numpy()) + rng.normal(0, 0.5, N_GENES)
    programs = _programs([*known, *near, *far], rng)
    profile = {
        term: base + np.log(FOLD) * program
        for term, program in zip(programs.index, programs.to_numpy(), strict=True)
    }
    donors = [f"donor_{i}" for i in range(n_donors + 6)]
    shift = {donor: rng.normal(0, DONOR_SD, N_GENES) for donor in donors}
    # Types are not equally common, nor equally common in all donors.
    weight = rng.gamma(2.0, size=len(known))
    share = weight / weight.sum()

    def cells(terms: np.ndarray, donor: np.ndarray, prefix: str) -> AnnData:
        logs = np.stack([profile[term] for term in terms]) + np.stack([shift[name] for name in donor])
        rate = np.exp(logs)
        depth = DEPTH * rng.lognormal(0, 0.3, len(terms))
        counts = rng.poisson(rate / rate.sum(axis=1, keepdims=True) * depth[:, None]).astype(np.float32)
        obs = pd.DataFrame(
            {"donor_id": donor, "truth": names[terms].to_numpy()},
            index=[f"{prefix}_{i}" for i in range(len(terms))],
        )
        return AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=medians.index))

    at_least = np.repeat(np.arange(len(known)), 4)
    others = rng.choice(len(known), n_cells - len(at_least), p=share)
    terms = np.array(known, dtype=object)[rng.permutation(np.concatenate([at_least, others]))]
    reference = cells(terms, rng.choice(donors[:n_donors], n_cells), "reference")
    wider = {term: [top for top in known if top != term and term in kinds_of(top)] for term in known}
    above = rng.random(n_cells) < LABELLED_ABOVE
    labelled = [
        wider[term][rng.integers(len(wider[term]))] if up and wider[term] else term
        for term, up in zip(terms, above, strict=True)
    ]
    reference.obs["cell_type"] = names[labelled].to_numpy()

    n = n_query // 3
    kinds = np.repeat(["known", "near", "far"], n)
    asked = np.concatenate([rng.choice(known, n, p=share), rng.choice(near, n), rng.choice(far, n)])
    query = cells(asked, rng.choice(donors[n_donors:], 3 * n), "query")
    query.obs["kind"] = kinds
    return Planted(reference, query)


def _terms(n_labels: int, rng: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
    """Terms with labels; terms beside them that are none of these; and terms of other branches."""
    table = cell_ontology()
    used = set(table.index[table["used"] & ~table["obsolete"]])
    inside = sorted({term for name in KNOWN for term in kinds_of(find_term(name))} & used)
    outside = sorted({term for name in FAR for term in kinds_of(find_term(name))} & used - set(inside))
    inside = rng.permutation(inside).tolist()
    known = inside[:n_labels]
    # Near ones are of no labelled term's kind.
    kinds = set().union(*(kinds_of(term) for term in known))
    return known, [term for term in inside[n_labels:] if term not in kinds][:20], outside[:20]


def _programs(terms: list[str], rng: np.random.Generator) -> pd.DataFrame:
    """Which genes each term turns up, terms x genes: its own, and those of all that it is a kind of."""
    import networkx as nx

    above = {term: {term, *nx.descendants(_graph(), term)} for term in terms}
    own = {}
    for term in sorted(set().union(*above.values())):
        own[term] = np.zeros(N_GENES)
        own[term][rng.permutation(N_GENES)[:PER_TERM]] = 1
    found = {term: np.minimum(sum(own[top] for top in tops), 1) for term, tops in above.items()}
    return pd.DataFrame(found).T
