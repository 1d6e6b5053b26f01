"""Read proteins from RNA, or chromatin from proteins: one kind of features from the others of the same cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import rankdata

from .. import _keys
from ..models.likelihood import next_log_probabilities
from ..models.model import MaxTokiModel
from ..models.sequences import Sequences
from ..models.vocabulary import MARKS, MODALITIES
from ..pp._columns import find_donors
from ..pp._counts import get_counts
from ..pp._design import get_labels, get_mask, known_cells
from ..pp._modalities import ATAC, kinds_of
from ..pp.keep_modalities import keep_modalities
from ..results.store import write_result
from ..stats.donors import jackknife_interval
from ..stats.expression import log_normalize
from ..stats.response_scores import pearson
from ._cells import get_sequences

N_COMPONENTS = 50  # of the features that are read, for the baseline
_PENALTIES = np.logspace(-1, 5, 13)
_BLOCKS = 50  # of cells, where no donor is known


def translate(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    target: str = "adt",
    held_out: str | None = None,
    donor_key: str | None = None,
    n_permutations: int = 199,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Read the features of one kind from the others, and score them beside ridge regression.

    Parameters
    ----------
    adata
        Rank-encoded cells with several kinds of features (`mt.pp.join_modalities`), and their raw counts in
        `.X`.
    model
        Model that was trained on such cells (`mt.train.pretrain` with `modality_dropout`).
    target
        "rna", "adt" or "atac": what is read. All other kinds that the cells have are given.
    held_out
        Boolean column of `.obs`: cells to score, which neither the model nor the baseline has seen. By
        default all are scored, and the baseline is fitted in five folds (over donors, where they are known).
    donor_key
        Column of `.obs` with the donor, guessed from its name. Without, blocks of cells are the units.
    n_permutations
        Exchanges of the cells for the null.
    rng
        Seed of the folds, the blocks and the permutations.
    key_added
        Key in `.uns` and `.obsm`, by default "translate".

    Returns
    -------
    `None`. Writes

    `.obsm["translate"]`
        DataFrame, cells x features: log-probability of each feature to come first behind the mark of its
        kind, among all of that kind (nats).
    `.uns["translate"]`
        `scores`
            A row a method:

            `method`
                "model", "ridge" or "model less ridge".
            `r`, `r_low`, `r_high`
                Mean over features of the correlation with what was measured, over the scored cells, with its
                95% interval (jackknife over units): Spearman with log counts per ten thousand, for "atac"
                with whether the peak is open.
            `null_low`, `null_high`, `p_value`
                95% of what exchanged cells give, and the share of them that do as well (one-sided); not of
                the difference.
            `n_features`, `n_cells`, `n_units`, `unit`
                Features that vary, cells that were scored, and donors (or blocks of cells).
        `features`
            A row a `feature`: its correlations `r_model` and `r_ridge`, and `share_detected`, the share of
            the scored cells that have it.

    Raises
    ------
    KeyError
        If a column is not found.
    ValueError
        If the model does not know this kind, the cells have no other, or too few are left to fit or score.

    Notes
    -----
    Ridge regression reads 50 principal components of the log-normalised features of the other kinds; its
    penalty is chosen by leave-one-out errors. A feature that does not vary among the scored cells has no
    score.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> joint = mt.datasets.paired_modalities(mt.datasets.aging_atlas(60, 10), n_peaks=None)
    >>> demo = mt.load_model("demo-cells")
    >>> vocab = demo.vocab.with_modalities(mt.pp.modality_medians(joint))
    >>> model = mt.models.extend_model(demo, vocab)  # its proteins are not trained
    >>> mt.pp.rank_value_encode(joint, vocab)
    >>> mt.tl.translate(joint, model, donor_key="donor_id")
    >>> mt.get.table(joint, "translate")["method"].tolist()
    ['model', 'ridge', 'model less ridge']
    """
    if target not in model.vocab.modalities:
        known = ", ".join(model.vocab.modalities) or "genes alone"
        raise ValueError(f"The model does not know {target!r}: its vocabulary has {known}.")
    kinds = kinds_of(adata.var)
    sources = [kind for kind in model.vocab.modalities if kind != target and kind in kinds]
    if not sources or target not in kinds:
        there = ", ".join(kind for kind in MODALITIES if kind in kinds)
        raise ValueError(f"{target!r} is read from other kinds of the same cells; these have {there}.")
    donor_key = find_donors(adata.obs, donor_key)
    cells, rows = known_cells(adata, donor_key)
    token = cells.var[_keys.TOKEN_ID].to_numpy()
    columns = np.flatnonzero((kinds == target) & (token >= 0))
    found = next_log_probabilities(model, _given(cells, model, sources, target), token[columns])

    scored = np.ones(cells.n_obs, dtype=bool) if held_out is None else get_mask(cells, held_out, "held_out")
    if min(scored.sum(), cells.n_obs if held_out is None else (~scored).sum()) < 10:
        raise ValueError(
            f"{scored.sum()} of {cells.n_obs} cells are to be scored: too few to fit or to score."
        )
    counts = sp.csr_matrix(get_counts(cells, None))
    measured = _measured(counts[:, columns], target)
    unit, unit_name = _units(cells, donor_key, rng)
    given = _components([counts[:, kinds == kind] for kind in sources], rng)
    ridge = _ridge(given, measured, scored if held_out is not None else None, unit, rng)
    table, features = _score(
        {"model": found[scored], "ridge": ridge[scored]}, measured[scored], unit[scored], n_permutations, rng
    )
    table["unit"] = unit_name
    features.insert(0, "feature", cells.var_names.to_numpy(dtype=object)[columns][features.pop("column")])
    features["share_detected"] = (measured[scored] > 0).mean(axis=0)[features.index]
    names = cells.var_names[columns]
    out = np.full((adata.n_obs, len(columns)), np.nan, dtype=np.float32)
    out[rows] = found
    key = key_added or _keys.TRANSLATE
    params = {
        "unit": "correlation",
        "target": target,
        "sources": sources,
        "held_out": held_out or "",
        "donor_key": donor_key or "",
        "n_permutations": n_permutations,
        "n_components": N_COMPONENTS,
        "seed": rng,
    }
    write_result(
        adata,
        _keys.TRANSLATE,
        {**model.params, **params},
        key_added=key_added,
        scores=table,
        features=features.reset_index(drop=True),
    )
    adata.obsm[key] = pd.DataFrame(out, index=adata.obs_names, columns=names)


def _given(cells: AnnData, model: MaxTokiModel, sources: list[str], target: str) -> Sequences:
    """Cells with the kinds that are given, and the mark behind which the target begins."""
    part = keep_modalities(cells, modalities=sources)
    if part.n_obs < cells.n_obs:
        raise ValueError(
            f"{cells.n_obs - part.n_obs} of {cells.n_obs} cells have no {' or '.join(sources)} to read from. Take them out."
        )
    whole = get_sequences(part, model)
    tokens = whole.tokens.copy()
    tokens[whole.indptr[1:] - 1] = model.vocab[MARKS[target]]
    return whole.with_tokens(tokens)


def _measured(counts: sp.csr_matrix, target: str) -> np.ndarray:
    """What was measured, cells x features: log counts per ten thousand, or whether a peak is open."""
    if target == ATAC:
        return (counts > 0).toarray().astype(float)
    return log_normalize(counts, np.float64).toarray()


def _units(cells: AnnData, donor_key: str | None, seed: int) -> tuple[np.ndarray, str]:
    """Donor of each cell, or blocks of cells, as numbers."""
    if donor_key is not None:
        return np.unique(get_labels(cells, donor_key).astype(str), return_inverse=True)[1], "donor"
    # By the names, so that the order of the cells does not matter.
    order = np.argsort(cells.obs_names.astype(str), kind="stable")
    block = np.empty(cells.n_obs, dtype=int)
    block[order] = np.random.default_rng([seed, 3]).permutation(cells.n_obs) % _BLOCKS
    return block, "block of cells"


def _components(counts: list[sp.csr_matrix], seed: int) -> np.ndarray:
    """Principal components of the log-normalised features that are given."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import StandardScaler

    values = sp.hstack([log_normalize(part, np.float64) for part in counts], format="csr")
    n = min(N_COMPONENTS, min(values.shape) - 1)
    found = TruncatedSVD(n, random_state=seed).fit_transform(values)
    return StandardScaler().fit_transform(found)


def _ridge(
    given: np.ndarray, measured: np.ndarray, scored: np.ndarray | None, unit: np.ndarray, seed: int
) -> np.ndarray:
    """Ridge regression of what was measured: of the cells to score from the others, or by folds over units."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    found = np.full(measured.shape, np.nan)
    if scored is not None:
        folds = [(np.flatnonzero(~scored), np.flatnonzero(scored))]
    else:
        n = min(5, len(np.unique(unit)))
        folds = GroupKFold(n, shuffle=True, random_state=seed).split(given, groups=unit)
    for train, test in folds:
        found[test] = RidgeCV(_PENALTIES).fit(given[train], measured[train]).predict(given[test])
    return found


def _score(
    predicted: dict[str, np.ndarray], measured: np.ndarray, unit: np.ndarray, n_permutations: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Correlations of each method, with intervals over units and the null of exchanged cells."""
    varies = np.flatnonzero(np.ptp(measured, axis=0) > 0)
    if not len(varies):
        raise ValueError("No feature varies among the scored cells.")
    truth = measured[:, varies]
    ranks = {name: rankdata(values[:, varies], axis=0) for name, values in predicted.items()}
    true_ranks = rankdata(truth, axis=0)
    units = np.unique(unit)
    without = [np.ones(len(unit), dtype=bool), *(unit != one for one in units)]
    r = {
        name: np.array([pearson(own[kept].T, true_ranks[kept].T) for kept in without])
        for name, own in ranks.items()
    }
    r["model less ridge"] = r["model"] - r["ridge"]
    draws = np.random.default_rng([seed, 5])
    order = [draws.permutation(len(unit)) for _ in range(n_permutations)]
    null = {
        name: np.array([np.nanmean(pearson(own[o].T, true_ranks.T)) for o in order])
        for name, own in ranks.items()
    }
    rows = []
    for name, values in r.items():
        mean = np.nanmean(values, axis=1)
        low, high = jackknife_interval(mean, len(units))
        drawn = null.get(name, np.full(n_permutations, np.nan))
        at_least = (drawn >= mean[0] - 1e-12).sum()
        rows.append(
            {
                "method": name,
                "r": mean[0],
                "r_low": low,
                "r_high": high,
                "null_low": np.quantile(drawn, 0.025),
                "null_high": np.quantile(drawn, 0.975),
                "p_value": (1 + at_least) / (1 + n_permutations) if name in null else np.nan,
                "n_features": len(varies),
                "n_cells": len(unit),
                "n_units": len(units),
            }
        )
    features = pd.DataFrame(
        {"column": varies, "r_model": r["model"][0], "r_ridge": r["ridge"][0]}, index=varies
    )
    return pd.DataFrame(rows), features
