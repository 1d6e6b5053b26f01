"""How well scores of gene pairs find the targets in a table of regulons, and what other tables would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from .matched_sets import two_sided

MIN_TARGETS, MIN_SOURCES = 3, 3
_TRADES = 3  # a source and draw
_FLAT = 1e-9
_PRECISION_DRAWS = 99  # whose average precision is taken: only its mean is told


def find_edges(regulons: pd.DataFrame, genes: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Sources and targets of the edges among the genes (columns `gene`, `ensembl_id`, `symbol`), without a gene's own."""
    if not isinstance(regulons, pd.DataFrame):
        raise TypeError(f"regulons must be a DataFrame, got {type(regulons).__name__}.")
    if missing := {"source", "target"} - set(regulons):
        raise ValueError(
            f"regulons has no column {', '.join(map(repr, sorted(missing)))} (columns: {list(regulons)}). Give one row an edge, "
            "with `source` and `target`, as decoupler has them."
        )
    if "weight" in regulons:
        regulons = regulons[regulons["weight"] != 0]
    names = pd.concat([genes[c].astype(str) for c in ("gene", "ensembl_id", "symbol")])
    place = pd.Series(np.tile(np.arange(len(genes)), 3), index=names.to_numpy())
    place = place[~place.index.duplicated()]
    source, target = (
        place.reindex(regulons[c].astype(str)).fillna(-1).to_numpy(dtype=int) for c in ("source", "target")
    )
    found = (source >= 0) & (target >= 0) & (source != target)
    return source[found], target[found]


def scorable(known: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sources and targets that can be scored: rows, columns, edges, and pairs that may be edges.

    Each source has targets, and others that are targets of another source only.
    """
    allowed = seen & ~np.eye(len(known), dtype=bool)
    rows = np.arange(len(known))
    while True:
        columns = np.flatnonzero((known & allowed)[rows].any(axis=0))
        pairs = allowed[np.ix_(rows, columns)]
        edges = known[np.ix_(rows, columns)] & pairs
        enough = (edges.sum(axis=1) >= MIN_TARGETS) & ((pairs & ~edges).sum(axis=1) >= MIN_TARGETS)
        if enough.all():
            return rows, columns, edges, pairs
        rows = rows[enough]


class Ranked:
    """Scores of pairs (predictors x sources x targets), sorted once for all tables of edges."""

    def __init__(self, scores: np.ndarray, pairs: np.ndarray) -> None:
        low = np.where(pairs, scores, -np.inf)
        ranks = stats.rankdata(low, axis=2)
        # Pairs that do not count are lowest.
        self.ranks = np.where(pairs, ranks - (~pairs).sum(axis=1, keepdims=True), 0)
        self.n_pairs = pairs.sum(axis=1)
        self.order = np.argsort(-low, axis=2, kind="stable")
        last = stats.rankdata(-low, method="max", axis=2)
        # Scores that are equal come together.
        self.end = np.take_along_axis(last, self.order, axis=2).astype(np.int64) - 1

    def auroc(self, edges: np.ndarray) -> np.ndarray:
        """Area under the ROC curve, predictors x sources; of several tables of edges at once, with these as first axis."""
        n = edges.sum(axis=-1)
        hits = np.einsum("pst,...st->...ps", self.ranks, edges)
        return (hits - (n * (n + 1) / 2)[..., None, :]) / (n * (self.n_pairs - n))[..., None, :]

    def average_precision(self, edges: np.ndarray) -> np.ndarray:
        """Average precision, predictors x sources."""
        found = np.take_along_axis(np.broadcast_to(edges, self.order.shape), self.order, axis=2)
        above = np.take_along_axis(found.cumsum(axis=2), self.end, axis=2)
        return (found * above / (self.end + 1)).sum(axis=2) / edges.sum(axis=1)


def permuted_edges(
    edges: np.ndarray, pairs: np.ndarray, n: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Other edges among the pairs, with as many for each source and for each target.

    All draws start from one that is as many steps from the edges as they are from it, so that all are
    exchangeable (Besag and Clifford, Biometrika 1989).
    """
    middle = _traded(edges, pairs, rng)
    for _ in range(n):
        yield _traded(middle, pairs, rng)


def _traded(edges: np.ndarray, pairs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let sources trade targets that only one of two has and both may have (curveball)."""
    edges = edges.copy()
    for a, b in rng.integers(len(edges), size=(_TRADES * len(edges), 2)):
        free = np.flatnonzero((edges[a] != edges[b]) & pairs[a] & pairs[b])
        to_first = rng.permutation(edges[a, free])
        edges[a, free], edges[b, free] = to_first, ~to_first
    return edges


def score_regulons(
    scores: Mapping[str, np.ndarray],
    known: np.ndarray,
    seen: np.ndarray,
    n_permutations: int,
    rng: np.random.Generator,
    *,
    reference: str,
) -> pd.DataFrame:
    """AUROC and average precision of each predictor, as means over sources; no row where too few can be scored.

    Parameters
    ----------
    scores
        Of all pairs of genes, sources x targets.
    known
        The table's edges among the genes.
    seen
        Pairs that have a score.
    n_permutations
        Draws of edges for the null.
    rng
        Generator.
    reference
        Predictor that the others are compared with.
    """
    rows, columns, edges, pairs = scorable(known, seen)
    if len(rows) < MIN_SOURCES:
        return pd.DataFrame()
    ranked = Ranked(np.stack([s[np.ix_(rows, columns)] for s in scores.values()]), pairs)
    auroc, precision = ranked.auroc(edges), ranked.average_precision(edges)
    drawn = np.array(list(permuted_edges(edges, pairs, n_permutations, rng)))
    null = ranked.auroc(drawn).mean(axis=2)
    null_precision = [ranked.average_precision(one).mean(axis=1) for one in drawn[:_PRECISION_DRAWS]]
    p, middle, _ = two_sided(auroc.mean(axis=1), null, _FLAT)
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    table = pd.DataFrame({"predictor": list(scores)})
    against = auroc - auroc[list(scores).index(reference)]
    for name, values, bounds in [
        ("auroc", auroc, (0, 1)),
        ("average_precision", precision, (0, 1)),
        ("difference", against, (-1, 1)),
    ]:
        table[name] = values.mean(axis=1)
        reach = stats.t.ppf(0.975, len(rows) - 1) * stats.sem(values, axis=1)
        table[f"{name}_low"] = np.maximum(table[name] - reach, bounds[0])
        table[f"{name}_high"] = np.minimum(table[name] + reach, bounds[1])
    return table.assign(
        null_auroc=middle,
        null_auroc_low=low,
        null_auroc_high=high,
        null_average_precision=np.mean(null_precision, axis=0),
        p_value=p,
        n_sources=len(rows),
        n_targets=len(columns),
        n_edges=int(edges.sum()),
        n_pairs=int(pairs.sum()),
        share_exchanged=float((drawn & ~edges).sum() / (len(drawn) * edges.sum())),
    )


def edge_signs(regulons: pd.DataFrame, genes: pd.DataFrame) -> np.ndarray:
    """Signs of the edges among the genes, sources x targets; 0 where there is no edge, or no `weight`."""
    sign = np.zeros((len(genes), len(genes)), dtype=np.int8)
    if "weight" in regulons:
        for value in (1, -1):
            of = regulons[np.sign(regulons["weight"]) == value]
            sign[find_edges(of, genes)] = value
    return sign


def score_signs(
    scores: Mapping[str, np.ndarray], sign: np.ndarray, n_permutations: int, rng: np.random.Generator
) -> pd.DataFrame:
    """How often a source's activated targets score higher than its repressed ones, beside signs exchanged within sources.

    Parameters
    ----------
    scores
        Of all pairs of genes, sources x targets.
    sign
        1 for edges that activate, -1 for those that repress, 0 for what does not count.
    n_permutations
        Draws for the null.
    rng
        Generator.

    Returns
    -------
    A row a predictor; NaN where no source has both kinds.
    """
    rows = np.flatnonzero((sign > 0).any(axis=1) & (sign < 0).any(axis=1))
    n_pairs = float(((sign[rows] > 0).sum(axis=1) * (sign[rows] < 0).sum(axis=1)).sum())
    found = []
    for name, values in scores.items():
        wins, null = 0.0, np.zeros(n_permutations)
        for row in rows:
            up = sign[row] > 0
            edges = np.flatnonzero(sign[row])
            rank = stats.rankdata(values[row, edges])
            n_up = int(up.sum())
            least = n_up * (n_up + 1) / 2
            wins += rank[up[edges]].sum() - least
            drawn = rng.permuted(np.tile(rank, (n_permutations, 1)), axis=1)
            null += drawn[:, :n_up].sum(axis=1) - least
        if not len(rows):
            found.append((name, np.nan, np.nan, np.nan, np.nan))
            continue
        concordance, null = wins / n_pairs, null / n_pairs
        p_value = (1 + (np.abs(null - 0.5) >= abs(concordance - 0.5) - _FLAT).sum()) / (1 + n_permutations)
        found.append((name, concordance, *np.quantile(null, [0.025, 0.975]), float(p_value)))
    table = pd.DataFrame(found, columns=["predictor", "concordance", "null_low", "null_high", "p_value"])
    return table.assign(
        n_sources=len(rows),
        n_activated=int((sign[rows] > 0).sum()),
        n_repressed=int((sign[rows] < 0).sum()),
    )
