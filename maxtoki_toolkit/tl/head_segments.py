"""Which heads look at the context, the lapses or the query of a prompt."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from .. import _keys
from ..models.attention import ATTENDING
from ..results.head_sums import head_table
from ..results.store import write_result
from ..stats.donors import left_out
from ..stats.fdr import benjamini_hochberg
from ._head_sums import FLAT, read_attention, unit_name
from ._tokens import LAPSES, QUERY, SPECIAL

MIN_RATIO = 1.25  # below this a head is not called specialised, however many prompts there are


def head_segments(
    adata: AnnData,
    *,
    attending: str = "all",
    group: str | None = None,
    key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Find the heads that look at one part of the prompt more than its place explains.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.attention` on prompts.
    attending
        Whose attention: that of "all" tokens, or of the "last" one (`<eoq>`), from which the lapse is read.
    group
        A group of prompts to look at; all by default.
    key
        Key in `.uns` of the attention, by default "prompt_attention".
    rng
        Seed of the blocks that more than 100 donors are left out in.
    key_added
        Key in `.uns`, by default "head_segments".

    Returns
    -------
    `None`. Writes the table `heads` to `.uns["head_segments"]`, a row a head and part; whose attention it is,
    is `params["attending"]`:

    `layer`, `head`, `name`, `segment`
        Which head; "context", "lapses", "query" or "special".
    `mass`, `expected`, `evenly`
        Share of the attention; if tokens at the same distance got equal parts; of a head that attends to all
        alike.
    `log2_ratio`, `log2_ratio_low`, `log2_ratio_high`
        Log2 of `mass` over `expected`, with its 95% interval over donors.
    `log2_evenly`
        Log2 of `mass` over `evenly`.
    `p_value`, `q_value`, `specialised`
        Two-sided, of `log2_ratio`; corrected for heads and parts; whether q < 0.05 and the ratio is at least
        1.25.
    `n_prompts`, `n_units`
        Prompts, and how many donors (or blocks of cells) their queries are of.

    Raises
    ------
    KeyError
        If there is no attention on prompts.
    ValueError
        If the attention is that of single cells, or `attending` is unknown.

    Notes
    -----
    Parts are the genes of the context cells, the lapses between them, the genes of the query, and the marks
    but for the first token, on which heads rest (its share is in `mt.get.attention`).

    A uniform head gives each part what share of the visible tokens it is: `log2_evenly` compares with that. A
    head that looks at its neighbours, whatever they are, gives the query more than that, because nothing
    comes after it. So the test is against a head that gives as much to each distance, shared evenly among the
    tokens there: `log2_ratio`, with its jackknife interval that leaves out each donor, with all prompts he or
    she is part of, as query or context. p values are two-sided (t distribution with a degree of freedom less
    than there are donors) and corrected for all heads and parts (Benjamini and Hochberg). `specialised` asks
    for q < 0.05 and a ratio of at least 1.25.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=6, donor_key="donor_id")
    >>> mt.tl.attention(adata, model, key="prompts")
    >>> mt.tl.head_segments(adata)
    >>> mt.get.table(adata, "head_segments")["segment"].unique().tolist()
    ['context', 'lapses', 'query', 'special']
    """
    if attending not in ATTENDING:
        raise ValueError(f"attending must be one of {', '.join(ATTENDING)}, got {attending!r}.")
    result = read_attention(adata, key or _keys.PROMPT_ATTENTION, prompts=True)
    params = result["params"]
    segments = [str(name) for name in params["segments"]]
    if LAPSES not in segments:
        raise ValueError(
            "This is the attention of single cells, which have neither context nor lapses. Run "
            "mt.tl.attention(adata, model, key='prompts') with a model that was trained to tell time."
        )
    sequences = result["sequences"].reset_index(drop=True)
    used = np.ones(len(sequences), bool) if group is None else (sequences["group"] == group).to_numpy()
    if not used.any():
        raise ValueError(
            f"There is no group {group!r}; there are {', '.join(sorted(set(sequences['group'])))}."
        )
    parts = {
        "context": [i for i, name in enumerate(segments) if name.startswith("context_")],
        **{name: [segments.index(name)] for name in (LAPSES, QUERY, SPECIAL)},
    }
    side = ATTENDING.index(attending)
    weights = left_out(sequences[used], "donor", np.random.default_rng(rng))
    n_units = int(sequences.loc[used, "donor"].nunique())
    tables = []
    for name, columns in parts.items():
        given, by_distance, evenly = (
            np.asarray(result[slot])[used][:, side][..., columns].sum(axis=-1, dtype=np.float64)
            for slot in ("given", "given_expected", "given_evenly")
        )
        tables.append(_compare(given, by_distance, evenly, weights, n_units).assign(segment=name))
    heads = head_table(params)
    table = pd.concat([pd.concat([heads, part], axis=1) for part in tables], ignore_index=True)
    table = _corrected(table)
    table["n_prompts"], table["n_units"] = int(used.sum()), n_units

    settings = {
        "unit": "share of the attention",
        "attending": attending,
        "group": group,
        "attention": key or _keys.PROMPT_ATTENTION,
        "unit_of_inference": unit_name(params),
        "min_ratio": MIN_RATIO,
        "seed": rng,
    }
    write_result(adata, _keys.HEAD_SEGMENTS, settings, key_added=key_added, heads=table)


def _compare(
    given: np.ndarray, by_distance: np.ndarray, evenly: np.ndarray, weights: np.ndarray, n_units: int
) -> pd.DataFrame:
    """Share that each head gives to a part (prompts x heads) beside two expectations, with jackknife errors."""
    share = weights / weights.sum(axis=1, keepdims=True)
    mass, expected = share @ given, share @ by_distance
    even = float(share[0] @ evenly)
    ratio = np.log2(np.maximum(mass, 1e-12) / np.maximum(expected, 1e-12))
    n = len(ratio) - 1
    error = np.sqrt((n - 1) * ratio[1:].var(axis=0)) if n_units > 2 else np.full(ratio.shape[1], np.nan)
    df = max(min(n_units, n) - 1, 1)
    reach = stats.t.ppf(0.975, df) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(ratio[0]) / error, df)
    # What differs by rounding alone is no difference.
    p = np.where(np.abs(mass[0] - expected[0]) < FLAT, 1.0, p)
    return pd.DataFrame(
        {
            "mass": mass[0],
            "expected": expected[0],
            "evenly": even,
            "log2_ratio": ratio[0],
            "log2_ratio_low": ratio[0] - reach,
            "log2_ratio_high": ratio[0] + reach,
            "log2_evenly": np.log2(np.maximum(mass[0], 1e-12) / max(even, 1e-12)),
            "p_value": p,
        }
    )


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """With q values, and what may be said."""
    table["q_value"] = benjamini_hochberg(table["p_value"])
    table["specialised"] = (table["q_value"] < 0.05) & (table["log2_ratio"] >= np.log2(MIN_RATIO))
    return table
