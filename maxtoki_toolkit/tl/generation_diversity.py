"""Whether generated cells are copies, unlike any cell, or all alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._warn import warn
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel
from ..models.sequences import cell_sequences
from ..pp._design import as_list, get_mask, known_cells
from ..results.store import write_result
from ..stats import diversity as kernel
from ..stats.diversity import Cells
from ..stats.fdr import benjamini_hochberg
from ._generated import about_cells, about_generated, known_generated, rank_levels
from ._prompted import by_prompts

SPACES = ("ranks", "embedding")
_MIN_DONORS = 4
# Neighbours that say how far from a true cell others of its kind are.
N_NEIGHBORS = 5
# Cells of each kind and group, at most, drawn at random: distances are between all pairs. Of training cells
# all are used.
N_CELLS = 500
N_PERMUTATIONS = 999  # for the p value of `nearer`


def generation_diversity(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    generated: AnnData,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    train: str | Sequence[bool] = "train",
    space: str = "ranks",
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Look for copies of training cells, for cells unlike true ones, and for collapse among generated cells.

    Parameters
    ----------
    adata
        Rank-encoded true cells: those that the model was trained on, and others.
    model
        The model that generated.
    generated
        Generated cells: `mt.tl.generate(adata, model)`, or any cells encoded for the model.
    groupby
        Column or columns of `.obs`, e.g. the cell type: each group is looked at by itself, and all together;
        `[]` for all together alone. By default those of the prompts, if the cells are of prompts.
    donor_key
        Column of `.obs` with the donor, by default that of the prompts.
    train
        Which cells the model was trained on, as of `mt.pp.hold_out`: boolean column of `.obs`, or one boolean
        a cell. All others are held-out true cells.
    space
        Where distances are measured: "ranks" of the genes that the model reads, or its "embedding".
    rng
        Seed.
    key_added
        Key in `.uns`, by default "generation_diversity".

    Returns
    -------
    `None`. Writes the table `scores` to `.uns["generation_diversity"]`, a row a group and kind of cell; each
    score but `distinct` has `_low` and `_high` (95%):

    `group`, `cells`
        Group, or "all"; and "generated", "held-out", "copies", "average" or "shuffled".
    `nearer`
        How often a cell is nearer to a training cell than a true cell is; 0.5 for cells like true ones.
    `near_copies`, `exact_copies`
        Share of cells that overlap with a training cell as 1% of the true cells do; share with the same rank
        list.
    `precision`, `density`, `coverage`
        Whether cells are where true cells are; how densely; and whether there are some wherever true cells
        are.
    `spread`
        Distance between cells, over that between true cells.
    `distinct`
        Share of different sets of genes.
    `p_value`, `q_value`
        Of `nearer`: units exchanged with the true cells', two-sided; for the generated cells corrected over
        groups (Benjamini and Hochberg).
    `n_cells`, `n_units`, `n_true`, `n_true_units`, `n_training`
        Cells of the set, and donors (or prompts, or cells) that they are of; true cells; training cells.
    `conclusion`
        What may be said.

    Raises
    ------
    KeyError
        If a column or the prompts are missing.
    ValueError
        If no group has training cells, enough held-out cells, and generated ones.

    Notes
    -----
    Half of the held-out cells (of the donors, where there are four) are the true cells that all sets are
    measured against. The sets, of equal size:

    ``generated``
        the cells in question;
    ``held-out``
        the other half of the true cells: what good looks like;
    ``copies``
        training cells, drawn at random: copying is caught;
    ``average``
        the average training cell of each group, again and again: collapse is caught;
    ``shuffled``
        the other half, the ranks of each cell given to random genes: that these are no cells is caught.

    Scores:

    ``nearer``
        How often a cell of the set is nearer to its nearest training cell than a true cell is: 0.5 for cells
        like true ones, 1 for copies (the statistic of Meehan et al., AISTATS 2020). `p_value` exchanges units
        of the two sets, two-sided. Average cells are near to everything as well: read it beside `spread`.
    ``near_copies``, ``exact_copies``
        Share of cells whose rank list overlaps with that of the nearest training cell more than 99% of the
        true cells' do (expected: 0.01, or a little more where true cells are few), and share with that very
        list. Overlap is the weighted Jaccard index of the rank features.
    ``precision``
        Share of cells within the distance from a true cell to its k-th nearest other one (Kynkäänniemi et
        al., NeurIPS 2019).
    ``density``, ``coverage``
        Mean number of such balls around true cells that a cell is in, over k; and share of true cells whose
        ball has a cell of the set in it (Naeem et al., ICML 2020).
    ``spread``
        Root mean square distance between cells of the set, over that between true cells; 0 if all are the
        same.
    ``distinct``
        Share of different sets of genes.

    Intervals (95%) leave out donors in turn (jackknife), prompts where the donors of generated cells are not
    known, or cells; of shares they are Clopper and Pearson's for as many cells as the units are worth (Korn
    and Graubard, 1998). `conclusion` says what an interval that does not overlap with that of the held-out
    cells, or an expected value outside of it, stands for; 6 criteria, not corrected.

    Rank lists are read as far as the median true cell goes (`params["n_genes"]`): a gene further down is like
    one that a cell does not have. True cells of other times than the generated ones were asked for make both
    unlike. Restrict them first.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 20)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.4)
    >>> some = adata[adata.obs["held_out"]].copy()
    >>> mt.tl.generation_diversity(adata, model, generated=some, donor_key="donor_id")
    >>> mt.get.table(adata, "generation_diversity")["cells"].tolist()
    ['generated', 'held-out', 'copies', 'average', 'shuffled']
    """
    if space not in SPACES:
        raise ValueError(f"There is no space {space!r}; choose from {', '.join(SPACES)}.")
    groupby, donor_key = by_prompts(adata, generated, groupby=groupby, donor_key=donor_key)
    keys = {"groupby": groupby, "donor_key": donor_key}
    generated, made = known_generated(generated, about_generated(generated, adata, **keys))
    cells, rows = known_cells(adata, *keys.values())
    training = get_mask(adata, train, "train")[rows]
    if training.all() or not training.any():
        raise ValueError(
            f"{training.sum()} of {len(training)} cells are training cells: some have to be, and others held out, to tell "
            "copies from true cells. See mt.pp.hold_out."
        )
    true = about_cells(cells, **keys)
    of_true, of_made, length = rank_levels(cells, generated, model)
    X = {"true": of_true, "generated": of_made}
    names = sorted(set(true.group) - {""})
    parts = [("all", true.group != "", made.group != "")]
    if names != ["all"]:
        parts += [(name, true.group == name, made.group == name) for name in names]

    tables, small = [], []
    for number, (name, *mine) in enumerate(parts):
        seed = np.random.default_rng([rng, number])
        sets = _sets(X, length, (true, made), mine, training, seed)
        if sets is None:
            small.append(name)
            continue
        placed = {
            kind: _place(ranks, unit, model, length if space == "embedding" else None)
            for kind, (ranks, unit) in sets.items()
        }
        table = _score(placed, seed)
        table.insert(0, "group", name)
        tables.append(table)
    if not tables:
        raise ValueError(
            f"No group has {2 * (N_NEIGHBORS + 1)} held-out cells, {N_NEIGHBORS + 1} generated ones and a training cell. "
            f"In all, {(~training).sum()} cells are held out, {training.sum()} are training cells and "
            f"{generated.n_obs} are generated."
        )
    if small:
        warn(f"Left out, with too few held-out, generated or training cells: {', '.join(small)}.")
    scores = pd.concat(tables, ignore_index=True)
    scores["q_value"] = np.nan
    # All cells together are no further test of the groups.
    for rows in (scores["group"] == "all", scores["group"] != "all"):
        tested = rows & (scores["cells"] == "generated")
        scores.loc[tested, "q_value"] = benjamini_hochberg(scores.loc[tested, "p_value"])

    params = {
        "groupby": as_list(groupby),
        "donor_key": donor_key,
        "train": train if isinstance(train, str) else "mask",
        "space": space,
        "n_genes": length,
        "unit": "distance over that of true cells",
        "n_neighbors": N_NEIGHBORS,
        "n_cells": N_CELLS,
        "n_permutations": N_PERMUTATIONS,
        "test": "nearer: units exchanged, two-sided; Benjamini-Hochberg over groups",
        "groups_left_out": small,
        "n_left_out": adata.n_obs - len(rows),
        "seed": rng,
    }
    write_result(adata, _keys.DIVERSITY, {**model.params, **params}, key_added=key_added, scores=scores)


def _sets(X, length, about, rows, training, rng) -> dict[str, tuple] | None:
    """Ranks and units of the cells of each kind; None where there are too few."""
    (true, made), (of_true, of_made) = about, rows
    taught, held = np.flatnonzero(of_true & training), np.flatnonzero(of_true & ~training)
    written = np.flatnonzero(of_made)
    if len(held) < 2 * (N_NEIGHBORS + 1) or len(written) <= N_NEIGHBORS or not len(taught):
        return None
    reference, other = _halves(held, None if true.donor is None else true.donor[held], rng)
    if min(len(reference), len(other)) <= N_NEIGHBORS:
        return None
    size = min(N_CELLS, len(other), len(written))
    reference, other, written = (
        np.sort(rng.permutation(found)[:most])
        for found, most in ((reference, N_CELLS), (other, size), (written, size))
    )
    copied = rng.choice(taught, size, replace=len(taught) < size)
    alike = other[rng.permutation(len(other))]

    def units(about, cells):
        kind = next((names for names in (about.donor, about.prompt) if names is not None), None)
        return cells.astype(str) if kind is None else kind[cells].astype(str)

    R, G = X["true"], X["generated"]
    return {
        "true": (R[reference], units(true, reference)),
        "training": (R[taught], units(true, taught)),
        "generated": (G[written], units(made, written)),
        "held-out": (R[other], units(true, other)),
        "copies": (R[copied], units(true, copied)),
        "average": (_average(R, length, true.group, taught, true.group[alike]), units(true, alike)),
        "shuffled": (_shuffled(R[alike], rng), units(true, alike)),
    }


def _halves(held: np.ndarray, donor: np.ndarray | None, rng) -> tuple[np.ndarray, np.ndarray]:
    """Held-out cells in two halves, of different donors where there are enough."""
    if donor is None or len(np.unique(donor.astype(str))) < _MIN_DONORS:
        order = rng.permutation(held)
        return order[: len(order) // 2], order[len(order) // 2 :]
    names, size = np.unique(donor.astype(str), return_counts=True)
    order = rng.permutation(len(names))
    # Donors in random order, each to the half that has fewer cells yet.
    n = [0, 0]
    first = []
    for i in order:
        side = int(n[1] < n[0])
        n[side] += size[i]
        if not side:
            first.append(names[i])
    mine = np.isin(donor.astype(str), first)
    return held[mine], held[~mine]


def _average(
    X: sp.csr_matrix, length: int, group: np.ndarray, taught: np.ndarray, wanted: np.ndarray
) -> sp.csr_matrix:
    """The average training cell of each group wanted: its genes by mean rank, as many as the median cell has."""
    rows = {}
    for name in np.unique(wanted.astype(str)):
        cells = X[taught[group[taught] == name]] if (group[taught] == name).any() else X[taught]
        mean = np.asarray(cells.mean(axis=0)).ravel()
        n = min(int(np.median(np.diff(cells.indptr))), np.count_nonzero(mean))
        top = np.argsort(-mean, kind="stable")[:n]
        row = np.zeros(X.shape[1], dtype=X.dtype)
        row[top] = 1 - np.arange(n) / length
        rows[name] = sp.csr_matrix(row)
    return sp.csr_matrix(sp.vstack([rows[name] for name in wanted.astype(str)]))


def _shuffled(X: sp.csr_matrix, rng: np.random.Generator) -> sp.csr_matrix:
    """The ranks of each cell, dealt to random genes among those that any of the cells has."""
    expressed = np.flatnonzero(X.getnnz(axis=0))
    dealt = rng.permuted(np.tile(expressed, (X.shape[0], 1)), axis=1)
    first = np.arange(len(expressed)) < np.diff(X.indptr)[:, None]
    shuffled = sp.csr_matrix((X.data, dealt[first], X.indptr), shape=X.shape)
    shuffled.sort_indices()
    return shuffled


def _place(ranks: sp.csr_matrix, unit: np.ndarray, model: MaxTokiModel, length: int | None) -> Cells:
    """Cells with where they lie: among the ranks or, by lists of some length, among the model's embeddings."""
    ranks = ranks.astype(np.float64)
    if length is None:
        return Cells(ranks, ranks, unit)
    whole = sp.csr_matrix(ranks, copy=True)
    whole.data = np.rint((1 - ranks.data) * length + 1)
    sequences = cell_sequences(
        whole.astype(np.uint16), model.vocab.gene_ids, model.vocab, max_length=model.cell_length
    )
    return Cells(ranks, embed_sequences(model, sequences).cells.astype(np.float64), unit)


def _score(sets: dict[str, Cells], rng: np.random.Generator) -> pd.DataFrame:
    """One row a set of cells."""
    true, training = sets["true"], sets["training"]
    of_true = kernel.to_training(true, training)
    left_true = kernel.weights_without(true.unit, rng)
    rows = []
    for kind in ("generated", "held-out", "copies", "average", "shuffled"):
        cells = sets[kind]
        found, left = kernel.to_training(cells, training), kernel.weights_without(cells.unit, rng)
        both = [left, left_true]
        inside = kernel.in_balls(cells, true, N_NEIGHBORS)
        density, error, df = kernel.mean_with_error(inside.sum(axis=0) / N_NEIGHBORS, *left)
        reach = kernel.stats.t.ppf(0.975, df) * error if np.isfinite(error) else np.nan
        values = {
            "nearer": kernel.nearer_interval(kernel.nearer(found.to_training, of_true.to_training), both),
            "near_copies": kernel.share_interval(kernel.near_copies(found, of_true), *left),
            "exact_copies": kernel.share_interval(kernel.exact_copies(found), *left),
            "precision": kernel.share_interval(inside.any(axis=0), *left),
            "density": (density, max(density - reach, 0), density + reach),
            "coverage": kernel.share_interval(inside.any(axis=1), *left_true),
            "spread": kernel.spread_ratio(cells, true, both),
        }
        row = {"cells": kind}
        for name, (value, low, high) in values.items():
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        row["distinct"] = kernel.distinct_lists(cells.ranks)
        row["p_value"] = kernel.permutation_p(
            found.to_training, of_true.to_training, (cells.unit, true.unit), N_PERMUTATIONS, rng
        )
        row |= {"n_cells": len(cells.unit), "n_units": left[1]}
        row |= {"n_true": len(true.unit), "n_true_units": left_true[1], "n_training": len(training.unit)}
        rows.append(row)
    table = pd.DataFrame(rows)
    good = table.set_index("cells").loc["held-out"]
    table["conclusion"] = [_conclusion(row, good) for _, row in table.iterrows()]
    return table


def _conclusion(row: pd.Series, good: pd.Series) -> str:
    """What may be said."""
    if row["cells"] == "held-out":
        return "true cells"
    found = []
    collapsed = row["spread_high"] < min(good["spread_low"], 1)
    if collapsed:
        found.append("collapsed")
    # An average cell is near to all cells, and no copy of one.
    near = row["near_copies_low"] > kernel.NEAR and row["nearer_low"] > 0.5 and not collapsed
    if near or row["exact_copies_low"] > kernel.NEAR:
        found.append("copies of training cells")
    if row["precision_high"] < good["precision_low"] or row["nearer_high"] < 0.5:
        found.append("unlike true cells")
    if row["coverage_high"] < good["coverage_low"] and not found:
        found.append("part of the true cells missing")
    return ", ".join(found) or "not told from true cells"
