"""Effects of all genes of a screen against how sure they are."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._labels import label_points
from ._style import BASELINE, MODEL, NULL, clean, drawing
from .perturbation import effect_label, pick


@drawing
def perturbation_volcano(
    adata: AnnData,
    *,
    group: str | None = None,
    k: int | None = None,
    n_labels: int = 8,
    interactive: bool = False,
    key: str = _keys.PERTURBATION_STATS,
) -> Figure:
    """Draw the effect of each gene against its p beside matched genes.

    Parameters
    ----------
    {adata}
    group
        Group of cells; by default "all", or the first with p values.
    k
        Ranks, where there are several; by default the most with p values.
    n_labels
        Genes to name, those with the smallest p.
    interactive
        Whether to return a figure of plotly (`pip install plotly`), which names a gene under the pointer.
    {key}

    Returns
    -------
    The figure: a point a gene, coloured where q < 0.05; in grey the band in which the middle 95% of matched
    genes lie, and where p would be if genes were no more than those.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby=[], n_prompts=4, context_size=1, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes="all")
    >>> mt.tl.perturbation_stats(adata, min_donors=2)
    >>> mt.pl.perturbation_volcano(adata).axes[0].get_ylabel()
    '-log10 p, against matched genes'
    """
    effects = read_table(adata, key, "effects")
    part = pick(effects, group, k, known="p_value").sort_values("p_value", kind="stable")
    group = part["group"].iloc[0]
    y = -np.log10(part["p_value"].clip(lower=1e-300).to_numpy())
    x = part["effect"].to_numpy()
    color = np.where(part["q_value"] >= 0.05, NULL, np.where(x > 0, BASELINE, MODEL))
    band = (part["null_low"].median(), part["null_high"].median())
    axis, title = (
        effect_label(effects),
        f"{group}: {len(part):,} genes, {(part['q_value'] < 0.05).sum()} with q < 0.05",
    )
    if interactive:
        return _interactive(part, x, y, color, band, axis, title)
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5, 3.8), layout="constrained")
    ax.axvspan(*band, color=NULL, alpha=0.2, lw=0, label="matched genes, middle 95%")
    ax.axvline(0, color="black", lw=0.8)
    for colour, label in ((MODEL, "q < 0.05, lower"), (BASELINE, "q < 0.05, higher"), (NULL, "q ≥ 0.05")):
        if (some := color == colour).any():
            ax.scatter(x[some], y[some], s=12, color=colour, lw=0, label=label)
    ax.set(xlabel=axis, ylabel="-log10 p, against matched genes", title=title)
    ax.title.set_size(9)
    ax.margins(0.1)  # room for names
    ax.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
    clean(ax)
    label_points(ax, x, y, np.where(np.arange(len(part)) < n_labels, part["symbol"], ""))
    return figure


def _interactive(part, x, y, color, band, axis: str, title: str):
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise ImportError("The interactive figure needs plotly: pip install plotly.") from None
    text = [
        f"{row.symbol}<br>{row.gene}<br>effect {row.effect:.2g} ({row.effect_low:.2g} to {row.effect_high:.2g})<br>"
        f"q {row.q_value:.2g}, {row.n_units} {row.unit}s, rank {row.mean_rank:.0f}"
        for row in part.itertuples()
    ]
    figure = go.Figure(
        go.Scattergl(
            x=x, y=y, mode="markers", marker={"color": color, "size": 7}, text=text, hoverinfo="text"
        )
    )
    figure.add_vrect(x0=band[0], x1=band[1], fillcolor=NULL, opacity=0.2, line_width=0)
    figure.update_layout(
        title=title, xaxis_title=axis, yaxis_title="-log10 p, against matched genes", template="simple_white"
    )
    return figure
