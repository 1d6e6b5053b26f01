"""What one gene does to the probability of another, with its sign, against coexpression and a table of regulons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..models.gene_effects import deletion_effects
from ..models.model import MaxTokiModel
from ..models.sequences import Sequences
from ..pp._columns import find_donors
from ..pp._design import as_list, known_cells
from ..results.store import write_result
from ..stats.donors import mean_of_donors
from ..stats.fdr import benjamini_hochberg
from ..stats.regulons import edge_signs, find_edges, score_regulons, score_signs
from ._cells import count_truncated, get_sequences
from ._gene_pairs import (
    COEXPRESSION,
    MIN_CELLS,
    N_EDGES,
    N_GENES,
    agreement,
    baselines,
    choose_genes,
    correct_scores,
    donor_halves,
    expression_or_ranks,
    gene_places,
    spearman,
)
from .attention import read_cells

EFFECT = "effect"
_COMPARED = 24  # genes of a cell, evenly spaced, whose deletions the others are compared with
_WIDTH = 1 / 16  # of a cell: how near in place a deletion is to count


def gene_effects(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    genes: Sequence[str] | None = None,
    n_cells: int = 20,
    regulons: pd.DataFrame | None = None,
    n_permutations: int = 499,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Take genes out of cells one by one, and read what becomes of the probability of the others.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model; temporal training is not needed.
    groupby
        Column or columns of `.obs`, e.g. the cell type: effects in each group. All cells by default.
    donor_key
        Column of `.obs` with the donor, guessed from its name.
    genes
        Genes that are both taken out and read (symbols, Ensembl ids or `.var_names`), at most 300. By default
        those that are read most often; with `regulons`, the 100 sources (of those with three targets) and
        then the targets that are read most often.
    n_cells
        Cells of each group and donor, at most (of each group, where no donor is known). Which ones depends on
        `rng` and their names alone.
    regulons
        Known edges as decoupler has them: columns `source` and `target` (symbols, Ensembl ids or
        `.var_names`), and `weight` with the sign (-1 represses; 0 is no edge).
    n_permutations
        Draws of the regulons, and of their signs, for the nulls.
    rng
        Seed of the cells, the halves and the permutations.
    key_added
        Key in `.uns`, by default "gene_effects".

    Returns
    -------
    `None`. Writes to `.uns["gene_effects"]`

    `edges`
        A row a source and target, the 1,000 of each group with the lowest p value:

        `group`, `source`, `target`, `source_symbol`, `target_symbol`
            Group of cells and genes (`.var_names`, symbols).
        `effect`, `effect_low`, `effect_high`
            What reading the source adds to the log-probability of the target (nats), beyond what genes at
            like places add: above 0, the source announces the target; below 0, it speaks against it. Mean
            over donors, with its 95% interval.
        `p_value`, `q_value`
            Two-sided t test over donors of an effect of 0; corrected for all pairs of all groups (Benjamini
            and Hochberg).
        `half_1`, `half_2`
            The effect in two halves of the donors (or cells).
        `coexpression`
            Spearman correlation in the same cells.
        `n_cells`, `n_donors`
            Cells in which the target may come after the source, and their donors.
        `known`, `sign`
            Whether the edge is in the regulons, and its sign there (0: none), if there were any.
    `scores`
        With regulons, a row a group and predictor: means over sources, as in `mt.tl.gene_network`, each with
        `_low` and `_high` (95%):

        `group`, `predictor`
            ``effect`` (its size), ``effect_marginal`` (the mean size of all effects of the source and on the
            target), and the baselines ``coexpression``, ``target_rank``, ``target_variance``, ``expression``.
        `auroc`, `average_precision`, `difference`
            Targets of a source against targets of other sources; AUROC less that of coexpression.
        `null_auroc`, `null_auroc_low`, `null_auroc_high`, `null_average_precision`
            Mean over permuted regulons, and the range of 95% of them.
        `p_value`, `q_value`
            Permutation test of the AUROC, two-sided; corrected over all rows (Benjamini and Hochberg).
        `n_sources`, `n_targets`, `n_edges`, `n_pairs`, `share_exchanged`
            What was compared, and the share of the edges that a permutation exchanges.
    `signs`
        With regulons, a row a group and predictor:

        `group`, `predictor`
            ``effect`` or ``coexpression``.
        `concordance`, `null_low`, `null_high`
            Share of pairs of one activated and one repressed target of the same source in which the activated
            one has the higher value; 95% of what signs exchanged within sources give.
        `p_value`, `q_value`
            Permutation test, two-sided; corrected over all rows (Benjamini and Hochberg).
        `n_sources`, `n_activated`, `n_repressed`
            Sources with both kinds of targets, and how many of these.
    `groups`
        A row a `group`: `n_cells`, `n_donors`, `n_pairs`, and how well its halves agree over all pairs
        (`replication_effect`, `replication_coexpression`; Spearman).
    `genes`
        Genes (`gene`, `ensembl_id`, `symbol`), in the order of `matrix`, with the share of cells that they
        are read in (`detection`).
    `matrix`
        float32, groups x sources x targets: effects, NaN where there is none.

    Raises
    ------
    KeyError
        If a column or a gene is not found.
    ValueError
        If there are too few or too many genes, no pair is read often enough, or no group has three sources to
        score.

    Notes
    -----
    A cell is read as it is and with the source taken out; what is compared is the log-probability of the
    target at the same places, with otherwise the same genes before it, from the source on until the target is
    read, or to the end of a cell that lacks it. Each such mean is compared with that of 24 genes of the same
    cell, spread evenly over its places, weighted by how near their place is (normal kernel, a sixteenth of
    the cell): what is left is not about where the source stands, nor about the loss of any one gene.

    Pairs that are read in fewer than 10 cells of a group have no effect.

    Donors are the unit: an effect is the mean over donors of the means over their cells. Without donors,
    cells are put in blocks, which tells of cells, not of people. An effect in a model is no evidence that one
    gene acts on another in a cell.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(60, 10, n_genes=500)
    >>> mt.pp.map_genes(adata)
    >>> vocab = mt.models.Vocabulary.from_anndata(adata)
    >>> mt.pp.rank_value_encode(adata, vocab)
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...              max_position_embeddings=128)
    >>> model = mt.models.build_model(shape, vocab)  # that has learned nothing
    >>> mt.tl.gene_effects(adata, model, donor_key="donor_id", n_cells=3)
    >>> int(mt.get.table(adata, "gene_effects")["n_donors"].max())
    10
    """
    if n_permutations < 99:
        raise ValueError(f"n_permutations must be at least 99, got {n_permutations}.")
    groupby = as_list(groupby)
    donor_key = find_donors(adata.obs, donor_key)
    cells, _ = known_cells(adata, groupby, donor_key)
    read = read_cells(cells, get_sequences(cells, model), groupby, donor_key, n_cells, rng)
    in_group = read.table["group"].astype(str).value_counts()
    if in_group.max() < MIN_CELLS:
        raise ValueError(
            f"A pair counts when it is read in {MIN_CELLS} cells of a group, and n_cells={n_cells} leaves {in_group.max()} cells "
            "in the largest. Read more cells (n_cells), or larger groups."
        )
    columns, table, n_unread = choose_genes(cells, model, read.sequences, genes, regulons)
    if len(table) > N_GENES:
        raise ValueError(
            f"{len(table)} of the genes are read in the cells; at most {N_GENES} are taken out one by one. "
            "Give fewer genes."
        )
    tokens = adata.var[_keys.TOKEN_ID].to_numpy()[columns]
    known = sign = None
    if regulons is not None:
        known = np.zeros((len(table), len(table)), dtype=bool)
        known[find_edges(regulons, table)] = True
        sign = edge_signs(regulons, table)
    place = gene_places(read.sequences, tokens, model.vocab.size)
    table["detection"] = (place > 0).mean(axis=0)
    groups = read.table["group"].to_numpy(dtype=str)
    donors = read.table["donor"].to_numpy(dtype=str)
    unit_table = pd.DataFrame({"group": groups, "donor": donors})
    unit = unit_table.groupby(["group", "donor"], sort=True).ngroup().to_numpy()
    units = unit_table.drop_duplicates().sort_values(["group", "donor"], ignore_index=True)
    sums = _sum_effects(model, read.sequences, place, tokens, unit)
    half = donor_halves(units["donor"].to_numpy(), rng)
    values, expression = expression_or_ranks(cells, read.cells, columns, place)

    edges, scores, signs, rows, matrix = [], [], [], [], []
    draws = np.random.default_rng([rng, 13])
    for name in units["group"].unique():
        mine = (units["group"] == name).to_numpy()
        own = np.flatnonzero(groups == name)
        n = sums.n[mine].sum(axis=0)
        seen = n >= MIN_CELLS
        mean = mean_of_donors(sums.means(mine))
        effect = np.where(seen, mean.estimate, np.nan)
        halves = [
            np.where(seen, mean_of_donors(sums.means(mine & (half == k))).estimate, np.nan) for k in (0, 1)
        ]
        donor = donors[own] if read.donors_known else np.zeros(len(own), dtype=int)
        correlation = spearman(values[own], donor)
        first = np.isin(donors[own], units["donor"][mine & (half == 0)])
        again = [spearman(values[own[part]], donor[part]) for part in (first, ~first)]
        rows.append(
            {
                "group": name,
                "n_cells": len(own),
                "n_donors": len(np.unique(donor)) if read.donors_known else 0,
                "n_pairs": int(seen.sum()),
                "replication_effect": agreement(*halves, seen),
                "replication_coexpression": agreement(*again, seen),
            }
        )
        matrix.append(effect)
        source, target = np.nonzero(seen)
        found = pd.DataFrame({"group": name, "source": source, "target": target})
        found["effect"] = effect[seen]
        found["effect_low"], found["effect_high"] = mean.low[seen], mean.high[seen]
        found["p_value"] = mean.p_value[seen]
        found["half_1"], found["half_2"] = (part[seen] for part in halves)
        found["coexpression"] = correlation[seen]
        found["n_cells"], found["n_donors"] = n[seen], mean.n[seen]
        if known is not None:
            found["known"], found["sign"] = known[seen], sign[seen]
        edges.append(found)
        if known is not None:
            predictors = _predictors(effect, correlation, values[own], place[own])
            scored = score_regulons(predictors, known, seen, n_permutations, draws, reference=COEXPRESSION)
            scores.append(scored.assign(group=name))
            both = {EFFECT: np.nan_to_num(effect), COEXPRESSION: correlation}
            signs.append(score_signs(both, np.where(seen, sign, 0), n_permutations, draws).assign(group=name))
    tables = {
        "edges": _surest(pd.concat(edges, ignore_index=True), table, len(place), len(rows)),
        "groups": pd.DataFrame(rows),
        "genes": table,
        "matrix": np.array(matrix, dtype=np.float32),
    }
    if known is not None:
        tables["scores"] = correct_scores(scores, known, regulons, table)
        found = pd.concat(signs, ignore_index=True)
        found.insert(0, "group", found.pop("group"))
        found.insert(found.columns.get_loc("p_value") + 1, "q_value", benjamini_hochberg(found["p_value"]))
        tables["signs"] = found
    params = {
        "unit": "nats",
        "groupby": read.groupby,
        "donor_key": read.donor_key,
        "unit_of_inference": "donor" if read.donors_known else "block of cells",
        "n_genes": len(table),
        "n_genes_unread": n_unread,
        "n_compared": _COMPARED,
        "n_cells": n_cells,
        "n_permutations": n_permutations,
        "expression": expression,
        "n_truncated": count_truncated(cells[read.cells], model),
        "seed": rng,
    }
    write_result(adata, _keys.GENE_EFFECTS, {**model.params, **params}, key_added=key_added, **tables)


class _Sums(NamedTuple):
    """Sums over cells, units x sources x targets."""

    effect: np.ndarray
    n: np.ndarray

    def means(self, units: np.ndarray) -> np.ndarray:
        """Means over the cells of some units, NaN where there are none."""
        n = self.n[units]
        return np.where(n > 0, self.effect[units] / np.maximum(n, 1), np.nan)


def _sum_effects(
    model, sequences: Sequences, place: np.ndarray, tokens: np.ndarray, unit: np.ndarray
) -> _Sums:
    """Effects of all genes on all others beyond those of genes at like places, summed over the cells of each unit."""
    deleted, compared = [], []
    for cell, length in enumerate(sequences.lengths):
        even = np.unique(np.linspace(1, length - 2, min(_COMPARED, length - 2)).round().astype(int))
        deleted.append(np.union1d(even, place[cell][place[cell] > 0]))
        compared.append(np.isin(deleted[-1], even))
    row = np.repeat(np.arange(len(sequences)), [len(d) for d in deleted])
    found = deletion_effects(model, sequences, tokens, row, np.concatenate(deleted))
    shape = (unit.max() + 1, len(tokens), len(tokens))
    total, n = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
    start = np.concatenate([[0], np.cumsum([len(d) for d in deleted])])
    for cell, (at, even) in enumerate(zip(deleted, compared, strict=True)):
        own = beyond_place(found[start[cell] : start[cell + 1]], at, even, sequences.lengths[cell] * _WIDTH)
        source = np.flatnonzero(place[cell])
        own = own[np.searchsorted(at, place[cell][source])]
        known = np.isfinite(own)
        total[unit[cell], source] += np.where(known, own, 0)
        n[unit[cell], source] += known
    return _Sums(total, n)


def beyond_place(effects: np.ndarray, place: np.ndarray, compared: np.ndarray, width: float) -> np.ndarray:
    """Effects of deletions (rows) less those of the compared ones at like places, their own left out."""
    distance = place[:, None] - place[compared]
    # Beyond a few widths all weights would be nothing.
    weight = np.exp(-0.5 * (distance / max(width, 1)) ** 2) + 1e-6
    weight[distance == 0] = 0
    known = np.isfinite(effects[compared])
    total = weight @ known
    with np.errstate(divide="ignore", invalid="ignore"):
        return effects - (weight @ np.where(known, effects[compared], 0)) / total


def _predictors(effect, correlation, values, place) -> dict[str, np.ndarray]:
    """What may tell edges from others, sources x targets."""
    size = np.nan_to_num(np.abs(effect))
    n = np.isfinite(effect)
    of_source, on_target = (size.sum(axis=axis) / np.maximum(n.sum(axis=axis), 1) for axis in (1, 0))
    return {
        EFFECT: size,
        "effect_marginal": of_source[:, None] + on_target,
        **baselines(correlation, values, place),
    }


def _surest(edges: pd.DataFrame, genes: pd.DataFrame, n_cells: int, n_groups: int) -> pd.DataFrame:
    """The surest edges of each group, corrected for all of them, with the names of their genes."""
    if not len(edges):
        raise ValueError(
            f"No gene of the {len(genes)} may come after another in {MIN_CELLS} cells of a group ({n_cells} cells of "
            f"{n_groups} groups were read). Read more cells (n_cells)."
        )
    edges.insert(edges.columns.get_loc("p_value") + 1, "q_value", benjamini_hochberg(edges["p_value"]))
    order = np.lexsort((-edges["effect"].abs(), edges["p_value"], pd.factorize(edges["group"])[0]))
    edges = edges.iloc[order].groupby("group", sort=False).head(N_EDGES).reset_index(drop=True)
    for i, column in enumerate(["source", "target"]):
        at = edges[column].to_numpy()
        edges[column] = genes["gene"].to_numpy()[at]
        edges.insert(3 + i, f"{column}_symbol", genes["symbol"].to_numpy()[at])
    return edges
