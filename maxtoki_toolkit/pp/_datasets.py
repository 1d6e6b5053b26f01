"""Cells as folders of `datasets` hold them: rows of tokens, and columns of what is known of each."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._arrow import (
    about,
    columns_of,
    dataset_writer,
    lists,
    lists_of,
    open_dataset,
    require_pyarrow,
    scalars_of,
)
from .._validate import require_rank, require_tokens
from ..models.sequences import Sequences, cell_ranks, cell_sequences, require_cells
from ..models.vocabulary import Vocabulary
from ..results.store import write_result

TOKENS, LENGTH, NAME, COUNTS = "input_ids", "length", "unique_cell_id", "counts"
LOG1P = "log1p"
_OF_ENCODING = (_keys.N_RANKED, _keys.SHARE_RANKED)


def require_encoded(adata: AnnData, vocab: Vocabulary) -> None:
    """Raise unless the cells are rank-encoded for this vocabulary."""
    require_rank(adata)
    require_tokens(adata)
    if adata.uns.get(_keys.ENCODING, {}).get("params", {}).get("genes_sha256") != vocab.genes_sha256:
        raise ValueError(
            "The cells were rank-encoded for another vocabulary. Run mt.pp.rank_value_encode(adata, model) with this model."
        )


def open_cells(path: str | Path, vocab: Vocabulary):
    """The table of a folder, and the names of its cells; or raise if it was made for other genes."""
    table = open_dataset(path)
    if about(table).get("genes_sha256", vocab.genes_sha256) != vocab.genes_sha256:
        raise ValueError(
            f"{path} was written for another vocabulary, with other genes or medians. Give the model that it was made for."
        )
    if TOKENS not in table.column_names:
        raise KeyError(f"{path} has no column {TOKENS!r}; it has {', '.join(table.column_names)}.")
    names = pd.RangeIndex(len(table)).astype(str)
    if NAME in table.column_names:
        names = pd.Index(table[NAME].to_pandas().astype(str).to_numpy(dtype=object))
        if not names.is_unique:
            repeated = names[names.duplicated()]
            raise ValueError(
                f"{len(repeated)} values of {NAME!r} in {path} are not unique (first: {repeated[0]!r}): they name the cells."
            )
    return table, names


def sequences_of(table, path: str | Path) -> Sequences:
    """The tokens of each row."""
    tokens, lengths = lists_of(table, TOKENS, path)
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{TOKENS!r} in {path} are no whole numbers ({tokens.dtype}).")
    return Sequences.split(tokens.astype(np.int32, copy=False), lengths)


def lengths_of(table, path: str | Path) -> np.ndarray:
    """How many tokens each row has, int64."""
    return lists_of(table, TOKENS, path)[1]


def cells_of(table, names: pd.Index, vocab: Vocabulary, path: str | Path) -> AnnData:
    """Rows of a folder as rank-encoded cells."""
    cells = sequences_of(table, path)
    require_cells(cells, vocab, path)
    obs = scalars_of(table).set_axis(names).drop(columns=[LENGTH, *_OF_ENCODING], errors="ignore")
    ranks = cell_ranks(cells, vocab)
    layers = {_keys.RANK: ranks}
    if COUNTS in table.column_names:
        values, lengths = lists_of(table, COUNTS, path)
        if not np.array_equal(lengths, cells.lengths):
            raise ValueError(
                f"{COUNTS!r} and {TOKENS!r} in {path} are not of one length. Write the folder again."
            )
        place = ranks.data.astype(np.int64) - 1 + np.repeat(ranks.indptr[:-1], np.diff(ranks.indptr))
        values = values[_inner(cells)][place]
        layers[LOG1P] = sp.csr_matrix((values, ranks.indices, ranks.indptr), shape=ranks.shape)
    obs[_keys.N_RANKED] = np.diff(ranks.indptr).astype(np.int32)
    var = pd.DataFrame(
        {_keys.ENSEMBL_ID: vocab.genes, _keys.TOKEN_ID: vocab.gene_ids.astype(np.int32)}, index=vocab.genes
    )
    found = AnnData(obs=obs, var=var, layers=layers)
    params = {"genes_sha256": vocab.genes_sha256, "layer": str(path), "force": False}
    write_result(found, _keys.ENCODING, params)
    return found


def _inner(cells: Sequences) -> np.ndarray:
    """Which tokens are genes, and not the marks at both ends of a cell."""
    inner = np.ones(len(cells.tokens), dtype=bool)
    inner[cells.indptr[:-1]] = inner[cells.indptr[1:] - 1] = False
    return inner


def write_rows(
    folder: Path,
    blocks: Iterable[AnnData],
    obs: pd.DataFrame,
    vocab: Vocabulary,
    *,
    max_length: int,
    bar=None,
) -> None:
    """Write blocks of rank-encoded cells as a folder; `obs` is that of all of them, in the order of the blocks."""
    pa = require_pyarrow()
    columns = columns_of(obs.drop(columns=[LENGTH, *_OF_ENCODING], errors="ignore"))
    if NAME not in columns:
        columns[NAME] = pa.array(obs.index.astype(str).to_numpy(dtype=object), pa.string())
    known, start = pa.table(columns), 0
    note = {"genes_sha256": vocab.genes_sha256}
    blocks = iter(blocks)
    first = next(blocks)
    kept = [TOKENS, *([COUNTS] if LOG1P in first.layers else [])]
    types = {TOKENS: pa.list_(pa.int32()), COUNTS: pa.list_(pa.float64())}
    schema = pa.schema([(name, types[name]) for name in kept])
    schema = pa.schema([*schema, *known.schema.remove_metadata(), pa.field(LENGTH, pa.int64())])
    with dataset_writer(folder, schema, note) as writer:
        for cells in chain([first], blocks):
            ranks = sp.csr_matrix(cells.layers[_keys.RANK])
            written = cell_sequences(
                ranks, cells.var[_keys.TOKEN_ID].to_numpy(), vocab, max_length=max_length
            )
            parts = {TOKENS: lists(written.tokens, written.lengths)}
            if COUNTS in kept:
                parts[COUNTS] = lists(_ordered(cells, ranks, written), written.lengths)
            rows = known.slice(start, cells.n_obs)
            parts |= {name: rows[name] for name in rows.column_names}
            parts[LENGTH] = pa.array(written.lengths)
            writer(pa.table(parts))
            start += cells.n_obs
            if bar is not None:
                bar.update(cells.n_obs)


def _ordered(cells: AnnData, ranks: sp.csr_matrix, written: Sequences) -> np.ndarray:
    """Values of the layer in the order of the ranks, 0 at the marks."""
    values = sp.csr_matrix(cells.layers[LOG1P], copy=True)
    ranks = ranks.copy()
    values.sort_indices()
    ranks.sort_indices()
    if not (np.array_equal(values.indptr, ranks.indptr) and np.array_equal(values.indices, ranks.indices)):
        raise ValueError(
            f"layers[{LOG1P!r}] has values for other genes than layers[{_keys.RANK!r}]. Leave it out."
        )
    row = np.repeat(np.arange(ranks.shape[0]), np.diff(ranks.indptr))
    order = np.lexsort((ranks.data, row))
    place = np.arange(len(row)) - np.repeat(ranks.indptr[:-1], np.diff(ranks.indptr))
    fits = place < (written.lengths - 2)[row]
    column = np.zeros(len(written.tokens), dtype=np.float64)
    column[_inner(written)] = values.data[order][fits]
    return column
