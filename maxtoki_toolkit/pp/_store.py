"""h5ad and zarr files, opened without being read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._counts import check_columns, check_counts
from .._progress import hidden
from ..models.vocabulary import Vocabulary
from ..results.store import writable
from ._chunks import require_complete
from ._counts import RAW, hint_of, iter_csr
from ._formats import H5AD, ZARR, kind_of, read_whole
from .map_genes import gene_report, resolve_genes
from .rank_value_encode import rank_value_encode

_RAW_X = "raw/X"


@contextmanager
def open_store(path: str | Path, mode: str = "r") -> Iterator:
    """Open a file of cells as a group: h5ad and zarr as they are, others read into memory.

    With mode "w" an h5ad file or a zarr store is made.
    """
    path = Path(path)
    kind = kind_of(path) if mode == "r" else path.suffix.lower()[1:]
    if mode == "w" and kind not in (H5AD, ZARR):
        raise ValueError(f"{path} is neither .h5ad nor .zarr.")
    if kind == ZARR:
        import zarr

        with _reading(path):
            store = zarr.open_group(path, mode=mode)
        if mode == "r":
            require_complete(store, path)
        yield store
        return
    if kind != H5AD:
        with _in_memory(read_whole(path)) as file:
            yield file
        return
    try:
        file = h5py.File(path, mode)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as h5ad ({error}). It may be cut short, or be no h5ad file: copy or download it again."
        ) from None
    with file:
        if not isinstance(file.get("obs"), h5py.Dataset):
            yield file
            return
    # anndata before 0.7 kept tables as one array each.
    with _in_memory(read_whole(path)) as file:
        yield file


@contextmanager
def _in_memory(cells: AnnData) -> Iterator[h5py.File]:
    """Cells as an h5ad file that is on no disk."""
    with h5py.File("cells.h5ad", "w", driver="core", backing_store=False) as file:
        ad.io.write_elem(file, "/", cells)
        del cells  # or it would be there twice
        yield file


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Say of whatever a library raises on a damaged file which file that is."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} cannot be read ({reason}). It may be damaged or incomplete: copy or download it again."
        ) from error


def read_frames(store, layer: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `obs` and `var` of an open store; `var` is that of the layer's genes."""
    if missing := [key for key in ("obs", "var") if key not in store]:
        raise ValueError(f"{name_of(store)} is no AnnData file: it has no {' and no '.join(missing)}.")
    of_raw = slot_of(store, layer) == _RAW_X and "raw/var" in store
    with _reading(name_of(store)):
        return ad.io.read_elem(store["obs"]), ad.io.read_elem(store["raw/var" if of_raw else "var"])


def first_values(store, layer: str | None, n: int = 100_000) -> sp.csr_matrix:
    """About the first `n` values of the matrix of counts of an open store, as a matrix of one row."""
    matrix = _counts_of(store, layer)
    with _reading(name_of(store)):
        values = matrix["data"][:n] if hasattr(matrix, "keys") else matrix[: max(n // matrix.shape[1], 1)]
    return sp.csr_matrix(values.astype(np.float64).reshape(1, -1))


def encoded_blocks(
    store,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    vocab: Vocabulary,
    *,
    layer: str | None = None,
    gene_key: str | None = None,
    min_overlap: float = 0.1,
    force: bool = False,
    chunk_size: int = 2048,
    numbers: Iterable[int] | None = None,
) -> Iterator[AnnData]:
    """Yield the cells of an open store as rank-encoded AnnData, `chunk_size` cells at a time.

    All blocks, or those with these numbers.
    """
    if f"uns/{_keys.ENCODING}" in store:
        # Of an earlier encoding; without it, they are the user's.
        obs = obs.drop(columns=[_keys.N_RANKED, _keys.SHARE_RANKED], errors="ignore")
    if not obs.index.is_unique:
        repeated = obs.index[obs.index.duplicated()]
        raise ValueError(f"{len(repeated)} cell names in the file are not unique (first: {repeated[0]!r}).")
    earlier = f"uns/{_keys.MAP_GENES}/params"
    encode = block_encoder(
        var,
        vocab,
        gene_key=gene_key,
        min_overlap=min_overlap,
        earlier=ad.io.read_elem(store[earlier]) if earlier in store else None,
        force=force,
        chunk_size=chunk_size,
    )
    counts = open_counts(store, layer)
    if not force:
        check_counts(first_values(store, layer), force=False, hint=counts_hint_of(store, layer))
    blocks = iter_csr(counts, chunk_size, numbers)
    while True:
        with _reading(name_of(store)):
            start, block = next(blocks, (None, None))
        if block is None:
            return
        yield encode(block, obs.iloc[start : start + chunk_size].copy())


def ranked_blocks(
    store,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    *,
    chunk_size: int = 2048,
    numbers: Iterable[int] | None = None,
) -> Iterator[AnnData]:
    """Yield the cells of an open encoded file, `chunk_size` at a time: all blocks, or those with these numbers."""
    slot = store[f"layers/{_keys.RANK}"]
    if slot.attrs.get("encoding-type") != "csr_matrix":
        raise ValueError(
            f"layers[{_keys.RANK!r}] in {name_of(store)} is not stored by cell (CSR). Write the file again with mt.pp.encode_file."
        )
    uns = {_keys.ENCODING: ad.io.read_elem(store[f"uns/{_keys.ENCODING}"])}
    for start, ranks in iter_csr(ad.io.sparse_dataset(slot), chunk_size, numbers):
        part = obs.iloc[start : start + ranks.shape[0]].copy()
        yield AnnData(obs=part, var=var, layers={_keys.RANK: ranks}, uns=dict(uns))


def block_encoder(
    var: pd.DataFrame,
    vocab: Vocabulary,
    *,
    gene_key: str | None = None,
    min_overlap: float = 0.1,
    earlier: Mapping | None = None,
    force: bool = False,
    drop_empty: bool = False,
    chunk_size: int = 2048,
) -> Callable[[sp.csr_matrix, pd.DataFrame], AnnData]:
    """Return the function that makes rank-encoded cells of a block of counts and its `.obs`.

    With `drop_empty` without those that express no gene of the vocabulary, which are an error otherwise.
    """
    var, params = resolve_genes(var, vocab, gene_key=gene_key, min_overlap=min_overlap, earlier=earlier)
    mapped = writable({_keys.MAP_GENES: {"params": params, "report": gene_report(var)}})
    token = var[_keys.TOKEN_ID].to_numpy()
    ranked = (token >= 0) & ~np.isnan(vocab.median_of_token[token])

    def encode(block: sp.csr_matrix, obs: pd.DataFrame) -> AnnData:
        if drop_empty:
            n_ranked = np.concatenate([[0], np.cumsum(ranked[block.indices] & (block.data > 0))])
            some = np.diff(n_ranked[block.indptr]) > 0
            block, obs = (block, obs) if some.all() else (block[some], obs[some])
        cells = AnnData(block, obs=obs, var=var, uns=dict(mapped))
        with hidden():
            rank_value_encode(cells, vocab, force=force, chunk_size=chunk_size)
        return cells

    return encode


def write_encoded(path: Path, blocks: Iterable[AnnData], index: np.dtype, bar) -> None:
    """Write rank-encoded blocks of cells as one file, without counts; `index` is the type of row pointers and columns."""
    with open_store(path, "w") as result:
        frames = []
        for cells in blocks:
            ranks = cells.layers[_keys.RANK]
            # scipy works only with row pointers and columns of one type.
            ranks.indptr, ranks.indices = ranks.indptr.astype(index), ranks.indices.astype(index)
            if not frames:
                ad.io.write_elem(result, "/", AnnData(var=cells.var, uns=cells.uns))
                ad.io.write_elem(result, f"layers/{_keys.RANK}", ranks)
            else:
                ad.io.sparse_dataset(result[f"layers/{_keys.RANK}"]).append(ranks)
            frames.append(cells.obs)
            bar.update(cells.n_obs)
        ad.io.write_elem(result, "obs", pd.concat(frames))


def ranked_lengths(store, vocab: Vocabulary) -> np.ndarray | None:
    """Genes of each cell that are ranked, of a file that was encoded for this vocabulary; `None` for others."""
    if f"layers/{_keys.RANK}" not in store or f"uns/{_keys.ENCODING}/params" not in store:
        return None
    if ad.io.read_elem(store[f"uns/{_keys.ENCODING}/params"]).get("genes_sha256") != vocab.genes_sha256:
        return None
    return np.diff(store[f"layers/{_keys.RANK}/indptr"][:])


def count_values(store, layer: str | None) -> int:
    """How many values of counts are stored."""
    matrix = _counts_of(store, layer)
    return int(matrix["data"].shape[0] if hasattr(matrix, "keys") else np.prod(matrix.shape, dtype=np.int64))


def layer_names(store) -> list[str]:
    """What can be given as layer: the layers, and "raw" for the counts in `.raw`."""
    layers = sorted(store["layers"]) if "layers" in store else []
    return layers + ([RAW] if _RAW_X in store and RAW not in layers else [])


def counts_hint_of(store, layer: str | None) -> str:
    """Say where the raw counts may be in a file, if not where they were looked for."""
    return hint_of([name for name in layer_names(store) if name != layer])


def slot_of(store, layer: str | None) -> str:
    """Where the counts are in a file."""
    if layer is None:
        return "X"
    return (
        _RAW_X
        if layer == RAW and layer in layer_names(store) and f"layers/{RAW}" not in store
        else f"layers/{layer}"
    )


def name_of(store) -> str:
    """Path of an open store."""
    return str(getattr(store, "filename", None) or getattr(store.store, "root", store))


def _counts_of(store, layer: str | None):
    """Return the stored matrix of counts as it is."""
    key = slot_of(store, layer)
    if key not in store:
        raise KeyError(
            f"Did not find {'raw.X' if layer == 'raw' else key} in the file. Its layers: {', '.join(layer_names(store)) or 'none'}; "
            "by default, X is read."
        )
    return store[key]


def open_counts(store, layer: str | None):
    """Return the matrix of counts, sliceable by row: on disk, or in memory where it is stored by gene."""
    stored = _counts_of(store, layer)
    if not hasattr(stored, "keys"):
        return stored
    slot, path = slot_of(store, layer), name_of(store)
    with _reading(path):
        matrix = ad.io.sparse_dataset(stored)
        indptr, n_values = stored["indptr"][:], stored["data"].shape[0]
        n_lines = matrix.shape[matrix.format == "csc"]
    # From wrong row pointers compiled code reads any memory.
    whole = (
        len(indptr) == n_lines + 1 and indptr[0] == 0 and indptr[-1] == n_values == stored["indices"].shape[0]
    )
    if stored["indices"].dtype.kind not in "iu":
        raise ValueError(
            f"{path} is damaged: the columns of {slot} are no whole numbers. Copy or download it again."
        )
    if not whole or (np.diff(indptr) < 0).any():
        raise ValueError(
            f"{path} is damaged: the row pointers of {slot} do not fit its values. Copy or download it again."
        )
    if matrix.format == "csr":
        return matrix
    with _reading(path):
        by_gene = matrix.to_memory()
    check_columns(by_gene)
    return by_gene.tocsr()
