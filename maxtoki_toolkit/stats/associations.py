"""What many sparse scores of cells go with: labels and times, with the donor as the unit."""

from __future__ import annotations

from itertools import permutations
from math import factorial
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import stats

MIN_UNITS = 3  # donors for a p value, on each side where donors are compared
MIN_CELLS = 3  # cells of a donor, on each side where its cells are compared
_EXACT = 7  # donors up to which all orders are gone through
_HELD = 1 << 24  # numbers held in memory at once


class Design(NamedTuple):
    """How cells are compared; codes from 0."""

    unit: np.ndarray
    """Donor of each cell; 0 for all where there are none."""
    stratum: np.ndarray
    """Kind of each cell, within which it is compared."""
    half: np.ndarray
    """Which of two halves each donor (or cell, where there are none) is in."""
    has_units: bool
    """Whether there are enough donors to be the unit."""

    @property
    def n_units(self) -> int:
        """How many donors."""
        return int(self.unit.max()) + 1


class Effects(NamedTuple):
    """One row a label, one column a score; NaN where it is not known."""

    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    n_units: np.ndarray
    half_1: np.ndarray
    half_2: np.ndarray

    @staticmethod
    def join(parts: list[Effects]) -> Effects:
        """Put columns side by side."""
        return Effects(*(np.concatenate(fields, axis=1) for fields in zip(*parts, strict=True)))


def column_chunks(width: int, rows: int) -> list[slice]:
    """Columns that are held at a time where each has this many rows."""
    step = max(_HELD // max(rows, 1), 1)
    return [slice(i, min(i + step, width)) for i in range(0, width, step)]


def shifted_ranks(values: sp.spmatrix, group: np.ndarray, n_groups: int) -> tuple[sp.csr_matrix, np.ndarray]:
    """Ranks of each column within groups of rows, ties averaged, less the rank of the zeros; and the latter.

    Parameters
    ----------
    values
        Rows x columns, none below 0.
    group
        Of each row.

    Returns
    -------
    Rows x columns, 0 where the values are; and groups x columns.
    """
    found = sp.coo_matrix(values, dtype=np.float64, copy=True)
    found.sum_duplicates()
    found.eliminate_zeros()
    if found.nnz and found.data.min() < 0:
        raise ValueError("values must not be negative.")
    width = found.shape[1]
    block = group[found.row].astype(np.int64) * width + found.col
    order = np.lexsort((found.data, block))
    block, data = block[order], found.data[order]
    n = np.bincount(block, minlength=n_groups * width)
    start = np.concatenate([[0], np.cumsum(n)[:-1]])
    place = np.arange(len(block)) - start[block] + 1.0
    new = np.ones(len(block), dtype=bool)
    new[1:] = (np.diff(block) != 0) | (np.diff(data) != 0)
    tie = np.cumsum(new) - 1
    n_tied = np.bincount(tie)
    mean_place = np.bincount(tie, place) / np.maximum(n_tied, 1)
    n_zero = np.bincount(group, minlength=n_groups)[:, None] - n.reshape(n_groups, width)
    zero = (n_zero + 1) / 2
    # A value above n_zero zeros has the rank n_zero + place; they have (n_zero + 1) / 2.
    above = (n_zero - zero).ravel()[block]
    ranks = sp.csr_matrix((mean_place[tie] + above, (found.row[order], found.col[order])), shape=found.shape)
    return ranks, zero


def unit_aurocs(
    values: sp.spmatrix, label: np.ndarray, n_labels: int, unit: np.ndarray, stratum: np.ndarray
) -> np.ndarray:
    """AUROC of each score, one label against the rest, within strata of each unit.

    Parameters
    ----------
    values
        Cells x scores, none below 0.
    label
        Of each cell, -1 where it is not known.
    unit, stratum
        Of each cell. Strata count by the cells that they compare, n1 n0 / (n1 + n0), and are left out where
        one of the sides has fewer than three cells.

    Returns
    -------
    Units x labels x scores; NaN where nothing can be compared.
    """
    known = label >= 0
    values, label, unit, stratum = sp.csr_matrix(values)[known], label[known], unit[known], stratum[known]
    n_units = int(unit.max(initial=0)) + 1
    if not len(label):
        return np.full((n_units, n_labels, values.shape[1]), np.nan)
    pairs, group = np.unique(np.stack([unit, stratum]), axis=1, return_inverse=True)
    group, n_groups = group.ravel(), pairs.shape[1]
    n_in = np.zeros((n_groups, n_labels))
    np.add.at(n_in, (group, label), 1)
    n_out = n_in.sum(axis=1, keepdims=True) - n_in
    weight = np.where(np.minimum(n_in, n_out) >= MIN_CELLS, n_in * n_out / np.maximum(n_in + n_out, 1), 0)
    ranks, zero = shifted_ranks(values, group, n_groups)
    side = sp.csr_matrix(
        (np.ones(len(label)), (group * n_labels + label, np.arange(len(label)))),
        shape=(n_groups * n_labels, len(label)),
    )
    above = (side @ ranks).toarray().reshape(n_groups, n_labels, -1) + n_in[:, :, None] * zero[:, None]
    above -= (n_in * (n_in + 1) / 2)[:, :, None]
    area = above / np.maximum(n_in * n_out, 1)[:, :, None]
    into = sp.csr_matrix((np.ones(n_groups), (pairs[0], np.arange(n_groups))), shape=(n_units, n_groups))
    total = into @ weight
    sums = (into @ (area * weight[:, :, None]).reshape(n_groups, -1)).reshape(n_units, n_labels, -1)
    return np.where(total[:, :, None] > 0, sums / np.where(total > 0, total, 1)[:, :, None], np.nan)


def unit_correlations(
    values: sp.spmatrix, time: np.ndarray, unit: np.ndarray, stratum: np.ndarray
) -> np.ndarray:
    """Spearman correlation of each score with time, over the cells of a unit, in strata; units x 1 x scores."""
    n_units = int(unit.max()) + 1
    found = np.full((n_units, 1, values.shape[1]), np.nan)
    values = sp.csr_matrix(values)
    for one in range(n_units):
        sums, weight = np.zeros(values.shape[1]), 0
        for part in np.unique(stratum[unit == one]):
            rows = np.flatnonzero((unit == one) & (stratum == part))
            if len(rows) < 2 * MIN_CELLS or np.ptp(time[rows]) == 0:
                continue
            sums += len(rows) * np.nan_to_num(sparse_spearman(values[rows], time[rows, None])[0])
            weight += len(rows)
        if weight:
            found[one, 0] = sums / weight
    return found


def sparse_spearman(values: sp.spmatrix, others: np.ndarray) -> np.ndarray:
    """Spearman correlation of each column of `others` (dense) with each of `values` (sparse, none below 0)."""
    n = values.shape[0]
    ranks, zero = shifted_ranks(values, np.zeros(n, dtype=np.int64), 1)
    other = stats.rankdata(others, axis=0)
    other -= other.mean(axis=0)
    mean = np.asarray(ranks.sum(axis=0)).ravel() / n
    square = np.asarray(ranks.multiply(ranks).sum(axis=0)).ravel() - n * mean**2
    size = np.sqrt((other**2).sum(axis=0))[:, None] * np.sqrt(np.maximum(square, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 1e-9, np.asarray((ranks.T @ other).T) / size, np.nan)


def adjusted_means(values: sp.spmatrix, unit: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Mean of each unit within strata, less what all units have there, averaged over the unit's strata.

    So that it does not matter how many cells of which kind a unit has. Strata of fewer than three cells of
    a unit are left out. Units x scores.
    """
    n_units, n_strata = int(unit.max()) + 1, int(stratum.max()) + 1
    group = unit.astype(np.int64) * n_strata + stratum
    n = np.bincount(group, minlength=n_units * n_strata)
    side = sp.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), shape=(len(n), len(group)))
    with np.errstate(invalid="ignore"):
        mean = (side @ values).toarray() / np.where(n >= MIN_CELLS, n, np.nan)[:, None]
    mean = mean.reshape(n_units, n_strata, -1)
    known = np.isfinite(mean[:, :, :1])
    mean = np.where(known, mean, 0)
    middle = mean.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    total = np.where(known, mean - middle, 0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)


def over_units(found: np.ndarray, null: float, half: np.ndarray, resolution: float, bound: tuple) -> Effects:
    """Mean over units, with a t test of the null; each unit counts once.

    Parameters
    ----------
    found
        Units x labels x scores.
    resolution
        Standard error below which none is believed: the unit's own value comes in steps.
    """
    known = np.isfinite(found)
    n = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, found, 0).sum(axis=0) / n
        spread = np.where(known, found - mean, 0)
        error = np.sqrt((spread**2).sum(axis=0) / (n - 1) / n)
        error = np.maximum(error, resolution)
        enough = n >= MIN_UNITS
        reach = stats.t.ppf(0.975, np.maximum(n - 1, 1)) * error
        p = 2 * stats.t.sf(np.abs(mean - null) / error, np.maximum(n - 1, 1))
        halves = [
            np.where(known[half == i], found[half == i], 0).sum(axis=0) / known[half == i].sum(axis=0)
            for i in range(2)
        ]
    low, high = (np.where(enough, np.clip(mean + sign * reach, *bound), np.nan) for sign in (-1, 1))
    return Effects(mean, low, high, np.where(enough, p, np.nan), n, *halves)


def label_effects(
    values: sp.spmatrix, label: np.ndarray, n_labels: int, design: Design, kind: str
) -> Effects:
    """AUROC of each score for each label against the rest.

    Parameters
    ----------
    values
        Cells x scores, none below 0.
    label
        Of each cell, -1 where it is not known.
    kind
        "within" donors, "between" them, or "cells", where donors say nothing.
    """
    width = values.shape[1]
    rows = max(design.n_units * n_labels * (design.stratum.max() + 1), len(label) // 8, 1)
    values = sp.csc_matrix(values)
    parts = [
        _label_effects(values[:, at], label, n_labels, design, kind) for at in column_chunks(width, rows)
    ]
    return Effects.join(parts)


def _label_effects(values, label: np.ndarray, n_labels: int, design: Design, kind: str) -> Effects:
    if kind == "between":
        return _between(values, label, n_labels, design)
    if kind == "within":
        found = unit_aurocs(values, label, n_labels, design.unit, design.stratum)
        known = label >= 0
        n = np.zeros((design.n_units, n_labels))
        np.add.at(n, (design.unit[known], label[known]), 1)
        pairs = n * (n.sum(axis=1, keepdims=True) - n)
        some = (pairs > 0).sum(axis=0)
        # An AUROC comes in steps of half a pair of cells.
        step = np.where(some > 0, some / np.maximum(2 * pairs.sum(axis=0), 1), 1.0)[:, None]
        return over_units(found, 0.5, design.half, step, (0, 1))
    one = np.zeros(len(label), dtype=np.int64)
    halves = unit_aurocs(values, label, n_labels, design.half, design.stratum)
    return _untested(unit_aurocs(values, label, n_labels, one, design.stratum)[0], halves)


def _untested(effect: np.ndarray, halves: np.ndarray) -> Effects:
    none = np.full(effect.shape, np.nan)
    halves = [halves[i] if i < len(halves) else none for i in range(2)]
    return Effects(effect, none, none, none, np.zeros(effect.shape, dtype=int), *halves)


def unit_labels(label: np.ndarray, unit: np.ndarray, n_units: int) -> np.ndarray:
    """Label of each unit: that of all its cells; -1 where they have none, or several."""
    known = label >= 0
    low, high = np.full(n_units, np.iinfo(np.int64).max), np.full(n_units, -1)
    np.minimum.at(low, unit[known], label[known])
    np.maximum.at(high, unit[known], label[known])
    return np.where(low == high, high, -1)


def _between(values, label: np.ndarray, n_labels: int, design: Design) -> Effects:
    """Mann and Whitney's test over donors."""
    means = adjusted_means(values, design.unit, design.stratum)
    of_unit = unit_labels(label, design.unit, design.n_units)
    used = (of_unit >= 0) & np.isfinite(means).all(axis=1)
    means, of_unit, half = means[used], of_unit[used], design.half[used]
    # Rounding is no difference.
    means = np.round(means, 9)
    fields = [[] for _ in Effects._fields]
    for one in range(n_labels):
        is_in = of_unit == one
        effect, p = mann_whitney(means[is_in], means[~is_in])
        n_in, n_out = int(is_in.sum()), int((~is_in).sum())
        low, high = auroc_interval(effect, n_in, n_out)
        halves = [mann_whitney(means[is_in & (half == i)], means[~is_in & (half == i)])[0] for i in range(2)]
        if min(n_in, n_out) < MIN_UNITS:
            low, high, p = (np.full(means.shape[1], np.nan) for _ in range(3))
        found = (effect, low, high, p, np.full(means.shape[1], n_in + n_out), *halves)
        for field, value in zip(fields, found, strict=True):
            field.append(value)
    return Effects(*map(np.stack, fields))


def mann_whitney(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of rows of x against those of y for each column, and the two-sided p; NaN where one has no rows."""
    if not len(x) or not len(y):
        return np.full(x.shape[1], np.nan), np.full(x.shape[1], np.nan)
    both = np.concatenate([x, y])
    varies = np.ptp(both, axis=0) > 0
    effect, p = np.full(x.shape[1], 0.5), np.ones(x.shape[1])
    if varies.any():
        ranks = stats.rankdata(both[:, varies], axis=0)
        tied = np.array([len(np.unique(column)) < len(both) for column in both[:, varies].T])
        above = ranks[: len(x)].sum(axis=0) - len(x) * (len(x) + 1) / 2
        found = np.empty(len(tied))
        for some, method in (
            (tied, "asymptotic"),
            (~tied, "exact" if min(len(x), len(y)) <= 8 else "asymptotic"),
        ):
            if some.any():
                columns = np.flatnonzero(varies)[some]
                found[some] = stats.mannwhitneyu(x[:, columns], y[:, columns], method=method, axis=0).pvalue
        effect[varies], p[varies] = above / (len(x) * len(y)), found
    return effect, p


def auroc_interval(effect: np.ndarray, n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of AUROCs (Newcombe 2006, method 5): those that are not 1.96 standard errors away."""
    if not n_in or not n_out:
        return np.full(len(effect), np.nan), np.full(len(effect), np.nan)
    extra = (n_in + n_out) / 2 - 1

    def error(area: np.ndarray) -> np.ndarray:
        terms = 1 + extra * (1 - area) / (2 - area) + extra * area / (1 + area)
        return np.sqrt(np.maximum(area * (1 - area) * terms / (n_in * n_out), 0))

    ends = []
    for sign in (-1, 1):
        inside, outside = effect.copy(), np.full(len(effect), 0.0 if sign < 0 else 1.0)
        for _ in range(50):
            middle = (inside + outside) / 2
            is_in = np.abs(effect - middle) <= stats.norm.ppf(0.975) * error(middle)
            inside, outside = np.where(is_in, middle, inside), np.where(is_in, outside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def time_effects(values: sp.spmatrix, time: np.ndarray, design: Design, kind: str) -> Effects:
    """Spearman correlation of each score with time; as `label_effects`, of one label."""
    one = np.zeros(len(time), dtype=np.int64)
    if kind == "cells":
        halves = unit_correlations(values, time, design.half, design.stratum)
        return _untested(unit_correlations(values, time, one, design.stratum)[0], halves)
    if kind == "within":
        found = unit_correlations(values, time, design.unit, design.stratum)
        least = 1 / max(len(time) / max(design.n_units, 1), 2) ** 2
        return over_units(found, 0.0, design.half, least, (-1, 1))
    means = np.round(adjusted_means(values, design.unit, design.stratum), 9)
    of_unit = np.bincount(design.unit, time) / np.bincount(design.unit)
    used = np.isfinite(means).all(axis=1)
    effect, p = spearman_test(means[used], of_unit[used])
    n = int(used.sum())
    low, high = fisher_interval(effect, n)
    halves = [
        spearman_test(means[used & (design.half == i)], of_unit[used & (design.half == i)])[0]
        for i in range(2)
    ]
    fields = (effect, low, high, p, np.full(len(effect), n), *halves)
    return Effects(*(field[None] for field in fields))


def spearman_test(values: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman correlation of each column with time, and its two-sided p.

    Up to seven donors by all their orders, else by Student's t; never below what the orders allow.
    """
    n, width = values.shape
    if n < MIN_UNITS or np.ptp(time) == 0:
        return np.full(width, np.nan), np.full(width, np.nan)
    ranks, other = stats.rankdata(values, axis=0), stats.rankdata(time)
    ranks, other = ranks - ranks.mean(axis=0), other - other.mean()
    size = np.sqrt((ranks**2).sum(axis=0) * (other**2).sum())
    scaled = ranks / np.where(size > 0, size, 1)
    rho = np.where(size > 0, other @ scaled, 0.0)
    if n <= _EXACT:
        orders = np.array(list(permutations(other)))
        p = np.concatenate(
            [
                (np.abs(orders @ scaled[:, at]) >= np.abs(rho[at]) - 1e-9).mean(axis=0)
                for at in column_chunks(width, len(orders))
            ]
        )
    else:
        with np.errstate(divide="ignore"):
            t = np.abs(rho) * np.sqrt((n - 2) / np.maximum(1 - rho**2, 0))
        p = np.maximum(2 * stats.t.sf(t, n - 2), 2 / factorial(min(n, 20)))
    return rho, np.where(size > 0, p, 1.0)


def fisher_interval(rho: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of Spearman correlations: Fisher's z, with the standard error of Bonett and Wright (2000)."""
    if n < 4:
        return np.full(len(rho), np.nan), np.full(len(rho), np.nan)
    z = np.arctanh(np.clip(rho, -1 + 1e-9, 1 - 1e-9))
    reach = stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / (n - 3))
    return np.tanh(z - reach), np.tanh(z + reach)


def share_of_variance(values: sp.spmatrix, code: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Eta squared: share of each score's variance between groups of cells, after the means of the strata."""
    X = sp.csr_matrix(values, dtype=np.float64)
    n = np.bincount(stratum)
    of = sp.csr_matrix((np.ones(len(stratum)), (stratum, np.arange(len(stratum)))))
    middle = (of @ X).toarray() / np.maximum(n, 1)[:, None]
    total = np.asarray(X.multiply(X).sum(axis=0)).ravel() - (n[:, None] * middle**2).sum(axis=0)
    group = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))))
    size = np.bincount(code)
    expected = (group @ of.T) @ middle
    between = (((group @ X).toarray() - expected) ** 2 / np.maximum(size, 1)[:, None]).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 1e-12, np.clip(between / total, 0, 1), np.nan)
