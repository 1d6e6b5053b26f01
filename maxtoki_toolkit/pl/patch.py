"""Where in the model and the prompt two prompts differ."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._heads import segment_label
from ._style import clean, drawing

_LEVELS = {
    "residual": "blocks before",
    "attention": "attention of layer",
    "mlp": "MLP of layer",
    "head": "head",
    "feature": "feature",
}


@drawing
def patch(adata: AnnData, *, key: str = _keys.PATCH, ax: Axes | None = None) -> Axes:
    """Draw which states bring the clean reading back.

    Parameters
    ----------
    {adata}
    {key}
    {ax}

    Returns
    -------
    The axes: a row a layer (head, feature), a column a segment of the prompt; the share of the clean reading
    that comes back, with a dot where it differs from what states of another clean prompt bring back (q <
    0.05).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=3, context_size=1)
    >>> mt.tl.patch(adata, model, corrupted="mask_query")
    >>> mt.pl.patch(adata).get_ylabel()
    'blocks before'
    """
    import matplotlib.pyplot as plt

    effects = read_table(adata, key, "effects")
    level = effects.attrs["level"]
    small = level in ("head", "feature")
    rows = effects[["feature"] if level == "feature" else ["layer", "head"]].drop_duplicates().to_numpy()
    columns = list(dict.fromkeys(effects["segment"]))
    shape = (len(rows), len(columns))
    grid = effects["effect"].to_numpy().reshape(shape)
    called = (effects["q_value"] < 0.05).to_numpy().reshape(shape)
    if ax is None:
        height = 2.0 + (0.22 if small else 0.36) * len(rows)
        _, ax = plt.subplots(figsize=(1.8 + 0.6 * len(columns), height), layout="constrained")
    reach = max(1.0, float(np.nanmax(np.abs(grid))))
    image = ax.imshow(grid, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
    with np.errstate(invalid="ignore"):
        dark = np.abs(grid) > 0.6 * reach
    for is_dark in (True, False):
        y, x = np.nonzero(called & (dark == is_dark))
        ax.scatter(x, y, s=14, color="white" if is_dark else "black")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03)
    bar.set_label(
        "share of the clean reading that comes back"
        + ("\ndot: unlike another clean prompt, q < 0.05" if called.any() else ""),
        fontsize=8.5,
    )
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    names = [segment_label(name) for name in columns]
    ax.set_xticks(range(len(columns)), names, rotation=45, ha="right", fontsize=8.5)
    labels = [_keys.head_name(*row) if level == "head" else str(row[0]) for row in rows]
    ax.set_yticks(range(len(rows)), labels, fontsize=7 if small else 9)
    last = " (last token of each)" if effects.attrs["align"] == "last" else ""
    ax.set(xlabel=f"part of the prompt{last}", ylabel=_LEVELS[level])
    moved = f"{effects.attrs['mean_difference']:#.3g}".rstrip(".")
    unit, first = effects.attrs["unit"], effects.iloc[0]
    ax.set_title(
        f"{effects.attrs['corrupted'].replace('_', ' ')}: the reading moves by {moved} {unit}\n"
        f"{effects['n_prompts'].max():,} prompts, {first['n_units']:,} {first['unit']}s",
        fontsize=9,
    )
    ax.tick_params(length=0)
    clean(ax)
    ax.spines[:].set_visible(False)
    return ax
