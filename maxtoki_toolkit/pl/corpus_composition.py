"""Tissues, ages and sexes of a corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..get import corpus_composition as get_corpus_composition
from ._style import BASELINE, MODEL, NULL, as_written, clean

_SEXES = {"female": MODEL, "male": BASELINE, "unknown": NULL}
_BEFORE, _UNKNOWN = "before\nbirth", "not\nknown"


@as_written
def corpus_composition(source: str | Path | pd.DataFrame, *, n_tissues: int = 15) -> Figure:
    """Draw the cells of each tissue of a corpus, and its donors by age and sex.

    Parameters
    ----------
    source
        Folder that `mt.datasets.census` has written, or the `composition` of `mt.datasets.census_plan`.
    n_tissues
        Tissues with a bar of their own, those of most cells; the others share one.

    Returns
    -------
    A figure of two panels.

    Examples
    --------
    >>> import pandas as pd, maxtoki_toolkit as mt
    >>> table = pd.DataFrame({"donor": ["a", "b", "b"], "sex": ["female", "male", "male"], "age_years": [34.0, 71.0, 71.0]})
    >>> table = table.assign(tissue=["lung", "lung", "blood"], n_cells=[900, 800, 400])
    >>> mt.pl.corpus_composition(table).axes[0].get_xlabel()
    'cells'
    """
    import matplotlib.pyplot as plt

    table = source if isinstance(source, pd.DataFrame) else get_corpus_composition(source)
    if missing := [name for name in ("donor", "sex", "age_years", "tissue", "n_cells") if name not in table]:
        raise KeyError(
            f"The table lacks {', '.join(missing)}: it is not what mt.get.corpus_composition returns."
        )
    if table.empty:
        raise ValueError("The table has no rows: the corpus is empty.")
    cells = _by_tissue(table, n_tissues)
    height = max(3.2, 0.9 + 0.23 * len(cells))
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, height), layout="constrained")

    colors = [NULL if name.startswith("other tissues") else MODEL for name in cells.index]
    bars = left.barh(cells.index, cells, color=colors, height=0.75)
    left.bar_label(
        bars,
        labels=[f"{n / cells.sum():.0%}" if n / cells.sum() >= 0.005 else "<1%" for n in cells],
        padding=3,
        fontsize=8,
    )
    left.set_ylim(max(len(cells), 5) - 0.5, -0.5)
    left.margins(x=0.14)
    left.xaxis.set_major_formatter(_short)
    left.set(
        xlabel="cells", title=f"{_count(cells.sum(), 'cell')}, {_count(table['tissue'].nunique(), 'tissue')}"
    )

    places, ticks, ages = _by_age(table)
    below = np.zeros(len(ages))
    for sex, color in _SEXES.items():
        if sex in ages and ages[sex].any():
            n = ages[sex].sum()
            label = f"{sex}, {n / ages.to_numpy().sum():.0%}" if sex != "unknown" else f"sex not known, {n:,}"
            right.bar(places, ages[sex], bottom=below, color=color, width=0.86, label=label)
            below += ages[sex].to_numpy()
    right.set_xticks(list(ticks), list(ticks.values()))
    right.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.99))
    right.yaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="age of donor (years)", ylabel="donors")
    right.set_title(_count(table["donor"].nunique(), "donor"), pad=24)
    left.tick_params(labelsize=9)
    right.tick_params(labelsize=9)
    for ax in (left, right):
        clean(ax)
    plt.close(fig)  # or a notebook would show it twice
    return fig


def _by_tissue(table: pd.DataFrame, n_tissues: int) -> pd.Series:
    """Cells of each tissue, most first, the rarest together."""
    cells = (
        table.groupby("tissue", observed=True)["n_cells"].sum().sort_values(ascending=False, kind="stable")
    )
    if len(cells) <= n_tissues + 1:
        return cells
    rest = pd.Series({f"other tissues ({len(cells) - n_tissues})": cells.iloc[n_tissues:].sum()})
    return pd.concat([cells.iloc[:n_tissues], rest])


def _by_age(table: pd.DataFrame) -> tuple[list[float], dict[float, str], pd.DataFrame]:
    """Places of the bars and of their ticks, and the donors of each bar by sex; one donor of two ages counts at both.

    Decades lie between the ticks at their ends; before birth and not known have bars apart from them.
    """
    donors = table[["donor", "sex", "age_years"]].drop_duplicates()
    age = donors["age_years"].to_numpy(dtype=float)
    sex = donors["sex"].where(donors["sex"].isin(_SEXES), "unknown").to_numpy()
    known = age >= 0
    first, last = (int(age[known].min() // 10), int(age[known].max() // 10)) if known.any() else (0, -1)
    before, after = first - 1.2, last + 2.2
    place = np.where(np.isnan(age), after, np.where(known, age // 10 + 0.5, before))
    places = [decade + 0.5 for decade in range(first, last + 1)]
    ticks = {float(end): f"{10 * end}" for end in range(first, last + 2)} if places else {}
    for some, x, label in (((age < 0).any(), before, _BEFORE), (np.isnan(age).any(), after, _UNKNOWN)):
        if some:
            places.append(x)
            ticks[x] = label
    return places, ticks, pd.crosstab(place, sex).reindex(places, fill_value=0)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _short(value: float, _) -> str:
    """A number of cells in few signs: 1.5M, 20k, 300."""
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"
