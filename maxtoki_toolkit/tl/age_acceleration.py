"""Whether the cells of a condition look older than their donors are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._progress import progress
from .._validate import require_rank, require_unique_names
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel
from ..models.prompts import Prompts, write_prompts
from ..models.timelapse import read_lapses, require_temporal
from ..pp._columns import find_comparison
from ..pp._design import get_groups, get_labels, get_mask, get_times, known_cells
from ..pp.match_ages import age_balance, donor_table, match_donors
from ..results.store import write_result
from ..stats.clocks import cross_fitted_ages
from ..stats.fdr import benjamini_hochberg
from ..stats.mixed_model import Readings, estimate_effect
from ._cells import count_truncated, get_sequences
from ._expression import log_expression
from ._time_unit import check_unit

# Numbers of genes are compared in fifths of the cells.
_DEPTHS = 5
# Differences of more than this many standard deviations between matched donors are warned of.
_IMBALANCE = 0.25


def age_acceleration(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    condition_key: str | None = None,
    control: str | None = None,
    time_key: str | None = None,
    donor_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    match_by: str | Sequence[str] | None = None,
    batch_key: str | None = None,
    tolerance: int = 60,
    use: str | Sequence[bool] | None = None,
    n_cells: int = 20,
    n_contexts: int = 4,
    context_size: int = 3,
    min_donors: int = 3,
    n_permutations: int = 2000,
    baselines: bool = True,
    layer: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Estimate by how many years the cells of a condition look older than controls of the same age.

    Cells of controls with their ages are the context, and a cell of a patient or of another control is the query.
    What the model reads as its age, less what it reads from controls of that age, is the acceleration.

    Parameters
    ----------
    adata
        Rank-encoded cells of both sides, of donors that the model was not trained on.
    model
        A model with temporal training.
    condition_key, control
        Column of `.obs` with the condition of each donor, and the value that controls have. These and the next two are
        guessed from the names in `.obs` where they are `None`, with a warning that says which were taken.
    time_key
        Column of `.obs` with the age, in the whole units that the model tells.
    donor_key
        Column of `.obs` with the donor.
    groupby
        Columns of `.obs` in which all cells of a prompt agree, e.g. "cell_type"; an effect is estimated for each
        group, and for all together.
    match_by
        Columns of `.obs` in which donors and their controls agree, e.g. "sex".
    batch_key
        Column of `.obs` with the batch, to warn where conditions and batches cannot be told apart.
    tolerance
        Largest difference in age between a donor and a control, in the unit of `time_key`; see `mt.pp.match_ages`.
    use
        Which cells to use: boolean column of `.obs`, or one boolean a cell.
    n_cells
        Query cells of each donor and group, at most, drawn so that both sides have cells of like numbers of genes.
    n_contexts
        Contexts that each query cell is read after; all cells of a group get the same ones, but for those with cells
        of its own donor.
    context_size
        Context cells, of controls of distinct ages.
    min_donors
        Fewest donors on either side, after matching; never below 2.
    n_permutations
        Permutations of the donors for each p.
    baselines
        Whether to estimate the same from ridge regression of age on expression and on the model's embedding.
    layer
        Layer with the raw counts for the baselines; by default what was ranked.
    rng
        Seed.
    key_added
        Key in `.uns`, by default "age_acceleration".

    Returns
    -------
    `None`. Writes to `.uns["age_acceleration"]`, beside `params["warnings"]`, what stands in the way of a
    conclusion, the tables

    `effects`
        A row a predictor, condition and group, in `params["unit"]`:

        `predictor`, `condition`, `group`
            "MaxToki" or a baseline; the condition; the group of cells, "all" for all together.
        `effect`, `effect_low`, `effect_high`
            Years by which controls would have to be older to be read alike, with its 95% interval over
            donors; NaN where no age is read from the controls.
        `raw`
            Difference in the age that is read, at the same age: shrunk by `age_slope`.
        `age_slope`, `age_slope_low`, `age_slope_high`
            Age read per age, 1 for a perfect clock, with its 95% interval.
        `p_value`, `q_value`
            Two-sided, permuting donors; corrected for the groups (or, for "all", the conditions) of a
            predictor.
        `context_sd`
            Standard deviation of the effect between contexts (NaN for "all" and the baselines, which have
            none).
        `n_donors_condition`, `n_donors_control`, `n_cells_condition`, `n_cells_control`
            Matched donors and their query cells.
        `method`, `conclusion`
            How it was estimated, and what may be said.

    `donors`
        A row a predictor, condition, group and donor, controls included:

        `predictor`, `condition`, `group`, `donor`, `case`
            Whose effect, of which comparison; whether the donor has the condition.
        `time`, `read`
            Age of the donor, and the mean age that is read from the cells.
        `acceleration`
            How much older the donor looks than a control of that age.
        `n_cells`
            Query cells.

    `matching`, `balance`
        Who is compared with whom, as of `mt.pp.match_ages` (`donors`, `balance`).

    Raises
    ------
    ValueError
        If the model has no temporal training, donors have several ages or conditions, or no condition has
        `min_donors` matched donors on both sides.

    Notes
    -----
    The paper takes the mean difference between the lapses that are predicted for patients and for controls of the same
    age. That difference is `raw`. A model that reads age with a slope below 1 shrinks it by that slope, so the effect here is
    the difference over the slope, in years of control ageing, from a mixed model with donors as random intercepts
    (`params["method"]`: what stands in where it does not converge); its interval is Fieller's. p values are two-sided, by
    permuting donors, and `q_value` corrects for the groups and conditions of a predictor (Benjamini and Hochberg).

    The effect is that of the condition **and of all that goes with it**: treatment, tissue handling, batch.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 40)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.age_acceleration(
    ...     adata, model, condition_key="condition", control="control", time_key="age_months", donor_key="donor_id",
    ...     groupby=None, n_cells=2, n_contexts=1, baselines=False)
    >>> mt.get.table(adata, "age_acceleration")["condition"].tolist()
    ['accelerated_3y', 'accelerated_5y', 'accelerated_15y', 'resilient']
    """
    require_temporal(model)
    require_unique_names(adata)
    require_rank(adata)
    condition_key, control, time_key, donor_key = find_comparison(
        adata.obs, condition_key, control, time_key, donor_key
    )
    for name, value, least in [
        ("n_cells", n_cells, 1),
        ("n_contexts", n_contexts, 1),
        ("context_size", context_size, 1),
        ("min_donors", min_donors, 2),
    ]:
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    columns = [match_by] if isinstance(match_by, str) else list(match_by or [])
    keys = (condition_key, time_key, donor_key, groupby, columns, batch_key)
    given, (adata, kept) = adata, known_cells(adata, *keys)
    used = get_mask(given, use, "use")[kept]
    donors = donor_table(
        adata[used],
        condition_key=condition_key,
        control=control,
        time_key=time_key,
        donor_key=donor_key,
        match_by=columns,
    )
    matching = match_donors(donors, control, tolerance)
    enough = _enough(matching, min_donors)
    cells = _cells(adata, donors, donor_key, time_key, groupby, used, control)
    read_as = check_unit(time_key, cells.time[cells.donor >= 0], model.time_head.unit)
    queries, overlap = _draw_queries(cells, matching, n_cells, rng)
    drawn = [
        _draw_contexts(cells, group, n_contexts, context_size, rng) for group in range(len(cells.groups))
    ]

    readings = {"MaxToki": _read(adata, model, cells, queries, drawn)}
    if baselines:
        readings |= _baselines(adata, model, cells, queries, layer, rng)
    factor = {"months": 12.0}.get(model.time_head.unit, 1.0)
    unit = "years" if model.time_head.unit == "months" else model.time_head.unit
    effects, by_donor = _effects(
        readings, cells, queries, matching[matching["condition"].isin(enough)], factor, n_permutations, rng
    )
    balance = age_balance(matching)
    notes = _warnings(matching, balance, effects, enough, overlap, min_donors)
    if batch_key is not None:
        notes += _batches(adata[used], matching, donor_key, batch_key)
    for note in notes:
        warnings.warn(note, stacklevel=2)

    truncated = count_truncated(adata, model)
    adata = given
    params = {
        "unit": unit,
        "condition_key": condition_key,
        "control": control,
        "time_key": time_key,
        "time_read_as": read_as,
        "donor_key": donor_key,
        "groupby": [groupby] if isinstance(groupby, str) else list(groupby or []),
        "match_by": columns,
        "tolerance": tolerance,
        "n_cells": n_cells,
        "n_contexts": n_contexts,
        "context_size": context_size,
        "n_permutations": n_permutations,
        "n_queries": len(queries),
        "n_left_out": adata.n_obs - len(kept),
        "n_truncated": truncated,
        "seed": rng,
        "warnings": notes,
    }
    write_result(
        adata,
        _keys.AGE_ACCELERATION,
        {**model.params, **params},
        key_added=key_added,
        effects=effects,
        donors=by_donor,
        matching=matching,
        balance=balance,
    )


class _Cells(NamedTuple):
    """What is known of all cells."""

    donor: np.ndarray
    """Donor's row in the table of donors, -1 for cells that are not used."""
    group: np.ndarray
    groups: list[str]
    time: np.ndarray
    n_genes: np.ndarray
    control: np.ndarray
    names: np.ndarray
    """Names of the donors."""
    stratum: np.ndarray
    """Of each donor."""


def _cells(adata, donors: pd.DataFrame, donor_key, time_key, groupby, used, control) -> _Cells:
    donor = pd.Index(donors["donor"]).get_indexer(get_labels(adata, donor_key))
    group, groups = get_groups(adata, groupby)
    donor = np.where(used & (group >= 0), donor, -1)
    is_control = (donors["condition"] == control).to_numpy()
    return _Cells(
        donor,
        group,
        groups,
        get_times(adata, time_key),
        adata.obs[_keys.N_RANKED].to_numpy(),
        is_control[donor] & (donor >= 0),
        donors["donor"].to_numpy(dtype=object),
        donors["stratum"].to_numpy(dtype=object),
    )


def _enough(matching: pd.DataFrame, min_donors: int) -> list[str]:
    """Conditions with enough matched donors on both sides."""
    kept = matching[matching["matched"]].groupby(["condition", "case"]).size().unstack(fill_value=0)
    kept = kept.reindex(columns=[False, True], fill_value=0)
    enough = kept.index[(kept >= min_donors).all(axis=1)].tolist()
    if not enough:
        found = {name: (int(row[True]), int(row[False])) for name, row in kept.iterrows()}
        raise ValueError(
            f"No condition has {min_donors} donors and {min_donors} controls of like age (donors, controls: "
            f"{found or 'no two are of like age'}). Nothing can be concluded from fewer: find controls of their age, match by less, raise tolerance if the ages are near, or, to look at it "
            "all the same, lower min_donors."
        )
    return enough


def _draw_queries(
    cells: _Cells, matching: pd.DataFrame, n_cells: int, seed: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Query cells of the matched donors, with like numbers of genes on all sides; and how far these overlap."""
    matched = matching[matching["matched"]]
    side_of = dict(zip(matched["donor"], np.where(matched["case"], matched["condition"], ""), strict=True))
    side = np.array([side_of.get(name) for name in cells.names] + [None], dtype=object)[cells.donor]
    chosen, overlaps = [], {}
    for number, name in enumerate(cells.groups):
        rows = np.flatnonzero((cells.group == number) & (side != np.array(None)))
        if not len(rows):
            continue
        rng = np.random.default_rng([seed, crc32(name.encode())])
        edges = np.quantile(cells.n_genes[rows], np.linspace(0, 1, _DEPTHS + 1)[1:-1])
        depth = np.searchsorted(edges, cells.n_genes[rows], side="right")
        case = (side[rows] != "").astype(int)
        share = _shares(case, depth)
        overlaps[name] = float(share.min(axis=0).sum())
        # Cells of a depth that the other side has less of are left out by chance.
        kept = rng.random(len(rows)) * share[case, depth] <= share.min(axis=0)[depth]
        order = np.lexsort((rng.random(len(rows)), cells.donor[rows]))
        order = order[kept[order]]
        donor = cells.donor[rows[order]]
        first = np.r_[True, donor[1:] != donor[:-1]]
        place = np.arange(len(donor)) - np.maximum.accumulate(np.where(first, np.arange(len(donor)), 0))
        chosen.append(rows[order][place < n_cells])
    return np.concatenate(chosen), overlaps


def _shares(case: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Share of each depth in the cells of controls and of the others, 2 x depths."""
    # Half a cell more in each, so that a side of few cells does not seem apart by chance.
    share = np.full((2, _DEPTHS), 0.5)
    np.add.at(share, (case, depth), 1.0)
    return share / share.sum(axis=1, keepdims=True)


def _draw_contexts(cells: _Cells, group: int, n: int, size: int, seed: int) -> list[np.ndarray]:
    """Rows of the context cells: controls of distinct ages, each donor about as often as any other."""
    rng = np.random.default_rng([seed, crc32(cells.groups[group].encode()), 1])
    pool = np.flatnonzero((cells.group == group) & cells.control)
    donors = np.unique(cells.donor[pool])
    # A donor who is in every context could not be asked about.
    size = max(min(size, (len(donors) - 1) // 2, len(np.unique(cells.time[pool]))), 1)
    contexts, waiting = [], []
    for _ in range(n if len(donors) > 1 else 0):
        context, ages = [], set()
        while len(context) < size:
            waiting = waiting or [d for d in rng.permutation(donors).tolist() if d not in context]
            donor = waiting.pop()
            mine = pool[cells.donor[pool] == donor]
            age = int(cells.time[mine[0]])
            if age not in ages:
                context.append(donor)
                ages.add(age)
        rows = [rng.choice(pool[cells.donor[pool] == donor]) for donor in context]
        contexts.append(np.array(rows, dtype=np.int64))
    return contexts


def _read(adata: AnnData, model: MaxTokiModel, cells: _Cells, queries: np.ndarray, drawn: list) -> Readings:
    """Age of each query cell after each context."""
    width = max(len(chosen) for contexts in drawn for chosen in contexts)
    rows, query, context = [], [], []
    for group, contexts in enumerate(drawn):
        mine = np.flatnonzero(cells.group[queries] == group)
        for number, chosen in enumerate(contexts):
            others = mine[~np.isin(cells.donor[queries[mine]], cells.donor[chosen])]
            padded = np.pad(chosen, (0, width - len(chosen)), constant_values=-1)
            rows.append(np.tile(padded, (len(others), 1)))
            query.append(others)
            context.append(np.full(len(others), group * len(contexts) + number))
    table, query, context = np.concatenate(rows), np.concatenate(query), np.concatenate(context)
    time = np.where(table >= 0, cells.time[table], 0)
    size = (table >= 0).sum(axis=1)
    last = time[np.arange(len(table)), size - 1]
    steps = np.where(table[:, 1:] >= 0, np.diff(time, axis=1), 0)
    asked = queries[query]
    prompts = Prompts(table, asked, steps, cells.time[asked] - last, np.ones(len(table), dtype=bool))
    written = write_prompts(
        prompts, get_sequences(adata, model), model.vocab, max_length=model.max_length, answer=False
    )
    lapse, _ = read_lapses(model, written.sequences)
    return Readings(last + lapse.astype(float), query, context)


def _baselines(adata, model, cells: _Cells, queries: np.ndarray, layer, seed: int) -> dict[str, Readings]:
    """Ages that clocks read from single cells, fitted to controls of other donors; one a group."""
    part = adata[queries]
    donor, control, time = cells.donor[queries], cells.control[queries], cells.time[queries]
    fitted = np.flatnonzero(control)
    features = {
        "ridge_embedding": embed_sequences(model, get_sequences(part, model)).cells,
        "ridge_expression": log_expression([(part, np.arange(part.n_obs))], layer, fitted),
    }
    groups = cells.group[queries]
    readings = {}
    with progress(total=len(features) * len(np.unique(groups)), desc="Fitting clocks", unit="clock") as bar:
        for name, X in features.items():
            age = np.full(len(queries), np.nan)
            for group in np.unique(groups):
                mine = groups == group
                if len(np.unique(donor[mine & control])) > 2:
                    age[mine] = cross_fitted_ages(X[mine], time[mine], donor[mine], control[mine], seed)
                bar.update()
            known = np.flatnonzero(np.isfinite(age))
            readings[name] = Readings(age[known], known, groups[known])
    return readings


def _effects(
    readings: dict[str, Readings], cells: _Cells, queries, matching, factor: float, n_permutations, seed
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effects of all predictors, conditions and groups; and donors."""
    from natsort import natsorted

    donor = cells.names[cells.donor[queries]]
    table = pd.DataFrame({"donor": donor, "time": cells.time[queries].astype(float)})
    table["stratum"] = cells.stratum[cells.donor[queries]]
    group = cells.group[queries]
    parts = [("all", np.ones(len(queries), bool))]
    asked_groups = np.unique(group)
    if len(asked_groups) > 1:
        parts += [(cells.groups[number], group == number) for number in asked_groups]
    effects, donors = [], []
    for predictor, read in readings.items():
        for condition in natsorted(matching["condition"].unique()):
            match = matching[matching["condition"] == condition]
            kept = match[match["matched"]].set_index("donor")["case"]
            ours = np.isin(donor, kept.index)
            for name, mine in parts:
                asked = np.zeros(len(queries), bool)
                asked[read.cell] = True
                rows = np.flatnonzero(ours & mine & asked)
                case = kept.reindex(donor[rows]).to_numpy(dtype=bool)
                n_sides = [len(np.unique(donor[rows][case == side])) for side in (True, False)]
                if min(n_sides) < 2:
                    continue
                place = np.full(len(queries), -1)
                place[rows] = np.arange(len(rows))
                chosen = place[read.cell] >= 0
                context = np.unique(read.context[chosen], return_inverse=True)[1]
                part = Readings(read.age[chosen], place[read.cell[chosen]], context)
                effect, by_donor = estimate_effect(
                    part, table.iloc[rows].assign(case=case), n_permutations=n_permutations, seed=seed
                )
                in_years = {
                    key: effect.pop(key) / factor for key in ("effect", "effect_low", "effect_high", "raw")
                }
                effect["context_sd"] = (
                    np.nan if name == "all" and len(parts) > 1 else effect["context_sd"] / factor
                )
                head = {"predictor": predictor, "condition": condition, "group": name}
                effects.append({**head, **in_years, **effect})
                by_donor[["time", "read", "acceleration"]] /= factor
                donors.append(by_donor.assign(**head))
    effects = pd.DataFrame(effects)
    effects["q_value"] = np.nan
    for _, rows in effects.groupby(["predictor", effects["group"] == "all"]).groups.items():
        effects.loc[rows, "q_value"] = benjamini_hochberg(effects.loc[rows, "p_value"])
    effects["conclusion"] = effects.apply(_conclusion, axis=1)
    return effects, pd.concat(donors, ignore_index=True)


def _conclusion(effect: pd.Series) -> str:
    """What may be said."""
    if not effect["age_slope_low"] > 0:
        return (
            "none: age is not read from the controls (cells that do not tell it, or controls of too few ages)"
        )
    if not effect["q_value"] < 0.05:
        return "not distinguishable from controls"
    return "older than controls" if effect["effect"] > 0 else "younger than controls"


def _warnings(matching, balance, effects, enough, overlap, min_donors) -> list[str]:
    """What stands in the way of a conclusion, in words."""
    notes = []
    for condition, part in matching.groupby("condition"):
        cases = part[part["case"]]
        if lost := int((~cases["matched"]).sum()):
            notes.append(
                f"{condition}: {lost} of {len(cases)} donors have no control of like age and are left out."
            )
        if condition not in enough:
            notes.append(
                f"{condition}: fewer than {min_donors} donors or controls are left; nothing is estimated."
            )
    for row in balance.itertuples():
        if row.condition in enough and abs(row.difference_after) > _IMBALANCE:
            notes.append(
                f"{row.condition}: after matching, donors are still {row.difference_after:+.2f} standard deviations of age "
                "from their controls. The estimate leans on the slope of age in the controls."
            )
    for group, share in overlap.items():
        if share < 0.5:
            notes.append(
                f"{group}: the numbers of genes a cell overlap by only {share:.0%} between conditions; cells without a "
                "counterpart are left out. Depth and condition may not be told apart."
            )
    ours = effects[(effects["predictor"] == "MaxToki") & (effects["group"] != "all")]
    unread = sorted(ours.loc[ours["conclusion"].str.startswith("none"), "group"].unique())
    if unread:
        notes.append(
            f"The age of controls is not read from: {', '.join(unread)}. No effect can be seen there."
        )
    return notes


def _batches(adata: AnnData, matching: pd.DataFrame, donor_key: str, batch_key: str) -> list[str]:
    """Conditions whose donors were in batches without controls."""
    pairs = pd.DataFrame({key: get_labels(adata, key) for key in (donor_key, batch_key)}).drop_duplicates()
    notes = []
    for condition, part in matching[matching["matched"]].groupby("condition"):
        case = dict(zip(part["donor"], part["case"], strict=True))
        batches = pairs[pairs[donor_key].isin(case)]
        with_controls = set(batches.loc[~batches[donor_key].map(case).astype(bool), batch_key])
        alone = batches[batches[donor_key].map(case).astype(bool) & ~batches[batch_key].isin(with_controls)]
        if len(alone):
            n = alone[donor_key].nunique()
            notes.append(
                f"{condition}: {n} of {sum(case.values())} donors are in batches without any control; what the batch does "
                "and what the condition does cannot be told apart."
            )
    return notes
