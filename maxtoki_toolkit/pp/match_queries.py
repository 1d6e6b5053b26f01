"""Ask the same contexts about other cells, of the same group and age."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from .. import _keys
from .._validate import require_unique_names
from ..results.store import read_result, write_result
from ._design import get_groups, get_labels, get_mask, get_times, known_cells
from ._sampling import Pool


def match_queries(
    adata: AnnData,
    queries: AnnData,
    *,
    tolerance: int | None = 0,
    use: str | np.ndarray | None = None,
    rng: int = 0,
    key: str | None = None,
    key_added: str | None = None,
) -> None:
    """Replace the query of each prompt by a cell of another AnnData, of the same group and time.

    With patients' cells in `queries` and the prompts' contexts of controls, the difference between what is
    predicted for both sets of queries is what the disease adds.

    Parameters
    ----------
    adata
        Cells with prompts (`mt.pp.sample_prompts`).
    queries
        Cells to draw the new queries from, with the same columns in `.obs`.
    tolerance
        Largest difference between the times of the old query and the new, in the unit of time; `None` for
        any.
    use
        Which cells of `queries` to use: boolean column of its `.obs`, or one boolean a cell.
    rng
        Seed; prompt i depends on it and i only.
    key, key_added
        Keys in `.uns` of the prompts to read ("prompts") and to write ("matched_prompts").

    Returns
    -------
    `None`. Writes the table `prompts` to `.uns["matched_prompts"]`: the prompts for which a cell was found
    (columns as of `mt.pp.sample_prompts`), with `query` a cell of `queries`, `time` and `lapse` its own,
    `old_query`, `old_lapse`, and `prompt`, the row of the old prompt. How many found none is in `params`.

    Raises
    ------
    ValueError
        If no prompt has a match.

    Notes
    -----
    The original stops at the first prompt without a match; here the others go on and the loss is reported.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(2000, 20, n_genes=500)
    >>> sick = adata[adata.obs["condition"] != "control"].copy()
    >>> healthy = adata[adata.obs["condition"] == "control"].copy()
    >>> mt.pp.sample_prompts(healthy, time_key="age_months", groupby="cell_type", n_prompts=50)
    >>> mt.pp.match_queries(healthy, sick, tolerance=36)
    >>> table = mt.get.table(healthy, "matched_prompts")
    >>> bool((table["lapse"] - table["old_lapse"]).abs().max() <= 36)
    True
    """
    require_unique_names(queries)
    stored = read_result(adata, key or _keys.PROMPTS, "mt.pp.sample_prompts(adata, ...)")
    params, table = stored["params"], stored["prompts"].copy()
    time_key, columns, donor_key = params["time_key"], list(params["groupby"]), params["donor_key"]
    cells, rows = known_cells(queries, time_key, columns, donor_key or None)
    code, names = get_groups(cells, columns)
    time = get_times(cells, time_key)
    pool = Pool.build(code, time, len(names), get_mask(queries, use, "use")[rows])
    if not len(pool.cells):
        raise ValueError(
            "No cell of the queries is left: use= leaves out, or the columns of the groups are missing for, all of them."
        )

    number = np.random.default_rng(rng).random(len(table))
    # The times of a group are sorted, so the cells within the tolerance are one stretch of the pool.
    group = np.searchsorted(names, table["group"].to_numpy(dtype=str)).clip(max=len(names) - 1)
    known = np.array(names, dtype=object)[group] == table["group"].to_numpy(dtype=object)
    span = np.int64(time.max() - time.min() + 1)
    bin_key = pool.bin_group * span + pool.bin_time - time.min()
    old = table["time"].to_numpy().astype(np.int64)
    reach = span + np.abs(old - time.min()) if tolerance is None else int(tolerance)
    low = (old - reach - time.min()).clip(0, span)
    high = (old + reach - time.min()).clip(-1, span - 1)
    first = np.searchsorted(bin_key, group * span + low, side="left")
    last = np.searchsorted(bin_key, group * span + high, side="right")
    begin, end = pool.bin_start[first], pool.bin_start[np.maximum(last, first)]
    n_found = np.where(known, end - begin, 0)
    found = n_found > 0
    if not found.any():
        raise ValueError(
            f"No prompt has a matching query: no cell of the same group ({', '.join(columns) or 'all'}) within "
            f"{tolerance} of the old query's {time_key}. Use a larger tolerance, or compare the columns of both."
        )
    chosen = pool.cells[(begin + (number * n_found).astype(np.int64))[found]]

    table = table[found].rename_axis("prompt").reset_index()
    table["old_query"], table["old_lapse"] = table["query"], table["lapse"]
    table["query"] = cells.obs_names.to_numpy(dtype=object)[chosen]
    table["lapse"] = table["lapse"] + time[chosen] - table["time"]
    table["time"] = time[chosen]
    if donor_key:
        table["donor"] = get_labels(cells, donor_key)[chosen]
    params = {**params, "queries_elsewhere": True, "tolerance": tolerance, "match_seed": rng}
    params |= {"n_unmatched": int((~found).sum()), "n_prompts": len(table)}
    write_result(adata, _keys.MATCHED, params, key_added=key_added, prompts=table)
