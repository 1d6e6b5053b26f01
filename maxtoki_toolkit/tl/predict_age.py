"""How old cells look, beside donors of known age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._validate import require_obs, require_unique_names
from ..models.model import MaxTokiModel
from ..models.sequences import Sequences
from ..models.timelapse import require_temporal
from ..pp._columns import find_columns
from ..pp._design import as_list, as_times, get_groups, get_mask, known_cells
from ..pp.parse_age import time_in_numbers
from ..results.store import write_result
from ..stats.age_intervals import calibrate
from ._cells import count_truncated, get_sequences
from ._contexts import AgeSampling, draw_contexts, read_ages
from ._time_unit import check_unit

MIN_DONORS = 4  # of known age that a group needs


def predict_age(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    time_key: str | None = None,
    donor_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    reference: str | Sequence[bool] | AnnData | None = None,
    sampling: AgeSampling | None = None,
    coverage: float = 0.9,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Read the age of every cell, beside donors of known age, with intervals that hold for new donors.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        A model with temporal training; best if it was trained on none of these donors.
    time_key
        Column of `.obs` with the known ages, in the model's unit; cells without reference may lack it. This
        and the next two are guessed from the names in `.obs` where they are `None`, with a warning that says
        which were taken; text is read by `mt.pp.parse_age`.
    donor_key
        Column of `.obs` with the donor.
    groupby
        Columns of `.obs` in which a query cell and its context agree, e.g. "cell_type"; `[]` for one group.
    reference
        Cells of known age, e.g. the controls: a boolean column of `.obs`, one boolean a cell, or another
        AnnData, rank-encoded for the same model, with the same columns. By default all cells whose age is
        known.
    sampling
        Contexts that each cell is read after (the mean over them counts), and reference cells to calibrate
        with: by default `mt.tl.AgeSampling(n_contexts=8)`.
    coverage
        Share of new donors' cells whose age the interval is to hold, from 0.5 to below 1.
    rng
        Seed of the contexts and of the cells that calibrate. Neither depends on the order of the cells.
    key_added
        Prefix of the columns of `.obs`, by default "predicted_age", and key in `.uns`, by default
        "predict_age".

    Returns
    -------
    `None`. Writes `.obs["predicted_age"]`, `.obs["predicted_age_low"]` and `.obs["predicted_age_high"]`, the
    age of each cell in the model's unit, with its interval (NaN where there is none, for the reason that the
    table of groups has), and to `.uns["predict_age"]` the tables

    `donors`
        A row a donor and group, in `params["unit"]`:

        `donor`, `group`, `reference`
            Whose cells; whether they are reference.
        `n_cells`, `n_contexts`
            Cells, and after how many contexts of other donors each was read at most.
        `known`
            The age that the column of `.obs` has, NaN where it has none.
        `predicted`, `low`, `high`
            Mean over the cells, with an interval that holds for new donors; NaN where there is none.

    `groups`
        A row a group:

        `group`, `n_cells`, `n_reference_donors`, `n_reference_cells`
            Cells whose age was asked for, and donors and cells of known age.
        `slope`
            Age for each unit of age that is read.
        `r`, `r_low`
            Correlation over donors of what is read, on average over their cells, with the known ages; lower
            end of its 95% interval.
        `median_error`, `median_error_mean_age`
            Median absolute error of the donors' ages, each by the fit without that donor, and of saying the
            mean age of the other donors.
        `cell_reach`, `donor_reach`
            Half the width of the intervals.
        `reason`
            Why there is no age, or no interval; "" where there is.

    Raises
    ------
    ValueError
        If the model has no temporal training, no cell has a known age, or a known age is no whole number.

    Notes
    -----
    The age is that of the last context cell and the predicted lapse, on average over the contexts. Models
    shrink lapses, and not alike in all cell types, so ages are fitted to what is read by a line for each
    group, on reference cells that were read without their own donor. Reference donors are read by the line
    fitted without them. Intervals are conformal with the donor as the unit, so a 90% interval takes nine
    reference donors. A group whose reference donors' ages are not read (the 95% interval of r reaches 0) is
    left NaN.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(120, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> adata.obs["control"] = adata.obs["condition"] == "control"
    >>> mt.tl.predict_age(adata, model, time_key="age_months", donor_key="donor_id", groupby=[],
    ...                   reference="control", sampling=mt.tl.AgeSampling(n_contexts=1, n_cells=2))
    >>> "predicted_age" in adata.obs
    True
    """
    require_temporal(model)
    sampling = sampling or AgeSampling(n_contexts=8)
    if not 0.5 <= coverage < 1:
        raise ValueError(f"coverage must be at least 0.5 and less than 1, got {coverage}.")
    known = reference if isinstance(reference, AnnData) else adata
    named = find_columns(known.obs, time_key=time_key, donor_key=donor_key, groupby=groupby)
    time_key = time_in_numbers(known, named["time_key"], model.time_head.unit)
    donor_key, groupby = named["donor_key"], named["groupby"]
    columns = as_list(groupby)
    kind = reference if isinstance(reference, str) else _kind_of(reference)
    cells, rows_given = known_cells(adata, donor_key, columns)
    if isinstance(reference, AnnData):
        reference, _ = known_cells(reference, donor_key, columns)
    elif reference is not None:
        reference = get_mask(adata, reference, "reference")[rows_given]
    asked = _gather(cells, reference, model, time_key, donor_key, groupby)
    read_as = check_unit(time_key, asked.time[asked.known], model.time_head.unit)
    calibrating = _some_of_each(asked, sampling.n_cells, rng)
    read, n_read = _read(model, asked, asked.queried | calibrating, sampling, rng)

    n = cells.n_obs
    age, low, high = (np.full(n, np.nan) for _ in range(3))
    donors, groups = [], []
    for number, group in enumerate(asked.groups):
        mine = asked.group == number
        fitted = np.flatnonzero(mine & calibrating & np.isfinite(read))
        rows = np.flatnonzero(mine & asked.queried)
        row = {"group": group, "n_cells": len(rows), "n_reference_cells": len(fitted)}
        row["n_reference_donors"] = len(np.unique(asked.donor[fitted]))
        reason, found = "", None
        if row["n_reference_donors"] < MIN_DONORS or len(np.unique(asked.time[fitted])) < 3:
            reason = (
                f"{row['n_reference_donors']} reference donors with cells of this group; at least {MIN_DONORS}, of "
                "three ages, are needed"
            )
        else:
            found = calibrate(read[fitted], asked.time[fitted], asked.donor[fitted], coverage)
            row |= {name: getattr(found, name) for name in _SCORES}
            if not found.r_low > 0:
                reason = "the ages of the reference donors are not read from these cells"
                found = None
            elif np.isnan(found.cell_reach):
                reason = f"too few reference donors for intervals of {coverage:.0%}"
        groups.append(row | {"reason": reason})
        # The cells come first, before those of a reference elsewhere.
        here = rows[rows < n]
        if found is not None:
            age[here] = found.apply(read[here], asked.donor[here])
            low[here], high[here] = age[here] - found.cell_reach, age[here] + found.cell_reach
        donors += _by_donor(asked, here, age, n_read, group, found)
    column = key_added or _keys.PREDICTED_AGE
    for suffix, values in [("", age), ("_low", low), ("_high", high)]:
        whole = np.full(adata.n_obs, np.nan)
        whole[rows_given] = values
        adata.obs[column + suffix] = whole
    params = {
        "time_key": time_key,
        "unit": model.time_head.unit,
        "time_read_as": read_as,
        "donor_key": donor_key,
        "groupby": columns,
        "reference": kind,
        **sampling.flat(),
        "coverage": coverage,
        "n_left_out": adata.n_obs - n,
        "n_truncated": count_truncated(cells, model),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.PREDICT_AGE,
        {**model.params, **params},
        key_added=key_added,
        donors=pd.DataFrame(donors),
        groups=pd.DataFrame(groups).reindex(columns=_GROUP_COLUMNS),
    )


def _kind_of(reference: AnnData | Sequence[bool] | None) -> str:
    if reference is None:
        return "known ages"
    return "another AnnData" if isinstance(reference, AnnData) else "mask"


_SCORES = ("slope", "r", "r_low", "median_error", "median_error_mean_age", "cell_reach", "donor_reach")
_GROUP_COLUMNS = ["group", "n_cells", "n_reference_donors", "n_reference_cells", *_SCORES, "reason"]


class _Asked(NamedTuple):
    """All cells, those of the AnnData first, then those of a reference elsewhere."""

    sequences: Sequences
    names: np.ndarray
    donor: np.ndarray
    group: np.ndarray
    groups: list[str]
    age: np.ndarray
    """float; NaN where the column has none."""
    time: np.ndarray
    """int64: the age of reference cells, 0 of others."""
    known: np.ndarray
    """bool: whether the cell is reference."""
    queried: np.ndarray
    """bool: whether its age is to be read."""


def _gather(adata, reference, model, time_key, donor_key, groupby) -> _Asked:
    """What is known of all cells; none lacks a donor or a group (`known_cells`)."""
    elsewhere = reference if isinstance(reference, AnnData) else None
    columns = as_list(groupby)
    sequences, obs = get_sequences(adata, model), adata.obs[[donor_key, *columns]]
    known = np.zeros(adata.n_obs, bool)
    if elsewhere is None:
        require_obs(adata, time_key)
        known = get_mask(adata, reference, "reference")
        if reference is None:
            known = pd.to_numeric(adata.obs[time_key], errors="coerce").notna().to_numpy()
        times = adata.obs[time_key]
    else:
        require_unique_names(elsewhere)
        require_obs(elsewhere, time_key)
        more = get_sequences(elsewhere, model)
        sequences = Sequences.concatenate([sequences, more])
        obs = pd.concat([obs.astype(object), elsewhere.obs[obs.columns].astype(object)])
        known = np.concatenate([known, np.ones(elsewhere.n_obs, bool)])
        own = adata.obs[time_key] if time_key in adata.obs else pd.Series(np.nan, index=adata.obs_names)
        times = pd.concat([own.astype(object), elsewhere.obs[time_key].astype(object)])
    if not known.any():
        raise ValueError(
            f"No reference cell has an age in .obs[{time_key!r}] and a donor in .obs[{donor_key!r}]."
        )
    time = np.zeros(len(known), np.int64)
    time[known] = as_times(times[known], time_key)
    group, groups = get_groups(ad.AnnData(obs=obs.reset_index(drop=True).rename(index=str)), groupby)
    return _Asked(
        sequences,
        obs.index.to_numpy(dtype=object),
        obs[donor_key].astype(str).to_numpy(dtype=object).astype(str),
        group,
        groups,
        pd.to_numeric(times, errors="coerce").to_numpy(float),
        time,
        known,
        np.arange(len(known)) < adata.n_obs,
    )


def _some_of_each(asked: _Asked, n: int, seed: int) -> np.ndarray:
    """Which reference cells calibrate: some of each donor and group, by their names."""
    rows = _by_name(asked, asked.known)
    rows = rows[np.random.default_rng([seed, 1]).permutation(len(rows))]
    place = pd.DataFrame({"d": asked.donor[rows], "g": asked.group[rows]}).groupby(["d", "g"]).cumcount()
    chosen = np.zeros(len(asked.known), bool)
    chosen[rows[place.to_numpy() < n]] = True
    return chosen


def _by_name(asked: _Asked, some: np.ndarray) -> np.ndarray:
    """Rows of some cells in the order of their names: a reference elsewhere is drawn from as one in place is."""
    rows = np.flatnonzero(some)
    return rows[np.argsort(asked.names[rows].astype(str), kind="stable")]


def _read(model, asked: _Asked, wanted: np.ndarray, sampling: AgeSampling, seed: int):
    """Mean age that is read of each cell over the contexts without its donor, and their number."""
    groups = []
    for number, name in enumerate(asked.groups):
        here = asked.group == number
        contexts = draw_contexts(
            _by_name(asked, asked.known & here),
            asked.donor,
            asked.time,
            n=sampling.n_contexts,
            size=sampling.context_size,
            seed=[seed, crc32(name.encode())],
        )
        groups.append((np.flatnonzero(wanted & here), contexts))
    read = read_ages(model, asked.sequences, groups, asked.donor, asked.time)
    total = np.bincount(read.cell, read.age, minlength=len(wanted))
    n_read = np.bincount(read.cell, minlength=len(wanted))
    return np.where(n_read > 0, total / np.maximum(n_read, 1), np.nan), n_read


def _by_donor(asked: _Asked, rows, age, n_read, group: str, found) -> list[dict]:
    """One row a donor."""
    table = []
    for name in np.unique(asked.donor[rows]):
        mine = rows[(asked.donor[rows] == name) & (n_read[rows] > 0)]
        if not len(mine):
            continue
        mean = age[mine].mean()
        reach = np.nan if found is None else found.donor_reach
        table.append(
            {
                "donor": name,
                "group": group,
                "reference": bool(asked.known[mine].all()),
                "n_cells": len(mine),
                "n_contexts": int(n_read[mine].max()),
                "known": asked.age[mine].mean(),
                "predicted": mean,
                "low": mean - reach,
                "high": mean + reach,
            }
        )
    return table
