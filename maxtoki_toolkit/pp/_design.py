"""Columns of `.obs` that say when, in what group, and which: read and checked once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .._validate import require_adata, require_obs
from .._warn import warn

# What a missing value becomes when a column is made text before it gets here.
_MISSING = ("", "nan")


def as_list(columns: str | Sequence[str] | None) -> list[str]:
    """Names of columns, where one may be given alone, or none.

    Examples
    --------
    >>> as_list("cell_type"), as_list(["cell_type", "sex"]), as_list(None)
    (['cell_type'], ['cell_type', 'sex'], [])
    """
    return [columns] if isinstance(columns, str) else list(columns or [])


def known_cells(adata: AnnData, *keys: str | Sequence[str] | None) -> tuple[AnnData, np.ndarray]:
    """Cells with a value in each of these columns of `.obs`, in the order of their names; and their rows.

    What is drawn and computed of them does not depend on where they stand in the file, and none becomes a
    donor, a group or a time "nan". How many are left out is warned of.
    """
    require_adata(adata)
    columns = [key for part in keys for key in as_list(part)]
    require_obs(adata, *columns)
    missing = {key: is_missing(adata.obs[key]) for key in dict.fromkeys(columns)}
    left = np.ones(adata.n_obs, dtype=bool)
    for key, mask in missing.items():
        if (mask & left).any():
            text = f"{(mask & left).sum()} of {adata.n_obs} cells have no value in .obs[{key!r}]"
            if mask.all():
                raise ValueError(f"{text}.")
            warn(f"{text} and are left out.")
        left &= ~mask
    if adata.n_obs and not left.any():
        raise ValueError(f"No cell has a value in all of {', '.join(f'.obs[{key!r}]' for key in missing)}.")
    rows = np.flatnonzero(left)
    names = adata.obs_names[rows].to_numpy(dtype=str)
    # Short names first: cell_9 comes before cell_10.
    rows = rows[np.lexsort((names, np.char.str_len(names)))]
    same = len(rows) == adata.n_obs and (np.diff(rows) > 0).all()
    return adata if same else adata[rows], rows


def is_missing(column: pd.Series) -> np.ndarray:
    """Which values of a column are none."""
    return (column.isna() | column.isin(_MISSING)).to_numpy(dtype=bool)


def get_labels(adata: AnnData, key: str) -> np.ndarray:
    """A column as text, object; or raise if a cell has none (`known_cells` leaves these out)."""
    require_obs(adata, key)
    if (missing := is_missing(adata.obs[key])).any():
        raise ValueError(
            f"{missing.sum()} of {adata.n_obs} cells have no value in .obs[{key!r}]. Drop them first."
        )
    return adata.obs[key].astype(str).to_numpy(dtype=object)


_DATE = 1e7  # 20200131, or seconds since 1970


def get_times(adata: AnnData, time_key: str) -> np.ndarray:
    """Times of the cells, int64."""
    require_obs(adata, time_key)
    return as_times(adata.obs[time_key], time_key)


def as_times(column: pd.Series, time_key: str) -> np.ndarray:
    """A column of `.obs` as times, int64; or raise with what keeps it from being that."""
    values = as_numbers(column, time_key)
    times = np.rint(values)
    if (bad := times != values).any():
        raise ValueError(
            f"{bad.sum()} of {len(values)} times in .obs[{time_key!r}] are no whole numbers (first: {values[bad][0]}). "
            "Lapses are tokens: use a finer unit, e.g. years * 12, and round."
        )
    return times.astype(np.int64)


def as_numbers(column: pd.Series, time_key: str) -> np.ndarray:
    """A column of `.obs` as times that need not be whole; or raise with what keeps it from being that."""
    where = f".obs[{time_key!r}]"
    kind = pd.api.types.infer_dtype(column.astype(object), skipna=True)
    if kind in ("datetime", "datetime64", "date", "period"):
        raise ValueError(
            f"{where} holds dates (first: {column.dropna().iloc[0]}). Times are numbers counted from a start, e.g. days: "
            f"dates = pd.to_datetime(adata.obs[{time_key!r}]); adata.obs['days'] = (dates - dates.min()).dt.days."
        )
    if kind in ("timedelta", "timedelta64"):
        raise ValueError(
            f"{where} holds durations (first: {column.dropna().iloc[0]}). Times are numbers, e.g. "
            f"adata.obs['days'] = pd.to_timedelta(adata.obs[{time_key!r}]).dt.days."
        )
    numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    given = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    text = given[np.isnan(numbers) & ~given.str.lower().isin(("", "nan")).to_numpy()]
    if len(text):
        raise ValueError(
            f"{where} is not numeric (first: {text.iloc[0]!r}): {len(text)} of {len(column)} values are no numbers. Times are numbers, "
            f"such as age in months: mt.pp.parse_age(adata, {time_key!r}) reads ages from text; or drop the cells."
        )
    if (bad := ~np.isfinite(numbers)).any():
        raise ValueError(f"{bad.sum()} of {len(column)} cells have no time in {where}. Drop them first.")
    if len(numbers) and numbers.min() > _DATE:
        raise ValueError(
            f"{where} goes from {numbers.min():.0f} to {numbers.max():.0f}: these look like dates or time stamps written as "
            "numbers. Times are counted from a start, such as age in months."
        )
    return numbers


def get_groups(adata: AnnData, groupby: str | Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """Group of each cell and the groups' names: the columns' values joined by " | ", in order; -1 for none."""
    columns = as_list(groupby)
    if not columns:
        return np.zeros(adata.n_obs, dtype=np.int64), ["all"]
    require_obs(adata, *columns)
    present = ~np.any([is_missing(adata.obs[column]) for column in columns], axis=0)
    values = [adata.obs[column][present].astype(str).to_numpy(dtype=object) for column in columns]
    joined = values[0]
    for value in values[1:]:
        joined = joined + " | " + value
    code, names = pd.factorize(joined, sort=True)
    groups = np.full(adata.n_obs, -1, dtype=np.int64)
    groups[present] = code
    return groups, names.tolist()


def get_mask(adata: AnnData, use: str | Sequence[bool] | None, name: str) -> np.ndarray:
    """Which cells to use: a boolean column of `.obs`, a boolean for each cell, or (`None`) all."""
    if use is None:
        return np.ones(adata.n_obs, dtype=bool)
    if isinstance(use, str):
        require_obs(adata, use)
        use = adata.obs[use]
    if isinstance(use, pd.Series) and use.dtype == "boolean" and use.notna().all():
        use = use.to_numpy(dtype=bool)
    mask = np.asarray(use)
    if mask.shape != (adata.n_obs,) or mask.dtype != bool:
        raise ValueError(
            f"{name} must be a boolean column of .obs or one boolean a cell ({adata.n_obs}), got "
            f"{mask.dtype} of shape {mask.shape}."
        )
    return mask
