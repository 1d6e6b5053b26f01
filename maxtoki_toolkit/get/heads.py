"""What attention heads look at, as tidy tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..results.head_sums import gene_sums, head_table
from ..results.store import read_result


def attention(adata: AnnData, *, key: str = _keys.ATTENTION) -> pd.DataFrame:
    """Statistics of each head in each group, as means over donors.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.attention`.
    key
        Key in `.uns`: "attention" for single cells, "prompt_attention" for prompts.

    Returns
    -------
    One row a head, group and part of the sequence or gene set:

    `layer`, `head`, `name`, `group`
        Which head and which group of cells, "all" for all together.
    `part`, `kind`
        A part of the sequence or a gene set, and which of both ("segment", "gene set").
    `mass`, `expected`, `evenly`
        Share of the attention of all tokens but the first; if tokens at the same distance got equal parts; of
        a head that attends to all alike.
    `last`
        Share of what the last token gives.
    `entropy`, `relative_entropy`, `distance`, `relative_distance`, `sink`
        Entropy (nats) and distance (tokens) of the head's attention, both also over those of an even spread,
        and its share on the first token: the same in each row of a head and group.
    `n_sequences`, `n_units`
        Cells or prompts, and how many donors (or blocks of cells) they are of.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, donor_key="donor_id", n_cells=3)
    >>> table = mt.get.attention(adata)
    >>> shares = table.query("kind == 'segment'").groupby("name")["mass"].sum()
    >>> shares.round(3).unique().tolist()
    [1.0]
    """
    result = read_result(adata, key)
    params, units = result["params"], result["units"].reset_index(drop=True)
    parts = [str(p) for p in params["segments"]] + [str(p) for p in params["gene_sets"]]
    kind = ["segment"] * len(params["segments"]) + ["gene set"] * len(params["gene_sets"])
    given, expected, evenly, statistics = (
        np.asarray(result[slot]) for slot in ("given", "given_expected", "given_evenly", "statistics")
    )
    unit = result["sequences"]["unit"].to_numpy()
    size = np.bincount(unit)

    def of_units(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(
            values, np.flatnonzero(np.diff(unit, prepend=-1)), axis=0, dtype=float
        ) / size.reshape(-1, *[1] * (values.ndim - 1))

    mass, last, by_distance = of_units(given[:, 0]), of_units(given[:, 1]), of_units(expected[:, 0])
    even, summary = of_units(evenly[:, 0]), of_units(statistics)
    heads = head_table(params)
    tables = []
    names = sorted(units["group"].astype(str).unique())
    for group in [*names, *(["all"] if names != ["all"] else [])]:
        used = np.ones(len(units), bool) if group == "all" else (units["group"] == group).to_numpy()
        # Every donor counts once.
        donor = pd.factorize(units.loc[used, "donor"])[0]
        share = (1 / np.bincount(donor))[donor] / (donor.max() + 1)
        head = heads.assign(group=group)
        for i, name in enumerate(str(s) for s in params["statistics"]):
            head[name] = share @ summary[used][:, :, i]
        head["n_sequences"], head["n_units"] = int(size[used].sum()), int(donor.max() + 1)
        for i, part in enumerate(parts):
            columns = {
                "part": part,
                "kind": kind[i],
                "mass": share @ mass[used][:, :, i],
                "expected": share @ by_distance[used][:, :, i],
                "evenly": float(share @ even[used][:, i]),
                "last": share @ last[used][:, :, i],
            }
            tables.append(head.assign(**columns))
    table = pd.concat(tables, ignore_index=True)
    table.attrs["unit"] = str(params["unit"])
    return table


def attention_genes(
    adata: AnnData, *, layer: int, head: int, group: str | None = None, key: str = _keys.ATTENTION
) -> pd.DataFrame:
    """What each gene receives from one head.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.attention`.
    layer, head
        Which head, both counted from 0.
    group
        A group of cells; all by default.
    key
        Key in `.uns`.

    Returns
    -------
    One row a gene, those that receive most beyond their position first:

    `gene`, `ensembl_id`, `symbol`, `detection`, `mean_rank`, `expression`, `n_tokens`
        The gene; in what share of all cells it is a token, its mean rank there, its mean expression; its
        tokens in the group.
    `mass`
        Attention that a token of it receives, from all tokens that see it.
    `per_attending`
        The same over the number of tokens that see it: 0 to 1.
    `expected`
        Attention that tokens at the same positions receive on average.
    `rate`
        `mass` over `expected`: 1 for a head that looks at positions only.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, donor_key="donor_id", n_cells=3)
    >>> genes = mt.get.attention_genes(adata, layer=0, head=1)
    >>> genes["rate"].is_monotonic_decreasing
    True
    """
    result = read_result(adata, key)
    row = head_row(result["params"], layer, head)
    sums, units = gene_sums(result), result["units"]["group"].astype(str).to_numpy()
    used = np.flatnonzero(np.ones(len(units), bool) if group is None else units == group)
    if not len(used):
        raise ValueError(f"There is no group {group!r}; there are {', '.join(sorted(set(units)))}.")
    mass, expected, n_tokens, could_attend = (
        sum(part[int(unit)][..., row] if part.ndim == 3 else part[int(unit)] for unit in used).astype(float)
        for part in (np.asarray(p) if isinstance(p, np.ndarray) else p for p in sums)
    )
    table = result["genes"].reset_index(drop=True).drop(columns="n_tokens")
    seen = n_tokens > 0
    table = table[seen]
    table["n_tokens"] = n_tokens[seen].astype(int)
    table["mass"] = mass[seen] / n_tokens[seen]
    table["per_attending"] = mass[seen] / could_attend[seen]
    table["expected"] = expected[seen] / n_tokens[seen]
    table["rate"] = table["mass"] / table["expected"]
    return table.sort_values("rate", ascending=False, kind="stable", ignore_index=True)


def prompt_attention(
    adata: AnnData, *, layer: int, head: int, example: int = 0, key: str = _keys.PROMPT_ATTENTION
) -> pd.DataFrame:
    """What each token of one prompt, or cell, receives from one head.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.attention`.
    layer, head
        Which head, both counted from 0.
    example
        Which of the sequences that were kept (`n_examples` of `mt.tl.attention`).
    key
        Key in `.uns`: "prompt_attention" for prompts, "attention" for cells.

    Returns
    -------
    One row a token: `position`, `token`, `symbol`, `segment`; `received`, the attention from all tokens,
    `mean_received`, over the number of tokens that see it; and `last`, its share of what the last token
    gives.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=6, donor_key="donor_id")
    >>> mt.tl.attention(adata, model, key="prompts")
    >>> tokens = mt.get.prompt_attention(adata, layer=1, head=2)
    >>> round(float(tokens["last"].sum()), 3)
    1.0
    """
    result = read_result(adata, key)
    row = head_row(result["params"], layer, head)
    if "tokens" not in result:
        raise ValueError("No example was kept. Run mt.tl.attention with n_examples of 1 or more.")
    tokens = result["tokens"].reset_index(drop=True)
    mine = (tokens["example"] == example).to_numpy()
    if not mine.any():
        raise ValueError(
            f"There is no example {example}; there are {sorted(tokens['example'].unique().tolist())}."
        )
    names = np.append(result["genes"]["symbol"].astype(str).to_numpy(dtype=object), "")
    table = tokens[mine].reset_index(drop=True)
    table["symbol"] = names[table.pop("gene").to_numpy()]
    table["symbol"] = table["symbol"].where(table["symbol"] != "", table["token"])
    table["received"] = np.asarray(result["received"])[mine, row]
    table["mean_received"] = table["received"] / table.pop("could_attend")
    table["last"] = np.asarray(result["last"])[mine, row]
    return table


def head_similarity(adata: AnnData, *, key: str = _keys.HEAD_SIMILARITY) -> pd.DataFrame:
    """How alike heads are in the genes they look at.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.head_similarity`.
    key
        Key in `.uns`.

    Returns
    -------
    One row a pair of heads, in the order that brings like heads together (`.attrs["order"]`): `head_1`,
    `head_2`, `similarity` (Spearman, without position), `raw` (with it), `replicated` (one head in one half
    of the donors, the other in the other), `reliability_1` and `reliability_2` (of each head with itself).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, donor_key="donor_id", n_cells=3)
    >>> mt.tl.head_similarity(adata)
    >>> mt.get.head_similarity(adata).columns.tolist()[:3]
    ['head_1', 'head_2', 'similarity']
    """
    result = read_result(adata, key)
    heads = result["heads"].reset_index(drop=True)
    order = np.argsort(heads["order"].to_numpy(), kind="stable")
    names, reliability = heads["name"].to_numpy(dtype=object)[order], heads["reliability"].to_numpy()[order]
    first, second = np.triu_indices(len(order), 1)
    table = pd.DataFrame({"head_1": names[first], "head_2": names[second]})
    for slot in ("similarity", "raw", "replicated"):
        table[slot] = result[slot].to_numpy()[np.ix_(order, order)][first, second]
    table["reliability_1"], table["reliability_2"] = reliability[first], reliability[second]
    table.attrs |= {"unit": str(result["params"]["unit"]), "order": names.tolist()}
    return table


def head_row(params: dict, layer: int, head: int) -> int:
    """Place of a head among all."""
    n_layers, n_heads = int(params["n_layers"]), int(params["n_heads"])
    if not (0 <= layer < n_layers and 0 <= head < n_heads):
        raise ValueError(
            f"There is no head {head} in layer {layer}: the model has {n_layers} layers of {n_heads} heads, counted from 0."
        )
    return layer * n_heads + head
