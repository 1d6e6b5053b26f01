"""Which genes attend to which, beyond what their places explain, against coexpression and a table of regulons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..models.attention import n_pair_classes, pair_classes, place_steps, stream_pairs
from ..models.hooks import n_heads, n_layers
from ..models.model import MaxTokiModel
from ..pp._columns import find_donors
from ..pp._design import as_list, known_cells
from ..results.store import write_result
from ..stats.regulons import find_edges, score_regulons
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

_CHUNK = 1 << 23  # cells x genes x genes at a time
_LOWEST = -20.0  # log2 of a weight that is nothing
ATTENTION = "attention"


def gene_network(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    genes: Sequence[str] | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    directed: bool = False,
    n_cells: int = 100,
    regulons: pd.DataFrame | None = None,
    n_permutations: int = 499,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Sum up the attention between each two genes, and compare it with coexpression and with known regulons.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model; temporal training is not needed.
    groupby
        Column or columns of `.obs`, e.g. the cell type: a network for each group. All cells by default.
    donor_key
        Column of `.obs` with the donor, guessed from its name. Coexpression is then within donors, and the
        halves are of donors.
    genes
        Genes of the network (symbols, Ensembl ids or `.var_names`), at most 1,000. By default the 300 that
        are read most often; with `regulons`, the 100 sources (of those with three targets) and then the
        targets that are read most often, up to 300 together.
    heads
        Pairs of block and head (from 0) whose weights are averaged; all by default. Choose them before the
        scores are seen, or on other cells.
    directed
        Whether the attention from the target's token to the source's alone counts. By default that from
        either to the other does, and the network has no direction.
    n_cells
        Cells of each group and donor, at most (of each group, where no donor is known). Which ones depends on
        `rng` and their names alone.
    regulons
        Known edges as decoupler has them: columns `source` and `target` (symbols, Ensembl ids or
        `.var_names`); a `weight` of 0 is no edge.
    n_permutations
        Draws of the regulons for the null.
    rng
        Seed of the cells, the halves and the permutations.
    key_added
        Key in `.uns`, by default "gene_network".

    Returns
    -------
    `None`. Writes to `.uns["gene_network"]`

    `edges`
        A row an edge, the highest of each group first:

        `group`, `source`, `target`, `source_symbol`, `target_symbol`
            Group of cells and genes (`.var_names`, symbols). Where the network is undirected, each pair is
            there once, in no meaningful order (`params["directed"]`).
        `log2_ratio`, `half_1`, `half_2`
            Log2 of attention over what tokens at the same places have; the same in two halves of the donors
            (or cells), NaN where a half sees the pair too rarely.
        `mass`, `expected`
            Sums over cells, whose ratio it is.
        `coexpression`
            Spearman correlation in the same cells.
        `n_cells`
            Cells in which the pair is seen.
        `known`
            Whether the edge is in the regulons, if there were any.

        Pairs that see each other in fewer than 10 cells of a group have no score. Coexpression is of the
        counts that were ranked; where these are gone, the ranks stand in (`params["expression"]`).
    `scores`
        With regulons, a row a group and predictor: means over sources, each with `_low` and `_high` (95%):

        `group`, `predictor`
            Group of cells; see the notes.
        `auroc`, `average_precision`
            Targets of a source against targets of other sources.
        `difference`
            AUROC less that of coexpression, over the same sources.
        `null_auroc`, `null_auroc_low`, `null_auroc_high`, `null_average_precision`
            Mean over permuted regulons, and the range of 95% of them.
        `p_value`, `q_value`
            Permutation test of the AUROC, two-sided; corrected over all rows (Benjamini and Hochberg).
        `n_sources`, `n_targets`, `n_edges`, `n_pairs`
            Sources and targets that could be scored, edges among them, and pairs that were compared.
        `share_exchanged`
            Share of the edges that a permutation exchanges.

    `groups`
        A row a `group`: its cells, donors and pairs (`n_cells`, `n_donors`, `n_pairs`), and how well its two
        halves agree over all pairs (`replication_attention`, `replication_coexpression`; Spearman).
    `genes`
        Genes of the network (`gene`, `ensembl_id`, `symbol`), in the order of `matrix`, with the share of
        cells that they are read in (`detection`).
    `matrix`
        float32, groups x sources x targets: log2 of attention over expectation, NaN where there is no score.
        Only of up to 300 genes.

    Raises
    ------
    KeyError
        If a column or a gene is not found.
    ValueError
        If a head does not exist, there are too few or too many genes, no pair is seen often enough, or no
        group has three sources to score.

    Notes
    -----
    A token only sees tokens at higher ranks, and heads prefer places and distances. So genes that are often
    next to each other or at the top have much attention from any head. The sum over cells is divided by its
    expectation: for each pair of tokens the mean weight, over that of an even spread, of all pairs of genes
    of the group at like places (classes of the later place and of the distance or the earlier place,
    whichever is smaller; exact up to 8, then in steps of a quarter). A head that looks at places alone has a
    score of 0, log2 of 1, for all pairs but for noise.

    Regulons are scored source by source: its targets among the network's genes against targets of other
    sources, over pairs that have a score; three targets and three others at least. Values are means over
    sources with a t interval (that of the jackknife); sources are the unit, and those that share targets are
    not independent. The p value therefore permutes the edges, with as many for each source and each target as
    they have (two-sided; smallest 1 / (`n_permutations` + 1)), and is corrected over all predictors and
    groups (Benjamini and Hochberg). The predictors, higher for an edge:

    ``attention``
        log2 of attention over expectation;
    ``attention_sum``
        the sum of weights as it is, which places and how often both are read explain to a large part;
    ``attention_marginal``
        how much both genes have with all others (log2, added up): what is not about the pair;
    ``coexpression``
        absolute Spearman correlation of log-normalised counts in the same cells, ranks within donors centred;
    ``order``
        share of cells with both genes in which the target ranks lower;
    ``target_rank``
        mean rank of the target, the highest first; cells that lack it count as the place after the last;
    ``target_variance``
        variance of the target's log-normalised counts;
    ``expression``
        product of both genes' mean log-normalised counts.

    A baseline far below 0.5 tells as much as one above: turn it round. What a head attends to is no evidence
    that one gene acts on another.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.gene_network(adata, model, donor_key="donor_id", n_cells=10)
    >>> mt.get.table(adata, "gene_network").shape[0]
    1000
    """
    if n_permutations < 99:
        raise ValueError(f"n_permutations must be at least 99, got {n_permutations}.")
    groupby = as_list(groupby)
    donor_key = find_donors(adata.obs, donor_key)
    cells, _ = known_cells(adata, groupby, donor_key)
    chosen = _heads(model, heads)
    read = read_cells(cells, get_sequences(cells, model), groupby, donor_key, n_cells, rng)
    columns, table, n_unread = choose_genes(cells, model, read.sequences, genes, regulons)
    known = None
    if regulons is not None:
        known = np.zeros((len(table), len(table)), dtype=bool)
        known[find_edges(regulons, table)] = True
    place = gene_places(read.sequences, adata.var[_keys.TOKEN_ID].to_numpy()[columns], model.vocab.size)
    table["detection"] = (place > 0).mean(axis=0)
    names, group = np.unique(read.table["group"].to_numpy(dtype=str), return_inverse=True)
    half = donor_halves(read.table["donor"].to_numpy(dtype=str), rng)
    sums = _sum_pairs(model, read.sequences, place, columns, cells, 2 * group + half, chosen)
    values, expression = expression_or_ranks(cells, read.cells, columns, place)

    edges, scores, groups, matrix = [], [], [], []
    draws = np.random.default_rng([rng, 11])
    for i, name in enumerate(names):
        mine = np.flatnonzero(group == i)
        donor = read.table["donor"].to_numpy(dtype=str)[mine]
        halves = [sums.unit(2 * i + k) for k in (0, 1)]
        both = Pairs(*(a + b for a, b in zip(*halves, strict=True)))
        score = both.score(MIN_CELLS, directed=directed)
        seen = np.isfinite(score)
        known_donors = donor if read.donors_known else np.zeros(len(mine), dtype=int)
        correlation = spearman(values[mine], known_donors)
        by_half = [h.score(MIN_CELLS // 2, directed=directed) for h in halves]
        again = [spearman(values[mine[own]], known_donors[own]) for own in _split(half[mine])]
        counted = seen if directed else np.triu(seen)
        groups.append(
            {
                "group": name,
                "n_cells": len(mine),
                "n_donors": len(np.unique(donor)) if read.donors_known else 0,
                "n_pairs": int(counted.sum()),
                "replication_attention": agreement(*by_half, counted),
                "replication_coexpression": agreement(*again, counted),
            }
        )
        matrix.append(score)
        edges.append(
            _edge_table(name, score, counted, both, by_half, correlation, known, table, directed=directed)
        )
        if known is not None:
            predictors = _predictors(both, score, correlation, values[mine], place[mine], directed=directed)
            found = score_regulons(predictors, known, seen, n_permutations, draws, reference=COEXPRESSION)
            scores.append(found.assign(group=name))
    if not any(g["n_pairs"] for g in groups):
        raise ValueError(
            f"No pair of the {len(table)} genes is read together in {MIN_CELLS} cells of a group ({len(place)} cells of "
            f"{len(names)} groups were read). Read more cells (n_cells)."
        )
    tables = {"edges": pd.concat(edges, ignore_index=True), "groups": pd.DataFrame(groups), "genes": table}
    if known is not None:
        tables["scores"] = correct_scores(scores, known, regulons, table)
    if len(table) <= N_GENES:
        tables["matrix"] = np.array(matrix, dtype=np.float32)

    params = {
        "unit": "log2 of attention over expectation",
        "groupby": read.groupby,
        "donor_key": read.donor_key,
        "unit_of_inference": "source",
        "directed": directed,
        "heads": [_keys.head_name(i, j) for i, j in chosen],
        "n_genes": len(table),
        "n_genes_unread": n_unread,
        "n_cells": n_cells,
        "n_permutations": n_permutations,
        "expression": expression,
        "n_truncated": count_truncated(cells[read.cells], model),
        "seed": rng,
    }
    write_result(adata, _keys.GENE_NETWORK, {**model.params, **params}, key_added=key_added, **tables)


class Pairs(NamedTuple):
    """Sums over cells, of units or one of them; the last two axes are sources (seen) and targets (which attend)."""

    mass: np.ndarray
    """Weight of the targets' tokens on the sources', mean of the heads."""
    expected: np.ndarray
    """What pairs of tokens at the same places have on average."""
    n: np.ndarray
    """Cells in which the target comes after the source."""

    def unit(self, i: int) -> Pairs:
        """Sums of one unit."""
        return Pairs(*(part[i] for part in self))

    def either(self) -> Pairs:
        """The same without direction."""
        return Pairs(*(part + part.T for part in self))

    def score(self, min_cells: int, *, directed: bool) -> np.ndarray:
        """Log2 of the weight over its expectation; NaN for pairs that are seen in fewer cells."""
        mass, expected, n = self if directed else self.either()
        seen = (n >= min_cells) & (expected > 0)
        ratio = np.where(seen, mass, 1) / np.where(seen, expected, 1)
        # Sums of float32 are known about as well; what differs by less is equal.
        return np.where(seen, np.log2(np.maximum(ratio, 2**_LOWEST)).round(4), np.nan)


def _heads(model: MaxTokiModel, heads: Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    """The chosen heads, or all."""
    layers, width = n_layers(model), n_heads(model)
    if heads is None:
        return [(i, j) for i in range(layers) for j in range(width)]
    chosen = sorted({(int(i), int(j)) for i, j in heads})
    if not chosen:
        raise ValueError("heads is empty. Give pairs of layer and head, or None for all heads.")
    for i, j in chosen:
        if not (0 <= i < layers and 0 <= j < width):
            raise ValueError(f"There is no head ({i}, {j}); this model has {layers} layers of {width} heads.")
    return chosen


def _split(half: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(half == k) for k in (0, 1)]


def _sum_pairs(model, sequences, place, columns, adata, unit, heads) -> Pairs:
    """Weights between genes, and their expectation, of each unit: two of each group."""
    vocab, size = model.vocab, len(columns)
    gene = np.where(vocab.gene_of_token != "", size, -1)
    gene[adata.var[_keys.TOKEN_ID].to_numpy()[columns]] = np.arange(size)
    n_units = 2 * (unit.max() // 2 + 1)
    steps = place_steps(model.max_length)
    mass = np.zeros((n_units, size, size))
    by_class = np.zeros((2, n_units // 2, n_pair_classes(steps)))
    batches = stream_pairs(model, sequences, gene[sequences.tokens], size, unit, heads=heads)
    for found in batches:
        mass[found.units] += found.pairs / len(heads)
        for i, of_unit in enumerate(found.units):
            by_class[:, of_unit // 2] += found.places[:, i]
    level = by_class[0] / np.maximum(by_class[1], 1) / len(heads)
    expected, n = np.zeros_like(mass), np.zeros_like(mass)
    step = max(_CHUNK // size**2, 1)
    for i in range(n_units):
        cells = np.flatnonzero(unit == i)
        for start in range(0, len(cells), step):
            own = place[cells[start : start + step]]
            cell, later, earlier = np.nonzero((own[:, None, :] > 0) & (own[:, :, None] > own[:, None, :]))
            at, before = own[cell, later], own[cell, earlier]
            pair = later * size + earlier
            # An even spread gives each of the tokens that are seen as much.
            evenly = level[i // 2, pair_classes(at, before, steps)] / (at + 1)
            expected[i] += np.bincount(pair, evenly, size**2).reshape(size, size)
            n[i] += np.bincount(pair, minlength=size**2).reshape(size, size)
    return Pairs(*(part.transpose(0, 2, 1) for part in (mass, expected, n)))


def _predictors(both: Pairs, score, correlation, values, place, *, directed: bool) -> dict[str, np.ndarray]:
    """What may tell edges from others, sources x targets."""
    mass, expected, n = both if directed else both.either()
    counted = np.isfinite(score)
    tiny = np.finfo(float).tiny
    sent, received = (
        np.log2(
            np.maximum(np.where(counted, mass, 0).sum(axis=axis), tiny)
            / np.maximum(np.where(counted, expected, 0).sum(axis=axis), tiny)
        )
        for axis in (0, 1)
    )
    together = np.maximum(both.n + both.n.T, 1)
    simple = baselines(correlation, values, place)
    return {
        ATTENTION: np.where(counted, score, 0),
        "attention_sum": mass,
        "attention_marginal": received[:, None] + sent,
        COEXPRESSION: simple.pop(COEXPRESSION),
        "order": both.n / together,
        **simple,
    }


def _edge_table(
    name, score, counted, both: Pairs, halves, correlation, known, genes, *, directed: bool
) -> pd.DataFrame:
    """The highest edges of a group."""
    source, target = np.nonzero(counted)
    order = np.argsort(-score[source, target], kind="stable")[:N_EDGES]
    source, target = source[order], target[order]
    sums = both if directed else both.either()
    edges = pd.DataFrame({"group": name, "source": genes["gene"].to_numpy()[source]})
    edges["target"] = genes["gene"].to_numpy()[target]
    edges["source_symbol"] = genes["symbol"].to_numpy()[source]
    edges["target_symbol"] = genes["symbol"].to_numpy()[target]
    for column, values in [
        ("log2_ratio", score),
        ("half_1", halves[0]),
        ("half_2", halves[1]),
        ("mass", sums.mass),
        ("expected", sums.expected),
        ("coexpression", correlation),
    ]:
        edges[column] = values[source, target]
    edges["n_cells"] = sums.n[source, target].astype(int)
    if known is not None:
        edges["known"] = (known if directed else known | known.T)[source, target]
    return edges
