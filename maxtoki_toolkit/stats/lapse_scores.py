"""How good are predicted lapses? With intervals and a null that treat the donor as the unit."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .donors import jackknife_interval, left_out

MEASURES = ("r", "slope", "r2", "spread", "bias", "median_error", "mean_error")
# Intervals are computed where a measure is unbounded, so that none says r > 1 or an error below 0.
_SCALES = {
    "r": (lambda r: np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), np.tanh),
    "r2": (lambda r2: np.log(1 - r2), lambda y: 1 - np.exp(y)),
    **dict.fromkeys(("spread", "median_error", "mean_error"), (np.log, np.exp)),
}
_DRAWS = 1000


def score_lapses(
    table: pd.DataFrame,
    columns: dict[str, str],
    *,
    groupby: str | None = None,
    reference: str | None = None,
    distances: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Score predictions of `lapse`.

    Parameters
    ----------
    table
        One row a prompt: `lapse`, `time` (of the query), the predictions, and where known `donor` (of the
        query) and `donor_0`, `donor_1` and so on (of the context cells).
    columns
        Name of each predictor and its column; NaN is left out.
    groupby
        Column to score by as well.
    reference
        Predictor whose median error is divided by each one's: `error_ratio`.
    distances
        Whether lapses are distances between cells, which have no times of their own.
    seed
        Seed of the permutations.

    Returns
    -------
    One row a predictor (and group): each measure with `_low` and `_high`, `r_null_low`, `r_null_high`,
    `p_value`.

    Notes
    -----
    The 95% intervals leave out each donor in turn, with all prompts that he or she has a part in, as query or
    as context (jackknife, t distribution with a degree of freedom less than there are query donors).
    Resampling prompts or query donors alone misses that the same donors are in many prompts: intervals are
    then far too short. These are rather too long where donors or prompts are few. Where no donor is known the
    query cells are the units. More than 100 units are left out in 100 random blocks.

    The null permutes the times of the query donors' samples, within what `groupby` explains, and leaves
    contexts and predictions: what the context alone gives away is part of it. Of distances, the mean lapses
    of the query cells are permuted among these, and what is left among the prompts, both within `groupby`.
    `p_value` is one-sided.
    """
    rows = []
    groups = [] if groupby is None else table.groupby(groupby, observed=True)
    subsets = [("all", table)] + [(name, part) for name, part in groups if name != "all"]
    for name, column in columns.items():
        for group, part in subsets:
            part = part[part[column].notna()]
            if len(part):
                strata = None if groupby is None else part[groupby]
                row = _score(
                    part,
                    column,
                    strata,
                    columns.get(reference),
                    np.random.default_rng(seed),
                    distances=distances,
                )
                rows.append({"predictor": name, "group": group, **row})
    return pd.DataFrame(rows)


def _score(
    table: pd.DataFrame,
    column: str,
    strata: pd.Series | None,
    reference: str | None,
    rng: np.random.Generator,
    *,
    distances: bool,
) -> dict:
    true, predicted = table["lapse"].to_numpy(float), table[column].to_numpy(float)
    unit = "donor" if "donor" in table else "query"
    n_units = table[unit].nunique()
    left = left_out(table, unit, rng)
    found = _measures(true, predicted, left)
    result = {
        "n_prompts": len(table),
        "n_units": n_units,
        "unit": "donor" if unit == "donor" else "query cell",
    }
    for measure in MEASURES:
        low, high = jackknife_interval(found[measure], n_units, *_SCALES.get(measure, (None, None)))
        result |= {measure: found[measure][0], f"{measure}_low": low, f"{measure}_high": high}
    if distances:
        null = _null_r_of_distances(true, predicted, table["query"], strata, rng)
    else:
        null = _null_r(true, predicted, table[unit], table["time"].to_numpy(float), strata, rng)
    known = np.isfinite(null).all()
    low, high = np.quantile(null[1:], [0.025, 0.975]) if known else (np.nan, np.nan)
    # The first is the observed one; a permutation that changes nothing must not be below it by rounding.
    p_value = (null >= null[0] - 1e-9).mean() if known else np.nan
    result |= {"r_null_low": low, "r_null_high": high, "p_value": p_value}
    if reference is not None:
        other = _measures(true, table[reference].to_numpy(float), left)["median_error"]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = other / found["median_error"]
        low, high = jackknife_interval(ratio, n_units, np.log, np.exp)
        result |= {"error_ratio": ratio[0], "error_ratio_low": low, "error_ratio_high": high}
    return result


def _measures(true: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """All measures for each row of prompt weights."""
    x, y = true - true.mean(), predicted - true.mean()
    error = y - x
    parts = [np.ones_like(x), x, y, x * x, y * y, x * y, error * error, np.abs(error), error]
    with np.errstate(divide="ignore", invalid="ignore"):
        n, sx, sy, sxx, syy, sxy, see, sae, se = (weights @ np.stack(parts, axis=1)).T
        vx, vy = sxx / n - (sx / n) ** 2, syy / n - (sy / n) ** 2
        cov = sxy / n - sx * sy / n**2
        # What is constant has no correlation; rounding must not give it one.
        vx = np.where(vx > 1e-12 * max((x * x).max(), 1e-12), vx, np.nan)
        flat = ~(vy > 1e-12 * vx)
        return {
            "r": np.where(flat, np.nan, cov / np.sqrt(vx * np.where(flat, 1, vy))),
            "slope": cov / vx,
            "r2": 1 - (see / n) / vx,
            "spread": np.sqrt(np.maximum(vy, 0) / vx),
            "bias": se / n,
            "median_error": _median(np.abs(error), weights),
            "mean_error": sae / n,
        }


def _median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median of the values for each row of weights 0 and 1, NaN for a row of zeros."""
    order = np.argsort(values)
    values, count = values[order], np.cumsum(weights[:, order], axis=1)
    half = count[:, -1:] / 2
    last = len(values) - 1
    middle = [values[below.sum(axis=1).clip(max=last)] for below in (count < half, count <= half)]
    return np.where(half[:, 0] > 0, (middle[0] + middle[1]) / 2, np.nan)


def _null_r(
    true: np.ndarray,
    predicted: np.ndarray,
    unit: pd.Series,
    time: np.ndarray,
    strata: pd.Series | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """The correlation, then those when the times of the query donors' samples are permuted."""
    code, _ = pd.factorize(pd.MultiIndex.from_arrays([unit.astype(str), time]))
    n = np.bincount(code)
    # A group says when its cells are found; whoever knows the group from the context knows that, too.
    expected = (
        time.mean() if strata is None else pd.Series(time, strata.index).groupby(strata).transform("mean")
    )
    own = np.bincount(code, time - expected) / n
    draws = np.vstack([own, rng.permuted(np.tile(own, (_DRAWS, 1)), axis=1)])

    rest = true - own[code]
    rest, centred = rest - rest.mean(), predicted - predicted.mean()
    cov = rest @ centred + draws @ np.bincount(code, centred)
    total = rest @ rest + 2 * draws @ np.bincount(code, rest) + draws**2 @ n - (draws @ n) ** 2 / len(true)
    spread = centred @ centred
    with np.errstate(divide="ignore", invalid="ignore"):
        r = cov / np.sqrt(np.maximum(total, 0) * spread)
    return np.where((spread > 1e-12 * total) & (total > 1e-9), r, np.nan)


def _null_r_of_distances(
    true: np.ndarray,
    predicted: np.ndarray,
    query: pd.Series,
    strata: pd.Series | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """The correlation, then those when distances are exchanged within strata.

    Prompts of one query cell are alike in how dense its neighbourhood is, and keep that in common.
    """
    code, _ = pd.factorize(query.astype(str))
    stratum = np.zeros(len(code), dtype=int) if strata is None else pd.factorize(strata.astype(str))[0]
    n = np.bincount(code)
    own = np.bincount(code, true) / n
    rest = true - own[code]
    of_query = np.zeros(len(n), dtype=int)
    of_query[code] = stratum

    def exchanged(values: np.ndarray, within: np.ndarray) -> np.ndarray:
        moved = np.empty_like(values)
        moved[np.argsort(within, kind="stable")] = values[np.lexsort((rng.random(len(values)), within))]
        return moved

    draws = [true] + [exchanged(own, of_query)[code] + exchanged(rest, stratum) for _ in range(_DRAWS)]
    centred = predicted - predicted.mean()
    spread = centred @ centred
    r = np.empty(len(draws))
    for i, drawn in enumerate(draws):
        total = np.sum((drawn - drawn.mean()) ** 2)
        known = spread > 1e-12 * total and total > 1e-9
        r[i] = drawn @ centred / np.sqrt(total * spread) if known else np.nan
    return r
