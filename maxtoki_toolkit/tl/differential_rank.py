"""Which genes rank higher or lower later on, in generated cells and in true ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._warn import warn
from ..models.model import MaxTokiModel
from ..pp._design import as_list, get_mask, get_times, known_cells
from ..results.store import write_result
from ..stats.fdr import benjamini_hochberg
from ..stats.rank_change import (
    Units,
    agreement,
    change_table,
    changes,
    contrast,
    gather_units,
    halves,
    interpolate,
    permuted,
    pick_genes,
    resampled,
)
from ..stats.turnover import fit_lines, sample_means
from ._generated import About, about_cells, about_generated, known_generated, rank_levels
from ._prompted import by_prompts

_HALVES = 20
# Fewest independent samples of each interval that anything is said about.
_MIN_UNITS = 3
# Draws for the intervals of the scores, which take their standard errors alone, and permutations for their p
# values.
N_BOOTSTRAP = 200
N_PERMUTATIONS = 499


def differential_rank(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    generated: AnnData,
    intervals: tuple,
    time_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    known: str | Sequence[bool] | None = None,
    n_top: int = 100,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Compare how genes change rank between two intervals of time in generated cells and in true ones.

    Parameters
    ----------
    adata
        Rank-encoded true cells; for generated cells without a time of their own, with their prompts.
    model
        The model that generated.
    generated
        Generated cells: `mt.tl.generate(adata, model)`, or any cells encoded for the model.
    intervals
        The two intervals of time, ((first, last), (first, last)); or two values of the column, e.g. of
        stages.
    time_key
        Column of `.obs` with the time, by default that of the prompts. Generated cells without it have the
        time that their prompt asks for.
    groupby
        Column or columns of `.obs`, e.g. the cell type, by default those of the prompts; each group is
        compared by itself.
    donor_key
        Column of `.obs` with the donor, by default that of the prompts.
    known
        Which true cells the interpolation may use, e.g. "train", but for those that are compared; by default
        all those that are in neither interval.
    n_top
        Genes that rise most, and as many that fall most in true cells, for the agreement in sign.
    rng
        Seed.
    key_added
        Key in `.uns`, by default "differential_rank".

    Returns
    -------
    `None`. Writes to `.uns["differential_rank"]` the tables

    `genes`
        A row a gene and group: changes in ranks, positive for genes that move up:

        `group`, `gene`
            Group of cells, and Ensembl id.
        `true_change`, `true_low`, `true_high`
            Mean rank in the second interval against the first in true cells, with its 95% interval over
            units.
        `true_p_value`, `true_q_value`
            Wilcoxon rank sum test, two-sided; corrected over the genes of the group (Benjamini and Hochberg).
        `generated_change`, `generated_low`, `generated_high`, `generated_p_value`, `generated_q_value`
            The same for generated cells.
        `interpolated_change`
            Change that a straight line between the known times has.
        `trend`
            Slope over all times, in ranks per unit of time.
        `top`
            "up", "down", or "" for genes that change less.
        `turning`
            Whether a gene on top changes against its trend.

    `scores`
        A row a predictor and group: how well the true changes are met, each score with `_low` and `_high`
        (95%):

        `group`, `predictor`
            "generated", "permuted", "interpolation", "no change" and "true halves".
        `pearson`, `spearman`
            Correlation with the true changes over all genes; NaN for no change.
        `sign_up`, `sign_down`, `sign_top`
            Share of the genes that truly rise most, fall most, and of both, whose change has the true sign.
        `sign_turning`
            The same for the genes among them that change against their trend; NaN where there are none.
        `rms_error`
            Root of the mean squared difference to the true changes, in ranks.
        `p_value`, `q_value`
            Of the generated cells' correlation: permutation test, one-sided; corrected over groups (Benjamini
            and Hochberg).
        `n_genes`, `n_top`, `n_turning`
            Genes compared, on top, and turning.
        `unit_true`, `n_true_first`, `n_true_second`
            What was resampled of the true cells, and how many there are in either interval.
        `unit_generated`, `n_generated_first`, `n_generated_second`
            The same of the generated cells.

    `cells`
        A row a `cell` that was compared, with its `source` ("true" or "generated"), `interval` (1 or 2) and
        `group`.

    Raises
    ------
    KeyError
        If a column or the prompts are missing.
    ValueError
        If the intervals overlap, or no group has three generated and three true cells in each.

    Notes
    -----
    A gene's change is the mean of its ranks in the second interval less that in the first, turned so that a
    gene that moves up the list changes by so many ranks upwards. Lists are read as far as the median true
    cell goes: genes that a cell does not have, or has further down, count as the next rank
    (`params["absent_rank"]`). Genes that no compared cell has are left out.

    Units are donors, where at least three are in each interval; of generated cells the donors of the last
    context cells. Else they are the prompts, or the cells, and what is said then is about more cells of the
    same donors. Intervals of changes are Welch's, p values those of the Wilcoxon rank sum test, two-sided,
    normal approximation, corrected over the genes of a group (Benjamini and Hochberg). A donor in both
    intervals is treated as two, which is on the safe side.

    A gene turns if it is among the `n_top`, its change has an interval without 0, and its sign is opposite to
    the slope over all times. The scores compare with the true changes

    ``generated``
        those of the generated cells. `p_value`: share of permutations with as high a correlation (Pearson,
        one-sided), corrected over groups;
    ``permuted``
        the same with the intervals of the generated units permuted: mean and 95% range;
    ``interpolation``
        what a straight line between the known times on both sides says: all that can be guessed without a
        model. Its signs are wrong for turning genes nearly by definition; whether the generated ones are
        right is the question;
    ``no change``
        nothing, which has no sign and no correlation, but often the smallest error;
    ``true halves``
        half of the true units against the other half, 20 times: mean and 95% range. About the best that can
        be reached with half the cells.

    Intervals of scores are 1.96 bootstrap standard errors to either side, true and generated units drawn anew
    (of correlations on the scale of Fisher's z). Quantiles would be too low: what is drawn with replacement
    is noisier than the cells are. Genes and `params["intervals"]` are as they are.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 40)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> settings = dict(time_key="age_months", intervals=((240, 480), (720, 1080)), donor_key="donor_id")
    >>> true, others = adata[200:].copy(), adata[:200].copy()
    >>> mt.tl.differential_rank(true, model, generated=others, **settings)
    >>> mt.get.table(true, "differential_rank", "scores")["predictor"].tolist()
    ['generated', 'permuted', 'interpolation', 'no change', 'true halves']
    """
    time_key, groupby, donor_key = by_prompts(
        adata, generated, time_key=time_key, groupby=groupby, donor_key=donor_key
    )
    if time_key is None:
        raise ValueError(
            "Give time_key: the generated cells are of no prompts that say which column holds the time."
        )
    keys = {"time_key": time_key, "groupby": groupby, "donor_key": donor_key}
    generated, made = known_generated(generated, about_generated(generated, adata, **keys))
    cells, rows = known_cells(adata, *keys.values())
    true = about_cells(cells, **keys)
    ranges = _read_intervals(intervals)
    side = {
        "true": _side(cells, true, time_key, ranges, intervals),
        "generated": _side(None, made, time_key, ranges, intervals),
    }
    of_true, of_made, length = rank_levels(cells, generated, model)
    X = {"true": of_true * length, "generated": of_made * length}
    # What is compared must not be guessed from itself.
    may_use = side["true"] < 0
    if known is not None:
        may_use &= get_mask(adata, known, "known")[rows]

    genes, scores, compared, small = [], [], [], []
    names = sorted(set(true.group[side["true"] >= 0]) & set(made.group[side["generated"] >= 0]) - {""})
    for name in names:
        units, mine = {}, {}
        for source, about in (("true", true), ("generated", made)):
            mine[source] = np.flatnonzero((about.group == name) & (side[source] >= 0))
            units[source] = _units(X[source], about, side[source] == 1, mine[source])
        if min(min(u.size) for u in units.values()) < _MIN_UNITS:
            small.append(name)
            continue
        expressed = np.logical_or(*(X[s][mine[s]].getnnz(axis=0) > 0 for s in X))
        columns = np.flatnonzero(expressed)
        units = {source: u._replace(values=u.values[:, columns]) for source, u in units.items()}
        of_group = np.flatnonzero(true.group == name)
        trend = guess = None
        if ranges is not None:
            times = true.time.astype(float)
            trend = _trend(X["true"][of_group][:, columns], true, of_group)
            usable = of_group[may_use[of_group]]
            if len(usable):
                guess = interpolate(X["true"][usable][:, columns], times[usable], ranges)
        table = _gene_table(units, trend, guess, n_top)
        table.insert(0, "gene", np.asarray(model.vocab.genes, dtype=object)[columns])
        table.insert(0, "group", name)
        genes.append(table)
        seed = np.random.default_rng([rng, len(scores)])
        found = _scores(units, trend, guess, n_top, seed)
        found.insert(0, "group", name)
        scores.append(found)
        for source, obs_names in (("true", cells.obs_names), ("generated", generated.obs_names)):
            compared.append(
                pd.DataFrame(
                    {
                        "cell": obs_names[mine[source]],
                        "source": source,
                        "interval": side[source][mine[source]] + 1,
                        "group": name,
                    }
                )
            )
    if not genes:
        counts = {s: [int((side[s] == i).sum()) for i in (0, 1)] for s in side}
        raise ValueError(
            f"No group has {_MIN_UNITS} true and {_MIN_UNITS} generated cells in each interval of .obs[{time_key!r}]. "
            f"In the first and the second there are {counts['true'][0]} and {counts['true'][1]} true, "
            f"{counts['generated'][0]} and {counts['generated'][1]} generated cells."
        )
    if small:
        warn(
            f"Left out, with fewer than {_MIN_UNITS} true or generated cells in an interval: {', '.join(small)}."
        )
    scores = pd.concat(scores, ignore_index=True)
    scores["q_value"] = benjamini_hochberg(scores["p_value"])

    params = {
        "unit": "ranks",
        "time_key": time_key,
        "intervals": [str(value) for value in intervals] if ranges is None else [list(r) for r in ranges],
        "groupby": as_list(groupby),
        "donor_key": donor_key,
        "absent_rank": length + 1,
        "test": "Wilcoxon rank sum, two-sided, of units; Benjamini-Hochberg over the genes of a group",
        "n_top": n_top,
        "n_bootstrap": N_BOOTSTRAP,
        "n_permutations": N_PERMUTATIONS,
        "groups_left_out": small,
        "n_left_out": adata.n_obs - len(rows),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.DIFFERENTIAL_RANK,
        {**model.params, **params},
        key_added=key_added,
        genes=pd.concat(genes, ignore_index=True),
        scores=scores,
        cells=pd.concat(compared, ignore_index=True),
    )


def _read_intervals(intervals: tuple) -> list[tuple[float, float]] | None:
    """Two ranges, or `None` for two values."""
    if len(intervals) != 2:
        raise ValueError(f"intervals must be two intervals of time, or two values; got {len(intervals)}.")
    if not all(isinstance(value, (tuple, list, np.ndarray)) for value in intervals):
        if intervals[0] == intervals[1]:
            raise ValueError(f"The two intervals are the same: {intervals[0]!r}.")
        if all(isinstance(value, (int, np.integer)) for value in intervals):
            return [(int(value), int(value)) for value in intervals]
        return None
    ranges = [(int(first), int(last)) for first, last in intervals]
    if any(first > last for first, last in ranges) or max(r[0] for r in ranges) <= min(r[1] for r in ranges):
        raise ValueError(f"The intervals {ranges} overlap, or end before they begin.")
    return ranges


def _side(adata: AnnData | None, about: About, time_key: str, ranges, intervals) -> np.ndarray:
    """0 for cells of the first interval, 1 for those of the second, -1 for others."""
    if ranges is None:
        value = about.time.astype(str)
        return np.where(value == str(intervals[1]), 1, np.where(value == str(intervals[0]), 0, -1))
    time = about.time.astype(float) if adata is None else get_times(adata, time_key)
    (a, b), (c, d) = ranges
    return np.where((time >= c) & (time <= d), 1, np.where((time >= a) & (time <= b), 0, -1))


def _units(X: sp.csr_matrix, about: About, late: np.ndarray, rows: np.ndarray) -> Units:
    """Units of some of the cells."""
    donor, prompt = (None if names is None else names[rows] for names in (about.donor, about.prompt))
    return gather_units(X[rows], late[rows], donor, prompt, fewest=_MIN_UNITS)


def _trend(X: sp.csr_matrix, about: About, rows: np.ndarray) -> np.ndarray:
    """Slope of each gene over all times of a group: of donors' means at each time, or of cells."""
    time = about.time[rows].astype(float)
    if about.donor is None:
        return fit_lines(X, time)[0]
    pairs = pd.MultiIndex.from_arrays([about.donor[rows], time])
    code, samples = pd.factorize(pairs)
    donor = pd.factorize(samples.get_level_values(0))[0]
    return fit_lines(sample_means(X, code), samples.get_level_values(1).to_numpy(float), donor)[0]


def _gene_table(units: dict[str, Units], trend, guess, n_top: int) -> pd.DataFrame:
    """Changes of each gene."""
    table = {}
    for source in ("true", "generated"):
        found = change_table(units[source])
        table |= {f"{source}_{name}": values for name, values in found.items()}
        table[f"{source}_q_value"] = benjamini_hochberg(found["p_value"])
    table = pd.DataFrame(table)
    table["interpolated_change"] = np.nan if guess is None else guess
    table["trend"] = np.nan if trend is None else trend
    picked = pick_genes(units["true"], trend, n_top)
    top = np.full(len(table), "", dtype=object)
    top[picked.up], top[picked.down] = "up", "down"
    table["top"] = top
    table["turning"] = np.isin(np.arange(len(table)), picked.turning)
    return table


def _scores(
    units: dict[str, Units],
    trend,
    guess,
    n_top: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """How well the true changes are met, by the generated cells and by what is beside them."""
    true, made = units["true"], units["generated"]
    picked = pick_genes(true, trend, n_top)
    of_true, of_made = (changes(u, contrast(u.late)) for u in (true, made))
    drawn_true, drawn_made = (changes(u, resampled(u, N_BOOTSTRAP, rng)) for u in (true, made))
    null = agreement(changes(made, permuted(made, N_PERMUTATIONS, rng)), of_true, picked)

    def scored(found, drawn):
        # Which genes are on top, and their true signs, are as they are: for these, only what is compared is
        # drawn anew.
        both, one = agreement(drawn, drawn_true, picked), agreement(drawn, of_true, picked)
        spread = {name: (one if name.startswith("sign") else both)[name] for name in both}
        return _with_errors(agreement(found, of_true, picked), spread)

    score, row, rows = agreement(of_made, of_true, picked), scored(of_made, drawn_made), []
    valid = np.isfinite(score["pearson"][0]) and np.isfinite(null["pearson"]).all()
    row["p_value"] = (
        (1 + (null["pearson"] >= score["pearson"][0] - 1e-12).sum()) / (N_PERMUTATIONS + 1)
        if valid
        else np.nan
    )
    rows.append({"predictor": "generated", **row})
    rows.append({"predictor": "permuted", **_with_range(null)})
    if guess is not None:
        rows.append({"predictor": "interpolation", **scored(guess, np.tile(guess, (N_BOOTSTRAP, 1)))})
    nothing = np.zeros_like(drawn_true)
    rows.append({"predictor": "no change", **scored(nothing[0], nothing)})
    if min(true.size) >= 4:
        parts = []
        for _ in range(_HALVES):
            one, other = halves(true, rng)
            half = changes(other, contrast(other.late)), changes(one, contrast(one.late))
            parts.append(agreement(*half, pick_genes(one, trend, n_top)))
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rows.append({"predictor": "true halves", **_with_range(joined)})
    table = pd.DataFrame(rows)
    table["n_genes"], table["n_top"] = of_true.shape[1], len(picked.up) + len(picked.down)
    table["n_turning"] = len(picked.turning)
    for source, u in units.items():
        table[f"unit_{source}"] = u.kind
        table[f"n_{source}_first"], table[f"n_{source}_second"] = u.size
    return table


def _with_errors(score: dict, draws: dict) -> dict:
    """Each score with 1.96 standard errors to either side."""
    row = {}
    for name, (value,) in score.items():
        low = high = np.nan
        drawn = draws[name][np.isfinite(draws[name])]
        # What was not drawn anew has no error of its own.
        if np.isfinite(value) and len(drawn) > 1 and np.ptp(drawn) > 0:
            if name in ("pearson", "spearman"):
                z, drawn = (np.arctanh(np.clip(r, -1 + 1e-9, 1 - 1e-9)) for r in (value, drawn))
                reach = 1.96 * drawn.std(ddof=1)
                low, high = np.tanh([z - reach, z + reach])
            else:
                reach = 1.96 * drawn.std(ddof=1)
                low = max(value - reach, 0)
                high = min(value + reach, 1) if name.startswith("sign") else value + reach
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return row


def _with_range(draws: dict) -> dict:
    """Mean of each score over draws, and the middle 95% of them."""
    row = {}
    for name, values in draws.items():
        values = values[np.isfinite(values)]
        known = len(values) > 0
        low, high = np.quantile(values, [0.025, 0.975]) if known else (np.nan, np.nan)
        row |= {name: values.mean() if known else np.nan, f"{name}_low": low, f"{name}_high": high}
    return row
