"""How much older do the cells of a condition look? With the donor as the unit."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


class Readings(NamedTuple):
    """Ages that were read from cells: one entry a cell and context."""

    age: np.ndarray
    """float, readings: the age that was read."""
    cell: np.ndarray
    """int, readings: which cell, a row of the tables below."""
    context: np.ndarray
    """int, readings: which context it was read after."""


def estimate_effect(
    readings: Readings, cells: pd.DataFrame, *, n_permutations: int = 2000, seed: int = 0
) -> tuple[dict, pd.DataFrame]:
    """Effect of a condition on the age that is read, in units of the age that controls show.

    Parameters
    ----------
    readings
        What was read.
    cells
        One row a cell: `donor`, `time` (its age), `case` (bool), and `stratum` (what donors are compared
        within).
    n_permutations
        Permutations of the donors.
    seed
        Seed of the permutations.

    Returns
    -------
    The effect, and one row a donor.

    Notes
    -----
    The model is `age read ~ case + age + stratum`, with a random intercept for each donor (REML,
    statsmodels), on the mean over contexts of each cell; what contexts add to all cells alike is taken off
    before. A model that reads time with a slope below 1 shrinks every difference by it, so the effect is the
    coefficient of the condition over that of the age: years by which controls would have to be older to be
    read alike. Its interval is Fieller's (1954), with the t distribution for as many degrees of freedom as
    donors less coefficients; where the slope is not distinguishable from 0 there is none. If the mixed model
    does not converge, ordinary least squares on the donors' means stand in, and `method` says so. `p_value`
    is two-sided, by permuting the residuals of the donors' means under no effect (Freedman and Lane, 1983).
    """
    cells = cells.reset_index(drop=True)
    y, by_context = _without_contexts(readings, cells)
    used = np.isfinite(y)
    cells, y, by_context = cells[used], y[used], by_context[used]
    donor, names = pd.factorize(cells["donor"])
    X = _design(cells)
    first = np.unique(donor, return_index=True)[1]
    n_cells = np.bincount(donor)
    mean = np.bincount(donor, y) / n_cells
    beta, covariance, method = _fit(y, X, donor, mean, X[first])
    df = len(names) - X.shape[1]
    t = stats.t.ppf(0.975, df) if df > 0 else np.nan
    ratio, low, high = fieller(beta[1:3], covariance[1:3, 1:3], t)
    reach = t * np.sqrt(covariance[2, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # contexts that none of a donor's cells follow
        parts = [_context_effect(column, donor, X[first]) for column in by_context.T]
    per_context = np.array([part for part in parts if np.isfinite(part)]) / beta[2]
    case = cells["case"].to_numpy()[first]
    effect = {
        "effect": ratio,
        "effect_low": low,
        "effect_high": high,
        "raw": beta[1],
        "age_slope": beta[2],
        "age_slope_low": beta[2] - reach,
        "age_slope_high": beta[2] + reach,
        "p_value": permutation_p(mean, X[first], n_permutations, seed) if df > 0 else np.nan,
        "context_sd": per_context.std(ddof=1) if len(per_context) > 1 else np.nan,
        "n_donors_condition": int(case.sum()),
        "n_donors_control": int((~case).sum()),
        "n_cells_condition": int(cells["case"].sum()),
        "n_cells_control": int((~cells["case"]).sum()),
        "method": method,
    }
    expected = X[first] @ np.where(np.arange(X.shape[1]) == 1, 0, beta)
    donors = pd.DataFrame(
        {
            "donor": names,
            "case": case,
            "time": cells["time"].to_numpy()[first],
            "read": mean,
            "acceleration": (mean - expected) / beta[2],
            "n_cells": n_cells,
        }
    )
    return effect, donors


def _without_contexts(readings: Readings, cells: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Mean over contexts of what was read from each cell (NaN for none), and what each context gave, less what it gives to all."""
    n_contexts = int(readings.context.max()) + 1
    table = np.full((len(cells), n_contexts), np.nan)
    table[readings.cell, readings.context] = readings.age
    donor, _ = pd.factorize(cells["donor"])
    seen = np.isfinite(table)
    # Donor + context, least squares over the donors' means: not every donor follows every context.
    n = np.zeros((donor.max() + 1, n_contexts))
    np.add.at(n, donor, seen)
    total = np.zeros_like(n)
    np.add.at(total, donor, np.where(seen, table, 0))
    row, column = np.nonzero(n)
    y = total[row, column] / n[row, column]
    A = np.zeros((len(y), len(n) + n_contexts))
    A[np.arange(len(y)), row] = A[np.arange(len(y)), len(n) + column] = 1
    fitted = np.linalg.lstsq(A, y, rcond=None)[0][len(n) :]
    # The sum of both is known, not the level of each: contexts are 0 on average.
    table -= fitted - fitted.mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cell without readings has no mean
        return np.nanmean(table, axis=1), table


def _design(cells: pd.DataFrame) -> np.ndarray:
    """Intercept, condition, age, strata; cells x columns."""
    strata = pd.get_dummies(cells["stratum"], drop_first=True).to_numpy(float)
    case, time = cells["case"].to_numpy(float), cells["time"].to_numpy(float)
    return np.column_stack([np.ones(len(cells)), case, time, strata])


def _fit(y, X, donor, mean, X_donor) -> tuple[np.ndarray, np.ndarray, str]:
    """Coefficients, their covariance, and the method."""
    from statsmodels.regression.mixed_linear_model import MixedLM
    from statsmodels.tools.sm_exceptions import ModelWarning

    if len(y) > len(mean):
        # Age from its mean on, and in its spread: what is optimised should be of one size.
        scale = np.array([1, 1, X[:, 2].std() or 1.0, *np.ones(X.shape[1] - 3)])
        middle = X[:, 2].mean()
        Z = X.copy()
        Z[:, 2] -= middle
        with warnings.catch_warnings():
            warnings.simplefilter("error", ModelWarning)
            warnings.simplefilter("error", RuntimeWarning)
            try:
                fitted = MixedLM(y, Z / scale, groups=donor).fit(reml=True)
            except (ModelWarning, RuntimeWarning, np.linalg.LinAlgError, ValueError):
                fitted = None
        if fitted is not None and fitted.converged:
            k = X.shape[1]
            beta = fitted.fe_params / scale
            covariance = np.asarray(fitted.cov_params())[:k, :k] / np.outer(scale, scale)
            if np.isfinite(covariance).all() and (np.diag(covariance) > 0).all():
                beta[0] -= beta[2] * middle
                return beta, covariance, "mixed model, random intercept for donors"
    beta, *_ = np.linalg.lstsq(X_donor, mean, rcond=None)
    df = len(mean) - X_donor.shape[1]
    variance = ((mean - X_donor @ beta) ** 2).sum() / df if df > 0 else np.nan
    return beta, variance * np.linalg.pinv(X_donor.T @ X_donor), "least squares on the donors' means"


def fieller(pair: np.ndarray, covariance: np.ndarray, t: float) -> tuple[float, float, float]:
    """Ratio of two estimates with Fieller's interval; NaN where the second is not distinguishable from 0."""
    (a, b), ((aa, ab), (_, bb)) = pair, covariance
    if not b > 0:
        return np.nan, np.nan, np.nan
    ratio, g = a / b, t**2 * bb / b**2
    if not g < 1:
        return np.nan, np.nan, np.nan
    middle = (ratio - g * ab / bb) / (1 - g)
    reach = t / b / (1 - g) * np.sqrt(max(aa - 2 * ratio * ab + ratio**2 * bb - g * (aa - ab**2 / bb), 0))
    return ratio, middle - reach, middle + reach


def permutation_p(y: np.ndarray, X: np.ndarray, n: int, seed: int) -> float:
    """Two-sided p of the second column of X, by permuting the residuals of y on the others."""
    nuisance = np.delete(X, 1, axis=1)
    basis, _ = np.linalg.qr(nuisance)

    def residuals(values):
        return values - (values @ basis) @ basis.T

    case = residuals(X[:, 1])
    size = case @ case
    if size < 1e-9:
        return np.nan
    own = residuals(y)
    rng = np.random.default_rng(seed)
    drawn = residuals(rng.permuted(np.tile(own, (n, 1)), axis=1))

    def statistic(values):
        along = values @ case
        return np.abs(along) / np.sqrt(np.maximum((values**2).sum(axis=-1) - along**2 / size, 1e-300))

    return float((1 + (statistic(drawn) >= statistic(own) * (1 - 1e-9)).sum()) / (n + 1))


def _context_effect(read: np.ndarray, donor: np.ndarray, X: np.ndarray) -> float:
    """Coefficient of the condition on the donors' means after one context."""
    seen = np.isfinite(read)
    n = np.bincount(donor[seen], minlength=len(X))
    has = n > 0
    mean = np.bincount(donor[seen], read[seen], minlength=len(X))[has] / n[has]
    if np.linalg.matrix_rank(X[has]) < X.shape[1]:
        return np.nan
    return float(np.linalg.lstsq(X[has], mean, rcond=None)[0][1])
