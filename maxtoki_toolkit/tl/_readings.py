"""What interventions read: prompts or cells, cut where the reading is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import find_genes
from ..models.layout import Layout, layout
from ..models.model import MaxTokiModel, require_model
from ..models.prompts import Prompts, write_prompts
from ..models.readout import Readout, lapse_readout, likelihood_readout, logits_readout, token_readout
from ..models.sequences import Sequences
from ..models.timelapse import require_temporal
from ..pp._columns import find_donors
from ..pp._design import get_labels
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result
from ..stats.donors import unit_name
from ._cells import get_sequences
from ._time_unit import check_prompts


class Readings(NamedTuple):
    """Sequences and what is read from them."""

    table: pd.DataFrame
    """One row a sequence: its donors and its query cell."""
    sequences: Sequences
    parts: Layout
    read: Readout
    readout: str
    unit: str
    rows: np.ndarray
    """int64: which of the given sequences these are; others lack the gene."""


def get_prompts(
    adata: AnnData,
    model: MaxTokiModel,
    readout: str | Callable,
    *,
    key: str | None,
    n_prompts: int | None,
    rng: int,
    donor_key: str | None = None,
) -> tuple[pd.DataFrame, Prompts | None, Sequences]:
    """Some of the prompts, or for a model without time tokens some of the cells, and all cells as sequences."""
    require_model(model)
    if readout == "timelapse":
        require_temporal(model)
    if n_prompts is not None and n_prompts < 2:
        raise ValueError(f"n_prompts must be at least 2, got {n_prompts}.")
    if not model.vocab.is_temporal:
        if key is not None:
            raise ValueError(
                f"{model.name!r} has no time tokens and reads no prompts, so key={key!r} has no meaning. Leave key out: "
                "it reads the cells one by one."
            )
        cells, table = get_sequences(adata, model), pd.DataFrame({"query": adata.obs_names})
        if (donor_key := find_donors(adata.obs, donor_key)) is not None:
            table["donor"] = get_labels(adata, donor_key)
        return table.iloc[some_rows(len(table), n_prompts, rng)].reset_index(drop=True), None, cells
    if donor_key is not None:
        raise ValueError(
            "donor_key is for models that read cells one by one; prompts know their donors: "
            "mt.pp.sample_prompts(adata, ..., donor_key=...)."
        )
    stored = read_result(adata, key or _keys.PROMPTS, "mt.pp.sample_prompts(adata, ...)")
    params, table = stored["params"], stored["prompts"]
    if params["queries_elsewhere"]:
        raise ValueError(
            "The query cells of these prompts may be in another AnnData. Draw prompts with mt.pp.sample_prompts."
        )
    if readout == "timelapse" and params["task"] != "timelapse":
        raise ValueError(
            'These prompts ask for cells. Draw others: mt.pp.sample_prompts(..., task="timelapse").'
        )
    table = table.iloc[some_rows(len(table), n_prompts, rng)].copy()
    if model.time_head is not None:
        table.attrs["time_read_as"] = check_prompts(params, table, model.time_head.unit)
    return table, read_prompts(table, adata, adata, task=params["task"]), get_sequences(adata, model)


def some_rows(n: int, wanted: int | None, rng: int) -> np.ndarray:
    """Rows drawn at random, in their order; all of them where there are no more."""
    if n < 2:
        raise ValueError(f"There is only {n} prompt or cell to read; at least 2 are needed.")
    if wanted is None or wanted >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(rng).permutation(n)[:wanted])


def get_readings(
    adata: AnnData,
    model: MaxTokiModel,
    readout: str | Callable,
    table: pd.DataFrame,
    prompts: Prompts | None,
    cells: Sequences,
    queries: Sequences | None = None,
) -> Readings:
    """Write prompts (or take cells) up to the token that the reading is made at.

    "timelapse" and functions of the logits are read at the end of the prompt (`<eoq>`); the latter, of
    prompts that ask for a cell, where its first gene comes next; "likelihood" from the first to the last gene
    of the query cell; a gene where it stands in the query cell. Prompts without the gene are left out.
    """
    if prompts is None:
        rows = adata.obs_names.get_indexer(table["query"])
        whole = cells.take(rows)
    else:
        answer = ~prompts.timelapse if readout != "timelapse" else False
        written = write_prompts(
            prompts, cells, model.vocab, max_length=model.max_length, answer=answer, queries=queries
        )
        whole = written.sequences
        if not isinstance(readout, str):
            end = np.where(prompts.timelapse, whole.lengths, written.eoq + 2)
            whole = whole.take(np.arange(len(whole)), end)
    rows = np.arange(len(whole))
    if readout == "timelapse":
        return Readings(
            table,
            whole,
            layout(whole, model.vocab),
            lapse_readout(model),
            readout,
            model.time_head.unit,
            rows,
        )
    if not isinstance(readout, str):
        name = getattr(readout, "__name__", "readout")
        return Readings(
            table, whole, layout(whole, model.vocab), logits_readout(model, readout), name, name, rows
        )

    parts = layout(whole, model.vocab)
    query = parts.names.index("query" if prompts is not None else "cell")
    start, size = parts.start[:, query], parts.size[:, query]
    if readout == "likelihood":
        if (short := size < 3).any():
            raise ValueError(f"{short.sum()} query cells have no gene whose likelihood could be read.")
        sequences = whole.take(rows, start + size - 1)
        read = likelihood_readout(model, start + 1)
        return Readings(table, sequences, layout(sequences, model.vocab), read, readout, "nats a gene", rows)
    token = int(adata.var[_keys.TOKEN_ID].iloc[find_genes(adata, [readout])[0]])
    if token < 0:
        raise ValueError(f"The model's vocabulary lacks the gene {readout!r}.")
    of = np.repeat(rows, whole.lengths)
    at = np.flatnonzero((whole.tokens == token) & (parts.segment == query))
    if len(at) < 2:
        raise ValueError(
            f"{len(at)} of {len(rows)} query cells have {readout!r} among the genes that the model reads of them; at least 2 "
            "are needed. Give more prompts, or another gene."
        )
    rows = of[at]
    sequences = whole.take(rows, at - whole.indptr[rows])
    return Readings(
        table.iloc[rows],
        sequences,
        layout(sequences, model.vocab),
        token_readout(model, token),
        readout,
        "nats",
        rows,
    )


def draw_partners(parts: Layout, seed: int) -> np.ndarray:
    """Another sequence of the same segments for each, drawn with a seed of its own."""
    _, kind = np.unique(parts.size > 0, axis=0, return_inverse=True)
    kind = kind.ravel()
    partners = np.empty(len(kind), dtype=np.int64)
    for i, of in enumerate(kind):
        others = np.flatnonzero(kind == of)
        others = others[others != i]
        if not len(others):
            raise ValueError(
                "A prompt has no other with as many context cells to take activations from. Use more prompts "
                "(n_prompts) or one context_size."
            )
        partners[i] = others[np.random.default_rng([seed, i]).integers(len(others))]
    return partners


def split_donors(table: pd.DataFrame, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of half of the donors (or query cells), and of the others."""
    unit = "donor" if "donor" in table else "query"
    names = np.random.default_rng(seed).permutation(np.sort(table[unit].astype(str).unique()))
    chosen = table[unit].astype(str).isin(names[: len(names) // 2]).to_numpy()
    if min(chosen.sum(), (~chosen).sum()) < 2:
        raise ValueError(
            f"Features are chosen on half of the {unit_name(table)}s and read on the others; {len(names)} are too few. Name "
            "the features, or give more prompts."
        )
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
