"""What can be had without the model: lapses from expression, from embeddings, and from habit."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._progress import progress
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel
from ..models.prompts import Prompts
from ..pp._design import get_labels, get_times, known_cells
from ..pp._ranked_counts import source_of
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result, write_result
from ..stats.clocks import fit_ridge
from ..stats.lapse_scores import score_lapses
from ._cells import get_sequences
from ._expression import log_expression, reads_ranks

BASELINES = ("ridge_embedding", "ridge_expression", "sgd_expression", "most_common")
MIN_CELLS = 100  # training cells that a group needs for a clock of its own


def timelapse_baselines(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    train: str = "train_prompts",
    key: str | None = None,
    queries: AnnData | None = None,
    embedding: bool = True,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Predict the lapses of the same prompts without the model's time head, and score all beside each other.

    Parameters
    ----------
    adata
        Cells with predicted prompts (`mt.tl.predict_timelapse`), prompts of training cells, and the raw
        counts that were ranked.
    model
        The model that predicted; its embeddings are one of the baselines.
    train
        Key in `.uns` of the prompts to fit the baselines on. No tested query may be among their cells:
        `mt.pp.sample_prompts(adata, ..., contexts="train", queries="train", key_added="train_prompts")`.
    key
        Key in `.uns` of the predicted prompts, by default "timelapse".
    queries
        The AnnData with the query cells, for prompts of `mt.pp.match_queries`; with the genes of `adata`.
    embedding
        Whether to embed the cells for `ridge_embedding`, which takes longest.
    rng
        Seed of `sgd_expression`, of the folds where no donor is known, and of the permutations.
    key_added
        Key in `.uns`, by default "timelapse_baselines".

    Returns
    -------
    `None`. Writes to `.uns["timelapse_baselines"]` the tables, in `params["unit"]`:

    `scores`
        Of the model and all baselines, with the columns of `mt.tl.predict_timelapse` and `error_ratio`, the
        median error of the model over that of the predictor (below 1, the model is better), with the interval
        of the paired ratio.
    `prompts`
        The predicted prompts (as of `mt.tl.predict_timelapse`) with a column for each baseline:
        `ridge_embedding`, `ridge_expression`, `sgd_expression`, `most_common`.
    `clocks`
        A row a fitted ridge: its `baseline`, its `group` ("all": for groups without one of their own),
        `n_cells` and `n_donors` of its training, and `alpha`, the penalty that was chosen.

    Raises
    ------
    KeyError
        If prompts or predictions are missing.
    ValueError
        If a training cell is also a tested query, or both were drawn by different times or groups.

    Notes
    -----
    ``ridge_expression``
        A clock: ridge regression of a cell's time on the log-normalised counts (to 10,000 a cell) of the
        2,000 genes that vary most among the training cells, standardised. The lapse is the query's time less
        the mean, over the context cells, of their time and the known lapses to the last of them. Groups with
        100 training cells have a clock of their own; the others, and groups that were never trained on, use
        one of all groups, centred in each. The penalty is chosen by cross-validation between donors, where
        donors are known. Ageing clocks are such penalised regressions (elastic net in Horvath, Genome Biology
        2013; Buckley et al., Nature Aging 2023). Cells without counts, as in encoded files, are read by the
        ranks of their genes.
    ``ridge_embedding``
        The same on the model's mean-pooled cell embeddings: what it knows of time before any time head.
    ``sgd_expression``
        scikit-learn's SGDRegressor as it is, the method of MaxToki's own baseline (features not stated
        there): the lapse from the query's expression less the last context cell's. Standardised, with the
        mean squared length of a prompt's features brought to 1, without which its default steps diverge.
    ``most_common``
        The most common lapse of the group in the training prompts (the smallest of equally common ones),
        MaxToki's second baseline; of all training prompts for a group that is not among them.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.4, time_key="age_months")
    >>> settings = dict(time_key="age_months", groupby="cell_type", donor_key="donor_id", n_prompts=10, context_size=1)
    >>> mt.pp.sample_prompts(adata, contexts="train", queries="train", key_added="train_prompts", **settings)
    >>> mt.pp.sample_prompts(adata, contexts="held_out", queries="held_out", **settings)
    >>> mt.tl.predict_timelapse(adata, model)
    >>> mt.tl.timelapse_baselines(adata, model)
    >>> mt.get.table(adata, "timelapse_baselines").query("group == 'all'")["predictor"].tolist()
    ['MaxToki', 'ridge_embedding', 'ridge_expression', 'sgd_expression', 'most_common']
    """
    drawn = read_result(
        adata,
        train,
        f"mt.pp.sample_prompts(adata, contexts='train', queries='train', key_added={train!r}, ...)",
    )
    stored = read_result(adata, key or _keys.TIMELAPSE, "mt.tl.predict_timelapse(adata, model)")
    params, table = stored["params"], stored["prompts"].copy()
    if "predicted" not in table:
        raise KeyError(
            "These prompts are not predicted yet. Run mt.tl.predict_timelapse(adata, model) first."
        )
    if "distance_unit" in drawn["params"]:
        raise ValueError(
            "These baselines read a time of each cell, and distances are between cells. There are none for prompts of "
            "mt.pp.spatial_prompts."
        )
    for name in ("time_key", "groupby"):
        fitted, tested = (np.atleast_1d(p[name]).tolist() for p in (drawn["params"], params))
        if fitted != tested:
            raise ValueError(
                f"The training prompts were drawn with {name}={fitted}, the tested ones with {tested}. Draw both alike."
            )
    if params["model_sha256"] != model.identity:
        raise ValueError(f"Another model than {model.name!r} predicted these prompts. Pass that one.")
    known, _ = known_cells(adata)
    queries = None if queries is None else known_cells(queries)[0]
    sources, training, test = _gather(known, queries, drawn["prompts"], table)

    fit_group, group = (t["group"].to_numpy(dtype=str) for t in (drawn["prompts"], table))
    cells = _cells(known[sources[0][1]], training, fit_group, drawn["params"])
    X = log_expression(sources, cells.place)
    features = {"ridge_expression": X}
    if embedding:
        embedded = [embed_sequences(model, get_sequences(a[used], model)).cells for a, used in sources]
        features = {"ridge_embedding": np.vstack(embedded), **features}
    lapses, clocks = {}, []
    for name, values in features.items():
        lapses[name], fitted = _clock_lapses(values, cells, test, group, rng)
        clocks.append(fitted.assign(baseline=name))
    lapses["sgd_expression"] = _sgd_lapses(X, training, test, rng)
    lapses["most_common"] = _most_common(training.lapse, fit_group, group)
    table = table.assign(**lapses)

    result = {
        "unit": params["unit"],
        "time_key": params["time_key"],
        "groupby": params["groupby"],
        "train": train,
        "layer": "ranks" if reads_ranks(adata) else source_of(adata, None)[0] or "X",
        "n_train_prompts": len(fit_group),
        "n_train_cells": len(cells.place),
        "n_train_donors": None if cells.donor is None else len(np.unique(cells.donor)),
        "n_genes": X.shape[1],
        "n_prompts": len(table),
        "seed": rng,
    }
    predictors = {"MaxToki": "predicted", **{name: name for name in lapses}}
    write_result(
        adata,
        _keys.BASELINES,
        {**model.params, **result},
        key_added=key_added,
        prompts=table,
        scores=score_lapses(table, predictors, groupby="group", reference="MaxToki", seed=rng),
        clocks=pd.concat(clocks, ignore_index=True),
    )


class _Cells(NamedTuple):
    """The distinct cells of the training prompts."""

    place: np.ndarray
    group: np.ndarray
    time: np.ndarray
    donor: np.ndarray | None


def _gather(
    adata: AnnData, queries: AnnData | None, drawn: pd.DataFrame, table: pd.DataFrame
) -> tuple[list[tuple[AnnData, np.ndarray]], Prompts, Prompts]:
    """Where the cells of the prompts are, and the prompts by their places among these cells."""
    training = read_prompts(drawn, adata, adata)
    test = read_prompts(table, adata, adata if queries is None else queries)
    _require_apart(adata, training, test, queries)
    parts = [training.context, training.query, test.context] + ([test.query] if queries is None else [])
    rows = np.unique(np.concatenate([part.ravel() for part in parts]))
    rows = rows[rows >= 0]
    sources = [(adata, rows)]

    def place(context: np.ndarray) -> np.ndarray:
        return np.where(context >= 0, np.searchsorted(rows, context), -1)

    query = place(test.query)
    if queries is not None:
        query_rows, query = np.unique(test.query, return_inverse=True)
        query = query + len(rows)
        sources.append((queries, query_rows))
    training = training._replace(context=place(training.context), query=place(training.query))
    return sources, training, test._replace(context=place(test.context), query=query)


def _require_apart(adata: AnnData, training: Prompts, test: Prompts, queries: AnnData | None) -> None:
    """Raise if a tested query is fitted to. Context cells, whose times are given, may be."""
    fitted = np.union1d(training.context[training.context >= 0], training.query)
    if queries is None and len(both := np.intersect1d(fitted, test.query)):
        raise ValueError(
            f"{len(both)} cells of the training prompts are queries of the tested ones (first: "
            f"{adata.obs_names[both[0]]!r}): the baselines would be tested on what they were fitted to. Draw the training "
            'prompts with contexts="train", queries="train" and the tested ones with contexts="held_out", '
            'queries="held_out" (mt.pp.hold_out).'
        )


def _cells(used: AnnData, training: Prompts, group: np.ndarray, params: dict) -> _Cells:
    """The training cells, from those that are used."""
    members = np.column_stack([training.context, training.query])
    place, first = np.unique(members, return_index=True)
    group = np.repeat(group, members.shape[1])[first][place >= 0]
    place = place[place >= 0]
    donor = None
    if params["donor_key"]:
        donor = get_labels(used[place], params["donor_key"])
    return _Cells(place, group, get_times(used, params["time_key"])[place], donor)


def _clock_lapses(
    X: np.ndarray, cells: _Cells, test: Prompts, group: np.ndarray, seed: int
) -> tuple[np.ndarray, pd.DataFrame]:
    """Lapses between times that ridge regression reads from single cells, and how it was fitted."""
    lapse = np.empty(len(group))
    # Lapse from each context cell to the last one.
    later = np.zeros(test.context.shape)
    later[:, :-1] = np.cumsum(test.steps[:, ::-1], axis=1)[:, ::-1]
    used = test.context >= 0
    clocks, fitted = {}, []
    for name in progress(np.unique(group), desc="Fitting clocks", unit="group"):
        label, mine = name, cells.group == name
        if mine.sum() < MIN_CELLS:
            label, mine = "all", np.ones_like(mine)
        if label not in clocks:
            # Centred within groups; what differs between them cancels in a lapse.
            x, time = (_centred(values[mine], cells.group[mine]) for values in (X[cells.place], cells.time))
            donor = None if cells.donor is None else cells.donor[mine]
            clocks[label], alpha = fit_ridge(x, time, donor, seed)
            n_donors = -1 if donor is None else len(np.unique(donor))
            fitted.append((label, len(x), n_donors, alpha))
        prompts = np.flatnonzero(group == name)
        places, inverse = np.unique(
            np.column_stack([test.context[prompts], test.query[prompts]]), return_inverse=True
        )
        time = clocks[label].predict(X[places])[inverse].reshape(len(prompts), -1)
        last = np.where(used[prompts], time[:, :-1] + later[prompts], 0).sum(axis=1) / used[prompts].sum(
            axis=1
        )
        lapse[prompts] = time[:, -1] - last
    return lapse, pd.DataFrame(fitted, columns=["group", "n_cells", "n_donors", "alpha"])


def _centred(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    values = values.astype(float)
    for name in np.unique(group):
        values[group == name] -= values[group == name].mean(axis=0)
    return values


def _sgd_lapses(X: np.ndarray, training: Prompts, test: Prompts, seed: int) -> np.ndarray:
    """Lapses from the query's expression less the last context cell's."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import SGDRegressor
    from sklearn.preprocessing import StandardScaler

    fit, asked = (
        X[prompts.query] - X[prompts.context[np.arange(len(prompts.query)), prompts.context_size - 1]]
        for prompts in (training, test)
    )
    scaler, length = StandardScaler().fit(fit), np.sqrt(fit.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its default tolerance is for targets about 1
        fitted = SGDRegressor(random_state=seed).fit(
            scaler.transform(fit) / length, training.lapse.astype(float)
        )
    return fitted.predict(scaler.transform(asked) / length)


def _most_common(lapse: np.ndarray, fit_group: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The most common lapse of each prompt's group."""
    modes = {name: _mode(lapse[fit_group == name]) for name in np.unique(fit_group)}
    every = _mode(lapse)
    return np.array([modes.get(name, every) for name in group], dtype=float)


def _mode(lapse: np.ndarray) -> int:
    values, count = np.unique(lapse, return_counts=True)
    return int(values[np.lexsort((-values, np.abs(values), -count))[0]])
