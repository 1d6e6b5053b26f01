"""Figures and tables of a notebook as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def saver(folder: str | Path) -> Callable:
    """Make a function that writes the figures and tables of a notebook to a folder.

    Parameters
    ----------
    folder
        Folder, made when the first file is; "" for none: then nothing is written.

    Returns
    -------
    `save(figure, name)`, which writes `name.png` (300 dpi) and `name.pdf`, and `save(table, name)`, which
    writes `name.csv` without the index.

    Examples
    --------
    >>> import pandas as pd, maxtoki_toolkit as mt
    >>> save = mt.reports.saver("")
    >>> save(pd.DataFrame({"group": ["fibroblast"], "years": [4.5]}), "ages")  # "" writes nothing
    """
    folder = Path(folder) if folder else None

    def save(result, name: str) -> None:
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(result, "savefig"):
            for ending in ("png", "pdf"):
                result.savefig(folder / f"{name}.{ending}", dpi=300, bbox_inches="tight")
        else:
            result.to_csv(folder / f"{name}.csv", index=False)

    return save
