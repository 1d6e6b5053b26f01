"""One way to read a table of a result."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from .._results import read_result


def read_table(adata: AnnData, key: str, name: str, function: str) -> pd.DataFrame:
    """Copy of a table in `uns[key]`, with the unit of its numbers and what times were read as in `.attrs`; or say which function writes it."""
    result = read_result(adata, key, function)
    table = result[name].copy()
    table.attrs["unit"] = str(result["params"]["unit"])
    if "time_read_as" in result["params"]:
        table.attrs["time_read_as"] = str(result["params"]["time_read_as"])
    return table
