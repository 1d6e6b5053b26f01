"""Whether the cells of a condition look older than their donors are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._progress import progress
from .._warn import warn
from ..models.embedding import embed_sequences
from ..models.model import MaxTokiModel
from ..models.sequences import Sequences
from ..models.timelapse import require_temporal
from ..pp._design import as_list, get_groups, get_labels, get_times, known_cells
from ..pp.match_ages import age_balance, donor_table, match_donors
from ..results.store import read_result, write_result
from ..stats.clocks import cross_fitted_ages
from ..stats.fdr import benjamini_hochberg
from ..stats.mixed_model import Readings, estimate_effect
from ._cells import count_truncated, get_sequences
from ._contexts import AgeSampling, draw_contexts, read_ages
from ._expression import log_expression
from ._time_unit import check_unit

# Numbers of genes are compared in fifths of the cells.
_DEPTHS = 5
# Differences of more than this many standard deviations between matched donors are warned of.
_IMBALANCE = 0.25
# Permutations of the donors: p values of 0.05 are known to 0.005.
N_PERMUTATIONS = 2000


def age_acceleration(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    groupby: str | Sequence[str] | None = None,
    batch_key: str | None = None,
    min_donors: int = 3,
    sampling: AgeSampling | None = None,
    baselines: bool = True,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Estimate by how many years the cells of a condition look older than controls of the same age.

    Cells of controls with their ages are the context, and a cell of a patient or of another control is the
    query. What the model reads as its age, less what it reads from controls of that age, is the acceleration.

    Parameters
    ----------
    adata
        Rank-encoded cells of both sides, of donors that the model was not trained on. `mt.pp.match_ages` says
        which columns hold conditions, ages (in the whole units that the model tells) and donors, and who is
        compared with whom.
    model
        A model with temporal training.
    groupby
        Columns of `.obs` in which all cells of a prompt agree, e.g. "cell_type"; an effect is estimated for
        each group, and for all together.
    batch_key
        Column of `.obs` with the batch, to warn where conditions and batches cannot be told apart.
    min_donors
        Fewest donors on either side, after matching; never below 2.
    sampling
        Query cells of each donor and group, drawn so that both sides have cells of like numbers of genes, and
        contexts of controls that they are read after, for all cells of a group the same:
        `mt.tl.AgeSampling(n_cells=8, n_contexts=2)`.
    baselines
        Whether to estimate the same from ridge regression of age on expression and on the model's embedding.
    rng
        Seed.
    key_added
        Key in `.uns`, by default "age_acceleration".

    Returns
    -------
    `None`. Writes to `.uns["age_acceleration"]`, beside caveats in `params["warnings"]`, the tables

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
    KeyError
        If the donors are not matched.
    ValueError
        If the model has no temporal training, donors have several ages or conditions, or no condition has
        `min_donors` matched donors on both sides.

    Notes
    -----
    The paper takes the mean difference between the lapses that are predicted for patients and for controls of
    the same age. That difference is `raw`. A model that reads age with a slope below 1 shrinks it by that
    slope, so the effect here is the difference over the slope, in years of control ageing, from a mixed model
    with donors as random intercepts (`params["method"]`: what stands in where it does not converge); its
    interval is Fieller's. p values are two-sided, by 2,000 permutations of the donors, and `q_value` corrects
    for the groups and conditions of a predictor (Benjamini and Hochberg).

    Donors are matched anew as `mt.pp.match_ages` was told to, so that `adata` may have been subset since.

    The effect is that of the condition **and of all that goes with it**: treatment, tissue handling, batch.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 40)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.match_ages(
    ...     adata, condition_key="condition", control="control", time_key="age_months", donor_key="donor_id")
    >>> mt.tl.age_acceleration(adata, model, sampling=mt.tl.AgeSampling(n_cells=2, n_contexts=1), baselines=False)
    >>> mt.get.table(adata, "age_acceleration")["condition"].tolist()
    ['accelerated_3y', 'accelerated_5y', 'accelerated_15y', 'resilient']
    """
    require_temporal(model)
    sampling = sampling or AgeSampling()
    design = read_result(adata, _keys.MATCHED_AGES, "mt.pp.match_ages(adata, condition_key=..., ...)")[
        "params"
    ]
    columns = {name: design[name] for name in ("condition_key", "control", "time_key", "donor_key")}
    columns["match_by"] = list(design["match_by"])
    control, time_key, donor_key = (columns[name] for name in ("control", "time_key", "donor_key"))
    asked = (columns["condition_key"], time_key, donor_key, groupby, columns["match_by"], batch_key)
    known, _ = known_cells(adata, *asked)
    donors = donor_table(known, **columns)
    matching = match_donors(donors, control, design["tolerance"])
    enough = _enough(matching, min_donors)
    sequences = get_sequences(known, model)
    cells = _cells(known, donors, donor_key, time_key, groupby, control)
    read_as = check_unit(time_key, cells.time[cells.donor >= 0], model.time_head.unit)
    queries, overlap = _draw_queries(cells, matching, sampling.n_cells, rng)

    readings = {"MaxToki": _read(model, sequences, cells, queries, sampling, rng)}
    if baselines:
        features = {
            "ridge_embedding": embed_sequences(model, sequences.take(queries)).cells,
            "ridge_expression": log_expression([(known, queries)], np.flatnonzero(cells.control[queries])),
        }
        readings |= _baselines(features, cells, queries, rng)
    factor = {"months": 12.0}.get(model.time_head.unit, 1.0)
    effects, by_donor = _effects(
        readings, cells, queries, matching[matching["condition"].isin(enough)], factor, rng
    )
    balance = age_balance(matching)
    notes = _warnings(matching, balance, effects, enough, overlap, min_donors)
    if batch_key is not None:
        notes += _batches(known, matching, donor_key, batch_key)
    for note in notes:
        warn(note)

    params = {
        **columns,
        "unit": "years" if model.time_head.unit == "months" else model.time_head.unit,
        "time_read_as": read_as,
        "groupby": as_list(groupby),
        "tolerance": design["tolerance"],
        **sampling.flat(),
        "n_permutations": N_PERMUTATIONS,
        "n_queries": len(queries),
        "n_left_out": adata.n_obs - known.n_obs,
        "n_truncated": count_truncated(known, model),
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
    """Donor's row in the table of donors, -1 for cells in no group."""
    group: np.ndarray
    groups: list[str]
    time: np.ndarray
    n_genes: np.ndarray
    control: np.ndarray
    names: np.ndarray
    """Names of the donors."""
    stratum: np.ndarray
    """Of each donor."""


def _cells(adata, donors: pd.DataFrame, donor_key, time_key, groupby, control) -> _Cells:
    donor = pd.Index(donors["donor"]).get_indexer(get_labels(adata, donor_key))
    group, groups = get_groups(adata, groupby)
    donor = np.where(group >= 0, donor, -1)
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
            f"{found or 'no two are of like age'}). Nothing can be concluded from fewer: find controls of their age, match "
            "by less or raise tolerance if the ages are near (mt.pp.match_ages), or, to look at it all the same, lower "
            "min_donors."
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


def _read(
    model: MaxTokiModel, sequences: Sequences, cells: _Cells, queries, sampling: AgeSampling, seed: int
) -> Readings:
    """Age of each query cell after contexts of controls."""
    asked = []
    for number, name in enumerate(cells.groups):
        pool = np.flatnonzero((cells.group == number) & cells.control)
        contexts = draw_contexts(
            pool,
            cells.donor,
            cells.time,
            n=sampling.n_contexts,
            size=sampling.context_size,
            seed=[seed, crc32(name.encode()), 1],
        )
        asked.append((queries[cells.group[queries] == number], contexts))
    read = read_ages(model, sequences, asked, cells.donor, cells.time)
    place = np.full(len(cells.donor), -1)
    place[queries] = np.arange(len(queries))
    return Readings(read.age, place[read.cell], read.context)


def _baselines(
    features: dict[str, np.ndarray], cells: _Cells, queries: np.ndarray, seed: int
) -> dict[str, Readings]:
    """Ages that clocks read from single cells, fitted to controls of other donors; one a group."""
    donor, control, time = cells.donor[queries], cells.control[queries], cells.time[queries]
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
    readings: dict[str, Readings], cells: _Cells, queries, matching, factor: float, seed: int
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
                    part, table.iloc[rows].assign(case=case), n_permutations=N_PERMUTATIONS, seed=seed
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
    """Caveats, in words."""
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
