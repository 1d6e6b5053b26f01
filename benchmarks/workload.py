"""What the speed benchmarks run: models of the published shapes with random weights, and random cells."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.sequences import Sequences

N_GENES, N_MONTHS = 20_271, 1_500
TOY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def temporal_model(shape: str, *, device: str, dtype: str) -> mt.models.MaxTokiModel:
    """A model of this shape ("toy": to see that a benchmark runs) with time tokens and a linear time head."""
    genes = [f"ENSG{i:011d}" for i in range(N_GENES)]
    tokens = ["<pad>", "<mask>", "<bos>", "<eos>", *genes]
    vocab = mt.models.Vocabulary({t: i for i, t in enumerate(tokens)}, dict.fromkeys(genes, 1.0))
    shape = TOY | {"max_position_embeddings": 4096} if shape == "toy" else shape
    model = mt.models.build_model(shape, vocab)
    model = mt.models.extend_model(model, vocab.with_times(-N_MONTHS, N_MONTHS), max_length=16_384)
    head = mt.models.TimeHead("linear", scale=200.0, hidden_size=model.hf.config.hidden_size)
    torch.nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    model.hf.to(device=device, dtype=getattr(torch, dtype))
    return replace(model, time_head=head.to(device))


def random_cells(n: int, n_genes: int, *, seed: int = 0) -> list[np.ndarray]:
    """Cells as `<bos>`, genes in random order, `<eos>`; a tenth more or fewer genes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(int(0.9 * n_genes), int(1.1 * n_genes) + 1, n)
    return [np.concatenate([[2], 4 + rng.permutation(N_GENES)[:size], [3]]) for size in sizes]


def prompts(contexts: list[list[np.ndarray]], queries: list[np.ndarray], vocab) -> Sequences:
    """`c0 t0 c1 ... <boq> query <eoq>`, ten years between the cells of a context."""
    time, boq, eoq = vocab.tokens[120], vocab["<boq>"], vocab["<eoq>"]
    rows = []
    for context, query in zip(contexts, queries, strict=True):
        between = [part for cell in context for part in (cell, [time])][:-1]
        rows.append(np.concatenate([*between, [boq], query, [eoq]]))
    return to_sequences(rows)


def to_sequences(rows: list[np.ndarray]) -> Sequences:
    """Rows of tokens, end to end."""
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(np.concatenate(rows).astype(np.int32), indptr)


class Timer:
    """Seconds of a block, with what the device still has to do."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> Timer:
        self._wait()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self._wait()
        self.seconds = time.perf_counter() - self.start

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
