"""What a sparse autoencoder keeps of a model's states."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..results.store import read_table
from ._dictionaries import dictionary_styles
from ._style import clean, drawing

_MEASURES = {
    "variance explained": "variance of the states\nexplained (%)",
    "loss recovered": "next-gene loss\nrecovered (%)",
}


@drawing
def evaluate_sae(adata: AnnData, *, key: str = _keys.EVALUATE_SAE) -> Figure:
    r"""Draw the variance that an autoencoder explains and the loss that it recovers, beside its controls.

    Parameters
    ----------
    {adata}
    {key}

    Returns
    -------
    Two panels: a point a dictionary, with its 95% interval over donors (or cells); dashed, all there is.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:50].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.evaluate_sae(adata, model, mt.load_sae("demo"), n_cells=20)
    >>> [ax.get_xlabel() for ax in mt.pl.evaluate_sae(adata).axes][1]
    'next-gene loss\nrecovered (%)'
    """
    import matplotlib.pyplot as plt

    table = read_table(adata, key)
    params = table.attrs
    table = table[table["measure"].isin(_MEASURES)]
    names = list(dict.fromkeys(table["dictionary"]))
    styles = dictionary_styles(names)
    figure, axes = plt.subplots(
        1, 2, figsize=(6.8, 1.35 + 0.3 * len(names)), layout="constrained", sharey=True
    )
    for ax, (measure, label) in zip(axes, _MEASURES.items(), strict=True):
        part = table[table["measure"] == measure].set_index("dictionary")
        ends = [0.0, 100.0]
        for place, name in enumerate(names):
            if name not in part.index:
                continue
            value, low, high = 100 * part.loc[name, ["value", "low", "high"]].to_numpy(dtype=float)
            _, color, marker = styles[name]
            if np.isfinite(low):
                ax.hlines(place, low, high, color=color, lw=1.6)
                ends += [low, high]
            ax.scatter(value, place, s=34, color=color, marker=marker, zorder=3)
            text = f"{value:.1f}"
            ax.annotate(text, (value, place), (0, 5), textcoords="offset points", ha="center", fontsize=8)
            ends.append(value)
        ax.axvline(100, color="0.6", lw=0.8, ls="--", zorder=0)
        room = 0.08 * (max(ends) - min(ends))
        ax.set(xlim=(min(ends) - room, max(ends) + room), xlabel=label)
        ax.tick_params(labelsize=8)
        ax.xaxis.label.set_fontsize(9)
        clean(ax)
    axes[0].set_yticks(range(len(names)), [styles[name][0] for name in names], fontsize=9)
    axes[0].set_ylim(len(names) - 0.4, -0.75)
    sae = params["sae"]
    site = f"{sae['site']} of block {sae['block']}" if "block" in sae else "states"
    n_units, unit = int(table["n_units"].max()), str(table["unit"].iloc[0])
    unit = {"query cell": "cell"}.get(unit, unit)
    of = f"{params['n_cells']:,} cells" + (f" of {n_units} {unit}s" if unit == "donor" else "")
    figure.suptitle(
        f"{site}, {sae['width']:,} features, {sae['k']} a gene; {of} (bars: 95% interval over {unit}s)",
        fontsize=9,
    )
    return figure
