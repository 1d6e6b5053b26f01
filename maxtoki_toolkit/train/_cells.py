"""Cells to train on, as sequences: from memory, or from disk to disk."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._arrow import is_dataset, open_dataset, scalars_of
from .._files import atomic
from .._progress import progress
from .._validate import require_obs, require_unique_names
from ..models.model import MaxTokiModel
from ..models.sequences import Sequences, cell_sequences, require_cells
from ..pp._columns import find_columns, find_unit
from ..pp._counts import iter_csr
from ..pp._datasets import lengths_of, open_cells, sequences_of
from ..pp._design import known_cells
from ..pp._store import open_store, read_frames
from ..pp.parse_age import time_in_numbers
from ..tl._cells import get_sequences, require_all_ranked, require_encoding
from ..tl._time_unit import check_unit

_CHUNK = 8192
_AGAIN = "Write the file again with mt.pp.encode_file."


def read_cells(
    cells: AnnData | str | Path,
    model: MaxTokiModel,
    folder: Path,
    number: int,
    *,
    max_length: int | None = None,
) -> tuple[Sequences, AnnData]:
    """Cells as sequences in the order of their names, and their `.obs`.

    Those of an encoded file are written to `folder` and mapped into memory, so that memory does not grow with
    their number.
    """
    max_length = max_length or model.cell_length
    if isinstance(cells, AnnData):
        cells, _ = known_cells(cells)
        return get_sequences(cells, model, max_length=max_length), cells
    if model.vocab.modalities:
        raise ValueError(
            f"{cells} is a file, and this vocabulary has {', '.join(model.vocab.modalities)}: give such cells in memory, as an "
            "AnnData."
        )
    if is_dataset(cells):
        return _read_rows(cells, model, folder / f"{number}.npy", max_length)
    with open_store(cells) as store:
        obs, var = read_frames(store)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of names that repeat, which are refused next
            table = AnnData(obs=obs)
        require_unique_names(table)
        ranks = _open_ranks(store, cells)
        require_obs(table, _keys.N_RANKED)
        encoding = f"uns/{_keys.ENCODING}"
        require_encoding(ad.io.read_elem(store[encoding]) if encoding in store else {}, model)
        n_ranked = obs[_keys.N_RANKED].to_numpy()
        require_all_ranked(np.diff(store[f"layers/{_keys.RANK}/indptr"][:].astype(np.int64)), n_ranked)
        if _keys.TOKEN_ID not in var:
            raise KeyError(f"{cells} holds no .var[{_keys.TOKEN_ID!r}]. {_AGAIN}")
        token = var[_keys.TOKEN_ID].to_numpy()
        _, order = known_cells(table)
        place = np.argsort(order)
        length = np.minimum(n_ranked, max_length - 2) + 2
        indptr = np.concatenate([[0], np.cumsum(length[order], dtype=np.int64)])
        path = folder / f"{number}.npy"
        with atomic(path) as temporary, progress(total=len(obs), desc="Reading cells", unit="cell") as bar:
            tokens = np.lib.format.open_memmap(temporary, "w+", dtype=np.int32, shape=(int(indptr[-1]),))
            for start, block in iter_csr(ranks, _CHUNK):
                part = cell_sequences(block, token, model.vocab, max_length=max_length)
                if not np.array_equal(part.lengths, length[start : start + block.shape[0]]):
                    raise ValueError(
                        f"{cells} has cells whose ranks are not 1, 2, 3 ... of genes of the vocabulary. {_AGAIN}"
                    )
                begin = indptr[place[start : start + block.shape[0]]]
                at = np.repeat(begin, part.lengths) + part.positions
                tokens[at] = part.tokens
                bar.update(block.shape[0])
            tokens.flush()
    return Sequences(np.load(path, mmap_mode="r"), indptr), AnnData(obs=obs.iloc[order])


def _read_rows(
    path: str | Path, model: MaxTokiModel, target: Path, max_length: int
) -> tuple[Sequences, AnnData]:
    """The same of a folder of `datasets`."""
    rows, names = open_cells(path, model.vocab)
    table = AnnData(obs=scalars_of(rows).set_axis(names))
    _, order = known_cells(table)
    place = np.argsort(order)
    length = np.minimum(lengths_of(rows, path), max_length)
    indptr = np.concatenate([[0], np.cumsum(length[order], dtype=np.int64)])
    with atomic(target) as temporary, progress(total=len(order), desc="Reading cells", unit="cell") as bar:
        tokens = np.lib.format.open_memmap(temporary, "w+", dtype=np.int32, shape=(int(indptr[-1]),))
        for start in range(0, len(order), _CHUNK):
            part = sequences_of(rows.slice(start, _CHUNK), path)
            require_cells(part, model.vocab, path)
            n = length[start : start + len(part)]
            cut = part.take(np.arange(len(part)), n)
            cut.tokens[cut.indptr[1:] - 1] = model.vocab["<eos>"]
            tokens[np.repeat(indptr[place[start : start + len(part)]], n) + cut.positions] = cut.tokens
            bar.update(len(part))
        tokens.flush()
    return Sequences(np.load(target, mmap_mode="r"), indptr), AnnData(obs=table.obs.iloc[order])


def _open_ranks(store, path: str | Path):
    """The ranks of an encoded file, sliceable by cell."""
    slot = f"layers/{_keys.RANK}"
    if slot not in store:
        raise KeyError(f"{path} holds no layers[{_keys.RANK!r}]. Write it with mt.pp.encode_file.")
    if store[slot].attrs.get("encoding-type") != "csr_matrix":
        raise ValueError(f"layers[{_keys.RANK!r}] in {path} is not stored by cell (CSR). {_AGAIN}")
    return ad.io.sparse_dataset(store[slot])


def as_parts(cells: AnnData | str | Path | Sequence[AnnData | str | Path]) -> list[AnnData | str | Path]:
    """Data sets, where one may be given alone; or raise if there are none."""
    parts = [cells] if isinstance(cells, (AnnData, str, Path)) else list(cells)
    if not parts or any(isinstance(part, AnnData) and not part.n_obs for part in parts):
        raise ValueError("There are no cells to train on: cells is empty.")
    return parts


def obs_of(part: AnnData | str | Path) -> pd.DataFrame:
    """What is known of the cells of one data set."""
    if isinstance(part, AnnData):
        return part.obs
    if is_dataset(part):
        rows = open_dataset(part)
        return scalars_of(rows).set_axis(pd.RangeIndex(len(rows)).astype(str))
    with open_store(part) as store:
        return read_frames(store)[0]


def name_columns(
    parts: Sequence[AnnData | str | Path],
    time_unit: str | None,
    *,
    optional: Sequence[str] = (),
    **columns: str | Sequence[str] | None,
) -> dict[str, Any]:
    """Columns of `.obs` by what they hold, and the unit of the times, guessed where they are `None`.

    Times that are text get a column of numbers.
    """
    tables = [obs_of(part) for part in parts]  # of files, read once
    columns = find_columns(tables[0], optional=optional, **columns)
    key = columns["time_key"]
    require_obs(AnnData(obs=tables[0]), key)
    unit = find_unit(tables[0][key], time_unit)
    keys = {time_in_numbers(part, key, unit) if isinstance(part, AnnData) else key for part in parts}
    if len(keys) > 1:
        raise ValueError(
            f"Times are text in some of the cells and numbers in others: .obs has {sorted(keys)}."
        )
    key = keys.pop()
    tables = [part.obs if isinstance(part, AnnData) else obs for part, obs in zip(parts, tables, strict=True)]
    times = [pd.to_numeric(obs[key].astype(object), errors="coerce").dropna() for obs in tables]
    if len(times := np.concatenate(times).astype(float)):
        check_unit(key, times, unit, may_name=True)
    return columns | {"time_key": key, "time_unit": unit}


def read_together(
    cells: AnnData | str | Path | Sequence[AnnData | str | Path], model: MaxTokiModel, folder: Path
) -> tuple[Sequences, list[AnnData]]:
    """Cells of one or several data sets as one set of sequences, and the `.obs` of each."""
    read = [read_cells(part, model, folder, i) for i, part in enumerate(as_parts(cells))]
    return join([part for part, _ in read], folder), [table for _, table in read]


def join(parts: Sequence[Sequences], folder: Path) -> Sequences:
    """Sequences end to end; where any is on disk, all are written to one file in `folder`."""
    if len(parts) == 1:
        return parts[0]
    if not any(isinstance(part.tokens, np.memmap) for part in parts):
        return Sequences.concatenate(parts)
    ends = np.cumsum([0, *(part.indptr[-1] for part in parts)])
    path = folder / "all.npy"
    with atomic(path) as temporary:
        tokens = np.lib.format.open_memmap(temporary, "w+", dtype=np.int32, shape=(int(ends[-1]),))
        for part, start, end in zip(parts, ends[:-1], ends[1:], strict=True):
            tokens[start:end] = part.tokens
        tokens.flush()
    return Sequences.split(np.load(path, mmap_mode="r"), np.concatenate([part.lengths for part in parts]))
