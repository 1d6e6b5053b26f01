"""Which columns of `.obs` features are compared by, and how donors enter."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ..pp._design import get_groups, get_labels
from ..stats.associations import MIN_UNITS, Design, unit_labels


class Column(NamedTuple):
    """Labels or times, and how they are tested."""

    name: str
    code: np.ndarray
    """Of each cell: the place of its label in `values` (-1 for none), or its time."""
    values: list[str]
    """Labels; none for a time."""
    kind: str
    """"within" donors, "between" them, or "cells"."""
    design: Design

    @property
    def is_time(self) -> bool:
        """Whether these are times."""
        return not self.values


class Units(NamedTuple):
    """Donors, and halves of them."""

    unit: np.ndarray
    """Donor of each cell; 0 for all where there are too few."""
    half: np.ndarray
    """Which half each donor is in."""
    half_of_cell: np.ndarray
    """The same of cells, where donors cannot speak."""
    known: bool
    """Whether there are enough donors."""


def get_units(cells: AnnData, donor_key: str | None, seed: int) -> Units:
    """Donors of the cells, and random halves of donors and of cells."""
    rng = np.random.default_rng([seed, 7])
    half = rng.permutation(cells.n_obs) % 2
    if donor_key is not None:
        unit, names = pd.factorize(get_labels(cells, donor_key), sort=True)
        if len(names) >= MIN_UNITS:
            return Units(unit, rng.permutation(len(names)) % 2, half, known=True)
    none = np.zeros(cells.n_obs, dtype=np.int64)
    return Units(none, none[:1], half, known=False)


def label_column(
    cells: AnnData, name: str, units: Units, stratum: np.ndarray | None, donor_key: str | None
) -> Column:
    """A column of labels; cells are compared within the strata, if any are given."""
    code, values = get_groups(cells, name)
    if len(values) < 2:
        raise ValueError(f".obs[{name!r}] has one value, {values[0]!r}: there is nothing to compare.")
    kind = "cells"
    if units.known and name != donor_key:
        of_unit = unit_labels(code, units.unit, len(units.half))
        kind = "between" if (of_unit >= 0).mean() > 0.5 else "within"
    return Column(name, code, values, kind, _design(units, stratum, kind))


def time_column(times: np.ndarray, name: str, units: Units, stratum: np.ndarray | None) -> Column:
    """A column of times, which not all cells need to have."""
    kind = "cells"
    if units.known:
        spread = pd.Series(times).groupby(units.unit).agg(lambda part: part.max() - part.min())
        kind = "between" if (spread == 0).mean() > 0.5 else "within"
    return Column(name, times, [], kind, _design(units, stratum, kind))


def _design(units: Units, stratum: np.ndarray | None, kind: str) -> Design:
    stratum = np.zeros(len(units.unit), dtype=np.int64) if stratum is None else stratum
    if kind == "cells":
        return Design(np.zeros_like(units.unit), stratum, units.half_of_cell, has_units=False)
    return Design(units.unit, stratum, units.half, has_units=True)
