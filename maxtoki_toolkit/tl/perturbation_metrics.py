"""How good predicted responses to perturbations are, whoever predicted them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._validate import require_adata, require_obs, require_unique_names
from .._warn import warn
from ..pp._columns import find_columns
from ..pp._counts import get_counts
from ..pp._design import get_labels, get_mask, known_cells
from ..results.store import write_result
from ..stats.response_scores import Truth, discrimination, score_names, score_response

PREDICTION = "prediction"
BASELINES = ("perturbation mean", "no change")
Predicted = str | AnnData
_APART = 5.0  # times: means that differ by more are hardly of one scale


def perturbation_metrics(
    adata: AnnData,
    *,
    predicted: Predicted | Mapping[str, Predicted],
    perturbation_key: str | None = None,
    control: str | None = None,
    layer: str | None = None,
    train: str | Sequence[bool] | None = None,
    n_top: int | Sequence[int] = 20,
    donor_key: str | None = None,
    n_bootstrap: int = 200,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Score predicted mean responses beside two predictions that anyone could make.

    Parameters
    ----------
    adata
        True cells, controls among them. Values should be of one depth and on one scale: normalised and
        logarithms, or rank levels.
    predicted
        Predictions: an AnnData with the same genes and column `perturbation_key`, one row a predicted cell or
        mean (it needs no controls); or the layer of `adata` in which treated cells hold what was predicted
        for them; or several by name.
    perturbation_key, control
        Column of `.obs` with the perturbation, and its value for controls; guessed from the names in `.obs`,
        as is `donor_key`.
    layer
        Layer of the true values, and of those of a predicted AnnData; by default `.X`.
    train
        Cells that predictions may have learned from: boolean column of `.obs`, or one boolean a cell. The
        baselines are of these, and all others are scored. By default all cells are scored, and the
        perturbation mean is that of the *other* perturbations.
    n_top
        Genes that change most: one number, or several, such as (20, 100, 200).
    donor_key
        Column of `.obs` with the donor: intervals are then over donors, and not over cells.
    n_bootstrap
        Resamples.
    rng
        Seed.
    key_added
        Key in `.uns`, by default "perturbation_metrics".

    Returns
    -------
    `None`. Writes the table `scores` to `.uns["perturbation_metrics"]`, a row a perturbation (and "all",
    their mean), method and score:

    `perturbation`, `method`, `is_baseline`, `score`
        What was predicted, by whom, and how it is scored.
    `value`, `low`, `high`
        The score with its 95% interval; NaN where it is not defined.

    Raises
    ------
    KeyError
        If a column or layer is not there.
    ValueError
        If there are no controls or no perturbed cells to score, or predictions have other genes or lack a
        perturbation.

    Notes
    -----
    With p the predicted, m the true mean of a perturbation's cells, and c that of the controls that are
    scored:

    `pearson_control`
        r(p - c, m - c), over all genes; `_top` over the `n_top` genes with the largest Welch's t between
        treated and control cells (`_top20`, `_top100` ... where several numbers are given).
    `pearson_perturbed`
        r(p - o, m - o), with o the mean over perturbations of their true means: what all perturbations have
        in common no longer counts. This is the reference of Systema (Viñas Torné et al., Nature Biotechnology
        2025); NaN with a single perturbation, whose o is its own mean.
    `spearman_control`
        Rank correlation of p - c and m - c.
    `top_overlap`, `top_direction`
        Share of the top genes among the `n_top` largest predicted changes; share that change in the predicted
        direction.
    `mse`, `mse_top`
        Mean squared error.
    `mse_weighted`
        The same with each gene's error divided by the variance of the gene between cells (within treated
        and control cells, half each): counts of abundant genes vary more, and a rare gene counts as much.
    `discrimination`
        Share of other perturbations whose true mean is further from the prediction than the right one; 0.5 by
        chance.

    The baselines are "perturbation mean", the mean of all treated training cells (the non-control mean of
    Systema), and "no change", the mean of the training controls. A score that they reach as well says nothing
    of the perturbation. c is in both differences, so that its noise alone correlates them: "no change" shows
    by how much. Where it is exactly c (no `train`), it has no direction, and NaN stands there.

    Intervals are 95%, from resampling the true cells, or donors with all their cells; predictions are taken
    as they are. A resample has the noise of the data twice, which lowers r: its spread is put around the
    value.

    Examples
    --------
    >>> import maxtoki_toolkit as mt, scanpy as sc
    >>> adata = mt.datasets.aging_atlas(300, 30)
    >>> sc.pp.normalize_total(adata)
    >>> sc.pp.log1p(adata)
    >>> adata.layers["same"] = adata.X.copy()
    >>> mt.tl.perturbation_metrics(adata, predicted="same", perturbation_key="condition", n_bootstrap=10)
    >>> scores = mt.get.table(adata, "perturbation_metrics").query("perturbation == 'all'")
    >>> scores = scores.pivot(index="method", columns="score", values="value")
    >>> round(float(scores.loc["prediction", "pearson_control"]), 3)
    1.0
    """
    require_unique_names(adata)
    if n_bootstrap < 2:
        raise ValueError(f"n_bootstrap must be at least 2, got {n_bootstrap}.")
    columns = find_columns(
        adata.obs,
        optional=("donor_key",),
        perturbation_key=perturbation_key,
        control=control,
        donor_key=donor_key,
    )
    perturbation_key, control, donor_key = columns.values()
    known, kept = known_cells(adata, perturbation_key, donor_key)
    label = get_labels(known, perturbation_key)
    learned = np.zeros(len(kept), dtype=bool) if train is None else get_mask(adata, train, "train")[kept]
    scored = ~learned
    names = sorted(set(label[scored]) - {control})
    if not names or not (scored & (label == control)).any():
        has = ", ".join(map(repr, sorted(set(label[scored]))[:8]))
        raise ValueError(
            f"There are {(scored & (label == control)).sum()} controls ({perturbation_key!r} is {control!r}) and {len(names)} perturbations "
            f"among the cells to score; both are needed. The column has {has or 'nothing'}."
        )
    tops = (n_top,) if isinstance(n_top, int) else tuple(n_top)
    if not tops or min(tops) < 1:
        raise ValueError(f"n_top must be numbers of genes, at least 1, got {n_top}.")
    X = _values(known, layer)
    every = [control, *names]
    cells = np.flatnonzero(scored & np.isin(label, every))
    code = pd.Index(every).get_indexer(label[cells])
    draws = draw_weights(
        None if donor_key is None else get_labels(known, donor_key)[cells],
        code,
        n_bootstrap,
        rng,
    )
    mean, t, variance = moments(X[cells], code, len(every), draws)
    control_mean, treated = mean[:, 0], mean[:, 1:]
    common = treated.mean(axis=1) if len(names) > 1 else None
    methods = predicted if isinstance(predicted, Mapping) else {PREDICTION: predicted}
    guesses = {
        str(name): _predicted(known, value, layer, perturbation_key, label, scored, names)
        for name, value in methods.items()
    }
    for name, guess in guesses.items():
        _warn_of_scale(name, np.nanmean(guess), np.nanmean(treated[0]))
    if repeated := set(guesses) & set(BASELINES):
        raise ValueError(f"{sorted(repeated)[0]!r} is the name of a baseline. Name the prediction otherwise.")
    _warn_of_counts(X, layer)
    guesses |= _baselines(X, label, learned, control, names, mean[0])
    for name in BASELINES:
        if np.isnan(guesses[name]).all():
            warn(
                f"{name!r} is not known: there is no other perturbation. Give train=, the cells that it may be learned of."
            )
    rows = []
    wanted = (*score_names(tops), "discrimination")
    for method, guess in guesses.items():
        truths = [Truth(treated[:, i], control_mean, t[:, i], common, variance[i]) for i in range(len(names))]
        found = [score_response(guess[i], truth, tops) for i, truth in enumerate(truths)]
        told = discrimination(guess, treated)
        found = [values | {"discrimination": told[:, i]} for i, values in enumerate(found)]
        for name, values in zip(names, found, strict=True):
            rows += [
                {"perturbation": name, "method": method, "score": s, **as_interval(s, values[s])}
                for s in wanted
            ]
        for s in wanted:
            values = _nan_mean(np.stack([part[s] for part in found]))
            rows.append({"perturbation": "all", "method": method, "score": s, **as_interval(s, values)})
    table = pd.DataFrame(rows)
    table.insert(2, "is_baseline", table["method"].isin(BASELINES))
    params = {
        "unit": layer or "X",
        "perturbation_key": perturbation_key,
        "control": control,
        "perturbations": names,
        "n_cells": len(cells),
        "n_train": int(learned.sum()),
        "n_top": list(tops) if len(tops) > 1 else tops[0],
        "n_bootstrap": n_bootstrap,
        "resampled": "cells" if donor_key is None else "donors",
        "seed": rng,
    }
    write_result(adata, _keys.PERTURBATION_METRICS, params, key_added=key_added, scores=table)


def _warn_of_scale(name: str, predicted: float, true: float) -> None:
    """Counts beside logarithms give scores that mean nothing."""
    if predicted > 0 and true > 0 and not 1 / _APART < predicted / true < _APART:
        warn(
            f"{name!r} has a mean of {predicted:.3g}, the true cells one of {true:.3g}: they are not on one scale. Normalise and "
            "take logarithms of both, or of neither."
        )


def _warn_of_counts(X: sp.csr_matrix, layer: str | None) -> None:
    """Raw counts: the deepest cells and the most abundant genes would decide."""
    some = X.data[:10_000]
    if len(some) and some.max() > 20 and (some == np.rint(some)).all():
        where = ".X" if layer is None else f".layers[{layer!r}]"
        warn(
            f"{where} holds counts. Scores are of values of one depth: normalise and take logarithms first, as sc.pp does."
        )


def _values(adata: AnnData, layer: str | None) -> sp.csr_matrix:
    return sp.csr_matrix(get_counts(adata, layer), dtype=np.float64)


def draw_weights(donor: np.ndarray | None, code: np.ndarray, n: int, seed: int) -> np.ndarray:
    """How often each cell (or donor, with all his or her cells) counts, draws x cells; once in the first draw."""
    rng = np.random.default_rng(seed)
    weights = np.ones((n + 1, len(code)))
    if donor is not None:
        number, names = pd.factorize(donor, sort=True)
        weights[1:] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n)[:, number]
        return weights
    for c in np.unique(code):
        of = np.flatnonzero(code == c)
        weights[1:, of] = rng.multinomial(len(of), np.full(len(of), 1 / len(of)), size=n)
    return weights


def moments(
    X: sp.csr_matrix, code: np.ndarray, n: int, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, draws x perturbations x genes; Welch's t of all but the first against the first; variances beside the first.

    The variances are those of each perturbation but the first, and of the first, half each; perturbations x
    genes.
    """
    variance = np.zeros((n, X.shape[1]))
    mean, error = np.full((2, len(weights), n, X.shape[1]), np.nan)
    for c in range(n):
        of = np.flatnonzero(code == c)
        part, w = X[of], weights[:, of]
        total = w.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean[:, c] = np.asarray(part.T @ w.T).T / total
            square = np.asarray(part.multiply(part).T @ w.T).T / total
            spread = np.maximum(square - mean[:, c] ** 2, 0)
            variance[c] = spread[0]
            error[:, c] = spread / np.maximum(total - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean[:, 1:] - mean[:, :1]) / np.sqrt(error[:, 1:] + error[:, :1])
    return mean, np.nan_to_num(t, posinf=0, neginf=0), (variance[1:] + variance[0]) / 2


def _predicted(adata, value, layer, key, label, scored, names) -> np.ndarray:
    """Predicted mean of each perturbation, perturbations x genes."""
    if isinstance(value, str):
        X, of = _values(adata, value), np.where(scored, label, "")
    else:
        require_adata(value)
        require_obs(value, key)
        if not value.var_names.equals(adata.var_names):
            raise ValueError(
                f"The prediction has other genes than the true cells, or another order ({value.n_vars} and {adata.n_vars}). Reorder it: "
                "predicted[:, adata.var_names]."
            )
        X, of = _values(value, layer), value.obs[key].astype(str).to_numpy(dtype=object)
    if missing := [name for name in names if not (of == name).any()]:
        raise ValueError(
            f"Nothing is predicted for {missing[0]!r} ({len(missing)} of {len(names)} perturbations)."
        )
    return np.stack([np.asarray(X[np.flatnonzero(of == name)].mean(axis=0)).ravel() for name in names])


def _baselines(X, label, learned, control, names, means) -> dict[str, np.ndarray]:
    """Predictions that anyone could make, of training cells or, without these, of the other perturbations."""
    nothing = np.full((len(names), X.shape[1]), np.nan)
    if learned.any():
        treated, still = learned & (label != control), learned & (label == control)
        parts = [
            np.asarray(X[mask].mean(axis=0)).ravel() if mask.any() else nothing[0]
            for mask in (treated, still)
        ]
        return {name: np.tile(part, (len(names), 1)) for name, part in zip(BASELINES, parts, strict=True)}
    others = nothing
    if len(names) > 1:
        others = np.stack([np.delete(means[1:], i, axis=0).mean(axis=0) for i in range(len(names))])
    return {BASELINES[0]: others, BASELINES[1]: np.tile(means[0], (len(names), 1))}


def _nan_mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def as_interval(score: str, values: np.ndarray) -> dict[str, float]:
    """The value, with the spread of 95% of the resamples around it."""
    drawn = values[1:][np.isfinite(values[1:])]
    low = high = np.nan
    if len(drawn) > 1 and np.isfinite(values[0]):
        # A resample has the noise of the data twice, so that its r is lower: only its spread is of use.
        low, high = values[0] + np.quantile(drawn, [0.025, 0.975]) - np.median(drawn)
        least, most = (
            (0, np.inf) if "mse" in score else (-1 if score.startswith(("pearson", "spearman")) else 0, 1)
        )
        low, high = max(low, least), min(high, most)
    return {"value": values[0], "low": low, "high": high}
