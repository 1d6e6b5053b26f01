"""A folder with weights in safetensors and a card beside them that has their checksum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from .._files import sha256


def require_files(folder: Path, names: Iterable[str], *, by: str) -> None:
    """Raise if a file is missing; `by` is who writes such folders."""
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"Did not find {folder / name}. Give a folder that {by} wrote.")


def require_same_weights(path: Path, checksum: object, card: str) -> None:
    """Raise if the weights are not those that the card speaks of."""
    if checksum != sha256(path):
        raise ValueError(f"{path} is not the file that {card} speaks of. Restore the folder as it was saved.")


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors, and return the checksum for the card."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    return sha256(path)
