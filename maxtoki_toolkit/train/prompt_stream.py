"""Temporal training examples: prompts drawn and written when they are wanted, and never stored."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from ..models.prompts import Prompts, Written, time_token, write_prompts
from ..models.sequences import Sequences, pad
from ..models.vocabulary import Vocabulary
from ..pp._sampling import Sampler
from ._stored_prompts import StoredPrompts
from ._teacher import Teacher
from .corpus import IGNORED

_REPLAY = 8  # prompts for each cell that is read again
_WINDOW = 32  # batches among which prompts of similar length are brought together


class Stage(NamedTuple):
    """A part of the training with prompts of one kind."""

    n_prompts: int
    sampler: Sampler | StoredPrompts


class Drawn(NamedTuple):
    """Prompts of a batch, where a teacher has a say."""

    prompts: Prompts
    taught: np.ndarray
    """bool, prompts: whether the running clock is the teacher's, and not the true time."""


class PromptStream(Dataset):
    """Prompts for training, in an order that depends on the seed alone.

    Parameters
    ----------
    cells
        Cells as sequences.
    stages
        What to draw, one after the other.
    batch_size
        Prompts an optimiser step, over all processes and accumulated passes; they are of similar length.
    n_taught
        How many prompts, from the first on, learn the teacher's running clock; `None` without a teacher.
    """

    def __init__(
        self, cells: Sequences, stages: Sequence[Stage], *, batch_size: int, n_taught: int | None = None
    ) -> None:
        self.cells, self.stages, self.n_taught = cells, list(stages), n_taught
        self.starts = np.cumsum([0, *(stage.n_prompts for stage in stages)])
        self.batch_size = batch_size
        self._window = (-1, -1), None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitems__(self, indices: list[int]) -> Prompts | Drawn:
        """Prompts of a batch; torch asks for all of them at once."""
        prompts = Prompts.concatenate([self._prompt(i) for i in indices])
        return prompts if self.n_taught is None else Drawn(prompts, np.asarray(indices) < self.n_taught)

    def _prompt(self, i: int) -> Prompts:
        stage = int(np.searchsorted(self.starts, i, side="right")) - 1
        window, place = divmod(i - int(self.starts[stage]), _WINDOW * self.batch_size)
        if self._window[0] != (stage, window):
            self._window = (stage, window), self._sorted_window(stage, window)
        return self._window[1][place : place + 1]

    def _sorted_window(self, stage: int, window: int) -> Prompts:
        """Draw a window of prompts; put prompts of one length side by side, and their batches in random order."""
        n_prompts, sampler = self.stages[stage]
        start = window * _WINDOW * self.batch_size
        prompts = sampler.draw(start, min(start + _WINDOW * self.batch_size, n_prompts))
        lengths = self.cells.lengths
        total = (
            np.where(prompts.context >= 0, lengths[prompts.context], 0).sum(axis=1) + lengths[prompts.query]
        )
        order = np.argsort(total, kind="stable")
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        batches = np.random.default_rng([sampler.seed, stage, window]).permutation(batches)
        return prompts[np.concatenate([batches.ravel(), order[whole:]])]


class PromptCollator:
    """Write a batch of prompts as tokens, padded on the right, and say what is to be learned.

    Parameters
    ----------
    cells
        Cells as sequences.
    vocab
        Temporal vocabulary.
    max_length
        Longest prompt with its answer.
    age
        Time of each cell since the first of its group, learned at the `<eos>` of each cell; none if not
        given.
    gene_dropout
        Share of the genes to leave out, drawn anew for each batch.
    replay
        Cells that are read again as in stage 1, one for every `_REPLAY` prompts, drawn anew for each batch.
    every_cell
        Learn the genes of every cell in a prompt, each from the cells before it, rather than those of the
        answer alone.
    running, group, teacher
        Whether the clock is read at every gene; the group of each cell; and the teacher of the running clock,
        if there is one.
    shortest
        Cells of a prompt are cut to a number of genes between this and all that the model reads, drawn for
        each prompt.

    Notes
    -----
    Learned are the lapse at `<eoq>`, or each token of the answered cell, `<bos>` and first gene among them.
    (The original never trains these two, though its generation starts there.) The task is the prompt's own
    and not guessed from the tokens, so an answer of one gene is a cell like any other.
    """

    def __init__(
        self,
        cells: Sequences,
        vocab: Vocabulary,
        *,
        max_length: int,
        age: np.ndarray | None = None,
        gene_dropout: float = 0.0,
        replay: Sequences | None = None,
        every_cell: bool = False,
        running: bool = False,
        group: np.ndarray | None = None,
        teacher: Teacher | None = None,
        shortest: int | None = None,
    ) -> None:
        if not 0 <= gene_dropout < 1:
            raise ValueError(f"The share of genes left out must be in [0, 1), got {gene_dropout}.")
        self.cells, self.vocab, self.max_length = cells, vocab, max_length
        self.replay, self.every_cell = replay, every_cell
        self.age = np.full(len(cells), np.nan) if age is None else age.astype(float)
        self.gene_dropout, self.is_gene = gene_dropout, vocab.gene_of_token != ""
        self.running, self.group, self.teacher, self.shortest = running, group, teacher, shortest

    def __call__(self, drawn: Prompts | Drawn) -> dict[str, torch.Tensor]:
        """Batch some prompts."""
        prompts, taught = drawn if isinstance(drawn, Drawn) else (drawn, np.zeros(len(drawn.query), bool))
        cells = self.cells
        rows = np.column_stack([prompts.context, prompts.query])
        if self.shortest is not None:
            cells, prompts = self._cut(rows, prompts)
        # The answer to a timelapse prompt comes after all that is read: it need not be written.
        written = write_prompts(
            prompts, cells, self.vocab, max_length=self.max_length, answer=~prompts.timelapse
        )
        if self.gene_dropout:
            written = self._drop_genes(written)
        tokens = pad(written.sequences, np.arange(len(prompts.query)), self.vocab["<pad>"])
        position = torch.arange(tokens.shape[1])
        eoq = torch.from_numpy(written.eoq)
        last = torch.from_numpy(written.sequences.lengths - 1)
        # What follows a token is scored from `<eoq>` on; in a timelapse prompt nothing does.
        scored = (position >= eoq[:, None]) & (position < last[:, None])
        if self.every_cell:
            of_cell = torch.from_numpy(self.is_gene)[tokens] | (tokens == self.vocab["<eos>"])
            scored[:, :-1] |= of_cell[:, 1:]
        labels = torch.full_like(tokens, IGNORED)
        labels[:, :-1] = torch.where(scored[:, :-1], tokens[:, 1:], IGNORED)
        # The n-th `<eos>` of a prompt belongs to its n-th cell; the query is the last.
        age = torch.full(tokens.shape, torch.nan)
        age[tokens == self.vocab["<eos>"]] = torch.from_numpy(self.age[rows[rows >= 0]]).float()
        batch = {
            "input_ids": tokens,
            "eoq": eoq,
            "labels": labels,
            "lapse": torch.from_numpy(np.where(prompts.timelapse, prompts.lapse, np.nan)).float(),
            "age": age,
            "lapse_token": torch.from_numpy(time_token(prompts.lapse, self.vocab)),
        }
        if self.running:
            batch |= self._running(taught, rows, prompts, written, tokens)
        return batch if self.replay is None else batch | self._replayed(tokens)

    def _cut(self, rows: np.ndarray, prompts: Prompts) -> tuple[Sequences, Prompts]:
        """The cells of these prompts alone, cut to one number of genes in each prompt, and the prompts of them."""
        rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(rows).tobytes()))
        longest = self.cells.lengths.max() - 2
        # Half of the prompts are whole: that is how they are read later.
        n_genes = rng.integers(min(self.shortest, longest), longest + 1, len(rows))
        n_genes = np.where(rng.random(len(rows)) < 0.5, longest, n_genes)
        there = rows >= 0
        flat, most = rows[there], np.repeat(n_genes, there.sum(axis=1))
        n = np.minimum(self.cells.lengths[flat] - 2, most) + 2
        cells = self.cells.take(flat, n)
        cells.tokens[cells.indptr[1:] - 1] = self.vocab["<eos>"]
        number = np.full(rows.shape, -1)
        number[there] = np.arange(len(flat))
        return cells, prompts._replace(context=number[:, :-1], query=number[:, -1])

    def _running(
        self, taught: np.ndarray, rows: np.ndarray, prompts: Prompts, written: Written, tokens: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The time of each cell since the first of its group, gene by gene: the teacher's, or the true one."""
        flat = written.sequences.tokens
        prompt = np.repeat(np.arange(len(rows)), written.sequences.lengths)
        is_gene = self.is_gene[flat]
        begins = np.flatnonzero(flat == self.vocab["<bos>"])
        cell = np.searchsorted(begins, np.arange(len(flat)), side="right") - 1
        place = np.where(is_gene, np.arange(len(flat)) - begins[cell] - 1, -1)
        # The n-th `<bos>` of a prompt begins its n-th cell; a lapse prompt has its query, a cell prompt its
        # answer.
        row = rows[rows >= 0][cell]
        age = self.age[row]
        value = np.where(is_gene, age, np.nan).astype(np.float32)
        # A gene far up the list says little on its own.
        weight = np.where(is_gene, (place + 1) / self.cells.lengths.max(), 0).astype(np.float32)
        if self.teacher is not None:
            running = self.teacher.running(flat, place, self.group[row], is_gene)
            known = taught[prompt] & ~np.isnan(running)
            value, weight = np.where(known, running, value), np.where(known & is_gene, 1, weight)
        weight = np.where(np.isnan(value), 0, weight)
        inside = np.arange(tokens.shape[1]) < written.sequences.lengths[:, None]
        values, weights = (np.zeros(tokens.shape, np.float32) for _ in range(2))
        values[inside], weights[inside] = np.nan_to_num(value), weight
        # What is read of the query so far is a lapse too.
        last = prompts.context_size - 1
        start = rows[np.arange(len(rows)), last]
        boq = (tokens.numpy() == self.vocab["<boq>"]).argmax(axis=1)
        in_query = (np.arange(tokens.shape[1]) > boq[:, None]) & prompts.timelapse[:, None]
        return {
            "running": torch.from_numpy(values),
            "running_weight": torch.from_numpy(weights),
            "running_from": torch.from_numpy(np.nan_to_num(self.age[start])).float(),
            "in_query": torch.from_numpy(in_query),
        }

    def _replayed(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cells to read again; each of their genes is to be predicted."""
        rng = np.random.default_rng(zlib.crc32(tokens.numpy().tobytes()))
        rows = rng.integers(0, len(self.replay), -(-len(tokens) // _REPLAY))
        cells = pad(self.replay, rows, self.vocab["<pad>"])
        return {
            "replay_ids": cells,
            "replay_labels": torch.where(cells[:, 1:] == self.vocab["<pad>"], IGNORED, cells[:, 1:]),
        }

    def _drop_genes(self, written: Written) -> Written:
        """Leave out genes at random; every mark stays."""
        sequences, eoq, n_clipped = written
        tokens, indptr = sequences.arrays
        # Seeded by the batch itself, so that a run that resumes sees what it would have seen.
        rng = np.random.default_rng(zlib.crc32(tokens.tobytes()))
        kept = ~self.is_gene[tokens] | (rng.random(len(tokens)) >= self.gene_dropout)
        before = np.concatenate([[0], np.cumsum(kept)])
        shorter = sequences.keep(kept)
        return Written(shorter, before[indptr[:-1] + eoq] - shorter.indptr[:-1], n_clipped)
