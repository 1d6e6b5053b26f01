"""From ages that a model reads to ages with an interval, by donors of known age."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """How known ages follow from what is read, and how far off that is for donors it was not fitted to."""

    intercept: float
    slope: float
    left_out: dict[str, tuple[float, float]]
    """Intercept and slope without each donor."""
    cell_reach: float
    """Half the width of the interval of a cell; NaN where there are too few donors."""
    donor_reach: float
    """The same for the mean over a donor's cells."""
    r: float
    """Correlation of the mean over each donor's cells of what is read with the known ages."""
    r_low: float
    """Lower end of its 95% interval (jackknife over donors)."""
    median_error: float
    """Median over donors of the absolute error of the mean age, by the fit without the donor."""
    median_error_mean_age: float
    """The same where every donor is said to be as old as the others are on average."""

    def apply(self, read: np.ndarray, donor: np.ndarray) -> np.ndarray:
        """Ages; those of donors of known age by the fit without them."""
        fit = np.array([self.left_out.get(name, (self.intercept, self.slope)) for name in donor])
        return fit[:, 0] + fit[:, 1] * read if len(fit) else np.zeros(0)


def calibrate(read: np.ndarray, age: np.ndarray, donor: np.ndarray, coverage: float) -> Calibration:
    """Fit age to what is read, every donor counting alike, and measure the errors donor by donor.

    Parameters
    ----------
    read, age, donor
        What is read of each cell, the known age, and the donor; at least three donors of different ages.
    coverage
        Share of new donors' cells, or new donors, whose age the interval is to hold.

    Notes
    -----
    The intervals are conformal with the donor as the unit: the errors of each donor, found by the fit without
    this donor, have the weight of one donor, and a new donor may be off by anything with the weight of one
    more (Lee, Barber and Willett 2023, arXiv:2306.06342). So a 90% interval takes nine donors.
    """
    names, number, n_cells = np.unique(donor, return_inverse=True, return_counts=True)
    weight = 1 / n_cells[number]
    parts = np.stack([weight, weight * read, weight * age, weight * read**2, weight * read * age])
    sums = np.stack([np.bincount(number, part, minlength=len(names)) for part in parts])
    intercept, slope = _line(sums.sum(axis=1, keepdims=True))
    a, b = _line(sums.sum(axis=1, keepdims=True) - sums)
    error = a[number] + b[number] * read - age
    mean_error = np.bincount(number, error) / n_cells
    known = np.bincount(number, age) / n_cells
    others = (known.sum() - known) / (len(names) - 1)
    # Of what is read, not of the fits: where nothing is read, these follow the mean of the others, and go
    # against the donor.
    r, r_low = _correlation(np.bincount(number, read) / n_cells, known)
    return Calibration(
        float(intercept[0]),
        float(slope[0]),
        dict(zip(names.tolist(), zip(a.tolist(), b.tolist(), strict=True), strict=True)),
        reach(np.abs(error), number, coverage),
        reach(np.abs(mean_error), np.arange(len(names)), coverage),
        r,
        r_low,
        float(np.median(np.abs(mean_error))),
        float(np.median(np.abs(others - known))),
    )


def reach(error: np.ndarray, donor: np.ndarray, coverage: float) -> float:
    """The absolute error that is not exceeded with this probability in a new donor; NaN for too few donors.

    Examples
    --------
    >>> reach(np.arange(1.0, 11), np.arange(10), 0.9)
    10.0
    >>> reach(np.arange(1.0, 9), np.arange(8), 0.9)
    nan
    """
    n_cells = np.bincount(donor)
    order = np.argsort(error, kind="stable")
    share = np.cumsum(1 / n_cells[donor[order]]) / (len(n_cells) + 1)
    place = np.searchsorted(share, coverage - 1e-9)
    return float(error[order[place]]) if place < len(error) else float("nan")


def _line(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of age on what is read, from its sums."""
    n, x, y, xx, xy = sums
    spread = xx - x * x / n
    # Where nothing distinguishes the cells, the mean is all that can be said.
    slope = np.where(spread > 1e-12, (xy - x * y / n) / np.where(spread > 1e-12, spread, 1), 0)
    return (y - slope * x) / n, slope


def _correlation(found: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """Correlation, and the lower end of its interval (jackknife over donors on Fisher's scale)."""
    from scipy import stats

    n = len(found)

    def fisher(keep: np.ndarray) -> float:
        if np.ptp(found[keep]) == 0 or np.ptp(known[keep]) == 0:
            return 0.0
        return float(np.arctanh(np.clip(np.corrcoef(found[keep], known[keep])[0, 1], -0.9999, 0.9999)))

    z = fisher(np.ones(n, bool))
    left_out = np.array([fisher(np.arange(n) != i) for i in range(n)])
    error = np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum())
    # A jackknife of few donors can come out too small.
    error = max(error, 1 / np.sqrt(max(n - 3, 1)))
    return float(np.tanh(z)), float(np.tanh(z - stats.t.ppf(0.975, n - 1) * error))
