"""How many genes were mapped, and how much of the cells was ranked."""

from __future__ import annotations

from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..get import encoding_report as get_encoding_report
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing

_FATES = {
    "matched": "named",
    "versioned": "named after cutting\nthe version",
    "retired": "retired id",
    "dropped": "not in the vocabulary",
    "duplicated": "summed with another\ncolumn",
}


@drawing
def encoding_report(adata: AnnData, *, max_genes: int | None = None) -> Figure:
    """Draw how many genes were named, and how many genes of each cell were ranked.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    max_genes
        Genes that a model reads of a cell (`model.cell_length - 2`), drawn as a line.

    Returns
    -------
    A figure of two panels.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> len(mt.pl.encoding_report(adata, max_genes=model.cell_length - 2).axes)
    2
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    report = read_table(adata, _keys.MAP_GENES, "report")["n_genes"]
    summary = get_encoding_report(adata)
    fates = [fate for fate in _FATES if report.get(fate, 0) > 0]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")

    colors = [NULL if fate in ("dropped", "retired") else MODEL for fate in fates]
    bars = left.barh([_FATES[fate] for fate in fates], report[fates], color=colors)
    left.bar_label(bars, labels=[f"{report[fate]:,}" for fate in fates], padding=3)
    left.invert_yaxis()
    left.margins(x=0.2)
    left.xaxis.set_major_locator(MaxNLocator(4))
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.set(xlabel="genes", title=f"{report['genes']:,} genes in the data")

    n_ranked = adata.obs[_keys.N_RANKED]
    right.hist(n_ranked, bins=40, color=MODEL)
    if max_genes is not None:
        cut = (n_ranked > max_genes).mean()
        right.axvline(
            max_genes,
            color=BASELINE,
            lw=2,
            label=f"the model reads {max_genes:,} genes ({cut:.1%} of cells have more)",
        )
        right.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.42))
    share = summary.loc["share_of_counts_ranked", "median"]
    right.set(
        xlabel="genes ranked in a cell",
        ylabel="cells",
        title=f"{len(n_ranked):,} cells, {share:.1%} of their counts ranked",
    )
    for ax in (left, right):
        clean(ax)
    plt.close(fig)  # or a notebook would show it twice
    return fig
