"""Cells as the notebooks read them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from .._warn import warn
from ..models.model import MaxTokiModel
from ..pp._columns import has_values
from ..pp._design import as_times
from ..pp.parse_age import read_terms, species_of
from ..pp.read_cells import read_cells as read_file

_TO_MONTHS = {"years": 12.0, "months": 1.0}
_TO_HOURS = {"weeks": 168.0, "days": 24.0, "hours": 1.0}


def read_cells(
    path: str | Path,
    *,
    layer: str = "",
    time_key: str = "",
    time_unit: str = "months",
    model: MaxTokiModel | None = None,
) -> AnnData:
    """Read cells, with times in whole numbers of the unit that a model tells.

    Parameters
    ----------
    path
        What `mt.pp.read_cells` reads.
    layer
        Layer with the raw counts, "raw" for those in `.raw`; "" for `.X`.
    time_key
        Column of `.obs` with the time: numbers, or ages as text (see `mt.pp.parse_age`); "" for none. Cells
        without a time are left out, with a warning that counts them.
    time_unit
        Unit of the numbers, and of what is made of text.
    model
        Model whose unit the times are converted to; `None` leaves them in `time_unit`.

    Returns
    -------
    The cells; the column `time_key` holds whole numbers.

    Raises
    ------
    ValueError
        If no cell has a time, or its unit cannot be converted.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.reports.read_cells("none.h5ad")
    Traceback (most recent call last):
    FileNotFoundError: Did not find none.h5ad.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"Did not find {path}.")
    # Names of cells that repeat are reported by what needs them unique.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique", category=UserWarning)
        adata = read_file(path, layer=layer or None)
    if not time_key:
        return adata
    if time_key not in adata.obs:
        raise ValueError(
            f".obs has no column {time_key!r} (time_key). It has {', '.join(map(repr, adata.obs))}."
        )
    times = whole_times(adata.obs, time_key, time_unit)
    times = np.rint(times * unit_factor(time_unit, model.time_head.unit)) if model is not None else times
    known = np.isfinite(times)
    if not known.any():
        raise ValueError(
            f"No cell has a time in .obs[{time_key!r}] (first: {adata.obs[time_key].iloc[0]!r})."
        )
    if not known.all():
        warn(
            f"{(~known).sum():,} of {len(known):,} cells have no time in .obs[{time_key!r}] and are left out."
        )
        adata = adata[known].copy()
    adata.obs[time_key] = as_times(pd.Series(times[known]), time_key)
    return adata


def whole_times(obs: pd.DataFrame, time_key: str, unit: str) -> np.ndarray:
    """Times of a column, NaN where there are none; ages in text as whole numbers of a unit, numbers as they are."""
    column = obs[time_key]
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=float)
    if np.isfinite(numbers).any():
        return numbers
    if unit not in ("years", "months", "weeks", "days"):
        raise ValueError(
            f".obs[{time_key!r}] is text, which is read as ages, and those are not told in {unit}."
        )
    ages = read_terms(column, unit, species=species_of(obs)).set_index("term")["age"]
    text = column.astype(object)
    return np.rint(text.where(text.notna(), "").astype(str).map(ages).to_numpy(dtype=float))


def cells_with(adata: AnnData, columns: Mapping[str, Sequence]) -> np.ndarray:
    """Say which cells have one of the given values in each column.

    Parameters
    ----------
    adata
        Cells.
    columns
        Values by column of `.obs`; `{}` for all cells. Whole numbers and their text are the same, because
        clusters are text in files and numbers in parameters.

    Returns
    -------
    One boolean a cell.

    Raises
    ------
    ValueError
        If no cell has the values.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(200, 10, n_genes=500)
    >>> adata.obs["cluster"] = ["0", "1"] * (adata.n_obs // 2) + ["0"] * (adata.n_obs % 2)
    >>> int(mt.reports.cells_with(adata, {"cluster": [1]}).sum()) == adata.n_obs // 2
    True
    """
    mask = has_values(adata.obs, columns)
    if columns and not mask.any():
        raise ValueError(
            f"No cell has {', '.join(f'{key}={value}' for key, value in columns.items())} in .obs."
        )
    return mask


def unit_factor(given: str, wanted: str) -> float:
    """How many of one unit another is."""
    for units in (_TO_MONTHS, _TO_HOURS):
        if given in units and wanted in units:
            return units[given] / units[wanted]
    if given == wanted:
        return 1.0
    raise ValueError(
        f"The model tells time in {wanted}, and the times of the cells are in {given} (time_unit)."
    )
