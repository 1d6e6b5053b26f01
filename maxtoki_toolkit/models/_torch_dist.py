"""Checkpoints of torch.distributed (torch_dist): written by PyTorch, read without running anything in them."""

from __future__ import annotations

import io
import math
import pickle
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

METADATA = ".metadata"


class Chunk(NamedTuple):
    """A block of a tensor, and the bytes that hold it."""

    offset: tuple[int, ...]
    size: tuple[int, ...]
    file: str
    start: int
    length: int


class Entry(NamedTuple):
    """A tensor of a checkpoint."""

    size: tuple[int, ...]
    chunks: list[Chunk]


class _Record:
    """Stands in for a class that the pickle names: keeps what it is given, and does nothing."""

    def __init__(self, *args) -> None:
        self.args = args

    def __setstate__(self, state) -> None:
        vars(self).update(state if isinstance(state, dict) else {"state": state})


def _member(enum, name: str) -> _Record:
    """What Python 3.11.0 to 3.11.3 write for a member of an enum: `getattr`, here of records and nothing else."""
    if not (isinstance(enum, type) and issubclass(enum, _Record)):
        raise pickle.UnpicklingError(
            "it asks for an attribute of what is no record, which has no place in a checkpoint's metadata"
        )
    return enum(name)


# No code of these modules is run: their classes become records. Megatron's differ between its versions.
_RECORDS = ("torch.distributed.checkpoint.", "torch.distributed._shard.", "megatron.core.dist_checkpointing.")
_HARMLESS = {
    ("builtins", "getattr"): _member,
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): _Record,
    ("collections", "OrderedDict"): dict,
    ("pathlib", "PosixPath"): _Record,
    ("pathlib._local", "PosixPath"): _Record,
}


class _Unpickler(pickle.Unpickler):
    """Reads plain values and records, and imports nothing."""

    def find_class(self, module: str, name: str):
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        if module.startswith(_RECORDS):
            return type(name, (_Record,), {})
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, which has no place in a checkpoint's metadata and could run code"
        )


def read_entries(folder: Path) -> dict[str, Entry]:
    """List the tensors of a checkpoint by key; what is not a tensor is left out.

    Raises
    ------
    FileNotFoundError
        If there is no `.metadata`.
    ValueError
        If `.metadata` names a class that it should not, is corrupt, or does not account for every tensor.
    """
    path = folder / METADATA
    if not path.is_file():
        raise FileNotFoundError(
            f"Did not find {path}, the index of the checkpoint. It is a hidden file: copy the folder as a whole."
        )
    with path.open("rb") as file:
        try:
            metadata = _Unpickler(file).load()
            return _entries(metadata)
        # A broken pickle can fail in any of these ways.
        except (
            pickle.UnpicklingError,
            EOFError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            OverflowError,
        ) as error:
            raise ValueError(f"Cannot read {path}: {error}. Nothing was loaded.") from None


def _entries(metadata: _Record) -> dict[str, Entry]:
    places = {
        (index.fqn, getattr(index, "offset", None)): place for index, place in metadata.storage_data.items()
    }
    entries = {}
    for key, tensor in metadata.state_dict_metadata.items():
        if not hasattr(tensor, "chunks"):
            continue
        chunks = []
        for chunk in tensor.chunks:
            place = places.get((key, chunk.offsets))
            if place is None or Path(place.relative_path).name != place.relative_path:
                raise ValueError(f"a part of {key} has no place in the folder")
            chunks.append(Chunk(chunk.offsets, chunk.sizes, place.relative_path, place.offset, place.length))
        inside = all(
            0 <= at <= at + n <= size
            for chunk in chunks
            for at, n, size in zip(chunk.offset, chunk.size, tensor.size, strict=True)
        )
        if not inside or sum(math.prod(chunk.size) for chunk in chunks) != math.prod(tensor.size):
            raise ValueError(f"the parts of {key} do not make up its shape {list(tensor.size)}")
        entries[key] = Entry(tensor.size, chunks)
    return entries


def read_tensor(folder: Path, entry: Entry) -> torch.Tensor:
    """Read a tensor as float32.

    Raises
    ------
    FileNotFoundError
        If a file of the checkpoint is missing.
    ValueError
        If a part is corrupt, or no tensor of floating point numbers of the right shape.
    """
    tensor = torch.empty(entry.size, dtype=torch.float32)
    for chunk in entry.chunks:
        path = folder / chunk.file
        if not path.is_file():
            raise FileNotFoundError(
                f"Did not find {path}, which {METADATA} names: the checkpoint is incomplete."
            )
        with path.open("rb") as file:
            file.seek(chunk.start)
            content = file.read(chunk.length)
        try:
            part = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else "cut short"
            raise ValueError(f"{path} is corrupt ({reason}). Copy the checkpoint again.") from None
        if not isinstance(part, torch.Tensor) or part.shape != chunk.size or not part.is_floating_point():
            raise ValueError(f"{path} does not hold what {METADATA} says. Copy the checkpoint again.")
        tensor[tuple(slice(at, at + n) for at, n in zip(chunk.offset, chunk.size, strict=True))] = part
    return tensor


def write_state(folder: Path, state: dict[str, object]) -> None:
    """Write tensors, and other values as byte entries, into a new folder."""
    import torch.distributed.checkpoint as dcp

    class Writer(dcp.FileSystemWriter):
        def storage_meta(self) -> None:
            """Leave out the path, which is a temporary one and nobody else's business."""

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(
            state,
            storage_writer=Writer(folder),
            planner=dcp.DefaultSavePlanner(flatten_state_dict=False),
            no_dist=True,
        )
