"""Which cells make a corpus: drawn at random, from the names of donors and cells alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

UNKNOWN = "unknown"
# What stands for no donor in CELLxGENE's schema.
NO_DONOR = ("", "na", "nan", "none", "pooled", "unknown")
BEFORE_BIRTH = "before birth"


def matches(labels: Sequence[str], patterns: object) -> np.ndarray:
    """Whether each label is one of some values, or like one: "10x*" is all that begins so.

    Examples
    --------
    >>> matches(["10x 3' v3", "Smart-seq2"], ["10x*", "Drop-seq"]).tolist()
    [True, False]
    >>> matches(["True", "False"], True).tolist()
    [True, False]
    """
    listed = patterns if isinstance(patterns, (list, tuple)) else [patterns]
    return np.array([any(fnmatchcase(label, str(one)) for one in listed) for label in labels], dtype=bool)


def lots(names: Iterable[str], seed: int) -> np.ndarray:
    """A random number for each name (uint64) that depends on the name and the seed alone.

    Examples
    --------
    >>> bool(lots(["a", "b"], 0)[1] == lots(["b"], 0)[0])
    True
    """
    names = np.asarray(names, dtype=object)
    return pd.util.hash_array(names, hash_key=f"{seed:016d}"[-16:], categorize=False)


def decade_of(years: float) -> str:
    """Decade of an age: "40-49", "before birth" or "unknown".

    Examples
    --------
    >>> decade_of(44.5), decade_of(-0.3), decade_of(float("nan"))
    ('40-49', 'before birth', 'unknown')
    """
    if np.isnan(years):
        return UNKNOWN
    first = int(years // 10) * 10
    return BEFORE_BIRTH if years < 0 else f"{first}-{first + 9}"


def balance_donors(
    donors: pd.DataFrame, *, balance_sex: bool, max_donors: int | None, lot: np.ndarray
) -> np.ndarray:
    """Which donors are kept, those with the lowest random numbers first.

    Parameters
    ----------
    donors
        One row a donor: `sex`, `decade`.
    balance_sex
        Whether each decade is to have as many women as men, and nobody of unknown sex.
    max_donors
        Most donors of one sex and decade.
    lot
        Random number of each.
    """
    place = (
        pd.Series(lot)
        .groupby([donors["sex"].to_numpy(), donors["decade"].to_numpy()])
        .rank(method="first")
        .to_numpy()
    )
    kept = np.ones(len(donors), dtype=bool) if max_donors is None else place <= max_donors
    if balance_sex:
        n = donors.groupby(["decade", "sex"]).size().unstack(fill_value=0)
        fewest = n.reindex(columns=["female", "male"], fill_value=0).min(axis=1)
        kept &= donors["sex"].isin(["female", "male"]).to_numpy()
        kept &= place <= donors["decade"].map(fewest).to_numpy()
    return kept


def lowest_of_each(group: np.ndarray, lot: np.ndarray, n: int) -> np.ndarray:
    """Which cells are among the `n` with the lowest random numbers of their group."""
    order = np.lexsort((lot, group))
    ordered = group[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    kept = np.empty(len(group), dtype=bool)
    kept[order] = place < n
    return kept


def largest_share(n_cells: np.ndarray, share: float) -> int:
    """Most cells that a group may keep, so that none has more than a share of what all keep.

    Examples
    --------
    >>> largest_share(np.array([90, 10, 10, 10, 10]), 0.25)
    13
    """
    ordered = np.sort(n_cells)[::-1]
    for n_cut, largest_left in enumerate(ordered):
        if n_cut * share >= 1:
            break
        # So many may each of the cut ones have: share * (n_cut * most + what is left).
        most = share * ordered[n_cut:].sum() / (1 - n_cut * share) + 1e-9
        if largest_left <= most:
            return int(most)
    return 0
