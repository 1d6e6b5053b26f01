"""How well one kind of features is read from the others."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_result, read_table
from ._labels import label_points
from ._style import BASELINE, MODEL, clean, drawing

_NAMES = {"rna": "genes", "adt": "proteins", "atac": "peaks"}
_NAMED = 40  # features up to which all have their names


@drawing
def translate(adata: AnnData, *, key: str = _keys.TRANSLATE, ax: Axes | None = None) -> Axes:
    """Draw the correlation of each feature as the model reads it, beside that of ridge regression.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.translate`.
    {key}
    {ax}

    Returns
    -------
    The axes: a dot a feature; above the line the model reads it better, below it ridge regression. Dotted:
    95% of what exchanged cells give the model's mean.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> joint = mt.datasets.paired_modalities(mt.datasets.aging_atlas(60, 10), n_peaks=None)
    >>> demo = mt.load_model("demo-cells")
    >>> vocab = demo.vocab.with_modalities(mt.pp.modality_medians(joint))
    >>> mt.pp.rank_value_encode(joint, vocab)
    >>> mt.tl.translate(joint, mt.models.extend_model(demo, vocab), donor_key="donor_id")
    >>> mt.pl.translate(joint).get_ylabel()
    'model (Spearman correlation)'
    """
    import matplotlib.pyplot as plt

    features = read_table(adata, key, "features")
    scores = read_table(adata, key, "scores").set_index("method")
    params = read_result(adata, key)["params"]
    figure = None
    if ax is None:
        figure, ax = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    x, y = features["r_ridge"].to_numpy(), features["r_model"].to_numpy()
    low, high = min(np.nanmin(x), np.nanmin(y), 0) - 0.05, max(np.nanmax(x), np.nanmax(y)) + 0.05
    ax.plot([low, high], [low, high], color="0.6", lw=0.8, zorder=0)
    for level in scores.loc["model", ["null_low", "null_high"]]:
        ax.axhline(level, color="0.6", lw=0.8, ls=":", zorder=0)
    ax.scatter(x, y, s=16, color=np.where(y > x, MODEL, BASELINE), lw=0)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set_xlabel("ridge regression (Spearman correlation)")
    ax.set_ylabel("model (Spearman correlation)")
    sources = " and ".join(_NAMES[kind] for kind in params["sources"])
    of = scores.loc["model less ridge"]
    ax.set_title(
        f"{_NAMES[params['target']]} from {sources}, {of['n_cells']:,} cells\n"
        f"model less ridge {of['r']:+.2f} [{of['r_low']:+.2f}, {of['r_high']:+.2f}]",
        fontsize=9,
        loc="left",
    )
    clean(ax)
    if len(features) <= _NAMED:
        label_points(ax, x, y, [name.partition(":")[2] or name for name in features["feature"]])
    if figure is not None:
        plt.close(figure)  # or a notebook would show it twice
    return ax
