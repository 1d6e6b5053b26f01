"""Is a cell one cell? A detector trained on simulated doublets, for cells of droplets and for generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._progress import progress
from .._validate import require_rank, require_tokens
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel
from ..pp._columns import find_donors
from ..pp._design import get_labels, known_cells
from ..pp._doublets import add_counts, draw_pairs, merge_ranks
from ..pp._ranked_counts import has_counts, ranked_counts, source_of
from ..pp.rank_value_encode import rank_value_encode
from ..pp.simulate_doublets import DoubletSimulation, read_codes, require_types
from ..results.store import is_ours, require_free, write_result
from ..stats.binary_scores import at_odds, auroc_ap, bootstrap_weights, calibration_error
from ..stats.doublet_features import features as describe
from ..stats.doublet_features import size_features
from ..stats.expression import log_normalize
from ._cells import get_sequences, get_tokens, match_columns
from ._rank_features import rank_features

FEATURES = ("embedding", "ranks", "expression", "size")
OF_RANKS = ("embedding", "ranks")
N_FOLDS = 5
MIN_CELLS = 50
N_TREES = 120
HIDDEN = 5  # one in so many simulated doublets is hidden among scrublet's cells
N_DRAWS = 500


def doublets(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    queries: AnnData | None = None,
    groupby: str | None = None,
    donor_key: str | None = None,
    truth_key: str | None = None,
    features: Sequence[str] | None = None,
    simulation: DoubletSimulation | None = None,
    expected_rate: float = 0.05,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Tell doublets from cells, and score the detector beside scrublet.

    Cells are told from doublets that are simulated from them. Every cell is judged by a detector that neither
    it nor any cell of its donor had a part in.

    Parameters
    ----------
    adata
        Rank-encoded cells with raw counts, taken as singlets; doublets among them are few, and weaken the
        detector.
    model
        Model, with or without temporal training.
    queries
        Other rank-encoded cells to judge, e.g. generated ones (`mt.tl.generate`). Cells without counts are
        judged by ranks alone.
    groupby
        Column of `.obs` with the cell type, which doublets of one type are told by.
    donor_key
        Column of `.obs` with the donor (or sample), guessed from the names in `.obs`: doublets are of one
        donor. From three donors on, folds,
        intervals and the null are by donor, else by cell.
    truth_key
        Column of `.obs` with what is known: boolean (true for a doublet) or "singlet" and "doublet" in any
        case, anything else for not known. Used for scoring only.
    features
        Some of "embedding", "ranks", "expression" and "size" (see Notes); by default all that `adata` and
        `queries` have.
    simulation
        How doublets are simulated: `mt.pp.DoubletSimulation(kind="ranks")` for cells without counts. The
        counts are those that were ranked.
    expected_rate
        Share of doublets that is expected (0-1). It turns scores into probabilities and changes no order.
    rng
        Seed of simulation, folds, fits, null and bootstrap.
    key_added
        Key in `.uns`, by default "doublets".

    Returns
    -------
    `None`. Writes the columns `doublet_probability` and `doublet` of `.obs`, the probability of being a
    doublet at the expected rate and whether it is above one half, and to `.uns["doublets"]` the tables

    `cells`
        A row a cell, simulated doublet and query:

        `cell`, `population`
            Its name, and whether it is one of the "cells", "doublets" (simulated) or "queries".
        `pair`
            "same type", "cross type", or "any" where no types are known; of doublets.
        `fold`
            Which fold's detector, trained on the others, judged it; NaN for queries, which all judged.
        `score`, `probability`
            Probability of being a doublet at even odds, and at the expected rate.
        `scrublet_hidden`
            scrublet's score, with a fifth of the doublets hidden among the cells.
        `truth`, `scrublet`
            What is known of the cell, and scrublet's score of the cells as they are; with a truth.
        `donor`
            With folds of donors.

    `scores`
        A row a set of doublets and detector:

        `set`, `doublets`
            "simulated" (held out) or "truth"; "all", "same type" or "cross type".
        `detector`
            "detector", "scrublet", or "permuted labels", the null.
        `auroc`, `average_precision`
            Areas under the ROC and the precision-recall curve, with `_low` and `_high`, 95% bootstrap
            intervals over `unit`s. Simulated ones are those hidden from both; `rate` is the share of
            doublets, which is the average precision of chance.
        `auroc_lead`, `average_precision_lead`
            By how much the detector is ahead of the row's, from the same draws.
        `calibration_error`, `brier`
            Mean distance of probability and share of doublets over ten bins, and mean squared error; at even
            odds on all held-out doublets of the kind, at the expected rate on the truth. NaN for scrublet,
            which gives no probabilities.
        `rate`, `n_cells`, `n_doublets`, `n_units`, `unit`
            What was compared.

    `singlets`
        A row a population:

        `population`
            "cells", "same-type doublets" and "cross-type doublets" (or "doublets") and "queries".
        `singlet_fraction`, `ci_low`, `ci_high`
            Share that looks more like a cell than like a doublet (at even odds), with its 95% interval:
            bootstrap over donors, Wilson's over cells where no donors are known.
        `called_singlet`
            Share that is not called a doublet at the expected rate.
        `n_cells`, `n_units`, `unit`
            Cells, and units of the interval.

    Raises
    ------
    KeyError
        If a column or the ranks are missing.
    ValueError
        If the counts are no raw counts, there are fewer than 50 cells, no two cells can meet in some fold,
        queries have names of cells, or features are asked for that the cells do not have.

    Notes
    -----
    ``embedding``, ``ranks``, ``expression``
        Spaces in which neighbours are looked for: the model's embedding (standardised); the ranks that the
        model reads, and the log-normalised counts (to 10,000 a cell), both of the 2,000 most variable genes
        in 30 principal directions. From each, the shares of simulated doublets among the nearest 5, 15 and 50
        (as scrublet takes them), the same weighted by nearness, and the score of a ridge regression.
    ``size``
        Counts and genes of the cell (logarithms), and by how much they are above those of the nearest cells:
        what tells two cells of one type from one.

    There are five folds of cells (or donors), and doublets are simulated within each. For each pair of folds
    the spaces, neighbours and regressions are of the other three alone. A fold is judged by a gradient
    boosting (scikit-learn) that was trained on the other folds, each of them described without itself and
    without the judged one: what is seen in training is as unseen as what is judged, which keeps probabilities
    calibrated. Queries are judged by all of these, on average.

    scrublet is `scanpy.pp.scrublet` as it is, on all cells together. It knows its own simulated doublets
    only, so a fifth of those simulated here are hidden among the cells for it, and both are scored on these.
    The null permutes within folds who is a doublet, before anything is trained; its areas are those of one
    permutation, around 0.5.

    Doublets that are simulated are easier to tell than real ones, which differ from them in more than is
    known: scores on those held out are an upper bound, and so is the calibration. With a truth both are
    scored side by side.

    Scores are probabilities at even odds. At a low expected rate few cells are called although many more look
    like doublets: the fraction of singlets is counted at even odds, for cells, simulated doublets and queries
    alike.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:100].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.doublets(adata, model, groupby="cell_type", features=["expression", "size"])
    >>> mt.get.table(adata, "doublets", "singlets")["population"].tolist()
    ['cells', 'same-type doublets', 'cross-type doublets']
    """
    if not any(is_ours(adata, name) and "n_doublets" in adata.uns[name]["params"] for name in adata.uns):
        require_free(adata, _keys.DOUBLETS, [_keys.DOUBLET_PROBABILITY, _keys.DOUBLET])
    require_rank(adata)
    require_tokens(adata)
    simulation = simulation or DoubletSimulation()
    require_types(groupby, simulation.same_type)
    if not 0 < expected_rate < 1:
        raise ValueError(f"expected_rate must be between 0 and 1, got {expected_rate}.")
    donor_key = find_donors(adata.obs, donor_key)
    cells, rows = known_cells(adata, groupby, donor_key)
    if queries is not None and donor_key in queries.obs:
        queries, _ = known_cells(queries, donor_key)
    if cells.n_obs < MIN_CELLS:
        raise ValueError(f"{cells.n_obs} cells are too few to learn from; at least {MIN_CELLS} are needed.")
    used = _choose_features(features, simulation.kind, queries)
    if groupby is not None and simulation.same_type is None:
        simulation = replace(simulation, same_type=0.5)
    truth = None if truth_key is None else _read_truth(cells, truth_key)

    # In the order of their names, so that no result depends on the order they come in.
    order = np.argsort(cells.obs_names.to_numpy(dtype=str), kind="stable")
    donor, donor_names = read_codes(cells, donor_key)
    donor = None if donor is None else donor[order]
    by_donor = donor is not None and len(donor_names) >= 3
    fold = _folds(donor if by_donor else np.arange(cells.n_obs), rng)
    types, _ = read_codes(cells, groupby)
    first, second = draw_pairs(
        cells.obs_names.to_numpy(dtype=str)[order],
        fold if donor is None else fold * (donor.max() + 1) + donor,
        None if types is None else types[order],
        simulation.n_doublets or cells.n_obs,
        same_type=simulation.same_type,
        seed=rng,
    )
    counts, first, second, simulated = _simulate(cells, model, order, first, second, simulation, rng)
    items = _Items(
        is_doublet=np.repeat([0, 1], [cells.n_obs, len(first)]),
        fold=np.concatenate([fold, fold[first]]),
        donor=np.concatenate([donor, donor[first]]) if by_donor else None,
        same=np.zeros(len(first), dtype=bool)
        if types is None
        else (types[order][first] == types[order][second]),
        hidden=np.arange(len(first)) % HIDDEN == 0,
    )
    if len(np.unique(fold[first])) < fold.max() + 1:
        raise ValueError(
            "In some of the folds no two cells can meet, since donors (or types) have too few cells. Drop the small "
            "ones, or leave out donor_key or same_type."
        )
    spaces, size = _spaces(cells, simulated, queries, model, used, order, counts)
    score, null, label_null, asked = _cross_fit(spaces, size, items, rng)

    scrublet, scrublet_hidden = np.full((2, len(score)), np.nan)
    n = cells.n_obs
    if simulation.kind == "counts":
        hidden = n + np.flatnonzero(items.hidden)
        among = np.concatenate([np.arange(n), hidden])
        scrublet_hidden[among] = _scrublet(counts[among], rng)
        if truth is not None:
            scrublet[:n] = _scrublet(counts[:n], rng)
    known = None if truth is None else truth[order]
    table = _cell_table(cells, order, items, known, score, scrublet, scrublet_hidden, types is not None)
    if queries is not None:
        asked = pd.DataFrame({"cell": queries.obs_names.to_numpy(), "population": "queries", "score": asked})
        if by_donor and donor_key in queries.obs:
            asked["donor"] = get_labels(queries, donor_key)
        table = pd.concat([table, asked], ignore_index=True)
    if items.donor is not None:
        table.loc[: len(score) - 1, "donor"] = donor_names[items.donor]
    table["probability"] = at_odds(table["score"].to_numpy(), expected_rate)
    for column in {"donor", "pair", "truth"} & set(table):
        table[column] = table[column].fillna("")

    probability = np.full(adata.n_obs, np.nan)
    probability[rows[order]] = table["probability"].to_numpy()[:n]
    adata.obs[_keys.DOUBLET_PROBABILITY] = probability
    adata.obs[_keys.DOUBLET] = probability > 0.5
    params = {
        "kind": simulation.kind,
        "features": list(used),
        "groupby": groupby,
        "same_type": simulation.same_type,
        "donor_key": donor_key,
        "truth_key": truth_key,
        "folds": "donors" if by_donor else "cells",
        "n_folds": int(fold.max()) + 1,
        "capture": [float(x) for x in simulation.capture],
        "expected_rate": float(expected_rate),
        "layer": source_of(adata, None)[0] or "X",
        "seed": rng,
        "n_cells": n,
        "n_left_out": adata.n_obs - n,
        "n_doublets": len(first),
        "n_without_genes": (simulation.n_doublets or n) - len(first),
    }
    write_result(
        adata,
        _keys.DOUBLETS,
        {**model.params, **params},
        key_added=key_added,
        cells=table,
        scores=_score_table(table, null, label_null, items, expected_rate, rng),
        singlets=_singlet_table(table, rng),
    )


class _Items(NamedTuple):
    """Cells, then simulated doublets."""

    is_doublet: np.ndarray
    """1 for doublets; items."""
    fold: np.ndarray
    """items."""
    donor: np.ndarray | None
    """items; `None` where cells are the units."""
    same: np.ndarray
    """Whether both cells are of one type; doublets."""
    hidden: np.ndarray
    """Whether scrublet is given it; doublets."""


def _choose_features(features: Sequence[str] | None, kind: str, queries: AnnData | None) -> tuple[str, ...]:
    """Features to use: those asked for, or all that cells and queries have."""
    if unknown := sorted(set(features or ()) - set(FEATURES)):
        raise ValueError(f"There are no features {unknown[0]!r}; choose from {', '.join(FEATURES)}.")
    counted = queries is None or has_counts(queries)
    able = FEATURES if kind == "counts" and counted else OF_RANKS
    if not features:
        return able
    if missing := [name for name in features if name not in able]:
        who = "The queries have" if kind == "counts" else "Doublets of ranks have"
        raise ValueError(f"{who} no counts, so {missing[0]!r} is not known. Choose from {', '.join(able)}.")
    used = tuple(name for name in FEATURES if name in features)
    if used == ("size",):
        raise ValueError(
            "'size' alone has no neighbours to compare with. Add 'expression', or other features."
        )
    return used


def _read_truth(adata: AnnData, key: str) -> np.ndarray:
    """1 for doublets, 0 for singlets, -1 for not known."""
    column = adata.obs[key]
    if pd.api.types.is_bool_dtype(column):
        return column.astype(object).map({True: 1, False: 0}).fillna(-1).to_numpy(dtype=int)
    truth = column.astype(str).str.lower().map({"singlet": 0, "doublet": 1}).fillna(-1).to_numpy(dtype=int)
    if not {0, 1} <= set(truth):
        raise ValueError(
            f".obs[{key!r}] must be boolean, or name both 'singlet' and 'doublet'; it has "
            f"{sorted(column.astype(str).unique())[:5]}."
        )
    return truth


def _folds(unit: np.ndarray, seed: int) -> np.ndarray:
    """Fold of each cell: units in random order, dealt out one by one."""
    n = unit.max() + 1
    fold = np.empty(n, dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(n)] = np.arange(n) % min(N_FOLDS, n)
    return fold[unit]


def _simulate(adata, model, order, first, second, simulation: DoubletSimulation, seed: int):
    """Counts of cells and doublets, the pairs that are left, and the doublets, rank-encoded."""
    uns = {key: adata.uns[key] for key in (_keys.MAP_GENES, _keys.ENCODING) if key in adata.uns}
    if simulation.kind == "ranks":
        ranks = merge_ranks(sp.csr_matrix(adata.layers[_keys.RANK])[order], first, second)
        obs = pd.DataFrame({_keys.N_RANKED: np.diff(ranks.indptr)}, index=_names(len(first)))
        return None, first, second, AnnData(obs=obs, var=adata.var, layers={_keys.RANK: ranks}, uns=uns)
    counts = ranked_counts(adata, whole=True)[order].astype(np.float32)
    made = add_counts(counts, first, second, simulation.shares(len(first), seed), seed=seed)
    # A doublet of small cells may have lost all genes that the model knows.
    token = get_tokens(adata, model)
    known = (token >= 0) & ~np.isnan(model.vocab.median_of_token[token])
    left = made @ known.astype(np.float32) > 0
    first, second, made = first[left], second[left], made[left]
    # Names of genes need not be unique to be encoded.
    var = adata.var.set_axis(np.arange(adata.n_vars).astype(str))
    simulated = AnnData(made, obs=pd.DataFrame(index=_names(len(first))), var=var, uns=uns)
    rank_value_encode(simulated, model)
    return sp.vstack([counts, made], format="csr"), first, second, simulated


def _names(n: int) -> list[str]:
    return [f"doublet_{i}" for i in range(n)]


def _spaces(adata, simulated, queries, model, used, order, counts):
    """What neighbours are looked for in, and sizes: cells, doublets, queries."""
    others = [simulated] if queries is None else [simulated, queries]
    if queries is not None:
        if len(both := queries.obs_names.intersection(adata.obs_names)):
            raise ValueError(
                f"{len(both)} queries have the name of a cell (first: {both[0]!r}). Queries must be other cells."
            )
    spaces = {}
    if "embedding" in used:
        settings = adata.uns.get(_keys.EMBED, {}).get("params", {})
        how = {"layer": int(settings.get("layer", -1)), "pool": str(settings.get("pool", "mean"))}
        if settings.get("model_sha256") == model.identity and _keys.EMBEDDING in adata.obsm:
            own = np.asarray(adata.obsm[_keys.EMBEDDING])
        else:
            own = embed_sequences(model, get_sequences(adata, model), **how).cells
        rest = [embed_sequences(model, get_sequences(other, model), **how).cells for other in others]
        spaces["embedding"] = np.vstack([own[order], *rest])
    if "ranks" in used:
        parts = [rank_features(adata, model)[order], *(rank_features(other, model) for other in others)]
        spaces["ranks"] = sp.vstack(parts, format="csr")
    if {"expression", "size"} & set(used):
        if queries is not None:
            columns = match_columns(queries, adata.var_names)
            asked = ranked_counts(queries, whole=True)[:, columns].astype(np.float32)
            counts = sp.vstack([counts, asked], format="csr")
        if "expression" in used:
            spaces["expression"] = log_normalize(counts)
    return spaces, size_features(counts) if "size" in used else None


def _cross_fit(spaces, size, items: _Items, seed: int):
    """Scores at even odds of cells and doublets; those and the labels of the null; scores of queries."""
    n = len(items.fold)
    n_queries = next(iter(spaces.values())).shape[0] - n
    rng = np.random.default_rng(seed)
    permuted = items.is_doublet.copy()
    folds = range(items.fold.max() + 1)
    for f in folds:
        permuted[items.fold == f] = rng.permutation(permuted[items.fold == f])
    labels = np.zeros((2, n + n_queries), dtype=np.int8)
    labels[:, :n] = items.is_doublet, permuted
    is_cell = np.append(items.is_doublet == 0, np.zeros(n_queries, dtype=bool))
    rows = [np.flatnonzero(items.fold == f) for f in folds]
    asked = np.arange(n, n + n_queries)

    described = {}
    for f, g in progress(list(combinations(folds, 2)), desc="Looking for neighbours", unit="pair of folds"):
        reference = np.flatnonzero((items.fold != f) & (items.fold != g))
        parts = (rows[f], rows[g], asked)
        found = describe(spaces, size, reference, np.concatenate(parts), is_cell, labels, seed=seed)
        ends = np.cumsum([len(part) for part in parts])[:-1]
        of_f, of_g, of_asked = zip(*(np.split(array, ends) for array in found), strict=True)
        described[f, g], described[g, f] = (of_f, of_asked), (of_g, of_asked)

    scores, of_queries = np.zeros((2, n)), np.zeros(n_queries)
    for f in folds:
        others = [g for g in folds if g != f]
        trained = np.concatenate([rows[g] for g in others])
        for which in range(2):
            fitted = _fit(
                np.vstack([described[g, f][0][which] for g in others]), labels[which][trained], seed
            )
            share = labels[which][trained].mean()
            judged = [_judge(fitted, described[f, g][0][which], share) for g in others]
            scores[which, rows[f]] = np.mean(judged, axis=0)
            if n_queries and which == 0:
                judged = [_judge(fitted, described[f, g][1][0], share) for g in others]
                of_queries += np.mean(judged, axis=0) / len(folds)
    return scores[0], scores[1], permuted, of_queries


def _fit(X: np.ndarray, label: np.ndarray, seed: int):
    """Boosted trees, small and slow enough to stay calibrated."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(
        max_iter=N_TREES,
        learning_rate=0.1,
        max_leaf_nodes=6,
        min_samples_leaf=20,
        l2_regularization=5,
        early_stopping=False,
        random_state=seed,
    )
    return trees.fit(X, label)


def _judge(trees, X: np.ndarray, share: float) -> np.ndarray:
    """Probabilities at even odds, after training on this share of doublets."""
    # Weights in training would say the same, but make scikit-learn's binning many times slower.
    return at_odds(trees.predict_proba(X)[:, 1], 1 - share)


def _balanced(label: np.ndarray) -> np.ndarray:
    """Weights with which both labels have one half."""
    share = label.mean()
    return np.where(label == 1, 0.5 / max(share, 1e-12), 0.5 / max(1 - share, 1e-12))


def _scrublet(counts: sp.csr_matrix, seed: int) -> np.ndarray:
    """Scanpy's scrublet, with its defaults; NaN for cells that it leaves out."""
    import scanpy as sc

    plain = AnnData(counts.copy())
    plain.obs_names = plain.obs_names.astype(str)
    # No calls are wanted, so any threshold that needs no second package will do; fewer components than cells.
    n_components = int(min(30, min(counts.shape) - 1))
    sc.pp.scrublet(plain, threshold=0.0, n_prin_comps=n_components, verbose=False, random_state=seed)
    return plain.obs["doublet_score"].to_numpy(dtype=float)


def _cell_table(adata, order, items, truth, score, scrublet, scrublet_hidden, typed) -> pd.DataFrame:
    """One row a cell or simulated doublet."""
    names = adata.obs_names.to_numpy()[order]
    n_doublets = len(items.same)
    pair = np.where(items.same, "same type", "cross type") if typed else np.full(n_doublets, "any")
    table = pd.DataFrame(
        {
            "cell": np.concatenate([names, np.array(_names(n_doublets), dtype=object)]),
            "population": np.repeat(["cells", "doublets"], [len(names), n_doublets]),
            "pair": np.concatenate([np.full(len(names), ""), pair]),
            "fold": items.fold.astype(float),
            "score": score,
            "scrublet_hidden": scrublet_hidden,
        }
    )
    if truth is not None:
        known = np.array(["", "singlet", "doublet"], dtype=object)[truth + 1]
        table["truth"] = np.concatenate([known, np.full(n_doublets, "")])
        table["scrublet"] = scrublet
    return table


def _score_table(table, null, label_null, items: _Items, rate: float, seed: int) -> pd.DataFrame:
    """Detectors on simulated doublets, all and by pair, and on known ones."""
    given = table.iloc[: len(null)]
    cell = (given["population"] == "cells").to_numpy()
    counted = given["scrublet_hidden"].notna().any()
    kinds = {"all": ~cell}
    for name in ("same type", "cross type"):
        if (given["pair"] == name).any():
            kinds[name] = (given["pair"] == name).to_numpy()
    rows = []
    for name, some in kinds.items():
        both = cell | some
        compared = cell | (some & given["scrublet_hidden"].notna().to_numpy() if counted else some)
        columns = {"detector": "score", "scrublet": "scrublet_hidden"} if counted else {"detector": "score"}
        part = _compare(given[compared], columns, some[compared], items, compared, seed)
        probability, weight = given["score"].to_numpy()[both], _balanced(some[both])
        part[0] |= _calibrated(probability, some[both], weight)
        rows += [{"set": "simulated", "doublets": name, **row} for row in part]
    permuted = given.assign(score=null)
    part = _compare(permuted, {"permuted labels": "score"}, label_null == 1, items, slice(None), seed)
    part[0] |= _calibrated(null, label_null == 1, _balanced(label_null))
    rows += [{"set": "simulated", "doublets": "all", **row} for row in part]
    if "truth" in given:
        known = given["truth"].ne("").to_numpy()
        positive = given["truth"].eq("doublet").to_numpy()[known]
        columns = {"detector": "score"} | ({"scrublet": "scrublet"} if counted else {})
        part = _compare(given[known], columns, positive, items, known, seed)
        probability = at_odds(given["score"].to_numpy()[known], rate)
        part[0] |= _calibrated(probability, positive, np.ones(known.sum()))
        rows += [{"set": "truth", "doublets": "all", **row} for row in part]
    return pd.DataFrame(rows)


def _compare(part: pd.DataFrame, columns: dict, positive, items: _Items, rows, seed: int) -> list[dict]:
    """Both areas of each detector, and what the first is ahead, with intervals from the same draws."""
    unit = None if items.donor is None else items.donor[rows]
    rng = np.random.default_rng(seed)
    weight = np.vstack(
        [np.ones((1, len(part)), np.float32), bootstrap_weights(unit, len(part), N_DRAWS, rng)]
    )
    # scrublet has no score for cells that it leaves out: they come last.
    areas = {
        name: auroc_ap(part[c].fillna(part[c].min()).to_numpy(), positive, weight)
        for name, c in columns.items()
    }
    best = next(iter(areas.values()))
    found = []
    for name, pair in areas.items():
        row = {"detector": name}
        for measure, own, ahead in zip(("auroc", "average_precision"), pair, best, strict=True):
            for key, values in ((measure, own), (f"{measure}_lead", ahead - own)):
                row[key] = values[0]
                row[f"{key}_low"], row[f"{key}_high"] = np.nanquantile(values[1:], [0.025, 0.975])
        row |= {"calibration_error": np.nan, "brier": np.nan, "rate": positive.mean()}
        row |= {"n_cells": int((~positive).sum()), "n_doublets": int(positive.sum())}
        row |= {"n_units": len(part) if unit is None else len(np.unique(unit))}
        found.append(row | {"unit": "cell" if unit is None else "donor"})
    return found


def _calibrated(probability: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> dict:
    """Expected calibration error and Brier score."""
    brier = np.average((probability - positive) ** 2, weights=weight)
    return {"calibration_error": calibration_error(probability, positive, weight), "brier": float(brier)}


def _singlet_table(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Share of singlets in each population, with its interval."""
    from scipy.stats import binomtest

    name = table["population"].to_numpy(dtype=object)
    kinds = {"same type": "same-type doublets", "cross type": "cross-type doublets"}
    name = np.where(table["pair"].isin(kinds), table["pair"].map(kinds), name)
    rows = []
    for population in dict.fromkeys(["cells", *kinds.values(), *name]):
        if not (some := name == population).any():
            continue
        part = table[some]
        single = (part["score"] < 0.5).to_numpy()
        by_donor = "donor" in part and part["donor"].ne("").all()
        if by_donor:
            weight = bootstrap_weights(
                part["donor"].to_numpy(dtype=str), len(part), N_DRAWS, np.random.default_rng(seed)
            )
            total = weight.sum(axis=1)
            low, high = np.quantile((weight @ single)[total > 0] / total[total > 0], [0.025, 0.975])
        else:
            low, high = binomtest(int(single.sum()), len(single)).proportion_ci(method="wilson")
        rows.append(
            {
                "population": population,
                "singlet_fraction": single.mean(),
                "ci_low": low,
                "ci_high": high,
                "called_singlet": (part["probability"] <= 0.5).mean(),
                "n_cells": len(part),
                "n_units": part["donor"].nunique() if by_donor else len(part),
                "unit": "donor" if by_donor else "cell",
            }
        )
    return pd.DataFrame(rows)
