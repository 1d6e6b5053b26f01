"""What all audits of generated cells come to."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, clean, drawing, with_interval

_LABELS = {
    "singlet_fraction": "single cells (share)",
    "accuracy": "of the type asked for (accuracy)",
    "macro_f1": "types learned from them (macro-F1)",
    "r": "of the age asked for (r)",
    "nearer": "not copies (nearer to training cells)",
    "spread": "not all alike (spread)",
    "precision": "like true cells (precision)",
    "pearson": "changes of rank (Pearson's r)",
}
# How far beyond the worst and the best is drawn.
_REACH = (-0.35, 1.35)
_TRUE = "#009E73"


@drawing
def evaluate_generated(
    adata: AnnData, *, key: str = _keys.EVALUATE_GENERATED, ax: Axes | None = None
) -> Axes:
    """Draw each measure of generated cells between the worst that there is and true cells.

    Parameters
    ----------
    {adata}
    {key}
    {ax}

    Returns
    -------
    The axes: a row a measure, with its 95% interval; what the worst and the best are is in
    `mt.get.table(adata, "evaluate_generated")`. What lies far outside is drawn at the edge.

    Examples
    --------
    >>> import warnings, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    >>> mt.pp.sample_prompts(
    ...     adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", task="cell", n_prompts=8,
    ...     context_size=1, contexts="held_out", queries="held_out", sampling=mt.pp.PromptSampling(balance=1))
    >>> cells = mt.tl.generate(adata, model, max_genes=10)
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # so few cells do not allow all of the audits
    ...     mt.tl.evaluate_generated(adata, model, generated=cells)
    >>> mt.pl.evaluate_generated(adata).get_yticklabels()[0].get_text()
    'single cells (share)'
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key)
    if ax is None:
        _, ax = plt.subplots(figsize=(7.6, 1.5 + 0.36 * len(table)), layout="constrained")
    y = np.arange(len(table))
    span = (table["best"] - table["worst"]).to_numpy()
    ends = (table[["low", "high"]].to_numpy() - table[["worst"]].to_numpy()) / span[:, None]
    low, high = np.sort(ends, axis=1).clip(*_REACH).T
    ax.axvline(0, color=BASELINE, lw=1.4)
    ax.axvline(1, color=_TRUE, lw=1.4)
    ax.hlines(y, low, high, color=MODEL, lw=1.6)
    ax.scatter(table["place"].clip(*_REACH), y, s=30, color=MODEL, zorder=3)
    several = table["group"].nunique() > 1
    labels = [
        _LABELS[row.measure] + (f", {row.group}" if several and row.group != "all" else "")
        for row in table.itertuples()
    ]
    ax.set_yticks(y, labels, fontsize=8.5)
    for place, row in zip(y, table.itertuples(), strict=True):
        text = f"{with_interval(row.value, row.low, row.high, decimals=2)}; true {row.best:.2f}"
        ax.text(1.02, place, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
    ax.set(xlim=(_REACH[0] - 0.05, _REACH[1] + 0.05), ylim=(len(table) - 0.5, -0.5))
    ax.set_xticks([0, 1], ["worst", "true cells"])
    ax.set_xlabel("generated cells, between what is no cell and true cells", fontsize=9)
    clean(ax)
    return ax
