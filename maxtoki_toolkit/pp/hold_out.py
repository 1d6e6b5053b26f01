"""Hold out donors, ages and cell types from training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._ontology import kinds_of, match
from .._warn import warn
from ..results.store import write_obs, write_result
from ._columns import as_labels, find_columns
from ._design import get_labels, get_times, known_cells
from .parse_age import time_in_numbers


def hold_out(
    adata: AnnData,
    *,
    donor_key: str | None = None,
    donors: float | str | Sequence[str] | Sequence[int] = 0.2,
    time_key: str | None = None,
    times: Sequence[tuple[int, int]] = (),
    groups: Mapping[str, str | Sequence[str] | Sequence[int]] | None = None,
    rng: int = 0,
) -> None:
    """Mark the cells that training must not see, donor by donor.

    Parameters
    ----------
    adata
        Cells.
    donor_key
        Column of `.obs` with the donor; guessed from the names in `.obs` and said, as is `time_key` where
        `times` are given.
    donors
        Donors to hold out: their names, or their share, drawn spread over the times if `time_key` is given.
    time_key, times
        Column of `.obs` with the time, and ranges (first, last) to hold out. A donor with any cell in a range
        is held out whole.
    groups
        Values of columns of `.obs` to hold out in all donors, e.g. {"cell_type": ["Microglia"]}. A value that
        names a term of the Cell Ontology ("T cell", "CL:0000084") is a lineage: all labels that name a kind
        of it are held out with it. Which these are, and which labels name no term and so stay, is warned of.
    rng
        Seed.

    Returns
    -------
    `None`. Writes boolean columns of `.obs`: `train`; `held_out`; and what of it is held out for which
    reason, without overlap: `held_out_groups` (any donor), then `held_out_times` and `held_out_donors`. The
    counts are in `.uns["hold_out"]`. Cells without a donor, a time or a value of a column of `groups` might
    be of a donor that is held out: they are in none of these, `train` neither.

    Raises
    ------
    ValueError
        If a donor or group is unknown, no cell is in a range of times, or nothing is left to train on.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10, n_genes=500)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", groups={"cell_type": ["macrophage"]})
    >>> adata.obs.loc[adata.obs["cell_type"] == "macrophage", "train"].any()
    np.False_
    """
    # Values are compared as text, whatever their column holds.
    groups = {key: _names(values) for key, values in (groups or {}).items()}
    given = {"donor_key": donor_key} | ({"time_key": time_key} if times else {})
    columns = {"time_key": time_key} | find_columns(adata.obs, **given)
    donor_key, time_key = columns["donor_key"], columns["time_key"]
    if time_key is not None:
        time_key = time_in_numbers(adata, time_key, "months")
    cells, rows = known_cells(adata, donor_key, time_key, list(groups or {}))
    donor = get_labels(cells, donor_key)
    by_group, held = np.zeros(cells.n_obs, dtype=bool), {}
    for column, values in (groups or {}).items():
        found = as_labels(cells.obs[column].astype(object))
        wanted = sorted(
            {label for value in as_labels(values) for label in _labels_of(value, set(found), column)}
        )
        _say_lineages(set(as_labels(values)), wanted, set(found), column)
        held[column] = wanted
        by_group |= np.isin(found, wanted)
    time = None if time_key is None else get_times(cells, time_key)
    by_time = np.zeros(cells.n_obs, dtype=bool)
    for first, last in times:
        if not (inside := (time >= first) & (time <= last)).any():
            raise ValueError(
                f"No cell has a time from {first} to {last}: .obs[{time_key!r}] is from {time.min()} to {time.max()}."
            )
        by_time |= inside
    by_time = np.isin(donor, np.unique(donor[by_time]))
    if isinstance(donors, (int, float)):
        chosen = _spread(donor[~by_time], None if time is None else time[~by_time], donors, rng)
    else:
        chosen = _names(donors)
        if unknown := sorted(set(chosen) - set(donor)):
            has = ", ".join(map(repr, sorted(set(donor))[:8]))
            raise ValueError(f".obs[{donor_key!r}] has no donor {unknown[0]!r}; it has {has}.")
    by_donor = np.isin(donor, chosen) & ~by_time
    held_out = by_group | by_time | by_donor
    if held_out.all():
        raise ValueError("Everything is held out: nothing is left to train on.")

    parts = {
        "train": ~held_out,
        "held_out": held_out,
        "held_out_groups": by_group,
        "held_out_times": by_time & ~by_group,
        "held_out_donors": by_donor & ~by_group,
    }
    columns = {name: np.zeros(adata.n_obs, dtype=bool) for name in parts}
    for name, mask in parts.items():
        columns[name][rows] = mask
    write_obs(adata, _keys.HOLD_OUT, columns)
    params = {"donor_key": donor_key, "donors": sorted(chosen), "time_key": time_key, "seed": rng}
    params |= {
        "times": [list(pair) for pair in times],
        "groups": held,
    }
    counts = {f"n_cells_{name}": int(mask.sum()) for name, mask in parts.items()}
    write_result(adata, _keys.HOLD_OUT, {**params, **counts, "n_left_out": adata.n_obs - len(rows)})


def _labels_of(value: str, labels: set[str], column: str) -> list[str]:
    """The value if the column has it, and the labels of the column that name a kind of that cell."""
    named = match(value)
    kinds = kinds_of(named.term) if named.sure else set()
    # A label that names a kind of the cell only without its surface markers is one all the more.
    if found := [label for label in labels if label == value or match(label).term in kinds - {""}]:
        return found
    raise ValueError(
        f".obs[{column!r}] has no {value!r}; it has {sorted(labels)}, and none names a kind of such a cell."
    )


def _say_lineages(asked: set[str], wanted: list[str], labels: set[str], column: str) -> None:
    """Warn of what is held out beyond the labels that were named, and of labels that may belong to it."""
    added = [label for label in wanted if label not in asked]
    if not added:
        return
    unknown = sorted(label for label in labels - set(wanted) if not match(label).sure)
    text = f"Held out of .obs[{column!r}] as kinds of {', '.join(map(repr, sorted(asked)))}: {', '.join(map(repr, added))}."
    if unknown:
        text += f" {', '.join(map(repr, unknown))} name no cell type for sure and stay: mt.pp.harmonize_cell_types."
    warn(text)


def _names(values: str | Sequence) -> list[str]:
    return [values] if isinstance(values, str) else [str(value) for value in values]


def _spread(donor: np.ndarray, time: np.ndarray | None, share: float, seed: int) -> list[str]:
    """A share of the donors, one from each stretch of the donors sorted by time."""
    if not 0 <= share < 1:
        raise ValueError(f"The share of donors to hold out must be in [0, 1), got {share}.")
    names, of_cell = np.unique(donor, return_inverse=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    if time is not None:
        earliest = pd.Series(time).groupby(of_cell).min().to_numpy()
        order = order[np.argsort(earliest[order], kind="stable")]
    n = round(share * len(names))
    return [str(names[rng.choice(stretch)]) for stretch in np.array_split(order, n)] if n else []
