"""Ageing clocks: penalised regression of time on cells, the baseline to beat."""

from __future__ import annotations

import numpy as np

ALPHAS = np.logspace(0, 6, 13)
FOLDS = 5


def fit_ridge(
    X: np.ndarray, y: np.ndarray, donor: np.ndarray | None, seed: int, *, alphas: np.ndarray = ALPHAS
):
    """Ridge on standardised features, its penalty chosen between donors (or cells, where no donors are known)."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold, KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_units = 0 if donor is None else len(np.unique(donor))
    folds = (
        GroupKFold(min(FOLDS, n_units))
        if n_units > 1
        else KFold(min(FOLDS, len(y)), shuffle=True, random_state=seed)
    )
    error = np.zeros(len(alphas))
    for fit, check in folds.split(X, y, donor):
        # One target a penalty: the products of the features are computed once for all of them.
        several = make_pipeline(StandardScaler(), Ridge(alphas)).fit(
            X[fit], np.tile(y[fit, None], len(alphas))
        )
        error += ((several.predict(X[check]) - y[check, None]) ** 2).sum(axis=0)
    alpha = float(alphas[error.argmin()])
    return make_pipeline(StandardScaler(), Ridge(alpha)).fit(X, y), alpha


def cross_fitted_ages(
    X: np.ndarray, time: np.ndarray, donor: np.ndarray, control: np.ndarray, seed: int
) -> np.ndarray:
    """Age of each cell by clocks fitted to controls, none of the cell's own donor.

    The controls' donors are split in up to five parts. A control's cells are read by the clock fitted to the
    other parts, those of others by all of these clocks, on average: no side is read by what was fitted to it.
    """
    names = np.random.default_rng(seed).permutation(np.unique(donor[control]))
    part = {name: i % min(FOLDS, len(names)) for i, name in enumerate(names)}
    of_cell = np.array([part.get(name, -1) for name in donor])
    ages = np.zeros(len(X))
    n_clocks = np.zeros(len(X))
    for i in sorted(set(part.values())):
        fit = control & (of_cell != i)
        clock, _ = fit_ridge(X[fit], time[fit].astype(float), donor[fit], seed)
        read = ~control | (of_cell == i)
        ages[read] += clock.predict(X[read])
        n_clocks[read] += 1
    return ages / n_clocks
