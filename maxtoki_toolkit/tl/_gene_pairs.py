"""Genes of a network of genes: which ones, where cells have them, how they go together, and scores against regulons."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from .. import _keys
from .._features import find_genes, symbols
from ..models.sequences import Sequences
from ..pp._ranked_counts import counts_or_none
from ..stats.expression import log_normalize
from ..stats.fdr import benjamini_hochberg
from ..stats.regulons import MIN_SOURCES, MIN_TARGETS, find_edges

N_GENES = 300  # by default, and up to which whole matrices are kept
MOST_GENES = 1000
MIN_CELLS = 10  # in which a pair must be read together: fewer give a score that is mostly noise
N_EDGES = 1000  # kept of each group; the matrix has all of them
COEXPRESSION = "coexpression"


def choose_genes(adata, model, sequences: Sequences, genes, regulons) -> tuple[np.ndarray, pd.DataFrame, int]:
    """Columns of the genes and what they are called; and how many of those asked for no cell has among its tokens."""
    token = adata.var[_keys.TOKEN_ID].to_numpy()
    n_read = np.bincount(sequences.tokens, minlength=model.vocab.size)
    n_read = np.where(token >= 0, n_read[token], 0)
    name = pd.DataFrame(
        {
            "gene": adata.var_names.to_numpy(dtype=object),
            "ensembl_id": np.where(token >= 0, model.vocab.gene_of_token[token], ""),
            "symbol": symbols(adata).astype(object),
        }
    )
    n_unread = 0
    if genes is not None:
        wanted = find_genes(adata, list(dict.fromkeys(genes)))
        columns = wanted[n_read[wanted] > 0]
        n_unread = len(wanted) - len(columns)
    else:
        # Columns of one gene share its token.
        columns = np.argsort(-n_read, kind="stable")
        columns = columns[n_read[columns] > 0]
        if regulons is not None:
            source, target = find_edges(regulons, name.iloc[columns])
            if not len(source):
                raise ValueError(
                    f"None of the {len(regulons)} edges of the regulons is between two genes that are read in these cells. Give "
                    "symbols, Ensembl ids or .var_names as `source` and `target`."
                )
            found, n_targets = np.unique(np.unique(np.stack([source, target]), axis=1)[0], return_counts=True)
            first = found[n_targets >= MIN_TARGETS][: N_GENES // 3]
            rest = np.setdiff1d(target[np.isin(source, first)], first)[: N_GENES - len(first)]
            columns = columns[np.sort(np.concatenate([first, rest]))]
    columns = columns[np.sort(np.unique(token[columns], return_index=True)[1])]
    columns = columns if genes is not None else columns[:N_GENES]
    if not 3 <= len(columns) <= MOST_GENES:
        raise ValueError(
            f"{len(columns)} of the genes are read in the cells; from 3 to {MOST_GENES} make a network. "
            + ("Give fewer genes." if len(columns) > 3 else "Give genes that the model reads of these cells.")
        )
    return columns, name.iloc[columns].reset_index(drop=True), n_unread


def gene_places(sequences: Sequences, tokens: np.ndarray, size: int) -> np.ndarray:
    """Place of each gene in each cell's sequence, cells x genes; 0 where it is not read."""
    gene = np.full(size, -1)
    gene[tokens] = np.arange(len(tokens))
    cell = sequences.owner
    at = np.arange(len(sequences.tokens)) - sequences.indptr[cell]
    own = gene[sequences.tokens]
    out = np.zeros((len(sequences), len(tokens)), dtype=np.int64)
    out[cell[own >= 0], own[own >= 0]] = at[own >= 0]
    return out


def donor_halves(donor: np.ndarray, seed: int) -> np.ndarray:
    """0 or 1: a random half of the donors."""
    names, code = np.unique(donor, return_inverse=True)
    return (np.random.default_rng([seed, 7]).permutation(len(names)) % 2)[code]


def expression_or_ranks(adata, cells, columns, place) -> tuple[np.ndarray, str]:
    """Log of counts per 10,000, cells x genes; or the places, where there are no counts, and what it is."""
    counts = counts_or_none(adata, cells, instead="Coexpression is that of ranks")
    if counts is None:
        lowest = place.max(axis=1, keepdims=True) + 1
        return (lowest - np.where(place > 0, place, lowest)).astype(float), "ranks"
    return log_normalize(counts, np.float64)[:, columns].toarray(), "log1p of counts per 10,000"


def spearman(values: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """Correlation of ranks within donors, genes x genes; 0 for genes that do not vary."""
    if len(values) < 3:
        return np.full((values.shape[1],) * 2, np.nan)
    ranks = rankdata(values, axis=0)
    code = np.unique(donor, return_inverse=True)[1]
    member = np.eye(code.max() + 1)[code]
    ranks -= member @ ((member.T @ ranks) / member.sum(axis=0)[:, None])
    length = np.sqrt((ranks**2).sum(axis=0))
    ranks = np.where(length > 1e-9, ranks / np.maximum(length, 1e-9), 0)
    return ranks.T @ ranks


def agreement(first: np.ndarray, second: np.ndarray, counted: np.ndarray) -> float:
    """Spearman correlation of two halves over the pairs that both have."""
    both = counted & np.isfinite(first) & np.isfinite(second)
    if both.sum() < 3:
        return np.nan
    ranks = [rankdata(values[both]) for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1]) if min(np.ptp(r) for r in ranks) > 0 else np.nan


def correct_scores(scores: list[pd.DataFrame], known: np.ndarray, regulons, genes) -> pd.DataFrame:
    """Scores of all groups with q values, or say that there are none."""
    table = pd.concat(scores, ignore_index=True)
    if "p_value" not in table:
        raise ValueError(
            f"No group has {MIN_SOURCES} sources with {MIN_TARGETS} targets, and {MIN_TARGETS} targets of other sources, whose "
            f"pairs are seen often enough ({int(known.sum())} of {len(regulons)} edges are between the {len(genes)} genes). "
            "Give the regulons' genes as `genes`, or read more cells (n_cells)."
        )
    table.insert(0, "group", table.pop("group"))
    place = table.columns.get_loc("p_value") + 1
    table.insert(place, "q_value", benjamini_hochberg(table["p_value"]))
    for column in ("n_sources", "n_targets", "n_edges", "n_pairs"):
        table[column] = table[column].astype(int)
    return table


def baselines(correlation: np.ndarray, values: np.ndarray, place: np.ndarray) -> dict[str, np.ndarray]:
    """What may tell edges from other pairs without a model, sources x targets."""
    last = place.max(axis=1, keepdims=True) + 1
    rank = np.where(place > 0, place, last).mean(axis=0)
    mean = values.mean(axis=0)
    everywhere = np.ones_like(correlation)
    return {
        COEXPRESSION: np.abs(correlation),
        "target_rank": -rank * everywhere,
        "target_variance": values.var(axis=0) * everywhere,
        "expression": np.outer(mean, mean),
    }
