"""What a corpus holds, and what was left out of it, as tidy tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

_FILTERS, _COMPOSITION = "filters.csv", "composition.csv"


def corpus_filters(path: str | Path) -> pd.DataFrame:
    """What each filter left of the store that a corpus was made from.

    Parameters
    ----------
    path
        Folder that `mt.datasets.census` has written.

    Returns
    -------
    One row a filter, in the order in which they were applied: `filter`, and the `n_cells` and `n_donors` it
    left. The donors of all of a store are not known if it was read by a `value_filter`.

    Raises
    ------
    FileNotFoundError
        If it is no such folder.

    Examples
    --------
    >>> import tempfile, pandas as pd, maxtoki_toolkit as mt
    >>> folder = tempfile.mkdtemp()  # stands for one that mt.datasets.census has written
    >>> table = pd.DataFrame({"filter": ["all cells", "disease is normal"], "n_cells": [900, 600], "n_donors": [9, 6]})
    >>> table.to_csv(f"{folder}/filters.csv", index=False)
    >>> mt.get.corpus_filters(folder)["n_cells"].tolist()
    [900, 600]
    """
    return pd.read_csv(_find(path, _FILTERS), dtype={"n_donors": "Int64"})


def corpus_composition(path: str | Path) -> pd.DataFrame:
    """Cells of each donor and tissue of a corpus.

    Parameters
    ----------
    path
        Folder that `mt.datasets.census` has written.

    Returns
    -------
    One row a donor and tissue: `donor`, `sex`, `age_years` (missing where it cannot be known, negative before
    birth), `tissue`, `n_cells`.

    Raises
    ------
    FileNotFoundError
        If it is no such folder.

    Examples
    --------
    >>> import tempfile, pandas as pd, maxtoki_toolkit as mt
    >>> folder = tempfile.mkdtemp()  # stands for one that mt.datasets.census has written
    >>> table = pd.DataFrame({"donor": ["a"], "sex": ["female"], "age_years": [34.0], "tissue": ["lung"], "n_cells": [900]})
    >>> table.to_csv(f"{folder}/composition.csv", index=False)
    >>> mt.get.corpus_composition(folder)["tissue"].tolist()
    ['lung']
    """
    return pd.read_csv(_find(path, _COMPOSITION), dtype={"donor": str, "sex": str, "tissue": str})


def _find(path: str | Path, name: str) -> Path:
    found = Path(path) / name
    if not found.is_file():
        raise FileNotFoundError(f"Did not find {found}. Run mt.datasets.census(output, model) first.")
    return found
