"""Draw results.

A function of one panel returns matplotlib axes and takes `ax`; one of several returns a figure, which a notebook
shows where it is the last line of a cell, and a script saves with `fig.savefig`.
"""

from .ablation import ablation
from .age_acceleration import age_acceleration
from .encoding_report import encoding_report
from .matched_ages import matched_ages
from .neighbor_purity import neighbor_purity
from .rank_heatmap import rank_heatmap
from .timelapse_error import timelapse_error
from .timelapse_scatter import timelapse_scatter

__all__ = [
    "ablation",
    "age_acceleration",
    "matched_ages",
    "encoding_report",
    "neighbor_purity",
    "rank_heatmap",
    "timelapse_error",
    "timelapse_scatter",
]
