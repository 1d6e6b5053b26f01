"""The picture at the top of the README, from what `maxtoki demo` writes.

    maxtoki demo && python benchmarks/overview.py maxtoki_demo

Writes `docs/_static/overview.png`.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from maxtoki_toolkit.pl._style import BASELINE, MODEL, category_colors, clean

OUTPUT = Path(__file__).parents[1] / "docs" / "_static" / "overview.png"


def main(folder: Path) -> None:
    """Draw cells, lapses and conditions side by side."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.4), layout="constrained", width_ratios=[1.5, 1, 1.1]
    )
    cells = anndata.read_h5ad(folder / "heart_nuclei_embedded.h5ad")
    kind = cells.obs["cell_type"].astype("category")
    at = cells.obsm["X_umap"]
    for name, color in zip(kind.cat.categories, category_colors(len(kind.cat.categories)), strict=True):
        left.scatter(*at[kind == name].T, s=5, color=color, label=name, linewidths=0)
    left.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=7, markerscale=2.5)
    left.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title="700 heart nuclei, embedded")
    lapses = pd.read_csv(folder / "timelapse.csv")
    true, predicted = lapses["lapse"] / 12, lapses["predicted"] / 12
    ends = np.array([min(true.min(), predicted.min()), max(true.max(), predicted.max())])
    middle.plot(ends, ends, color=BASELINE, lw=1, zorder=0)
    middle.scatter(true, predicted, s=6, color=MODEL, linewidths=0, alpha=0.6)
    r = np.corrcoef(true, predicted)[0, 1]
    middle.set(
        xlabel="true lapse (years)", ylabel="predicted lapse (years)", title=f"Time of new donors, r {r:.2f}"
    )
    effects = pd.read_csv(folder / "age_acceleration.csv")
    effects = effects[(effects["predictor"] == "MaxToki") & (effects["group"] == "all")].sort_values(
        "planted"
    )
    place = np.arange(len(effects))
    right.axvline(0, color="0.8", lw=1, zorder=0)
    right.hlines(place, effects["effect_low"], effects["effect_high"], color=MODEL, lw=1.5)
    right.scatter(effects["effect"], place, color=MODEL, s=25, zorder=2, label="estimate, 95% interval")
    right.scatter(effects["planted"], place, marker="|", s=140, color=BASELINE, zorder=3, label="planted")
    right.set_yticks(place, [f"+{years} years" if years else "none" for years in effects["planted"]])
    right.legend(frameon=False, fontsize=7, loc="lower right")
    right.set(
        xlabel="cells look older by (years)", ylim=(-1.3, len(effects) - 0.4), title="Simulated conditions"
    )
    for ax in (left, middle, right):
        ax.title.set_size(10)
        clean(ax)
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUTPUT, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
