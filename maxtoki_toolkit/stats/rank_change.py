"""Changes of the mean rank of genes between two sets of cells, and how alike two such changes are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import stats

from .turnover import sample_means

_BLOCK = 2000  # genes that are made dense at a time


class Units(NamedTuple):
    """Independent samples of cells."""

    values: sp.csr_matrix
    """float, units x genes: mean over the unit's cells."""
    late: np.ndarray
    """bool, units: of the second set."""
    kind: str
    """"donor", "prompt" or "cell"."""

    @property
    def size(self) -> tuple[int, int]:
        """Units of the first and of the second set."""
        return int((~self.late).sum()), int(self.late.sum())


def gather_units(
    X: sp.csr_matrix,
    late: np.ndarray,
    donor: np.ndarray | None = None,
    prompt: np.ndarray | None = None,
    *,
    fewest: int = 3,
) -> Units:
    """Donors, where either set has so many; else the prompts that cells were written after; else cells."""
    for kind, names in (("donor", donor), ("prompt", prompt)):
        if names is None:
            continue
        label = np.char.add(np.where(late, "1 ", "0 "), names.astype(str))
        units, code = np.unique(label, return_inverse=True)
        second = np.array([unit[0] == "1" for unit in units])
        if min(second.sum(), (~second).sum()) >= fewest:
            return Units(sample_means(X, code), second, kind)
    return Units(sp.csr_matrix(X), late, "cell")


def contrast(late: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weights of the units (rows: draws) that give the mean of the second set less that of the first."""
    late = np.atleast_2d(late)
    weights = np.ones(late.shape) if weights is None else weights
    second, first = weights * late, weights * ~late
    return second / second.sum(axis=1, keepdims=True) - first / first.sum(axis=1, keepdims=True)


def changes(units: Units, contrasts: np.ndarray) -> np.ndarray:
    """Change of each gene (columns) for each contrast (rows)."""
    return np.asarray((units.values.T @ contrasts.T).T)


def resampled(units: Units, n: int, rng: np.random.Generator) -> np.ndarray:
    """Contrasts with the units of each set drawn anew, with replacement."""
    weights = np.zeros((n, len(units.late)))
    for part in (units.late, ~units.late):
        rows = np.flatnonzero(part)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=n)
    return contrast(np.broadcast_to(units.late, weights.shape), weights)


def permuted(units: Units, n: int, rng: np.random.Generator) -> np.ndarray:
    """Contrasts with the units' sets permuted."""
    return contrast(rng.permuted(np.tile(units.late, (n, 1)), axis=1))


def change_table(units: Units) -> dict[str, np.ndarray]:
    """Change of each gene with its 95% interval (Welch) and p value (Wilcoxon rank sum)."""
    change, low, high = interval(units)
    p = np.ones(units.values.shape[1])
    columns = units.values.tocsc()
    for start in range(0, len(p), _BLOCK):
        block = columns[:, start : start + _BLOCK].toarray()
        varies = np.ptp(block, axis=0) > 0
        if varies.any():
            found = stats.mannwhitneyu(
                block[units.late][:, varies], block[~units.late][:, varies], axis=0, method="asymptotic"
            )
            p[start : start + _BLOCK][varies] = found.pvalue
    return {"change": change, "low": low, "high": high, "p_value": p}


def interval(units: Units) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Change of each gene and its 95% interval (Welch's t)."""
    means, errors = [], []
    for part in (units.late, ~units.late):
        Y, n = units.values[np.flatnonzero(part)], int(part.sum())
        mean = np.asarray(Y.mean(axis=0)).ravel()
        square = np.asarray(Y.multiply(Y).mean(axis=0)).ravel()
        means.append(mean)
        errors.append(np.maximum(square - mean**2, 0) / (n - 1) if n > 1 else np.full(len(mean), np.nan))
    total = errors[0] + errors[1]
    n = [int(units.late.sum()) - 1, int((~units.late).sum()) - 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        df = total**2 / (errors[0] ** 2 / n[0] + errors[1] ** 2 / n[1])
        reach = np.where(total > 0, stats.t.ppf(0.975, df), 0) * np.sqrt(total)
    change = means[0] - means[1]
    return change, change - reach, change + reach


def halves(units: Units, rng: np.random.Generator) -> tuple[Units, Units]:
    """The units of each set, in two halves at random."""
    first = np.zeros(len(units.late), dtype=bool)
    for part in (units.late, ~units.late):
        rows = rng.permutation(np.flatnonzero(part))
        first[rows[: len(rows) // 2]] = True
    return tuple(
        Units(units.values[np.flatnonzero(keep)], units.late[keep], units.kind) for keep in (first, ~first)
    )


class Genes(NamedTuple):
    """Which genes are looked at, by what is true of them."""

    up: np.ndarray
    """int: columns of the genes that rise most, highest first."""
    down: np.ndarray
    """int: columns of the genes that fall most, furthest first."""
    turning: np.ndarray
    """int: those of them that change against their trend over all times."""


def pick_genes(true: Units, trend: np.ndarray | None, n_top: int) -> Genes:
    """Genes that truly change most, and those that turn among them."""
    change, low, high = interval(true)
    order = np.argsort(-change, kind="stable")
    up, down = order[:n_top], order[::-1][:n_top]
    up, down = up[change[up] > 0], down[change[down] < 0]
    top = np.concatenate([up, down])
    if trend is None:
        return Genes(up, down, top[:0])
    sure = (low[top] > 0) | (high[top] < 0)
    return Genes(up, down, top[sure & (np.sign(change[top]) * np.sign(trend[top]) < 0)])


def agreement(found: np.ndarray, true: np.ndarray, genes: Genes) -> dict[str, np.ndarray]:
    """Scores of changes (draws x genes) against true ones (draws x genes, or genes)."""
    found, true = np.atleast_2d(found), np.atleast_2d(true)
    point = true[0]

    def signs(columns):
        if not len(columns):
            return np.full(len(found), np.nan)
        return (np.sign(found[:, columns]) == np.sign(point[columns])).mean(axis=1)

    return {
        "pearson": _correlation(found, true),
        "spearman": _correlation(stats.rankdata(found, axis=1), stats.rankdata(true, axis=1)),
        "sign_up": signs(genes.up),
        "sign_down": signs(genes.down),
        "sign_top": signs(np.concatenate([genes.up, genes.down])),
        "sign_turning": signs(genes.turning),
        "rms_error": np.sqrt(((found - true) ** 2).mean(axis=1)),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of each pair of rows; NaN where one is constant."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(size > 1e-12, (a * b).sum(axis=1) / size, np.nan)


def interpolate(
    known: sp.csr_matrix, known_time: np.ndarray, intervals: list[tuple[float, float]]
) -> np.ndarray | None:
    """Change of each gene between two intervals as a line between the known times next to them has it.

    Known cells within an interval speak for it. Otherwise a line is drawn between the mean cells of the
    nearest known times on both sides, as far out as the longer interval is long; beyond the first and the
    last of them it goes on level.
    """
    reach = max(last - first for first, last in intervals)
    profiles = []
    for first, last in intervals:
        inside = (known_time >= first) & (known_time <= last)
        if inside.any():
            profiles.append(_mean(known, inside))
            continue
        sides = []
        if (left := known_time < first).any():
            sides.append(left & (known_time >= known_time[left].max() - reach))
        if (right := known_time > last).any():
            sides.append(right & (known_time <= known_time[right].min() + reach))
        if not sides:
            return None
        means = [_mean(known, side) for side in sides]
        if len(sides) == 1:
            profiles.append(means[0])
            continue
        times = [known_time[side].mean() for side in sides]
        share = ((first + last) / 2 - times[0]) / (times[1] - times[0])
        profiles.append((1 - share) * means[0] + share * means[1])
    return profiles[1] - profiles[0]


def _mean(X: sp.csr_matrix, rows: np.ndarray) -> np.ndarray:
    return np.asarray(X[np.flatnonzero(rows)].mean(axis=0)).ravel()
