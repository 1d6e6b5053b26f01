"""Training examples: rank-encoded cells as token sequences, cut and batched."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from anndata import AnnData
from torch.utils.data import Dataset

from .._digest import digest
from ..models.model import MaxTokiModel
from ._cells import read_cells

IGNORED = -100


class Example(NamedTuple):
    """A cell to train on."""

    tokens: np.ndarray
    """`<bos>`, genes, `<eos>`; int32."""
    gene_dropout: float
    """Share of the genes to leave out each time the cell is read."""


class Corpus(Dataset):
    """Cells of one or more AnnData, written once as token sequences.

    Parameters
    ----------
    cells
        Rank-encoded cells for the model's vocabulary, AnnData or encoded files; each may have genes of its
        own.
    model
        The model to train: its vocabulary, and the length beyond which cells are cut.
    repeats
        How often the cells of each AnnData are seen in an epoch; 1 each by default.
    gene_dropout
        Share of the genes to leave out each time; cells are kept so much longer.
    folder
        Where the cells of files are kept for the time of the training.
    """

    def __init__(
        self,
        cells: Sequence[AnnData | str | Path],
        model: MaxTokiModel,
        repeats: Sequence[int] | None = None,
        gene_dropout: float = 0.0,
        folder: Path = Path(),
    ) -> None:
        if not 0 <= gene_dropout < 1:
            raise ValueError(f"The share of genes left out must be in [0, 1), got {gene_dropout}.")
        self.gene_dropout = gene_dropout
        length = 2 + round((model.max_length - 2) / (1 - gene_dropout))
        read = [read_cells(part, model, folder, i, max_length=length) for i, part in enumerate(cells)]
        self.parts = [sequences for sequences, _ in read]
        repeats = [1] * len(cells) if repeats is None else list(repeats)
        if len(repeats) != len(cells) or min(repeats, default=1) < 1:
            raise ValueError(f"Give one repeat of at least 1 for each of the {len(cells)} data sets.")
        rows = [np.tile(np.arange(len(part)), n) for part, n in zip(self.parts, repeats, strict=True)]
        self.part = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
        self.row = np.concatenate(rows)

    @cached_property
    def sha256(self) -> str:
        """Checksum of the cells, in the order in which they are read."""
        return digest(*(array for part in self.parts for array in part.arrays), self.part, self.row)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, i: int) -> Example:
        tokens, indptr = self.parts[self.part[i]].arrays
        return Example(tokens[indptr[self.row[i]] : indptr[self.row[i] + 1]], self.gene_dropout)


class NextGeneCollator:
    """Pad cells on the right and say which tokens are to be predicted.

    Parameters
    ----------
    pad_id
        Token for the padding, which is never predicted. (The original trains the last gene to predict it.)
    max_length
        Longest cell, marks included.
    scored
        Share of the positions that are scored, drawn anew for each batch and shared by its cells. The
        scores over the vocabulary are most of the cost of a small model.
    marks
        Tokens of the marks before each kind of features.
    modality_dropout
        How often each kind of features is left out of a cell that has several; one always stays. Those that
        stay come in random order, so that each is learned from any other. `None` leaves them as they are.
    """

    def __init__(
        self,
        pad_id: int,
        max_length: int,
        scored: float = 1.0,
        *,
        marks: Sequence[int] = (),
        modality_dropout: float | None = None,
    ) -> None:
        if not 0 < scored <= 1:
            raise ValueError(f"The share of scored positions must be in (0, 1], got {scored}.")
        if modality_dropout is not None and not 0 <= modality_dropout < 1:
            raise ValueError(f"modality_dropout must be in [0, 1), got {modality_dropout}.")
        self.pad_id, self.max_length, self.scored = pad_id, max_length, scored
        self.modality_dropout = modality_dropout
        self.marks = np.array(marks, dtype=np.int64)

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """Batch some cells."""
        # Seeded by the batch itself, so that a run that resumes sees what it would have seen.
        seed = zlib.crc32(b"".join(example.tokens.tobytes() for example in examples))
        rng = np.random.default_rng(seed)
        cells = [self._read(example, rng) for example in examples]
        lengths = torch.tensor([len(cell) for cell in cells])
        width = int(lengths.max())
        tokens = torch.full((len(cells), width), self.pad_id)
        for row, cell in zip(tokens, cells, strict=True):
            row[: len(cell)] = torch.from_numpy(cell.astype(np.int64))
        n_scored = max(round(self.scored * (width - 1)), 1)
        positions = torch.from_numpy(np.sort(rng.permutation(width - 1)[:n_scored]))
        labels = tokens[:, positions + 1].masked_fill(positions + 1 >= lengths[:, None], IGNORED)
        # transformers computes logits for these positions only, and takes shifted labels as they are.
        return {
            "input_ids": tokens,
            "labels": labels,
            "shift_labels": labels,
            "logits_to_keep": positions,
        }

    def _read(self, example: Example, rng: np.random.Generator) -> np.ndarray:
        """Leave out some genes, then cut to the longest length; the marks stay."""
        genes = example.tokens[1:-1]
        if example.gene_dropout:
            left_out = rng.random(len(genes)) < example.gene_dropout
            genes = genes[~left_out | np.isin(genes, self.marks)]
        if len(self.marks):
            genes = self._kinds(genes, rng)
        first, last = example.tokens[[0, -1]]
        return np.concatenate([[first], genes[: self.max_length - 2], [last]])

    def _kinds(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Leave out some kinds of features and put the others in random order."""
        kinds = np.split(tokens, np.flatnonzero(np.isin(tokens, self.marks))[1:])
        if self.modality_dropout is None or len(kinds) < 2:
            return tokens
        stays = rng.random(len(kinds)) >= self.modality_dropout
        stays[rng.integers(len(kinds))] |= not stays.any()
        return np.concatenate([kinds[i] for i in rng.permutation(np.flatnonzero(stays))])
