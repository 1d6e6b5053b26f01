"""A short label for each feature, and whether its genes say where the feature is active."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from datetime import date
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy import stats

from .. import _keys
from .._features import symbols
from .._validate import require_rank, require_tokens
from ..pp._design import is_missing
from ..results.store import read_result, write_result
from ..stats.associations import MIN_UNITS
from ..stats.fdr import benjamini_hochberg
from .feature_summary import ALPHA, gene_scores
from .features import in_first_half

_MIN_CELLS = 10  # of a donor, for a correlation over them
_SHOWN = 5  # labels and sets of genes that a function is told of
_IN_LABEL = 2  # genes in a label
_DRAWS = 999


def label_features(
    adata: AnnData,
    *,
    label: Callable[[dict], str] | None = None,
    n_genes: int = 10,
    n_cells: int = 5000,
    key: str = _keys.FEATURE_SUMMARY,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Name the features, and test whether the genes of each say where it is active in other donors.

    Parameters
    ----------
    adata
        Cells with results of `mt.tl.features` and `mt.tl.feature_summary`.
    label
        Makes a label of what is known of a feature: a function of a dictionary with `feature`, `top_genes`,
        `goes_with`, `labels`, `time_rho`, `gene_sets`, `confounded` and the like, e.g. one that asks a
        language model. By default what the feature goes with, two genes and a set of genes, with semicolons.
    n_genes
        Genes of a feature that are scored.
    n_cells
        Cells that are asked, at most.
    key
        Key in `.uns` of the summary.
    rng
        Seed of the cells.
    key_added
        Key in `.uns`, by default "feature_labels".

    Returns
    -------
    `None`. Writes the table `labels` to `.uns["feature_labels"]`, a row a feature:

    `feature`, `label`
        Its number and label.
    `genes`
        Symbols of the genes that activate it most in the first half of the donors (of the cells, where donors
        are not known).
    `score`, `score_low`, `score_high`
        Spearman correlation of the mean rank of these genes in a cell with the feature's activation there,
        over the cells of each donor of the second half, averaged; 95% interval over donors (t distribution)
        where there are three.
    `null_mean`, `p_value`, `q_value`
        Mean score of the genes of other features; share of these that do as well or better; corrected for the
        features (Benjamini and Hochberg).
    `n_others`, `n_units`
        Features that gave their genes to the null; donors of the second half (0 where they are not known).

    `params` says how they do together: the share of features with q < 0.05 (`share_predicted`) and with
    p < 0.05 (`share_p05`, of which 0.05 are chance), the `mean_score`, and the `exchanged_mean` and
    `exchanged_p` (one-sided, 999 draws) of labels that are exchanged at random. And where labels come from:
    the function's name, the sha256 of its source, the day, and the sha256 of what it was told.

    Raises
    ------
    KeyError
        If there is no summary, or no features.
    TypeError
        If the function returns something else than text.
    ValueError
        If no cells are left to ask.

    Notes
    -----
    The null exchanges labels: each feature is predicted by the genes of every other one. Features with
    the same genes make it harder to pass, and p is never below one over their number, so that few features
    can have q < 0.05 where few are predicted: `exchanged_p` says whether labels say anything at all. What is
    scored are the genes, not the words of a label.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(200, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.features(adata, model, mt.load_sae("demo"), controls=False)
    >>> mt.tl.feature_summary(adata, groupby="cell_type")
    >>> mt.tl.label_features(adata, label=lambda summary: ", ".join(summary["top_genes"][:3]))
    >>> int(mt.get.table(adata, "feature_labels")["label"].str.count(",").max())
    2
    """
    summary = read_result(adata, key, "mt.tl.feature_summary(adata)")
    of = str(summary["params"]["features"])
    found = read_result(adata, of, "mt.tl.features(adata, model, sae)")
    require_rank(adata)
    require_tokens(adata)
    for slot, name in (("obsm", of), ("varm", f"{of}_half")):
        if name not in getattr(adata, slot):
            raise KeyError(f"Did not find .{slot}[{name!r}]. Run mt.tl.features(adata, model, sae) first.")
    told = _summaries(summary)
    names = [_asked(label, one) for one in told] if label is not None else list(map(template, told))

    donor_key, seed = str(found["params"]["donor_key"]) or None, int(found["params"]["seed"])
    rows, donor = _held_out(adata, donor_key, seed, n_cells, rng)
    best = _best_genes(sp.csc_matrix(adata.varm[f"{of}_half"]), n_genes)
    cells = adata[rows]
    scores, _ = gene_scores(cells)
    column = adata.var[_keys.TOKEN_ID].to_numpy() >= 0
    weight = best[column].astype(np.float64)
    table, together = _scores(scores @ weight, sp.csr_matrix(adata.obsm[of])[rows], donor, rng)
    symbol = np.asarray(symbols(adata)).astype(str)
    table.insert(0, "genes", [", ".join(symbol[_order(best, i)]) for i in range(best.shape[1])])
    table.insert(0, "label", names)
    table.insert(0, "feature", np.arange(len(names)))
    tested = table["p_value"].notna()
    maker = template if label is None else label
    params = {
        "unit": "Spearman correlation",
        "summary": key,
        "features": of,
        "label": f"{getattr(maker, '__module__', '')}.{getattr(maker, '__qualname__', type(maker).__qualname__)}",
        "label_sha256": _source_hash(maker),
        "summary_sha256": sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(),
        "date": date.today().isoformat(),
        "donor_key": donor_key or "",
        "n_genes": n_genes,
        "n_cells": len(rows),
        "n_tests": int(tested.sum()),
        "share_predicted": float((table["q_value"][tested] < ALPHA).mean()) if tested.any() else np.nan,
        "share_p05": float((table["p_value"][tested] < ALPHA).mean()) if tested.any() else np.nan,
        **together,
        "seed": rng,
    }
    about = {name: summary["params"][name] for name in ("model", "sae_sha256") if name in summary["params"]}
    write_result(adata, _keys.LABEL_FEATURES, {**about, **params}, key_added=key_added, labels=table)


def template(summary: Mapping[str, Any]) -> str:
    """The label that a feature has by default."""
    parts = [one["value"] for one in summary["labels"][:1] if one["effect"] > 0.5]
    if not parts and summary["time_q"] is not None and summary["time_q"] < ALPHA:
        parts.append(f"{'rises' if summary['time_rho'] > 0 else 'falls'} with time")
    parts.append(", ".join(summary["top_genes"][:_IN_LABEL]))
    parts += [_plain(one["gene_set"]) for one in summary["gene_sets"][:1]]
    return "; ".join(part for part in parts if part) or summary["confounded"] or "silent"


def _plain(name: str) -> str:
    """The name of a set without its collection, in small letters if it shouts."""
    for start in ("HALLMARK_", "GOBP_", "GOCC_", "GOMF_", "REACTOME_", "KEGG_"):
        name = name.removeprefix(start)
    return name.replace("_", " ").lower() if name.isupper() else name.replace("_", " ")


def _asked(label: Callable[[dict], str], summary: dict) -> str:
    found = label(dict(summary))
    if not isinstance(found, str):
        raise TypeError(
            f"label must return text, got {type(found).__name__} for the feature {summary['feature']}. Nothing was "
            "stored."
        )
    return found.strip()


def _source_hash(function: Callable) -> str:
    try:
        return sha256(inspect.getsource(function).encode()).hexdigest()
    except (OSError, TypeError):
        return ""


def _summaries(summary: Mapping) -> list[dict]:
    """What is known of each feature, as plain values."""
    features = summary["features"]
    associations = summary["associations"]
    passing = associations[associations["passes"].astype(bool) & (associations["measure"] == "AUROC")]
    away = (passing["effect"] - 0.5).abs()
    passing = passing.assign(away=away).sort_values(
        ["feature", "away"], ascending=[True, False], kind="stable"
    )
    fields = ["column", "value", "effect", "q_value"]
    labels = {
        feature: _records(part[fields].head(_SHOWN))
        for feature, part in passing.groupby("feature", sort=False)
    }
    sets = {}
    if "gene_sets" in summary:
        called = summary["gene_sets"]
        called = called[(called["q_value"] < ALPHA) & (called["auroc"] > 0.5)]
        fields = ["gene_set", "auroc", "q_value"]
        sets = {
            feature: _records(part[fields].head(_SHOWN))
            for feature, part in called.groupby("feature", sort=False)
        }
    return [
        row
        | {
            "top_genes": [gene for gene in row["top_genes"].split(", ") if gene],
            "labels": labels.get(row["feature"], []),
            "gene_sets": sets.get(row["feature"], []),
        }
        for row in _records(features)
    ]


def _records(table: pd.DataFrame) -> list[dict]:
    """Rows with Python's own types, `None` for NaN."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [
        {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        for row in rows
    ]


def _held_out(
    adata: AnnData, donor_key: str | None, seed: int, n_cells: int, rng: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of the second half, in the order of their names, and their donors."""
    held = ~in_first_half(adata, donor_key, seed)
    donor = None
    if donor_key is not None and adata.obs[donor_key].nunique() > 1:
        held &= ~is_missing(adata.obs[donor_key])
        donor = adata.obs[donor_key].astype(str).to_numpy(dtype=object)
    rows = np.flatnonzero(held)
    rows = rows[np.argsort(adata.obs_names[rows].to_numpy(dtype=str), kind="stable")]
    if len(rows) > n_cells:
        rows = rows[np.sort(np.random.default_rng(rng).permutation(len(rows))[:n_cells])]
    if len(rows) < _MIN_CELLS:
        raise ValueError(
            f"{len(rows)} cells are in the half that the genes were not taken from; at least {_MIN_CELLS} are needed."
        )
    return rows, None if donor is None else pd.factorize(donor[rows], sort=True)[0]


def _best_genes(activation: sp.csc_matrix, n_genes: int) -> sp.csc_matrix:
    """Genes x features: one over how many there are for the genes that activate a feature most."""
    feature = np.repeat(np.arange(activation.shape[1]), np.diff(activation.indptr))
    order = np.lexsort((activation.indices, -activation.data, feature))
    place = np.arange(len(order)) - activation.indptr[feature[order]]
    kept = order[place < n_genes]
    n = np.bincount(feature[kept], minlength=activation.shape[1])
    # In the order of their activation, so that columns list the best first.
    return sp.csc_matrix(
        (1 / n[feature[kept]], activation.indices[kept], np.concatenate([[0], np.cumsum(n)])),
        shape=activation.shape,
    )


def _order(best: sp.csc_matrix, feature: int) -> np.ndarray:
    return best.indices[best.indptr[feature] : best.indptr[feature + 1]]


def _scores(
    predicted: sp.spmatrix, activation: sp.csr_matrix, donor: np.ndarray | None, seed: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Own score of each feature, and those that the genes of the others give; and all of them together."""
    width = activation.shape[1]
    total, n = np.zeros((width, width)), np.zeros((width, width))
    own = []
    units = np.zeros(activation.shape[0], dtype=np.int64) if donor is None else donor
    for one in np.unique(units):
        rows = np.flatnonzero(units == one)
        if len(rows) < _MIN_CELLS:
            continue
        found = _spearman(predicted[rows].toarray(), activation[rows].toarray())
        known = np.isfinite(found)
        total += np.where(known, found, 0)
        n += known
        own.append(found.diagonal())
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n  # NaN where no donor knows
    score = mean.diagonal()
    others = np.isfinite(mean) & ~np.eye(width, dtype=bool)
    n_others = others.sum(axis=0)
    better = (others & (mean >= score[None] - 1e-12)).sum(axis=0)
    tested = np.isfinite(score) & (n_others > 0)
    p = np.where(tested, (1 + better) / (1 + n_others), np.nan)
    null = np.where(others, mean, 0).sum(axis=0) / np.maximum(n_others, 1)
    low, high, n_units = _interval(np.array(own).reshape(-1, width), score, known=donor is not None)
    table = pd.DataFrame(
        {
            "score": score,
            "score_low": low,
            "score_high": high,
            "null_mean": np.where(n_others > 0, null, np.nan),
            "p_value": p,
            "q_value": benjamini_hochberg(p),
            "n_others": n_others,
            "n_units": n_units,
        }
    )
    return table, _exchanged(mean, np.flatnonzero(tested), seed)


def _exchanged(mean: np.ndarray, tested: np.ndarray, seed: int) -> dict[str, float]:
    """The mean score, and that of labels which are exchanged at random."""
    if not len(tested):
        return dict.fromkeys(("mean_score", "exchanged_mean", "exchanged_p"), np.nan)
    rng = np.random.default_rng(seed)
    of_tested = np.nan_to_num(mean[np.ix_(tested, tested)])
    place = np.arange(len(tested))
    draws = np.array([of_tested[rng.permutation(place), place].mean() for _ in range(_DRAWS)])
    own = of_tested.diagonal().mean()
    p = (1 + (draws >= own - 1e-12).sum()) / (1 + _DRAWS)
    return {"mean_score": float(own), "exchanged_mean": float(draws.mean()), "exchanged_p": float(p)}


def _interval(
    own: np.ndarray, score: np.ndarray, *, known: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """95% interval over donors, and how many there are."""
    n = np.isfinite(own).sum(axis=0)
    none = np.full(len(score), np.nan)
    if not known:
        return none, none, np.zeros(len(score), dtype=int)
    spread = np.where(np.isfinite(own), own - score, 0)
    error = np.sqrt((spread**2).sum(axis=0) / np.maximum(n - 1, 1) / np.maximum(n, 1))
    reach = np.where(n >= MIN_UNITS, stats.t.ppf(0.975, np.maximum(n - 1, 1)) * error, np.nan)
    return np.clip(score - reach, -1, 1), np.clip(score + reach, -1, 1), n


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of each column of a with each of b; NaN where one does not vary."""
    parts = []
    for values in (a, b):
        ranks = stats.rankdata(values, axis=0)
        ranks -= ranks.mean(axis=0)
        size = np.sqrt((ranks**2).sum(axis=0))
        parts.append(ranks / np.where(size > 1e-9, size, np.nan))
    return parts[0].T @ parts[1]
