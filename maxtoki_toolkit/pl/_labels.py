"""Names of points that lie on neither each other nor other points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Points that labels keep clear of: those nearest to a named one. More would only be slower.
_N_AVOIDED = 150


def label_points(ax, x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> None:
    """Write the names of points beside them, with a thin line from name to point.

    Call it last: it fixes the limits of the axes, and places names for the layout as it is.

    Parameters
    ----------
    ax
        Axes with the points.
    x, y
        All points, also those without a name.
    names
        A name a point; "" where it has none.
    """
    from adjustText import adjust_text
    from matplotlib.patheffects import withStroke

    points, names = np.column_stack([x, y]).astype(float), np.asarray(names, dtype=object).astype(str)
    known = np.isfinite(points).all(axis=1)
    points, names = points[known], names[known]
    named = names != ""
    if not named.any():
        return
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    shown = ax.transData.transform(points)
    # Points that lie on each other count once.
    _, once = np.unique(np.round(shown / (ax.figure.dpi / 20)), axis=0, return_index=True)
    apart = np.linalg.norm(shown[once, None] - shown[named], axis=2).min(axis=1)
    near = points[once[np.argsort(apart, kind="stable")[:_N_AVOIDED]]]
    # Names start on the outer side, where there are fewer points. They are out of the layout: one that
    # starts beyond the axes would shrink them while it is placed.
    middle = np.median(points[:, 0])
    style = {
        "fontsize": 7.5,
        "in_layout": False,
        "path_effects": [withStroke(linewidth=2, foreground="white")],
    }
    texts = [
        ax.text(*point, name, ha="left" if point[0] > middle else "right", **style)
        for point, name in zip(points[named], names[named], strict=True)
    ]
    # Steps, not seconds, are limited, so that the same points give the same figure.
    adjust_text(
        texts,
        x=near[:, 0],
        y=near[:, 1],
        ax=ax,
        iter_lim=150,
        expand=(1.3, 1.8),
        force_explode=(0.5, 1),
        force_static=(0.3, 0.5),
        force_text=(0.5, 0.8),
        min_arrow_len=3,
        arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.6, "shrinkB": 2},
    )
