"""Responses of populations that were left out, predicted in several ways and scored beside baselines and a ceiling."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from .._progress import hidden, progress
from ..pp._columns import find_columns
from ..pp._design import as_list, get_labels
from ..results.store import write_result
from ..stats.fdr import benjamini_hochberg
from ..stats.response_scores import Truth, discrimination, score_names, score_response
from ..stats.response_shifts import BASELINES, WAYS, Known, predict
from ..train.recipe import ResponseRecipe
from ._populations import Populations, mean_of, read_descriptors, read_populations
from .perturbation_metrics import as_interval, draw_weights, moments

HELD_OUT = ("context", "combination", "perturbation", "cells")
LEARNED, CEILING, NULL = "set transformer", "replicate half", "shuffled labels"
REFERENCE = "perturbation mean"
TOP = (20, 100, 200)
MIN_CELLS = 10  # of a population: two halves are needed
_PARTS = 5  # folds of combinations and of perturbations
_N_NULL, _N_BOOTSTRAP = 49, 100
_SAME = 1e-6  # scores that differ by less are of one prediction
_NEIGHBORS, _MOST = 15, 300  # of a control cell; controls of a context among which they are sought


def predict_response(
    adata: AnnData,
    *,
    groupby: str | Sequence[str],
    held_out: str = "context",
    perturbation_key: str | None = None,
    control: str | None = None,
    donor_key: str | None = None,
    use_rep: str = _keys.EMBEDDING,
    descriptors: pd.DataFrame | None = None,
    layer: str | None = None,
    recipe: ResponseRecipe | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Predict treated populations that were left out from their controls, in several ways, and score them.

    Parameters
    ----------
    adata
        Cells with raw counts and an embedding, controls in every context.
    groupby
        Columns of `.obs` with the context: cell line, cell type or donor.
    held_out
        What is left out: "context", all treated cells of a context, one at a time; "combination", contexts
        under perturbations both of which are seen elsewhere; "perturbation", in all contexts; "cells", a
        random half of the cells of every population, which is no new donor, line or drug, and flatters every
        way.
    perturbation_key, control
        Column of `.obs` with the perturbation, and its value for controls; guessed from the names in `.obs`.
    donor_key
        Column of `.obs` with the donor, where contexts hold several: populations are halved by donors, and
        intervals resample them. By default cells.
    use_rep
        Key in `.obsm` of the embedding, for the nearest neighbours and the transformer.
    descriptors
        Rows are perturbations, columns numbers that describe them: an unseen one is predicted from them.
        Without, as the mean of those seen.
    layer
        Layer with the raw counts; by default what was ranked, or `.X`.
    recipe
        With a recipe, a set transformer (`mt.train.response`) is trained for each fold as well:
        `mt.train.ResponseRecipe()`.
    rng
        Seed of halves, folds, resamples, exchanges and networks.
    key_added
        Key in `.uns`, by default "predict_response".

    Returns
    -------
    `None`. Writes to `.uns["predict_response"]`:

    `summary`
        A row a method and score: `method`, `kind` ("way", "baseline", "ceiling" or "null"), `score`; `value`,
        the mean over units, with its t interval over them (`low`, `high`; of the null 95% of the exchanges;
        NaN for fewer than three units); `difference` to the "perturbation mean", paired over units, with its
        interval (`difference_low`, `difference_high`), `p_value` (paired t test over units, two-sided) and
        `q_value` (Benjamini and Hochberg over the ways, for each score); `n_units`, contexts, or with
        held_out="perturbation" perturbations.
    `scores`
        A row a population left out, method and score: `context`, `perturbation`, `method`, `score`, and
        `value` with the interval of resampled cells or donors (`low`, `high`).
    `populations`
        A row a population: `context`, `perturbation`, `fold`, `n_treated`, `n_control`.
    `means`
        Array, methods x populations x genes: predicted mean of the log-normalised expression, for all methods
        that predict one (`params["methods"]`), NaN where a way has nothing to go by.

    Raises
    ------
    KeyError
        If the embedding or a column is not there.
    ValueError
        If there is nothing to learn from: a single context to leave out, or a single perturbation.

    Notes
    -----
    Every population is halved, controls too. Predictions begin from one half of the controls, and their
    change from there is compared with that from the other half of the controls to one half of the treated
    cells; the other half of the treated cells, taken for a prediction, is the ceiling ("replicate half"). So
    no noise is on both sides of a correlation. (Scored on all controls at once, predicted and true change
    share the noise of the controls.)

    The ways, with c the controls of the population, changes being treated less control:

    "no change"
        c.
    "treated mean"
        Mean of the treated, over contexts: what `mt.tl.perturbation_metrics` calls perturbation mean.
    "context mean"
        Mean of the treated of the same context, over other perturbations.
    "perturbation mean"
        c and the mean change of the perturbation, over contexts.
    "additive"
        c and a change that is a sum of one of the context and one of the perturbation (least squares).
    "nearest neighbours"
        c and the mean change of the perturbation, contexts weighted by how many of the 15 nearest controls of
        its controls each of them has.
    "linear shift"
        c, the mean change, and how far c is from the controls of the others, times one slope for all genes
        that is learned from contexts left out in turn: between -1 ("treated mean") and 0 ("perturbation
        mean") or beyond.
    "set transformer"
        See `mt.train.response`.
    "shuffled labels"
        "perturbation mean" where treated cells and controls have exchanged labels within each context, 49
        times.

    Units are left out in turn, so that what is learned for one is learned from the others: the paired tests
    take them as independent, and are approximate.

    Scores are those of `mt.tl.perturbation_metrics`, of 20, 100 and 200 top genes.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.drug_screen(4, 3, n_wells=24, cells_per_well=8)
    >>> adata.obsm["X_some"] = adata.X[:, :50].toarray()
    >>> columns = {"perturbation_key": "drug", "control": "DMSO", "groupby": "line"}
    >>> mt.tl.predict_response(adata, use_rep="X_some", **columns)
    >>> table = mt.get.table(adata, "predict_response").query("score == 'pearson_control'")
    >>> value = table.set_index("method")["value"]
    >>> bool(value["perturbation mean"] > value["shuffled labels"])
    True
    """
    if held_out not in HELD_OUT:
        raise ValueError(f"held_out must be one of {', '.join(HELD_OUT)}, got {held_out!r}.")
    columns = find_columns(adata.obs, perturbation_key=perturbation_key, control=control)
    perturbation_key, control = columns.values()
    groupby = as_list(groupby)
    donor_key = None if donor_key in groupby else donor_key
    cells = read_populations(adata, perturbation_key, control, groupby, use_rep, layer, donor_key)
    donor = None if donor_key is None else get_labels(adata[cells.rows], donor_key)
    half = _halves(cells, donor, rng)
    populations = _populations(cells, half, held_out, rng)
    described, names = read_descriptors(descriptors, cells.perturbations)
    described = (
        described[[names.index(name) for name in cells.perturbations]] if descriptors is not None else None
    )

    known_methods = [*BASELINES, *WAYS, *([LEARNED] if recipe is not None else [])]
    shape = (len(known_methods), len(populations), adata.n_vars)
    means, given = (np.full(part, np.nan, dtype=np.float32) for part in (shape, shape[1:]))
    folds = _folds(populations, cells, half, held_out)
    for fold in progress(folds, desc="Predicting", unit="fold"):
        at, c, p = fold.rows, fold.context, fold.perturbation
        known = _known(cells, fold, described)
        start = mean_of(cells.expression, np.where(fold.given, cells.context, -1), len(cells.contexts))
        given[at] = start[c]
        found = predict(known, start, _alike(cells, fold, held_out, rng))
        if recipe is not None:
            found[LEARNED] = _learned(
                adata,
                cells,
                fold,
                known,
                start,
                (perturbation_key, control, groupby, use_rep),
                descriptors,
                layer,
                recipe,
                rng,
            )
        for i, name in enumerate(known_methods):
            means[i, at] = found[name][c, p]
    methods = {name: means[i] for i, name in enumerate(known_methods)}
    scores, truths = _score(cells, populations, half, given, methods, donor, rng)
    drawn = _score_null(cells, populations, folds, given, truths, _exchanged(cells, half, held_out, rng))
    unit = "perturbation" if held_out == "perturbation" else "context"
    params: dict[str, Any] = {
        "unit": "log-normalised expression",
        "perturbation_key": perturbation_key,
        "control": control,
        "groupby": groupby,
        "held_out": held_out,
        "donor_key": donor_key,
        "use_rep": use_rep,
        "described": descriptors is not None,
        "methods": known_methods,
        "units": unit,
        "resampled": "cells" if donor_key is None else "donors",
        "n_top": list(TOP),
        "n_null": _N_NULL,
        "test": f"paired t test over {unit}s against {REFERENCE!r}",
        "correction": "Benjamini and Hochberg over the ways, for each score",
        "recipe": {} if recipe is None else recipe.flat(),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.PREDICT_RESPONSE,
        params,
        key_added=key_added,
        summary=_summary(scores, drawn, unit),
        scores=scores,
        populations=populations[["context", "perturbation", "fold", "n_treated", "n_control"]],
        means=means,
    )


class _Fold(NamedTuple):
    """Populations that are left out together."""

    rows: np.ndarray
    """Of the table of populations."""
    context: np.ndarray
    perturbation: np.ndarray
    """Numbers of their context and perturbation."""
    seen: np.ndarray
    """Populations to learn from, contexts x perturbations."""
    use: np.ndarray
    """Cells to learn from."""
    given: np.ndarray
    """Controls to begin from."""


def _halves(cells: Populations, donor: np.ndarray | None, seed: int) -> np.ndarray:
    """The half of each cell, within its population: of cells, or of whole donors."""
    half = np.zeros(len(cells.rows), dtype=np.int64)
    code = cells.context * (len(cells.perturbations) + 1) + cells.label
    for number in np.unique(code):
        rows = np.flatnonzero(code == number)
        # By name, so that it does not matter which other populations there are.
        name = f"{cells.contexts[cells.context[rows[0]]]}|{cells.label[rows[0]]}"
        stream = np.random.default_rng([seed, *name.encode()])
        unit = np.arange(len(rows)) if donor is None else pd.factorize(donor[rows], sort=True)[0]
        if unit.max() == 0:
            unit = np.arange(len(rows))
        half[rows] = stream.permutation(np.arange(unit.max() + 1) % 2)[unit]
    return half


def _populations(cells: Populations, half: np.ndarray, held_out: str, seed: int) -> pd.DataFrame:
    """Populations that can be scored, with their fold."""
    n_contexts, n_perturbations = len(cells.contexts), len(cells.perturbations)
    counts = np.zeros((n_contexts, n_perturbations + 1), dtype=np.int64)
    np.add.at(counts, (cells.context, cells.label), 1)
    c, p = np.nonzero((counts[:, 1:] >= MIN_CELLS) & (counts[:, :1] >= MIN_CELLS))
    table = pd.DataFrame({"c": c, "p": p})
    used = len(np.unique(c)), len(np.unique(p))
    lacking = {
        "context": used[0] < 2 and "a second context",
        "combination": min(used) < 2 and "two contexts and two perturbations at least",
        "perturbation": used[1] < 2 and "a second perturbation",
        "cells": not len(table) and "a population",
    }[held_out]
    if lacking or table.empty:
        raise ValueError(
            f"held_out={held_out!r} needs {lacking or 'a population'} with {MIN_CELLS} treated cells and as many controls; there are {used[0]} "
            f"contexts and {used[1]} perturbations."
        )
    order = np.random.default_rng(seed).permutation(n_perturbations)
    place = np.argsort(order)[p]
    if held_out == "context":
        table["fold"] = c
    elif held_out == "combination":
        # Along diagonals, so that what is left out of a context is seen in others.
        table["fold"] = (c + place) % max(2, min(_PARTS, *used))
    elif held_out == "perturbation":
        table["fold"] = place % min(_PARTS, used[1])
    else:
        table["fold"] = 0
    table["context"] = np.array(cells.contexts, dtype=object)[c]
    table["perturbation"] = np.array(cells.perturbations, dtype=object)[p]
    table["n_treated"], table["n_control"] = counts[c, p + 1], counts[c, 0]
    return table


def _folds(populations: pd.DataFrame, cells: Populations, half: np.ndarray, held_out: str) -> list[_Fold]:
    shape = len(cells.contexts), len(cells.perturbations)
    folds = []
    for _, part in populations.groupby("fold"):
        c, p = part["c"].to_numpy(), part["p"].to_numpy()
        there = np.zeros(shape, dtype=bool)
        there[populations["c"], populations["p"]] = True
        given = (cells.label == 0) & (half == 0)
        use = np.ones(len(cells.rows), dtype=bool)
        if held_out == "cells":
            use = half == 0
        else:
            there[c, p] = False
            left_out = np.zeros(shape, dtype=bool)
            left_out[c, p] = True
            treated = cells.label > 0
            use[treated] = ~left_out[cells.context[treated], cells.label[treated] - 1]
            # Where a population is scored, the other half of the controls is what it is scored against.
            use &= ~((cells.label == 0) & (half == 1) & np.isin(cells.context, c))
        folds.append(_Fold(part.index.to_numpy(), c, p, there, use, given))
    return folds


def _known(cells: Populations, fold: _Fold, described: np.ndarray | None) -> Known:
    """Means of what may be learned from."""
    means = _means(cells, fold.use)
    treated = np.where(fold.seen[..., None], means[:, 1:], np.nan)
    # A context without controls cannot be moved from.
    control = means[:, 0]
    treated[~np.isfinite(control[:, 0])] = np.nan
    return Known(np.where(np.isfinite(control), control, 0), treated, described)


def _means(cells: Populations, use: np.ndarray, label: np.ndarray | None = None) -> np.ndarray:
    """Means of the cells that are used, contexts x (controls and perturbations) x genes; NaN of no cells."""
    n, label = len(cells.perturbations) + 1, cells.label if label is None else label
    code = np.where(use, cells.context * n + label, -1)
    return mean_of(cells.expression, code, len(cells.contexts) * n).reshape(len(cells.contexts), n, -1)


def _mean_change(change: np.ndarray) -> np.ndarray:
    known = np.isfinite(change[..., :1])
    n = known.sum(axis=0)
    total = np.where(known, change, 0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = total / np.where(n > 0, n, np.nan)
    return np.where(n > 0, mean, total.sum(axis=0) / max(n.sum(), 1))


def _alike(cells: Populations, fold: _Fold, held_out: str, seed: int) -> np.ndarray:
    """Of each context and perturbation, the share of the nearest controls that each context has, contexts x perturbations x contexts.

    Neighbours are sought among the contexts that the perturbation is known of.
    """
    n, n_perturbations = len(cells.contexts), len(cells.perturbations)
    weights = np.zeros((n, n_perturbations, n))
    stream = np.random.default_rng([seed, 1])
    pool, of = [], []
    for c in range(n):
        rows = stream.permutation(np.flatnonzero((cells.context == c) & (cells.label == 0) & fold.use))[
            :_MOST
        ]
        pool.append(rows)
        of.append(np.full(len(rows), c))
    pool, of = np.concatenate(pool), np.concatenate(of)
    found: dict[bytes, np.ndarray] = {}
    for c, p in zip(fold.context, fold.perturbation, strict=True):
        known = fold.seen[:, p] & ((np.arange(n) != c) | (held_out == "cells"))
        # The same for all perturbations that are known of the same contexts.
        key = known.tobytes() + bytes(f"|{c}", "ascii")
        if key not in found:
            candidates = np.flatnonzero(known[of])
            if not len(candidates):
                continue
            own = np.flatnonzero((cells.context == c) & fold.given)
            others = pool[candidates]
            near = _nearest_in(cells.embedding[own], cells.embedding[others], min(_NEIGHBORS, len(others)))
            found[key] = np.bincount(of[candidates][near].ravel(), minlength=n) / near.size
        weights[c, p] = found[key]
    return weights


def _nearest_in(X: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """Rows of `others` that are nearest to each of `X`."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k).fit(others).kneighbors(X, return_distance=False)


def _learned(adata, cells, fold, known, start, columns, descriptors, layer, recipe, seed) -> np.ndarray:
    """Means that a transformer predicts which was trained on the fold."""
    from ..train.response import response

    perturbation_key, control, groupby, use_rep = columns
    use = np.zeros(adata.n_obs, dtype=bool)
    use[cells.rows[fold.use]] = True
    # The folder goes again: checkpoints would be of no use.
    recipe = replace(recipe, run=replace(recipe.run, save_every=recipe.optimization.max_steps))
    with tempfile.TemporaryDirectory() as folder, hidden():
        model = response(
            adata,
            folder,
            perturbation_key=perturbation_key,
            control=control,
            groupby=groupby,
            use_rep=use_rep,
            train=use,
            descriptors=descriptors,
            layer=layer,
            recipe=recipe,
        )
    found = np.full(known.treated.shape, np.nan)
    for c, p in zip(fold.context, fold.perturbation, strict=True):
        own = cells.embedding[(cells.context == c) & fold.given]
        found[c, p] = start[c] + model.predict(own, cells.perturbations[p], seed=seed)
    return found


def _exchanged(cells: Populations, half: np.ndarray, held_out: str, seed: int) -> Iterator[np.ndarray]:
    """Means of controls and treated cells when labels are exchanged within contexts; see `_means`."""
    stream = np.random.default_rng([seed, 2])
    use = (half == 0) | (held_out != "cells")
    order = np.argsort(cells.context, kind="stable")
    for _ in range(_N_NULL):
        # Sorted by context, then at random: labels move within a context.
        mixed = np.lexsort((stream.random(len(order)), cells.context))
        label = np.empty_like(cells.label)
        label[order] = cells.label[mixed]
        yield _means(cells, use, label)


def _score(cells, populations, half, given, methods, donor, seed) -> tuple[pd.DataFrame, list[Truth]]:
    """Scores of every method on every population, and what is true of each."""
    wanted = score_names(TOP)
    of = populations["c"].to_numpy(), populations["p"].to_numpy() + 1
    guesses = {**methods, CEILING: _means(cells, half == 0)[of]}
    true = _means(cells, half == 1)[of]
    rows, truths = [], []
    for i, about in enumerate(progress(list(populations.itertuples()), desc="Scoring", unit="population")):
        at = np.flatnonzero((cells.context == about.c) & np.isin(cells.label, (0, about.p + 1)) & (half == 1))
        code = (cells.label[at] > 0).astype(int)
        weights = draw_weights(None if donor is None else donor[at], code, _N_BOOTSTRAP, seed)
        mean, t, variance = moments(cells.expression[at], code, 2, weights)
        peers = true[(populations["c"] == about.c).to_numpy()]
        # With a single perturbation its mean is its own.
        common = peers.mean(axis=0, keepdims=True) if len(peers) > 1 else None
        truth = Truth(mean[:, 1], mean[:, 0], t[:, 0], common, variance[0])
        truths.append(Truth(mean[:1, 1], mean[:1, 0], t[:1, 0], common, variance[0]))
        key = {"context": about.context, "perturbation": about.perturbation}
        for method, guess in guesses.items():
            if np.isfinite(guess[i]).all():
                found = score_response(guess[i].astype(np.float64), truth, TOP, given=given[i])
                found = {s: as_interval(s, found[s]) for s in wanted}
            else:
                found = dict.fromkeys(wanted, dict.fromkeys(("value", "low", "high"), np.nan))
            rows += [{**key, "method": method, "score": s, **found[s]} for s in wanted]
    return pd.DataFrame([*rows, *_told(populations, true, guesses)]), truths


def _score_null(cells, populations, folds, given, truths, exchanged: Iterator[np.ndarray]) -> pd.DataFrame:
    """Scores of the perturbation mean of exchanged labels, a row a population and draw."""
    rows = []
    about = populations[["context", "perturbation"]].to_dict("records")
    for number, means in enumerate(progress(exchanged, total=_N_NULL, desc="Exchanging", unit="draw")):
        for fold in folds:
            change = np.where(fold.seen[..., None], means[:, 1:] - means[:, :1], np.nan)
            effect = _mean_change(change)
            for i, p in zip(fold.rows, fold.perturbation, strict=True):
                found = score_response(given[i] + effect[p], truths[i], TOP, given=given[i])
                rows.append({**about[i], "draw": number, **{s: values[0] for s, values in found.items()}})
    return pd.DataFrame(rows)


def _told(populations: pd.DataFrame, treated: np.ndarray, guesses) -> list[dict[str, Any]]:
    """Whether each prediction is nearer to its own perturbation than to the others of the context."""
    rows = []
    for _, part in populations.groupby("c"):
        at = part.index.to_numpy()
        if len(at) < 2:
            continue
        for method, guess in guesses.items():
            if not np.isfinite(guess[at]).all():
                continue
            told = discrimination(guess[at].astype(np.float64), treated[None, at])[0]
            rows += [
                {
                    "context": about.context,
                    "perturbation": about.perturbation,
                    "method": method,
                    "score": "discrimination",
                    "value": value,
                    "low": np.nan,
                    "high": np.nan,
                }
                for about, value in zip(part.itertuples(), told, strict=True)
            ]
    return rows


def _summary(scores: pd.DataFrame, drawn: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Means over units, and how far each method is ahead of the perturbation mean."""
    by_unit = scores.groupby(["method", "score", unit], sort=False)["value"].mean().unstack(unit)
    reference = by_unit.xs(REFERENCE, level="method")
    rows = []
    for (method, score), values in by_unit.iterrows():
        lead = values - reference.loc[score]
        kind = "baseline" if method in BASELINES else "ceiling" if method == CEILING else "way"
        value, low, high, _ = _over_units(values)
        difference, difference_low, difference_high, p_value = _over_units(lead)
        rows.append(
            {
                "method": method,
                "kind": kind,
                "score": score,
                "value": value,
                "low": low,
                "high": high,
                "difference": difference,
                "difference_low": difference_low,
                "difference_high": difference_high,
                "p_value": p_value if kind == "way" else np.nan,
                "n_units": int(values.notna().sum()),
            }
        )
    names = [name for name in drawn.columns if name not in ("context", "perturbation", "draw")]
    of_draw = drawn.groupby(["draw", unit])[names].mean().groupby(level="draw").mean()
    for score in names:
        values = of_draw[score].dropna()
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
        rows.append(
            {
                "method": NULL,
                "kind": "null",
                "score": score,
                "value": values.mean(),
                "low": low,
                "high": high,
                "difference": values.mean() - reference.loc[score].mean(),
                "n_units": by_unit.shape[1],
            }
        )
    table = pd.DataFrame(rows)
    q_values = table.groupby("score")["p_value"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
    table.insert(table.columns.get_loc("p_value") + 1, "q_value", q_values)
    return table


def _over_units(values: pd.Series) -> tuple[float, float, float, float]:
    """Mean with its t interval, and the p value of a mean of 0; NaN for fewer than three units."""
    values = values.dropna().to_numpy()
    n = len(values)
    mean = values.mean() if n else np.nan
    if n < 3:
        return mean, np.nan, np.nan, np.nan
    error = values.std(ddof=1) / np.sqrt(n)
    reach = stats.t.ppf(0.975, n - 1) * error
    # A way that comes down to the reference, as the additive one does for a new context, is not tested.
    same = np.abs(values).max() < _SAME
    p_value = np.nan if same else float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else 0.0
    return mean, mean - reach, mean + reach, p_value
