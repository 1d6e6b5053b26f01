"""Whether a converted model says what the model said before: logits on given cells."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ._arrow import is_dataset
from .models.load import load_model
from .models.megatron import from_megatron, is_megatron
from .models.model import MaxTokiModel
from .models.sequences import Sequences, pad

_CELLS = 8  # as many as the original compares


class Agreement(NamedTuple):
    """How far logits are apart."""

    largest: float
    """Largest difference of a logit."""
    mean: float
    """Mean absolute difference, which the original compares with 0.05."""
    n_positions: int
    """Positions whose logits were compared."""
    n_cells: int
    """Cells that they are of."""


@torch.inference_mode()
def compare_logits(before: MaxTokiModel, folder: str | Path, cells: str | Path) -> Agreement:
    """Compare the logits of a model with those of what it was converted to, read from its files.

    Parameters
    ----------
    before
        The model that was converted.
    folder
        What it was converted to.
    cells
        Cells to read, of which the first eight are: raw counts, an encoded file, a folder of `datasets`. Or a
        `.safetensors` file of what another program computed, which the converted model is compared with:
        `input_ids` [cells, tokens], `logits` [cells, positions, tokens of the vocabulary], and `positions`,
        if these are not evenly spaced from the first on.

    Raises
    ------
    ValueError
        If the file has no such tensors, or cells are of another vocabulary.
    """
    cells = Path(cells)
    convert = from_megatron if is_megatron(folder) else load_model
    after = convert(folder, vocab=before.vocab, device="cpu")
    if cells.suffix == ".safetensors":
        tokens, logits, positions = _reference(cells)
        # Beyond the vocabulary there is padding.
        n = min(logits.shape[2], before.vocab.size)
        found = after.hf(tokens).logits[:, positions, :n]
        return _agreement(found, logits[..., :n], np.ones(found.shape[:2], dtype=bool))
    sequences = _first_cells(cells, before)
    tokens = pad(sequences, np.arange(len(sequences)), before.vocab["<pad>"])
    real = np.arange(tokens.shape[1]) < sequences.lengths[:, None]
    return _agreement(after.hf(tokens).logits, before.hf.to("cpu")(tokens).logits, real)


def _agreement(found: torch.Tensor, expected: torch.Tensor, real: np.ndarray) -> Agreement:
    apart = (found.double() - expected.double()).abs()[torch.from_numpy(real)]
    largest = float(apart.max())
    # NaN is no agreement.
    return Agreement(
        largest if np.isfinite(largest) else np.inf, float(apart.mean()), int(real.sum()), len(real)
    )


def _reference(path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, what the original made of them, and at which positions."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    if missing := {"input_ids", "logits"} - set(tensors):
        raise ValueError(
            f"{path} has no {' and no '.join(sorted(missing))}; it has {', '.join(sorted(tensors))}."
        )
    tokens, logits = tensors["input_ids"].long(), tensors["logits"]
    positions = tensors.get(
        "positions", torch.arange(0, tokens.shape[1], max(tokens.shape[1] // logits.shape[1], 1))
    )
    if len(positions) != logits.shape[1]:
        raise ValueError(
            f"{path} has logits at {logits.shape[1]} positions, which are not evenly spaced among {tokens.shape[1]} tokens. Add "
            "the tensor positions."
        )
    return tokens, logits, positions.long()


def _first_cells(path: Path, model: MaxTokiModel) -> Sequences:
    from .batch import cell_blocks
    from .tl._cells import get_sequences

    if is_dataset(path):
        from .pp._datasets import open_cells, sequences_of

        table, _ = open_cells(path, model.vocab)
        cells = sequences_of(table.slice(0, _CELLS), path)
        return cells.take(np.arange(len(cells)), np.minimum(cells.lengths, model.max_length))
    block = next(iter(cell_blocks(path, model.vocab, chunk_size=_CELLS, numbers=[0])))
    return get_sequences(block, model)
