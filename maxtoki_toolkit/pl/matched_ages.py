"""Ages of donors and their controls."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..pp._columns import unit_in_name
from ..results.store import read_result
from ._style import BASELINE, MODEL, clean, drawing


@drawing
def matched_ages(adata: AnnData, *, key: str = _keys.MATCHED_AGES, ax: Axes | None = None) -> Axes:
    """Draw the ages of the donors of each condition beside those of the controls.

    Parameters
    ----------
    adata
        Cells with a result of `mt.pp.match_ages`, or of `mt.tl.age_acceleration` (`key="age_acceleration"`).
    {key}
    {ax}

    Returns
    -------
    The axes: a dot a donor, filled where it has a match; bars at the mean ages of the matched ones. Months
    are drawn as years.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 40, n_genes=500)
    >>> settings = dict(condition_key="condition", control="control", time_key="age_months", donor_key="donor_id")
    >>> mt.pp.match_ages(adata, **settings, match_by="sex", tolerance=36)
    >>> mt.pl.matched_ages(adata).get_xlabel()
    'age (years)'
    """
    import matplotlib.pyplot as plt

    result = read_result(adata, key)
    table = result["matching" if "matching" in result else "donors"]
    conditions = list(dict.fromkeys(table["condition"]))
    # A model says what the unit of a column is, or its name does.
    params = result["params"]
    unit = params["time_head"]["unit"] if "time_head" in params else unit_in_name(params["time_key"])
    years = 12 if unit == "months" else 1
    unit = "years" if unit == "months" else unit or f".obs[{params['time_key']!r}]"
    table = table.assign(age=table["age"] / years)
    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 0.9 + 0.62 * len(conditions)), layout="constrained")
    rng = np.random.default_rng(0)
    for i, condition in enumerate(conditions):
        part = table[table["condition"] == condition]
        for offset, case, color in ((-0.17, True, MODEL), (0.17, False, BASELINE)):
            side = part[part["case"] == case]
            place = i + offset + rng.uniform(-0.07, 0.07, len(side))
            matched = side["matched"].to_numpy(dtype=bool)
            ax.scatter(side["age"][matched], place[matched], s=13, color=color, lw=0.8)
            ax.scatter(
                side["age"][~matched], place[~matched], s=13, facecolor="none", edgecolor=color, lw=0.8
            )
            if matched.any():
                mean = side["age"][matched].mean()
                ax.vlines(mean, i + offset - 0.14, i + offset + 0.14, color="black", lw=2)
    for label, color in (("condition", MODEL), ("control", BASELINE)):
        ax.scatter([], [], s=13, color=color, label=label)
    ax.scatter([], [], s=13, facecolor="none", edgecolor="0.3", label="no match")
    ax.plot([], [], color="black", lw=2, label="mean of the matched")
    ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    ax.set_yticks(range(len(conditions)), conditions)
    ax.set(ylim=(len(conditions) - 0.5, -0.5), xlabel=f"age ({unit})")
    ax.tick_params(labelsize=9)
    clean(ax)
    return ax
