"""What a classifier learns from generated cells."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import BASELINE, MODEL, NULL, clean, drawing

_MEASURES = {"macro_f1": "macro-F1", "accuracy": "accuracy"}
_TRUE = "#009E73"
_LOOKS = {
    "true": ("true cells", _TRUE, ""),
    "true, genes shuffled": ("true cells,\ngenes shuffled", _TRUE, "///"),
    "generated": ("generated cells", MODEL, ""),
    "generated, genes shuffled": ("generated cells,\ngenes shuffled", MODEL, "///"),
    "context": ("context cells", BASELINE, ""),
    "labels permuted": ("generated cells,\nlabels permuted", NULL, ""),
}


@drawing
def train_on_generated(
    adata: AnnData,
    *,
    measure: str = "macro_f1",
    key: str = _keys.TRAIN_ON_GENERATED,
    ax: Axes | None = None,
) -> Axes:
    """Draw how well classifiers know true cells, by what they were trained on.

    Parameters
    ----------
    {adata}
    measure
        "macro_f1" or "accuracy".
    {key}
    {ax}

    Returns
    -------
    The axes: a bar a training, with its 95% interval over donors (of permuted labels: 95% of the
    permutations), and a point a tested donor.

    Raises
    ------
    ValueError
        If there is no such measure.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(400, 12)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.hold_out(adata, donor_key="donor_id", donors=0.5, time_key="age_months")
    >>> mt.pp.sample_prompts(
    ...     adata, time_key="age_months", groupby="cell_type", donor_key="donor_id", task="cell", n_prompts=6,
    ...     context_size=1, contexts="held_out", queries="held_out",
    ...     sampling=mt.pp.PromptSampling(balance=1))
    >>> cells = mt.tl.generate(adata, model, max_genes=10)
    >>> mt.tl.train_on_generated(
    ...     adata, model, generated=cells, groupby="cell_type", donor_key="donor_id", n_permutations=2)
    >>> mt.pl.train_on_generated(adata).get_ylabel()
    'macro-F1 on true cells of other donors'
    """
    import matplotlib.pyplot as plt

    if measure not in _MEASURES:
        raise ValueError(f"There is no measure {measure!r}; choose from {', '.join(_MEASURES)}.")
    scores = read_table(adata, key, "scores")
    donors = read_table(adata, key, "donors")
    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 4.0), layout="constrained")
    place = np.arange(len(scores))
    looks = [_LOOKS[name] for name in scores["training"]]
    for i, (_, color, hatch) in enumerate(looks):
        ax.bar(i, scores[measure].iloc[i], width=0.7, color=color, alpha=0.55, hatch=hatch, edgecolor="white")
    rng = np.random.default_rng(0)
    for i, name in enumerate(scores["training"]):
        own = donors.loc[donors["training"] == name, measure]
        aside = i + rng.uniform(-0.22, 0.22, len(own))
        ax.scatter(aside, own, s=9, color=looks[i][1], edgecolor="white", lw=0.3, zorder=3)
    value = scores[measure].to_numpy()
    reach = np.abs(scores[[f"{measure}_low", f"{measure}_high"]].to_numpy().T - value)
    ax.errorbar(place, value, yerr=reach, fmt="none", color="black", capsize=3.5, lw=1.4, zorder=4)
    top = donors.groupby("training")[measure].max().reindex(scores["training"]).to_numpy()
    for i, highest in enumerate(np.fmax(top, np.fmax(scores[f"{measure}_high"], value))):
        ax.text(i, highest + 0.025, f"{value[i]:.2f}", ha="center", fontsize=8.5)
    first = scores.iloc[0]
    ax.set_title(
        f"{first['n_train_cells']:,} cells each; tested on {first['n_test_cells']:,} cells of "
        f"{first['n_donors']:,} other donors",
        fontsize=9,
        loc="left",
    )
    ax.set_xticks(place, [label for label, _, _ in looks], rotation=35, ha="right", rotation_mode="anchor")
    ax.set(
        ylim=(0, 1.09),
        yticks=np.linspace(0, 1, 6),
        ylabel=f"{_MEASURES[measure]} on true cells of other donors",
    )
    ax.set_xlabel("trained on")
    ax.tick_params(axis="x", labelsize=8.5, length=0)
    clean(ax)
    return ax
