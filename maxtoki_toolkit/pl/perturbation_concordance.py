"""Effects of edits against the slopes of expression with age."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._labels import label_points
from ._style import MODEL, NULL, clean, drawing
from .perturbation import WORDS


@drawing
def perturbation_concordance(
    adata: AnnData,
    *,
    group: str | None = None,
    n_labels: int = 8,
    key: str = _keys.PERTURBATION_CONCORDANCE,
    ax: Axes | None = None,
) -> Axes:
    """Draw what an edit does against how the gene goes with age.

    Parameters
    ----------
    {adata}
    group
        Group of cells; the first by default.
    n_labels
        Genes to name: those with the largest products of effect and slope.
    {key}
    {ax}

    Returns
    -------
    The axes: a point a gene, coloured where effect and slope say the same of it. The title has the share of
    such genes with its null.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(600, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby=[], n_prompts=2, context_size=1, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes="all")
    >>> mt.tl.perturbation_stats(adata, min_donors=2)
    >>> mt.tl.expression_age_slope(adata, time_key="age_months", donor_key="donor_id")
    >>> mt.tl.perturbation_concordance(adata, n_permutations=200)
    >>> mt.pl.perturbation_concordance(adata).get_xlabel()
    'log2 expression per year'
    """
    import matplotlib.pyplot as plt

    genes = read_table(adata, key, "genes")
    scores = read_table(adata, key, "concordance")
    group = group or scores["group"].iloc[0]
    part = genes[genes["group"] == group]
    if not len(part):
        raise KeyError(f"There is no group {group!r}; there are {', '.join(dict.fromkeys(genes['group']))}.")
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    ax.axhline(0, color="black", lw=0.8)
    ax.axvline(0, color="black", lw=0.8)
    for same, color, label in ((False, NULL, "discordant"), (True, MODEL, "concordant")):
        some = part[part["concordant"] == same]
        if len(some):
            ax.scatter(some["slope"], some["effect"], s=13, color=color, lw=0, label=label)
    first = scores[(scores["group"] == group) & (scores["genes"] == "all")]
    if len(first):
        row = first.iloc[0]
        ax.set_title(
            f"{group}: {row['share']:.0%} of {row['n_genes']} genes concordant\n"
            f"(matched genes: {row['null_low']:.0%} to {row['null_high']:.0%})",
            fontsize=8.5,
        )
    word = WORDS[genes.attrs["mode"]]
    ax.set(xlabel=genes.attrs["slope_unit"], ylabel=f"effect of {word} ({genes.attrs['unit']})")
    ax.margins(x=0.18)
    ax.locator_params(axis="x", nbins=5)
    reach = 1.2 * np.abs(part["effect"]).max()
    ax.set_ylim(-reach, reach)
    ax.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
    clean(ax)
    named = part.index.isin((part["effect"] * part["slope"]).abs().nlargest(n_labels).index)
    label_points(ax, part["slope"], part["effect"], np.where(named, part["symbol"], ""))
    return ax
