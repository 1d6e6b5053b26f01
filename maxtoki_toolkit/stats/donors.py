"""The donor as the unit: what is left without each of them, jackknife intervals, and means over prompts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

_BLOCKS = 100  # of donors, where there are more


def left_out(table: pd.DataFrame, unit: str, rng: np.random.Generator) -> np.ndarray:
    """Prompts (columns) that are left without each unit (rows); all of them in the first row."""
    roles = [name for name in table.columns if name == unit or name.startswith(f"{unit}_")]
    names = table[roles].to_numpy(dtype=object)
    known, code = np.unique(names[names != ""].astype(str), return_inverse=True)
    blocks = np.full(names.shape, -1)
    blocks[names != ""] = (rng.permutation(len(known)) % _BLOCKS)[code]
    units = np.arange(min(len(known), _BLOCKS))
    return np.vstack([np.ones(len(table)), (blocks != units[:, None, None]).all(axis=2)])


def jackknife_weights(table: pd.DataFrame, unit: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Rows of weights, the first of ones, each other without a unit (see `left_out`); and how many units there are."""
    roles = table[[name for name in table if name == unit or name.startswith(f"{unit}_")]].to_numpy()
    return left_out(table, unit, rng), len(np.unique(roles[roles != ""].astype(str)))


def jackknife_interval(values: np.ndarray, n_units: int, forward=None, back=None) -> tuple[float, float]:
    """95% jackknife interval: the first value is that of all prompts, the others leave out a unit each."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = values if forward is None else forward(values)
    error, df = jackknife_error(values, n_units)
    if not np.isfinite(error):
        return np.nan, np.nan
    reach = stats.t.ppf(0.975, df) * error
    ends = [values[0] - reach, values[0] + reach]
    return tuple(sorted(ends if back is None else map(back, ends)))


def jackknife_error(values: np.ndarray, n_units: int) -> tuple[float, int]:
    """Standard error and degrees of freedom; NaN for fewer than three units, or where a value is not known."""
    n = len(values) - 1
    if n_units < 3 or not np.isfinite(values).all():
        return np.nan, 0
    return float(np.sqrt((n - 1) * values[1:].var())), min(n_units, n) - 1


def donor_ratio(
    numerator: np.ndarray, denominator: np.ndarray, table: pd.DataFrame, *, seed: int = 0, minimum: int = 3
) -> pd.DataFrame:
    """Ratio of two sums over prompts, for each of several columns.

    Parameters
    ----------
    numerator, denominator
        Prompts x columns; 1 in the denominator makes the ratio a mean, 0 in both leaves a prompt out.
    table
        One row a prompt, with its donors or, where they are not known, query cells.
    seed
        Seed of the blocks in which more than 100 donors are left out.
    minimum
        Units that a column must be known of to be tested: NaN below it.

    Returns
    -------
    One row a column: `estimate`, `low`, `high` (95%, jackknife over donors, t distribution), `p_value`
    (two-sided, of ratio 0) and `n_units`.
    """
    unit = "donor" if "donor" in table else "query"
    weights = left_out(table, unit, np.random.default_rng(seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (weights @ numerator) / (weights @ denominator)
    code, names = pd.factorize(table[unit])
    of_unit = np.zeros((len(names), denominator.shape[1]))
    np.add.at(of_unit, code, denominator != 0)
    n_units = (of_unit > 0).sum(axis=0)
    rows = []
    for values, n in zip(ratio.T, n_units, strict=True):
        known = n >= minimum
        low, high = jackknife_interval(values, n) if known else (np.nan, np.nan)
        error, df = jackknife_error(values, n) if known else (np.nan, 0)
        # An effect of exactly 0 in every donor is none; one that is not known has no p value.
        p_value = 1.0 if error == 0 and values[0] == 0 else np.nan
        if error > 0:
            p_value = float(2 * stats.t.sf(abs(values[0]) / error, df))
        elif error == 0 and values[0] != 0:
            p_value = 0.0
        rows.append((values[0], low, high, p_value, int(n)))
    return pd.DataFrame(rows, columns=["estimate", "low", "high", "p_value", "n_units"])


def donor_mean(values: np.ndarray, table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean over the prompts in which each column is known; see `donor_ratio`."""
    known = np.isfinite(values)
    return donor_ratio(np.where(known, values, 0), known.astype(float), table, seed=seed)


def unit_name(table: pd.DataFrame) -> str:
    """What the units are."""
    return "donor" if "donor" in table else "query cell"


class DonorMeans(NamedTuple):
    """Means over donors, all of one shape."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    n: np.ndarray


def mean_of_donors(values: np.ndarray, *, minimum: int = 3) -> DonorMeans:
    """Mean over donors of values that each donor has one of, with its 95% t interval and two-sided t test of 0.

    Parameters
    ----------
    values
        Donors x anything; NaN where a donor is not known.
    minimum
        Donors that must be known for an interval and a p value: NaN below it.
    """
    known = np.isfinite(values)
    n = known.sum(axis=0)
    filled = np.where(known, values, 0)
    mean = filled.sum(axis=0) / np.maximum(n, 1)
    spread = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(axis=0) / np.maximum(n - 1, 1))
    error = np.where(n >= max(minimum, 2), spread / np.sqrt(np.maximum(n, 1)), np.nan)
    df = np.maximum(n - 1, 1)
    reach = stats.t.ppf(0.975, df) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = np.where(mean == 0, 1.0, 2 * stats.t.sf(np.abs(mean) / error, df))
    p_value = np.where(np.isfinite(error), p_value, np.nan)
    estimate = np.where(n > 0, mean, np.nan)
    return DonorMeans(estimate, estimate - reach, estimate + reach, p_value, n)
