"""What gene embeddings predict of genes, beside baselines and shuffled labels."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing

_COLORS = {"MaxToki": MODEL, "all baselines and MaxToki": MODEL, "untrained": NULL}


@drawing
def gene_task(adata: AnnData, *, gene_set: str | None = None, key: str = _keys.GENE_TASK) -> Figure:
    """Draw how well each predictor tells genes with a label from those without.

    Parameters
    ----------
    {adata}
    gene_set
        Which set; by default all of them together, or the only one.
    {key}

    Returns
    -------
    Two panels, a row a predictor: area under the ROC curve and average precision, with 95% intervals over
    families of genes; grey band, up to the 95th percentile of shuffled labels; dashed, chance.

    Examples
    --------
    >>> import numpy as np, pandas as pd, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(100, 10, n_genes=500)
    >>> mt.pp.map_genes(adata)
    >>> vocab = mt.models.Vocabulary.from_anndata(adata)
    >>> mt.pp.rank_value_encode(adata, vocab)
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...              max_position_embeddings=128)
    >>> model = mt.models.build_model(shape, vocab)  # that has learned nothing
    >>> mt.tl.embed_genes(adata, model)
    >>> labels = pd.DataFrame({"gene": adata.var_names, "some": np.arange(500) % 3 == 0})
    >>> mt.tl.gene_task(adata, model, labels=labels, n_folds=2, n_permutations=1)
    >>> mt.pl.gene_task(adata).axes[0].get_xlabel()
    'area under the ROC curve (AUROC)'
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key, "scores")
    params = table.attrs
    sets = list(dict.fromkeys(table["gene_set"]))
    if gene_set is not None and gene_set not in sets:
        raise KeyError(f"Did not find the gene set {gene_set!r}; there are {', '.join(sets[:8])}.")
    part = table[table["gene_set"] == (gene_set or sets[-1])].iloc[::-1].reset_index(drop=True)
    place = np.arange(len(part))
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 1.3 + 0.3 * len(part)), sharey=True, layout="constrained")
    colors = [_COLORS.get(name, BASELINE) for name in part["predictor"]]
    labels = {"auroc": "area under the ROC curve (AUROC)", "auprc": "average precision"}
    for ax, (what, label) in zip(axes, labels.items(), strict=True):
        chance = 0.5 if what == "auroc" else float(part["prevalence"].iloc[0])
        ends = part[f"null_{what}_high"]
        ax.barh(place, ends - chance, left=chance, height=0.7, color=NULL, alpha=0.3, lw=0)
        ax.hlines(place, part[f"{what}_low"], part[f"{what}_high"], color=colors, lw=1.6)
        ax.scatter(part[what], place, s=26, color=colors, zorder=3)
        for y, value in zip(place, part[what], strict=True):
            ax.annotate(
                f"{value:.2f}", (value, y), (0, 4), textcoords="offset points", ha="center", fontsize=7
            )
        ax.axvline(chance, color="0.4", lw=0.8, ls="--", zorder=0)
        ax.set_xlabel(label, fontsize=9)
        ax.tick_params(labelsize=8)
        clean(ax)
    axes[0].set_yticks(place, part["predictor"])
    axes[0].set_ylim(-0.6, len(part) - 0.3)
    row = part.iloc[0]
    figure.suptitle(
        f"{row['gene_set']}: {row['n_positive']:,} of {row['n_genes']:,} genes, {row['n_families']:,} families, "
        f"{params['n_folds']} folds\n(bars: 95% interval over families; grey: 95% of {params['n_permutations']} shuffles)",
        fontsize=9,
    )
    return figure
