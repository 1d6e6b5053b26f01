"""Results as tidy tables: what `mt.pl` draws, and what goes into a supplement."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from ..results.schema import result_of
from ..results.store import is_ours, read_table, table_names


def table(adata: AnnData, key: str, table: str | None = None) -> pd.DataFrame:
    """A table of a result.

    Parameters
    ----------
    adata
        Cells with a result.
    key
        Key in `.uns`: the name of the function that wrote it, unless `key_added` was given. `mt.get.results`
        lists what there is.
    table
        Name of the table, by default the main one.

    Returns
    -------
    A copy of the table; its columns are described where it is written, in the docstring of the function
    (section Returns). `.attrs` has the `unit` of the values, the `function` that wrote them, and every
    setting.

    Raises
    ------
    KeyError
        If there is no such result or table; the error says what to run.
    ValueError
        If what is stored under the key is no result of this package, or has no rows.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10, n_genes=500)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20)
    >>> prompts = mt.get.table(adata, "prompts")
    >>> prompts.shape[0], prompts.attrs["time_key"]
    (20, 'age_months')
    """
    return read_table(adata, key, table)


def results(adata: AnnData) -> pd.DataFrame:
    """What this package has stored in the cells: the tables that `mt.get.table` reads.

    Parameters
    ----------
    adata
        Any cells.

    Returns
    -------
    A row a table, and one for each result without any: `key` in `.uns`, `table`, `rows` (what they are),
    `n_rows`, the `function` that wrote it, and the `unit` of its values.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")
    >>> mt.pp.rank_value_encode(adata, mt.load_model("demo"))
    >>> mt.get.results(adata)[["key", "table", "rows", "n_rows"]]
                     key   table                 rows  n_rows
    0          map_genes  report  gene-mapping report       7
    1  rank_value_encode                                    0
    """
    columns = ["key", "table", "rows", "n_rows", "function", "unit"]
    found = []
    for key in filter(lambda key: is_ours(adata, key), adata.uns):
        result, params = adata.uns[key], adata.uns[key]["params"]
        known = result_of(key, params)
        for name in table_names(result, known) or [""]:
            n_rows = len(result[name]) if name in result else int(params.get("n_edits", 0))
            unit = known.units.get(name, params.get("unit", "")) if name else ""
            found.append((key, name, known.tables.get(name, ""), n_rows, known.function, unit))
    return pd.DataFrame(found, columns=columns)
