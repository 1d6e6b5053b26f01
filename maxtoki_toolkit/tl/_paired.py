"""Means over prompts with the donor as the unit: one helper for all interventions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from ._timelapse_scores import jackknife_error, jackknife_interval, left_out


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
    One row a column: `estimate`, `low`, `high` (95%, jackknife over donors, t distribution), `p_value` (two-sided, of
    ratio 0) and `n_units`.
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
