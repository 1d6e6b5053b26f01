"""Whether two scores of genes say the same, beside a null in which one is exchanged between matched genes."""

from __future__ import annotations

import numpy as np
from scipy import stats

MIN_GENES = 10


def exchange(values: np.ndarray, strata: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Values permuted within strata, draws x genes."""
    order = np.argsort(strata, kind="stable")
    drawn = np.empty((n, len(values)))
    # Sorted by stratum, then at random: each draw is a permutation within strata.
    lots = rng.random((n, len(values)), dtype=np.float32) * 0.5 + strata
    drawn[:, order] = values[np.argsort(lots, axis=1)]
    return drawn


def concordance(signed: np.ndarray, slope: np.ndarray, drawn: np.ndarray, seed: int) -> dict[str, float]:
    """Share of genes in which two scores have the same sign, and Spearman's correlation, with their nulls.

    Parameters
    ----------
    signed, slope
        Two scores of the same genes.
    drawn
        Draws x genes: `slope` as exchanged between genes.
    seed
        Of the bootstrap over genes.

    Returns
    -------
    `n_genes`; `share` with its 95% interval, the middle 95% of its null and its two-sided p; `rho` with the
    same but the interval.
    """

    def shares(slopes: np.ndarray, effects: np.ndarray) -> np.ndarray:
        return (np.sign(slopes) == np.sign(effects)).mean(axis=-1)

    def rho(slopes: np.ndarray) -> np.ndarray:
        a = stats.rankdata(np.atleast_2d(slopes), axis=1)
        b = stats.rankdata(signed)
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            return (a @ b) / np.sqrt((a**2).sum(axis=1) * (b @ b))

    def p_of(value: float, null: np.ndarray) -> float:
        far = np.abs(null - null.mean()) >= np.abs(value - null.mean()) * (1 - 1e-9)
        return (1 + far.sum()) / (len(null) + 1)

    share, null = float(shares(slope, signed)), shares(drawn, signed)
    r, r_null = float(rho(slope)[0]), rho(drawn)
    rows = np.random.default_rng(seed).integers(0, len(signed), (1000, len(signed)))
    low, high = np.quantile(shares(slope[rows], signed[rows]), [0.025, 0.975])
    found = {"n_genes": len(signed), "share": share, "share_low": low, "share_high": high}
    found["null_low"], found["null_high"] = np.quantile(null, [0.025, 0.975])
    found["p_value"] = p_of(share, null)
    found["rho"] = r
    found["rho_null_low"], found["rho_null_high"] = np.quantile(r_null, [0.025, 0.975])
    found["rho_p_value"] = p_of(r, r_null)
    return found
