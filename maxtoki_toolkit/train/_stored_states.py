"""States of a model, computed once and kept in shards that training reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .._outputs import is_made, new_output
from ..models.engine import Batch, run
from ..models.hooks import Site, states_at
from ..models.model import MaxTokiModel
from ..models.sequences import Sequences

BY = "mt.train.sae"
SHARD = 1 << 26  # numbers a shard: 256 MB


def write_states(model: MaxTokiModel, sequences: Sequences, site: Site, folder: Path, job: dict) -> None:
    """Write the states at all tokens of sequences, float32, as `00000.safetensors` and so on, unless they are there.

    Parameters
    ----------
    model, sequences, site
        What is read, and where.
    folder
        Folder of the shards.
    job
        What they are made from: states of anything else are replaced.
    """
    from safetensors.torch import save_file

    if is_made(folder, by=BY, job=job):
        return
    size = model.hf.config.hidden_size
    with new_output(folder, by=BY, job=job, overwrite=True) as temporary:
        for number, rows in enumerate(_parts(sequences, max(SHARD // size, 1))):
            mine = sequences.take(rows)
            states = torch.empty(len(mine.tokens), size)

            def compute(batch: Batch) -> torch.Tensor:
                return states_at(model, batch.inputs, site).float().cpu()

            for at, found in run(model, mine, compute, desc="Storing states"):
                for i, one in enumerate(at):
                    start, end = mine.indptr[one : one + 2]
                    states[start:end] = found[i, : end - start]
            save_file({"states": states}, temporary / f"{number:05d}.safetensors")


class StoredStates:
    """States of sequences, read from the shards of a folder."""

    def __init__(self, folder: Path, sequences: Sequences, size: int) -> None:
        from safetensors import safe_open

        self.lengths, self.shard = sequences.lengths, np.empty(len(sequences), dtype=np.int64)
        self.start = np.empty(len(sequences), dtype=np.int64)
        self.files = []
        for number, rows in enumerate(_parts(sequences, max(SHARD // size, 1))):
            self.shard[rows] = number
            self.start[rows] = sequences.indptr[rows] - sequences.indptr[rows[0]]
            file = safe_open(folder / f"{number:05d}.safetensors", framework="pt")
            self.files.append(file.get_slice("states"))

    def at(self, rows: np.ndarray, chosen: torch.Tensor) -> torch.Tensor:
        """States at the chosen tokens (rows x tokens) of some sequences, one after the other."""
        found = []
        for row, mask in zip(rows, chosen, strict=True):
            start, n = self.start[row], self.lengths[row]
            found.append(self.files[self.shard[row]][start : start + n][mask[:n]])
        return torch.cat(found)


def _parts(sequences: Sequences, most: int) -> Iterator[np.ndarray]:
    """Rows of consecutive sequences with at most so many tokens, if no sequence has more."""
    first = 0
    while first < len(sequences):
        end = int(np.searchsorted(sequences.indptr, sequences.indptr[first] + most, side="right")) - 1
        end = max(end, first + 1)
        yield np.arange(first, end)
        first = end
