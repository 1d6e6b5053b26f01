"""Whether a zarr store is all there: what is missing would be read as 0, what is cut short as anything."""

from __future__ import annotations

from pathlib import Path

# Arrays of a sparse matrix: never 0 over a whole chunk, so zarr has written all chunks.
_SPARSE = ("data", "indices", "indptr")


def require_complete(store, path: Path) -> None:
    """Raise if a chunk of the cells, the genes or a matrix is missing or cut short.

    Columns of `.obs` may lack chunks: where a column is 0 throughout, zarr writes none.
    """
    for name, array in _arrays(store):
        parent, _, last = name.rpartition("/")
        if name.split("/")[0] not in ("obs", "var", "X", "layers", "raw"):
            continue
        is_table = parent in ("obs", "var", "raw/var")
        needed = (
            last == store[parent].attrs.get("_index", "_index")
            if is_table
            else last in _SPARSE or array.ndim == 2
        )
        n_missing = array.nchunks - array.nchunks_initialized
        if needed and n_missing > 0:
            dense = (
                " If all values in it are 0 indeed, write the store with a sparse matrix."
                if array.ndim == 2
                else ""
            )
            raise ValueError(
                f"{path} is incomplete: {n_missing} of {array.nchunks} chunks of {name} are missing, and would be read as 0. Copy "
                f"the store again.{dense}"
            )
        if array.shards is None and any(
            "blosc" in type(codec).__name__.lower() for codec in array.compressors
        ):
            for chunk in _chunk_files(path / name):
                _require_whole(chunk, path)


def _arrays(group):
    for _, array in group.arrays():
        yield array.path.strip("/"), array
    for _, inner in group.groups():
        yield from _arrays(inner)


def _chunk_files(folder: Path) -> list[Path]:
    return [
        file
        for file in folder.rglob("*")
        if file.is_file() and file.name[0] != "." and file.name != "zarr.json"
    ]


def _require_whole(chunk: Path, path: Path) -> None:
    """Raise if a chunk is shorter than it says: its compression, blosc, would read on in memory that is not its own."""
    with chunk.open("rb") as file:
        header = file.read(16)
    size = chunk.stat().st_size
    if len(header) < 16 or int.from_bytes(header[12:16], "little") != size:
        raise ValueError(
            f"{path} is damaged: {chunk.relative_to(path)} is cut short ({size:,} bytes). Copy the store again."
        )
