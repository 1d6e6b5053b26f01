"""Which donors of a condition and of the controls are of like age."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..results.store import write_result
from ._columns import find_columns
from ._design import as_list, get_groups, get_labels, get_times, known_cells
from .parse_age import time_in_numbers


def match_ages(
    adata: AnnData,
    *,
    condition_key: str | None = None,
    control: str | None = None,
    time_key: str | None = None,
    donor_key: str | None = None,
    match_by: str | Sequence[str] | None = None,
    tolerance: int = 60,
) -> None:
    """Find the donors of each condition that have controls of their age, and these controls.

    Parameters
    ----------
    adata
        Cells.
    condition_key, control
        Column of `.obs` with the condition of each donor, and the value that controls have. These and the
        next two are guessed from the names in `.obs` where they are `None`, with a warning that says which
        were taken.
    time_key
        Column of `.obs` with the age, in whole units; text is read by `mt.pp.parse_age` into a column whose
        name ends in "_months".
    donor_key
        Column of `.obs` with the donor.
    match_by
        Columns of `.obs` in which a donor and its controls agree, e.g. "sex".
    tolerance
        Largest difference in age, in the unit of `time_key` (60 months by default).

    Returns
    -------
    `None`. Writes to `.uns["matched_ages"]`

    `donors`
        One row a condition and donor, controls included: `condition`, `donor`, `case` (whether the donor has
        the condition), `age`, `stratum` (values of `match_by`), `n_matches`, and `matched`.
    `balance`
        One row a `condition`, before matching (`_before`) and after (`_after`): donors of both sides
        (`n_condition_before`, `n_control_before`, `n_condition_after`, `n_control_after`), their mean ages
        (`age_condition_before`, `age_control_before`, `age_condition_after`, `age_control_after`), and the
        standardised difference between them, over the standard deviation of both sides before matching
        (`difference_before`, `difference_after`).

    Raises
    ------
    ValueError
        If a donor has several ages or conditions, or there is no control, or nothing but controls.

    Notes
    -----
    Every control within the tolerance of a donor is a match, so controls are used more than once and none is
    drawn by chance. `mt.tl.age_acceleration` compares these donors, and adjusts for what difference in age is
    left within the tolerance.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 40, n_genes=500)
    >>> settings = dict(condition_key="condition", control="control", time_key="age_months", donor_key="donor_id")
    >>> mt.pp.match_ages(adata, **settings, match_by="sex", tolerance=36)
    >>> adata.uns["matched_ages"]["balance"]["condition"].tolist()
    ['accelerated_15y', 'accelerated_3y', 'accelerated_5y', 'resilient']
    """
    columns = find_columns(
        adata.obs, condition_key=condition_key, control=control, time_key=time_key, donor_key=donor_key
    )
    columns["time_key"] = time_in_numbers(adata, columns["time_key"], "months")
    columns["match_by"] = as_list(match_by)
    table = match_donors(donor_table(adata, **columns), columns["control"], tolerance)
    params = {**columns, "tolerance": tolerance}
    write_result(adata, _keys.MATCHED_AGES, params, donors=table, balance=age_balance(table))


def donor_table(
    adata: AnnData,
    *,
    condition_key: str,
    control: str,
    time_key: str,
    donor_key: str,
    match_by: Sequence[str],
) -> pd.DataFrame:
    """One row a donor: `donor`, `condition`, `age`, `stratum`. Cells without any of these are left out."""
    adata, _ = known_cells(adata, donor_key, condition_key, time_key, match_by)
    stratum, names = get_groups(adata, match_by)
    table = pd.DataFrame(
        {
            "donor": get_labels(adata, donor_key),
            "condition": get_labels(adata, condition_key),
            "age": get_times(adata, time_key),
            "stratum": np.array(names, dtype=object)[stratum],
        }
    ).drop_duplicates(ignore_index=True)
    if (repeated := table["donor"].duplicated()).any():
        name = table["donor"][repeated].iloc[0]
        rows = table[table["donor"] == name].drop(columns="donor").to_dict("records")
        others = table["donor"][repeated].nunique() - 1
        also = f", and so {'has another' if others == 1 else f'have {others} others'}" if others else ""
        raise ValueError(
            f"Donor {name!r} has several ages, conditions or strata ({rows[:3]}){also}. A donor "
            f"sampled several times needs a name for each sample in .obs[{donor_key!r}]."
        )
    found = sorted(table["condition"].unique())
    if control not in found or len(found) < 2:
        raise ValueError(
            f"Need donors of condition {control!r} (control=) and of another; .obs[{condition_key!r}] has {found}."
        )
    return table


def match_donors(donors: pd.DataFrame, control: str, tolerance: float) -> pd.DataFrame:
    """The donors of each condition and all controls, with how many of the other side are like them."""
    controls = donors[donors["condition"] == control]
    parts = []
    for condition, cases in donors[donors["condition"] != control].groupby("condition"):
        like = (np.abs(cases["age"].to_numpy()[:, None] - controls["age"].to_numpy()) <= tolerance) & (
            cases["stratum"].to_numpy()[:, None] == controls["stratum"].to_numpy()
        )
        parts += [
            cases.assign(condition=condition, case=True, n_matches=like.sum(axis=1)),
            controls.assign(condition=condition, case=False, n_matches=like.sum(axis=0)),
        ]
    table = pd.concat(parts, ignore_index=True)
    table["matched"] = table["n_matches"] > 0
    return table[["condition", "donor", "case", "age", "stratum", "n_matches", "matched"]]


def age_balance(table: pd.DataFrame) -> pd.DataFrame:
    """Ages of both sides, before and after matching, one row a condition."""
    rows = []
    for condition, part in table.groupby("condition"):
        row = {"condition": condition}
        sides = [part[part["case"]], part[~part["case"]]]
        spread = np.sqrt(np.mean([side["age"].var(ddof=1) if len(side) > 1 else np.nan for side in sides]))
        for when, kept in (("before", sides), ("after", [side[side["matched"]] for side in sides])):
            means = [side["age"].mean() for side in kept]
            row |= {
                f"n_condition_{when}": len(kept[0]),
                f"n_control_{when}": len(kept[1]),
                f"age_condition_{when}": means[0],
                f"age_control_{when}": means[1],
                f"difference_{when}": (means[0] - means[1]) / spread if spread > 0 else np.nan,
            }
        rows.append(row)
    return pd.DataFrame(rows)
