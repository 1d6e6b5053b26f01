"""What attention heads are for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys
from ..results.store import read_table
from ._style import MODEL, NULL, clean, drawing

_HOW = {"zero": "heads set to 0", "mean": "heads at their mean", "resample": "heads of another prompt"}


@drawing
def ablate_heads(
    adata: AnnData, *, value: str | None = None, key: str = _keys.ABLATE_HEADS, ax: Axes | None = None
) -> Axes:
    """Draw the effects of `mt.tl.ablate_heads`.

    Parameters
    ----------
    {adata}
    value
        Column of `mt.get.table(adata, "ablate_heads")` to draw: "change", "error_change" (the default for
        "timelapse") or "size". The greedy search is drawn by "size".
    {key}
    {ax}

    Returns
    -------
    The axes. Heads one at a time: a grid of layers and heads, with a dot where q < 0.05. Sets of heads: a
    point each with its 95% interval over donors, filled where q < 0.05. The greedy search: the size of the
    change for each number of heads, with its interval, on donors that the heads were not chosen on, and
    random sets of as many heads (mean, and the middle 95%).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=4, donor_key="donor_id")
    >>> mt.tl.ablate_heads(adata, model, heads=[(0, 1), (2, 0)])
    >>> mt.pl.ablate_heads(adata).get_ylabel()
    'layer'
    """
    import matplotlib.pyplot as plt

    effects = read_table(adata, key, "effects")
    unit, readout = effects.attrs["unit"], effects.attrs["readout"]
    greedy = effects.attrs["search"] == "greedy"
    value = value or ("size" if greedy else "error_change" if readout == "timelapse" else "change")
    choices = ["change", "size", *(["error_change"] if readout == "timelapse" else [])]
    if value not in choices or (greedy and value != "size"):
        raise ValueError(f"There is no value={value!r} to draw here; choose from {', '.join(choices)}.")
    what = {
        "error_change": f"change of the mean error ({unit})",
        "change": f"change of {_reading(readout)} ({unit})",
        "size": f"size of the change of {_reading(readout)} ({unit})",
    }[value]
    single = (effects["n_heads"] == 1).all() and not greedy
    layers, heads = effects.attrs["n_layers"], effects.attrs["n_heads"]
    if ax is None:
        shape = (1.6 + 0.45 * heads, 1.2 + 0.36 * layers) if single else (5.6, 1.0 + 0.3 * len(effects))
        _, ax = plt.subplots(figsize=(4.6, 3.4) if greedy else shape, layout="constrained")
    first = effects.iloc[0]
    count = f"{first['n_prompts']:,} prompts, {first['n_units']:,} {first['unit']}s"
    ax.set_title(f"{_HOW[effects.attrs['how']]}\n{count}", fontsize=9)
    if greedy:
        return _curve(effects, what, ax)
    q = {"change": "q_value", "error_change": "error_q_value"}.get(value)
    called = (effects[q] < 0.05).to_numpy() if q else np.zeros(len(effects), bool)
    if single:
        return _grid(effects, effects[value], called, what, signed=value != "size", ax=ax)
    return _points(effects, value, called, what, ax)


def _reading(readout: str) -> str:
    return {"timelapse": "the predicted lapse", "likelihood": "the log-likelihood"}.get(readout, readout)


def _grid(
    effects: pd.DataFrame, values: pd.Series, called: np.ndarray, what: str, *, signed: bool, ax: Axes
) -> Axes:
    grid = np.full((effects.attrs["n_layers"], effects.attrs["n_heads"]), np.nan)
    at = effects["layer"].to_numpy(), effects["head"].to_numpy()
    grid[at] = values
    reach = np.nanmax(np.abs(grid)) or 1.0
    # Middle colours are light: what does nothing stays in the background.
    image = ax.imshow(
        grid, cmap="PuOr_r" if signed else "Blues", vmin=-reach if signed else 0, vmax=reach, aspect="auto"
    )
    dark = np.abs(grid[at]) > 0.6 * reach
    for is_dark in (True, False):
        some = called & (dark == is_dark)
        ax.scatter(at[1][some], at[0][some], s=14, color="white" if is_dark else "black")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03)
    bar.set_label(what + ("\ndot: q < 0.05" if called.any() else ""), fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    ax.set_xticks(range(grid.shape[1]))
    ax.set_yticks(range(grid.shape[0]))
    ax.set(xlabel="head", ylabel="layer")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax


def _points(effects: pd.DataFrame, value: str, called: np.ndarray, what: str, ax: Axes) -> Axes:
    place = np.arange(len(effects))
    ax.axvline(0, color="black", lw=0.8)
    if f"{value}_low" in effects:
        ax.hlines(place, effects[f"{value}_low"], effects[f"{value}_high"], color=MODEL, lw=1.6)
    for filled in (True, False):
        some = called == filled
        face = MODEL if filled else "white"
        ax.scatter(effects[value][some], place[some], s=26, facecolor=face, edgecolor=MODEL, zorder=3)
    ax.set_yticks(place, effects["heads"], fontsize=9)
    ax.set(ylim=(len(effects) - 0.5, -0.5), xlabel=what)
    clean(ax)
    return ax


def _curve(effects: pd.DataFrame, what: str, ax: Axes) -> Axes:
    n = effects["n_heads"]
    ax.fill_between(n, effects["random_low"], effects["random_high"], color=NULL, alpha=0.35, lw=0)
    ax.plot(
        n, effects["random_size"], color=NULL, label=f"{effects['n_random'].iloc[0]} random sets, middle 95%"
    )
    error = effects[["size_low", "size_high"]].sub(effects["size"], axis=0).abs().T.to_numpy()
    ax.errorbar(
        n,
        effects["size"],
        yerr=error,
        color=MODEL,
        marker="o",
        ms=4.5,
        capsize=2,
        label="chosen on other donors",
    )
    ax.set_xticks(
        n, [f"{count}\n+{added}" for count, added in zip(n, effects["added"], strict=True)], fontsize=8
    )
    top = 1.35 * effects[["size", "size_high", "random_high"]].max().max()
    ax.set(xlabel="heads ablated together", ylim=(0, top or 1))
    ax.set_ylabel(what.replace(" of the change of ", " of the change of\n"), fontsize=9)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    clean(ax)
    return ax
