"""What figures of attention heads have in common."""

from __future__ import annotations

import numpy as np
import pandas as pd

# Blue below, orange above: told apart by everybody.
DIVERGING = "PuOr_r"
SEGMENT_COLORS = {
    "context": "#56B4E9",
    "context_0": "#0072B2",
    "context_1": "#56B4E9",
    "context_2": "#009E73",
    "lapses": "#D55E00",
    "query": "#E69F00",
    "genes": "#0072B2",
    "special": "#999999",
    "first": "#000000",
}
SEGMENT_LABELS = {"special": "marks", "first": "first token", "boq": "<boq>", "eoq": "<eoq>"}


def segment_label(name: str) -> str:
    """What a part of a prompt is called in a figure."""
    if name.startswith("context_"):
        return f"context cell {int(name.removeprefix('context_')) + 1}"
    if name.startswith("lapse_"):
        return f"lapse {int(name.removeprefix('lapse_')) + 1}"
    return SEGMENT_LABELS.get(name, name)


def segment_color(name: str) -> str:
    """Colour of a part of a prompt."""
    return SEGMENT_COLORS.get(name, "#CC79A7")


def as_grid(table: pd.DataFrame, column: str) -> np.ndarray:
    """Layers x heads."""
    return table.pivot(index="layer", columns="head", values=column).to_numpy()


def draw_grid(ax, values: np.ndarray, called: np.ndarray, reach: float):
    """Heatmap of layers x heads, with a point on those that are called."""
    image = ax.imshow(values, cmap=DIVERGING, vmin=-reach, vmax=reach, aspect="equal", interpolation="none")
    rows, columns = np.nonzero(called)
    dark = np.abs(values[rows, columns]) > 0.7 * reach
    ax.scatter(columns, rows, s=14, c=np.where(dark, "white", "black"), linewidths=0)
    n_layers, n_heads = values.shape
    ax.set_xticks(range(n_heads), range(n_heads), fontsize=8)
    step = 1 if n_layers <= 12 else 2
    ax.set_yticks(range(0, n_layers, step), range(0, n_layers, step), fontsize=8)
    ax.set(xlabel="head", ylabel="layer")
    ax.set_xticks(np.arange(n_heads + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(n_layers + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    return image
