"""Hold out the intervals of time in which genes turn over: what no line through the other times can tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._validate import require_rank
from ..results.store import write_obs, write_result
from ..stats.fdr import benjamini_hochberg
from ..stats.turnover import rank_scores, sample_means, two_lines
from ._columns import find_columns
from ._design import as_list, get_groups, get_labels, get_times, known_cells
from .hold_out import hold_out
from .parse_age import time_in_numbers

_MIN_SAMPLES = 6
# Genes are tested in groups where this share of the cells expresses them: ranks of rarer ones are mostly
# ties.
MIN_SHARE = 0.1
# False discovery rate at which a gene counts as turning.
ALPHA = 0.05


def holdout_intervals(
    adata: AnnData,
    *,
    time_key: str | None = None,
    intervals: int | Sequence[tuple[int, int]] = 1,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    n_bins: int = 8,
    n_permutations: int = 19,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Find the intervals of time in which most genes turn over, and hold them out of training.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    time_key
        Column of `.obs` with the time, in whole units (hours, months, pseudotime * 100); guessed from the
        names in `.obs` and said, as is the donor.
    intervals
        How many to hold out, those with most turning genes; 0 to look only. Or the intervals (first, last)
        themselves.
    groupby
        Columns of `.obs`: genes are tested within each group. Intervals are held out in all groups.
    donor_key
        Column of `.obs` with the donor. The donors' means are then tested, and cells without it.
    n_bins
        Intervals that time is cut into, with as many samples each; a course of at most so many times is not
        cut.
    n_permutations
        Permutations of the samples' times: how many genes turn where time means nothing.
    rng
        Seed of the permutations.
    key_added
        Key in `.uns`, by default "holdout_intervals".

    Returns
    -------
    `None`. Writes the boolean columns of `.obs` that `mt.pp.hold_out` writes, with the cells inside the
    intervals in `held_out_times`, and to `.uns["holdout_intervals"]` the tables

    `intervals`
        A row an interval and group:

        `group`, `first`, `last`
            Group of cells, and the interval's first and last time.
        `n_turning`, `n_peak`, `n_dip`
            Genes that turn over there (controlled over all genes, intervals and groups), and in which
            direction.
        `n_turning_null`
            Mean number where the samples' times are permuted.
        `p_value`
            Share of permutations with as many turning genes in any interval of any group.
        `n_cells`, `n_samples`
            Cells in the interval, and donors at a time (or cells, where donors are not known).
        `held_out`
            Whether it is held out.

    `genes`
        Genes that turn over, a row a gene, interval and group, surest first: `gene` (`.var_names`), `group`,
        `first`, `last`, `direction` ("peak" or "dip"), `slope_before` and `slope_after` (share of the cell's
        ranks per unit of time), `p_value` (two lines, t tests) and `q_value` (Benjamini and Hochberg).

    Raises
    ------
    ValueError
        If an interval has no times on both sides, there are too few samples, or intervals are asked for and
        no gene turns over in enough of them.

    Notes
    -----
    A gene turns in an interval if its slopes up to the interval's end and from the interval's beginning
    differ from 0 with opposite signs: the two-lines test (Simonsohn, Advances in Methods and Practices in
    Psychological Science 2018) on a gene's rank within the cell, of donors' means at each time or of cells.
    Genes that a tenth of a group's cells express are tested. Benjamini and Hochberg's correction is over all
    genes, intervals and groups together, and a gene counts as turning from a false discovery rate of 5% on.
    The first and the last interval cannot be tested.

    Only cells inside the intervals are held out; to hold out donors as well, give the intervals that were
    found to `mt.pp.hold_out(..., times=adata.uns["hold_out"]["params"]["times"])`. The intervals are chosen
    with all cells, those that are then held out among them: this finds hard cases, and tells a model nothing
    about them.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("myoblast_timecourse")
    >>> mt.pp.rank_value_encode(adata, mt.load_model("demo"), force=True)
    >>> mt.pp.holdout_intervals(adata, time_key="Hours", n_permutations=1)
    >>> mt.get.table(adata, "holdout_intervals")["first"].tolist()
    [24, 48]
    """
    require_rank(adata)
    columns = find_columns(adata.obs, optional=("donor_key",), time_key=time_key, donor_key=donor_key)
    time_key, donor_key = time_in_numbers(adata, columns["time_key"], "months"), columns["donor_key"]
    cells, rows = known_cells(adata, time_key, groupby, donor_key)
    time = get_times(cells, time_key)
    group, names = get_groups(cells, groupby)
    chosen = None if isinstance(intervals, int) else [(int(a), int(b)) for a, b in intervals]
    # A sample is a donor at a time, or a cell where donors are not known.
    donor = np.arange(cells.n_obs)
    if donor_key is not None:
        donor = pd.factorize(get_labels(cells, donor_key), sort=True)[0]
    candidates = _cut(time, donor, n_bins) if chosen is None else chosen
    for first, last in candidates:
        if not (time < first).any() or not (time > last).any():
            raise ValueError(
                f"No cell has a time before and after {first} to {last}: .obs[{time_key!r}] is from {time.min()} to "
                f"{time.max()}. A turn needs both sides."
            )
    if not candidates or (isinstance(intervals, int) and intervals > len(candidates)):
        raise ValueError(
            f"Cannot hold out {intervals} intervals: of {len(np.unique(time))} times, {len(candidates)} intervals have times "
            "on both sides."
        )
    scores = rank_scores(sp.csr_matrix(cells.layers[_keys.RANK]))
    parts = []
    for code, name in enumerate(names):
        mine = np.flatnonzero(group == code)
        part = _samples(scores[mine], time[mine], donor[mine])
        if len(part["time"]) >= _MIN_SAMPLES:
            parts.append((name, part))
    if not parts:
        raise ValueError(
            f"No group has {_MIN_SAMPLES} samples ({'cells' if donor_key is None else 'donors at a time'}) to test."
        )
    candidates = list(dict.fromkeys(candidates))
    tests, q_value = _test(parts, candidates)
    found = _table(parts, candidates, tests, q_value < ALPHA)
    generator = np.random.default_rng(rng)
    null = []
    for _ in range(n_permutations):
        for _, part in parts:
            part["order"] = generator.permutation(len(part["time"]))
        shuffled, q_null = _test(parts, candidates)
        null.append(_table(parts, candidates, shuffled, q_null < ALPHA)["n_turning"].to_numpy())
    found["n_turning_null"] = np.mean(null, axis=0) if null else np.nan
    # Against the most of any interval: the best of several is looked for.
    most = np.max(null, axis=1)[:, None] if null else np.zeros((0, 1))
    at_least = (most >= found["n_turning"].to_numpy()).sum(axis=0)
    found["p_value"] = (1 + at_least) / (n_permutations + 1) if null else np.nan
    found = _describe(found, time, donor, group, names)
    if chosen is None:
        chosen = _most(found, intervals)

    found["held_out"] = [(a, b) in chosen for a, b in zip(found["first"], found["last"], strict=True)]
    _hold_out(adata, rows, time_key, time, donor, chosen)
    genes = _genes(parts, candidates, tests, q_value, adata.var_names)
    turning = genes[q_value < ALPHA].sort_values("q_value", kind="stable")
    params = {
        "time_key": time_key,
        "groupby": as_list(groupby),
        "donor_key": donor_key,
        "unit": "cell" if donor_key is None else "donor at a time",
        "test": "two lines, t tests; Benjamini-Hochberg over genes, intervals and groups",
        "n_tests": len(q_value),
        "min_share": MIN_SHARE,
        "alpha": ALPHA,
        "n_permutations": n_permutations,
        "seed": rng,
    }
    write_result(
        adata,
        _keys.HOLDOUT_INTERVALS,
        params,
        key_added=key_added,
        intervals=found,
        genes=turning.reset_index(drop=True),
    )


def _cut(time: np.ndarray, donor: np.ndarray, n_bins: int) -> list[tuple[int, int]]:
    """Intervals that have others on both sides, with equally many samples in each."""
    if n_bins < 3:
        raise ValueError(
            f"n_bins must be at least 3, for an interval with others on both sides; got {n_bins}."
        )
    distinct = np.unique(time)
    if len(distinct) <= n_bins:
        starts = distinct
    else:
        samples = np.unique(np.stack([time, donor], axis=1), axis=0)[:, 0]
        starts = np.unique(np.quantile(samples, np.arange(n_bins) / n_bins, method="higher"))
    ends = [distinct[distinct < start][-1] for start in starts[1:]]
    return [(int(a), int(b)) for a, b in zip(starts[1:-1], ends[1:], strict=True)]


def _samples(X: sp.csr_matrix, time: np.ndarray, donor: np.ndarray) -> dict:
    """Means of the samples, for the genes that enough cells express."""
    columns = np.flatnonzero(X.getnnz(axis=0) >= max(1, MIN_SHARE * X.shape[0]))
    pairs, sample = np.unique(np.stack([donor, time], axis=1), axis=0, return_inverse=True)
    Y = sample_means(X[:, columns], sample.ravel())
    return {
        # Means of many cells have few zeros.
        "Y": Y.toarray() if len(pairs) < X.shape[0] else Y,
        "time": pairs[:, 1].astype(float),
        "donor": pairs[:, 0],
        "columns": columns,
        "order": np.arange(len(pairs)),
    }


def _test(parts, candidates) -> tuple[list[tuple], np.ndarray]:
    """Slopes and p values of each group's genes, interval by interval, and the q values of all of them."""
    tests = []
    for _, part in parts:
        time, donor = part["time"][part["order"]], part["donor"][part["order"]]
        tests += [two_lines(part["Y"], time, first, last, donor) for first, last in candidates]
    return tests, benjamini_hochberg(np.concatenate([p for _, _, p in tests]))


def _table(parts, candidates, tests, turns: np.ndarray) -> pd.DataFrame:
    """Turning genes of each group and interval."""
    rows, start = [], 0
    for (name, _), (first, last), (before, _, p) in zip(*_crossed(parts, candidates), tests, strict=True):
        here, start = turns[start : start + len(p)], start + len(p)
        n_peak = int((here & (before > 0)).sum())
        n = int(here.sum())
        rows.append((name, first, last, n, n_peak, n - n_peak))
    return pd.DataFrame(rows, columns=["group", "first", "last", "n_turning", "n_peak", "n_dip"])


def _genes(parts, candidates, tests, q_value: np.ndarray, genes: pd.Index) -> pd.DataFrame:
    """All tests, one row a gene, interval and group."""
    tables = []
    for (name, part), (first, last), (before, after, p) in zip(
        *_crossed(parts, candidates), tests, strict=True
    ):
        columns = {"gene": genes[part["columns"]], "group": name, "first": first, "last": last}
        columns |= {"direction": np.where(before > 0, "peak", "dip"), "slope_before": before}
        tables.append(pd.DataFrame(columns | {"slope_after": after, "p_value": p}))
    return pd.concat(tables, ignore_index=True).assign(q_value=q_value)


def _crossed(parts, candidates) -> tuple[list, list]:
    """Group and interval of each test."""
    return [part for part in parts for _ in candidates], [interval for _ in parts for interval in candidates]


def _describe(found: pd.DataFrame, time, donor, group, names) -> pd.DataFrame:
    """Cells and samples of each interval and group."""
    found = found.copy()
    inside = [
        (time >= row.first) & (time <= row.last) & (group == names.index(row.group))
        for row in found.itertuples()
    ]
    found["n_cells"] = [int(mask.sum()) for mask in inside]
    found["n_samples"] = [len(np.unique(np.stack([donor[m], time[m]], axis=1), axis=0)) for m in inside]
    return found


def _most(found: pd.DataFrame, n: int) -> list[tuple[int, int]]:
    """Intervals with most turning genes over all groups."""
    total = found.groupby(["first", "last"])["n_turning"].sum().sort_values(ascending=False, kind="stable")
    if n and total.iloc[n - 1] == 0:
        raise ValueError(
            f"Asked for {n} intervals, but genes turn over in only {(total > 0).sum()} of {len(total)}. Look at them with "
            "intervals=0, or name those to hold out: intervals=[(first, last)]."
        )
    return [(int(a), int(b)) for a, b in total.index[:n]]


def _hold_out(
    adata: AnnData, rows: np.ndarray, time_key: str, time: np.ndarray, donor: np.ndarray, chosen
) -> None:
    """Write what `mt.pp.hold_out` writes, with samples in the place of donors."""
    sample = [f"{d} at {t}" for d, t in zip(donor, time, strict=True)]
    cells = AnnData(obs=pd.DataFrame({time_key: time, "sample": sample}, index=adata.obs_names[rows]))
    hold_out(cells, donor_key="sample", donors=0.0, time_key=time_key, times=chosen)
    names = cells.obs.columns.difference([time_key, "sample"])
    columns = {name: cells.obs[name].reindex(adata.obs_names, fill_value=False).to_numpy() for name in names}
    write_obs(adata, _keys.HOLD_OUT, columns)
    params = {**cells.uns[_keys.HOLD_OUT]["params"], "donor_key": "", "n_left_out": adata.n_obs - len(rows)}
    write_result(adata, _keys.HOLD_OUT, params)
