"""Cell and gene embeddings from a model's hidden states."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .engine import Batch, last_states, run
from .hooks import Site, n_layers, states_at
from .model import MaxTokiModel
from .sequences import Sequences

POOLS = ("mean", "eos")
# What a gene is read in: the cells that express it, a cell of it alone, or nothing, which is its row of the
# embedding table.
CONTEXTS = ("cells", "alone", "table")


class Embeddings(NamedTuple):
    """What `embed_sequences` returns."""

    cells: np.ndarray
    """float32, cells x hidden size."""
    tokens: np.ndarray | None
    """float32, vocabulary size x hidden size: mean hidden state of each gene token over the cells that
    express it, NaN for tokens that none expresses; `None` unless asked for."""


def embed_sequences(
    model: MaxTokiModel,
    sequences: Sequences,
    *,
    layer: int = -1,
    pool: str = "mean",
    tokens: bool = False,
    max_tokens: int | None = None,
) -> Embeddings:
    """Embed cells written as `<bos>` genes `<eos>`.

    Parameters
    ----------
    model
        Model.
    sequences
        Cells.
    layer
        0: token embeddings; l: after l blocks; -1: after the last block and the final norm.
    pool
        "mean" over the gene tokens, or "eos", the hidden state of the last token.
    tokens
        Also average the hidden states of each gene over the cells.
    max_tokens
        Padded tokens a batch.
    """
    if pool not in POOLS:
        raise ValueError(f"There is no pooling {pool!r}; choose from {', '.join(POOLS)}.")
    hidden_size = model.hf.config.hidden_size
    cells = np.empty((len(sequences), hidden_size), dtype=np.float32)
    sums = torch.zeros(model.vocab.size, hidden_size, device=model.device) if tokens else None
    seen = torch.zeros(model.vocab.size, device=model.device) if tokens else None

    def compute(batch: Batch) -> torch.Tensor:
        states = hidden_states(model, batch.inputs, layer).float()
        genes = gene_places(states, batch.lengths)
        if sums is not None:
            token = batch.tokens[genes]
            sums.index_add_(0, token, states[genes])
            seen.index_add_(0, token, torch.ones_like(token, dtype=seen.dtype))
        if pool == "eos":
            return last_states(states, batch)
        return mean_over(states, genes)

    for rows, pooled in run(model, sequences, compute, max_tokens=max_tokens, desc="Embedding"):
        cells[rows] = pooled.cpu().numpy()
    gene_means = None
    if sums is not None:
        gene_means = torch.where(seen[:, None] > 0, sums / seen[:, None], torch.nan).cpu().numpy()
    return Embeddings(cells, gene_means)


def gene_places(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which places of padded cells hold genes, and neither marks nor padding."""
    position = torch.arange(states.shape[1], device=states.device)
    return (position >= 1) & (position < lengths[:, None] - 1)


def mean_over(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Mean state of some places of each cell, batch x hidden size."""
    return torch.einsum("blh,bl->bh", states, places.float()) / places.sum(dim=1, keepdim=True).clamp(min=1)


def hidden_states(model: MaxTokiModel, inputs: dict, layer: int) -> torch.Tensor:
    """Hidden states [batch, length, hidden size] after `layer` blocks; no later block is run."""
    n = n_layers(model)
    if not -1 <= layer <= n:
        raise ValueError(f"layer must be -1 or 0..{n} for this model, got {layer}.")
    if layer in (-1, n):
        return model.hf.model(**inputs).last_hidden_state
    # The input of block l is what l blocks made.
    return states_at(model, inputs, Site(layer, "input"))


def embed_tokens(model: MaxTokiModel, *, alone: bool, layer: int = -1) -> np.ndarray:
    """Embed every gene of the vocabulary without cells.

    Parameters
    ----------
    model
        Model.
    alone
        Whether each gene is read as a cell that has no other; else its row of the embedding table is taken.
    layer
        As in `embed_sequences`, for genes that are read.

    Returns
    -------
    float32, vocabulary size x hidden size; NaN for tokens that are no genes.
    """
    tokens = np.asarray(model.vocab.gene_ids, dtype=np.int32)
    table = np.full((model.vocab.size, model.hf.config.hidden_size), np.nan, dtype=np.float32)
    if not alone:
        weight = model.hf.get_input_embeddings().weight.detach()
        table[tokens] = weight[torch.from_numpy(tokens).long().to(weight.device)].float().cpu().numpy()
        return table
    ends = [np.full(len(tokens), model.vocab[mark], np.int32) for mark in ("<bos>", "<eos>")]
    cells = np.stack([ends[0], tokens, ends[1]], axis=1)
    sequences = Sequences.split(cells.ravel(), np.full(len(cells), 3))
    table[tokens] = embed_sequences(model, sequences, layer=layer).cells
    return table
