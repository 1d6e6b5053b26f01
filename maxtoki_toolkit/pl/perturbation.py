"""Which edits move the reading most."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import MODEL, NULL, clean, drawing

WORDS = {
    "inhibit": "inhibition",
    "delete": "deletion",
    "activate": "activation",
    "overexpress": "overexpression",
    "shift": "shift",
}


def effect_label(effects) -> str:
    """What the effects are, for an axis."""
    what = {
        "timelapse": "change of the age read",
        "likelihood": "change of the likelihood",
        "embedding": "change of the embedding",
    }
    name = what[effects.attrs["readout"]]
    if effects.attrs["readout"] == "timelapse" and effects.attrs["on"] != "query":
        name = "change of the lapse read"
    return f"{name} on {WORDS[effects.attrs['mode']]} ({effects.attrs['unit']})"


def pick(effects, group: str | None = None, k: int | None = None, *, known: str = "effect"):
    """Rows of one group and `k` in which something is known.

    By default the most ranks for which it is known, and all cells together, or the first group of which it is
    known.
    """
    for name, asked in (("group", group), ("k", k)):
        if asked is not None and asked not in set(effects[name]):
            there_are = ", ".join(map(str, dict.fromkeys(effects[name])))
            raise KeyError(f"There is no {name} {asked!r}; there are {there_are}.")
    rows = effects[(effects["matched_to"] == "") & effects[known].notna()]
    rows = rows if group is None else rows[rows["group"] == group]
    rows = rows[rows["k"] == (rows["k"].max() if k is None else k)]
    if not len(rows):
        where = "" if group is None else f" of {group!r}"
        if known == "effect":
            raise ValueError(f"No edit{where} took effect.")
        raise ValueError(
            f"No gene{where} has a p value: too few donors, or too few genes to compare with; screen more genes, or set "
            "n_controls of mt.tl.perturb."
        )
    return rows[rows["group"] == ("all" if "all" in set(rows["group"]) else rows["group"].iloc[0])]


@drawing
def perturbation(
    adata: AnnData,
    *,
    group: str | None = None,
    k: int | None = None,
    n_genes: int = 20,
    key: str = _keys.PERTURBATION_STATS,
    ax: Axes | None = None,
) -> Axes:
    """Draw the genes with the largest effects, in order.

    Parameters
    ----------
    {adata}
    group
        Group of cells; by default "all", or the first with an effect.
    {k}
    n_genes
        Genes to draw: half from each end.
    {key}
    {ax}

    Returns
    -------
    The axes: a point a gene, with its 95% interval over donors; filled where q < 0.05, with a grey edge where
    it was not tested; a triangle at the edge where it goes on. Grey bands: where the middle 95% of matched
    genes lie.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby=[], n_prompts=2, context_size=1, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes="all")
    >>> mt.tl.perturbation_stats(adata, min_donors=2)
    >>> mt.pl.perturbation(adata).get_xlabel()
    'change of the age read on inhibition (years)'
    """
    import matplotlib.pyplot as plt

    effects = read_table(adata, key, "effects")
    part = pick(effects, group, k)
    group = part["group"].iloc[0]
    measured = part[part["n_null"] > 0] if (part["n_null"] > 0).any() else part
    part = measured.sort_values("effect", kind="stable")
    if len(part) > n_genes:
        half = n_genes // 2
        part = part.iloc[np.r_[: n_genes - half, len(part) - half : len(part)]]
    place = np.arange(len(part))
    if ax is None:
        _, ax = plt.subplots(figsize=(4.8, 1.2 + 0.2 * len(part)), layout="constrained")
    ax.axvline(0, color="black", lw=0.8)
    if part["null_low"].notna().any():
        ax.hlines(
            place,
            part["null_low"],
            part["null_high"],
            color=NULL,
            lw=5,
            alpha=0.45,
            label="matched genes, middle 95%",
        )
    q = part["q_value"]
    for some, face, edge, label in (
        (q < 0.05, MODEL, MODEL, "q < 0.05"),
        (q >= 0.05, "white", MODEL, "q ≥ 0.05"),
        (q.isna(), "white", NULL, "not tested"),
    ):
        if some.any():
            rows, at = part[some], place[some]
            ax.hlines(at, rows["effect_low"], rows["effect_high"], color=edge, lw=1.4)
            ax.scatter(rows["effect"], at, s=22, facecolor=face, edgecolor=edge, zorder=3, label=label)
    # Intervals of few donors may be far wider than the effects.
    ends = part[["effect", "null_low", "null_high"]].to_numpy()
    reach = 1.25 * np.nanmax(np.abs(ends))
    for end, beyond, marker in (
        (-reach, part["effect_low"] < -reach, 4),
        (reach, part["effect_high"] > reach, 5),
    ):
        if not beyond.any():
            continue
        colors = [NULL if np.isnan(value) else MODEL for value in q[beyond]]
        ax.scatter(np.full(beyond.sum(), end), place[beyond], s=26, c=colors, marker=marker, clip_on=False)
    ax.set(xlim=(-reach, reach), ylim=(len(part) - 0.5, -0.5), xlabel=effect_label(effects))
    ax.set_yticks(place, part["symbol"].astype(str), fontsize=8)
    ax.set_title(
        f"{group}: {len(measured):,} genes, up to {part['n_units'].max()} {part['unit'].iloc[0]}s", fontsize=9
    )
    ax.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
    clean(ax)
    return ax
