"""Whether two scores of genes say the same, beyond what genes like these do and genes that go together make of it."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy import stats

MIN_GENES = 10
_N_BOOTSTRAP = 1000


def concordance(
    score: np.ndarray,
    slope: np.ndarray,
    null: np.ndarray,
    strata: np.ndarray,
    *,
    some: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Share of genes in which two scores have the same sign, and Spearman's correlation, with their nulls.

    Parameters
    ----------
    score
        One score of the genes.
    slope
        The other.
    null
        Draws x genes: what `slope` is where it has nothing to do with `score`, with genes that go together as
        they do in the cells.
    strata
        Stratum of each gene: of genes that are alike.
    some
        Genes to compare, bool; the others of their strata say what is expected of them. All by default.
    seed
        Of the bootstrap over genes.

    Returns
    -------
    `n_genes`; `share` with its 95% interval (bootstrap over genes); `rho`; and of both the middle 95% of the
    null (`null_low`, `null_high`, `rho_null_low`, `rho_null_high`) and a two-sided p (`p_value`,
    `rho_p_value`).

    Notes
    -----
    What is tested is how far share and correlation are from what they would be if every gene had the slope of
    any gene of its stratum; the null is the same of each draw. Draws keep the correlations between genes, and
    strata what depth and rank do to both scores. Exchanging slopes between single genes would take genes that
    go together for so many observations.
    """
    some = np.ones(len(score), bool) if some is None else np.asarray(some)
    member = sp.csr_matrix(
        (
            np.ones(len(strata), np.float32),
            (np.arange(len(strata)), np.unique(strata, return_inverse=True)[1]),
        )
    )
    member = member.multiply(1 / member.sum(axis=0)).tocsr()  # of each gene's stratum, its share
    of_gene = (member > 0).astype(np.float32)[some]
    b = stats.rankdata(score[some])
    b = b - b.mean()

    def compare(slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Share, correlation, and what strata alone make of either; one a row."""
        alike = np.sign(slopes[:, some]) == np.sign(score[some])
        expected = np.zeros(len(slopes))
        for sign in (-1, 0, 1):
            of_stratum = (np.sign(slopes) == sign).astype(np.float32) @ member
            expected += (
                of_stratum @ (of_gene.T @ (np.sign(score[some]) == sign).astype(np.float32)) / some.sum()
            )
        ranks = stats.rankdata(slopes, axis=1).astype(np.float32)
        own = ranks[:, some] - ranks[:, some].mean(axis=1, keepdims=True)
        size = np.sqrt((own**2).sum(axis=1) * (b @ b))
        mean = (ranks @ member) @ (of_gene.T @ b)  # b sums to 0: the mean over genes drops out
        with np.errstate(divide="ignore", invalid="ignore"):
            return alike.mean(axis=1), own @ b / size, expected, mean / size

    share, rho, expected, rho_expected = (float(value[0]) for value in compare(slope[None]))
    shares, rhos, null_expected, null_rho_expected = compare(null)
    rows = np.random.default_rng(seed).integers(0, len(b), (_N_BOOTSTRAP, len(b)))
    alike = np.sign(slope[some]) == np.sign(score[some])
    low, high = np.quantile(alike[rows].mean(axis=1), [0.025, 0.975])
    found = {"n_genes": int(some.sum()), "share": share, "share_low": low, "share_high": high}
    found |= _against("", share, expected, shares - null_expected)
    found["rho"] = rho
    return found | _against("rho_", rho, rho_expected, rhos - null_rho_expected)


def _against(name: str, value: float, expected: float, null: np.ndarray) -> dict[str, float]:
    """Middle 95% of the null around what strata make of the value, and its two-sided p."""
    low, high = expected + np.quantile(null, [0.025, 0.975])
    far = np.abs(null - null.mean()) >= np.abs(value - expected - null.mean()) * (1 - 1e-6)
    p = (1 + far.sum()) / (len(null) + 1)
    return {f"{name}null_low": low, f"{name}null_high": high, f"{name}p_value": p}
