"""Which genes make the model say what it says."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, clean, drawing


@drawing
def attribute(
    adata: AnnData,
    *,
    part: str | None = None,
    n_genes: int = 20,
    min_prompts: int = 10,
    key: str = _keys.ATTRIBUTE,
    ax: Axes | None = None,
) -> Axes:
    """Draw the genes with the largest attributions.

    Parameters
    ----------
    {adata}
    part
        "query", "context" or "cell"; by default the query, or the cell where there are no prompts.
    n_genes
        Genes to show.
    min_prompts
        Show genes that are in at least so many prompts.
    {key}
    {ax}

    Returns
    -------
    The axes: a bar a gene with its 95% interval over donors, filled where it differs from what its rank alone
    would give (q < 0.05), and a diamond at that.

    Raises
    ------
    ValueError
        If no gene is left.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=3, context_size=1)
    >>> try:
    ...     mt.tl.attribute(adata, model, n_steps=64)
    ...     ax = mt.pl.attribute(adata, min_prompts=2)
    ... except ImportError:
    ...     print("captum is not installed")
    """
    import matplotlib.pyplot as plt

    genes = read_table(adata, key, "genes")
    attrs = genes.attrs
    part = part or ("query" if (genes["part"] == "query").any() else "cell")
    shown = genes[(genes["part"] == part) & (genes["n_prompts"] >= min_prompts)].head(n_genes)
    if shown.empty:
        raise ValueError(
            f"No gene of {part!r} is in at least {min_prompts} prompts; parts are {', '.join(genes['part'].unique())}. "
            "Lower min_prompts, or read more prompts."
        )
    shown = shown.sort_values("attribution", ascending=False, ignore_index=True)
    place = np.arange(len(shown))
    if ax is None:
        _, ax = plt.subplots(figsize=(4.8, 1.5 + 0.2 * len(shown)), layout="constrained")
    called = (shown["q_value"] < 0.05).to_numpy()
    for filled in (True, False):
        some = called == filled
        label = "q < 0.05 against rank alone" if filled else "q ≥ 0.05"
        face = MODEL if filled else "white"
        if some.any():
            ax.barh(
                place[some], shown["attribution"][some], color=face, edgecolor=MODEL, height=0.7, label=label
            )
    error = (
        shown[["attribution_low", "attribution_high"]].sub(shown["attribution"], axis=0).abs().T.to_numpy()
    )
    ax.errorbar(shown["attribution"], place, xerr=error, fmt="none", color="black", lw=1, capsize=2)
    ax.scatter(
        shown["rank_alone"],
        place,
        marker="D",
        s=16,
        color=BASELINE,
        zorder=4,
        label="rank alone",
        ec="black",
        lw=0.5,
    )
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(place, np.where(shown["symbol"] == "", shown["gene"], shown["symbol"]), fontsize=8.5)
    read = (
        "the predicted lapse"
        if attrs["readout"] == "timelapse"
        else f"the log-probability of {attrs['readout']}"
    )
    ax.set(ylim=(len(shown) - 0.4, -0.6), xlabel=f"attribution to {read} ({attrs['unit']})")
    ax.set_title(
        f"genes of the {part}, {shown['n_prompts'].min():,}–{shown['n_prompts'].max():,} prompts each\n"
        f"attributions miss {attrs['relative_residual']:.1%} of the total",
        fontsize=9,
    )
    if len(ax.figure.axes) == 1:
        ax.figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    else:
        ax.legend(frameon=False, fontsize=8)
    clean(ax)
    return ax
