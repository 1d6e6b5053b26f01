"""Stage 1: learn to predict the next gene of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from anndata import AnnData

from ..models.build import build_model
from ..models.load import load_model, pick_device, save_model
from ..models.model import MaxTokiModel
from ..models.vocabulary import Vocabulary
from ._optimizer import require_optimizer
from ._settings import plain
from ._trainer import claim_run, fit, is_first_process, leaves_nothing, wait_for_all
from .corpus import Corpus, NextGeneCollator


@leaves_nothing
def pretrain(
    cells: AnnData | str | Path | Sequence[AnnData | str | Path],
    vocab: Vocabulary,
    output: str | Path,
    *,
    shape: str | Mapping = "217m",
    max_steps: int = 10_000,
    batch_size: int = 8,
    accumulate: int = 1,
    learning_rate: float = 1e-4,
    optimizer: str = "adamw",
    embedding_rate: float = 0.01,
    warmup: float = 0.01,
    hold: float = 0.0,
    floor: float = 0.0,
    weight_decay: float = 0.01,
    scored: float = 1.0,
    gene_dropout: float = 0.0,
    repeats: Sequence[int] | None = None,
    held_out: AnnData | str | Path | Sequence[AnnData | str | Path] | None = None,
    eval_every: int = 500,
    save_every: int = 500,
    device: str = "auto",
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    tensorboard: bool = False,
    seed: int = 0,
) -> MaxTokiModel:
    """Train a model from random weights to predict each next gene (stage 1).

    Parameters
    ----------
    cells
        Rank-encoded cells, one or several: AnnData (`mt.pp.rank_value_encode(adata, vocab)`), or paths of files
        that `mt.pp.encode_file` wrote, which are read a block at a time.
    vocab
        Vocabulary.
    output
        Folder of the run: checkpoints, `log.jsonl`, and the model in `model/`. A run that was
        interrupted goes on from its last checkpoint when called again with the same settings and cells.
    shape
        "217m", "1b", or the fields of a `transformers.LlamaConfig`; `max_position_embeddings` is the
        length, in tokens, to which cells are cut.
    max_steps, batch_size, accumulate
        Optimiser steps; cells a device and forward pass; forward passes a step.
    learning_rate, warmup, hold, floor, weight_decay, optimizer, embedding_rate
        As in `mt.train.temporal`.
    scored
        Share of the positions that are scored in each batch.
    gene_dropout
        Share of the genes left out of a cell each time it is read, so that few cells go further.
    repeats
        How often each AnnData of `cells` is seen in an epoch.
    held_out, eval_every
        Cells whose loss is logged, and every how many steps.
    save_every
        Steps between checkpoints; the last two are kept.
    device
        "auto", "cpu", "cuda" or "mps".
    bf16
        Compute in bfloat16 where that is safe; the weights stay float32.
    gradient_checkpointing
        Recompute activations instead of keeping them: slower, with less memory.
    tensorboard
        Also log to `output/tensorboard`.
    seed
        Seed of weights, order and scored positions.

    Returns
    -------
    The trained model, as `mt.load_model(output / "model")` gives it.

    Raises
    ------
    ValueError
        If a setting makes no sense, `output` holds a run with other settings or cells, or the training diverges.

    Notes
    -----
    The loop is that of `transformers.Trainer`. Losses are in nats a gene; a uniform guess over the
    vocabulary has ln(vocabulary size). Padding is never predicted, whereas the original trains the last
    token of each cell to predict it.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(200, 10)
    >>> mt.pp.map_genes(adata)
    >>> vocab = mt.models.Vocabulary.from_anndata(adata)
    >>> mt.pp.rank_value_encode(adata, vocab)
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...              max_position_embeddings=64)
    >>> model = mt.train.pretrain(adata, vocab, tempfile.mkdtemp(), shape=shape, max_steps=2)
    >>> model.hf.config.num_hidden_layers
    1
    """
    require_optimizer(optimizer)
    claim_run(output := Path(output))
    one = (AnnData, str, Path)
    cells = [cells] if isinstance(cells, one) else list(cells)
    held_out = [held_out] if isinstance(held_out, one) else list(held_out or [])
    device = pick_device(device)
    model = build_model(shape, vocab, seed=seed)
    corpus = Corpus(cells, model, repeats, gene_dropout, output / "cells")
    test = Corpus(held_out, model, folder=output / "held_out") if held_out else None
    recipe = plain(
        {
            "shape": shape if isinstance(shape, str) else dict(shape),
            "max_steps": max_steps,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "learning_rate": learning_rate,
            "optimizer": optimizer,
            "embedding_rate": embedding_rate,
            "warmup": warmup,
            "hold": hold,
            "floor": floor,
            "weight_decay": weight_decay,
            "scored": scored,
            "gene_dropout": gene_dropout,
            "seed": seed,
            "bf16": bf16,
            "vocabulary_sha256": vocab.sha256,
            "n_examples": len(corpus),
            "cells": corpus.sha256,
            "held_out": None if test is None else test.sha256,
        }
    )
    trained_now = fit(
        model.hf,
        output,
        dataset=corpus,
        collator=NextGeneCollator(vocab["<pad>"], model.max_length, scored),
        recipe=recipe,
        held_out=test,
        eval_every=eval_every,
        save_every=save_every,
        device=device,
        metric="nats a gene",
        gradient_checkpointing=gradient_checkpointing,
        tensorboard=tensorboard,
    )
    if trained_now and is_first_process():
        trained = MaxTokiModel(model.hf.to(torch.float32).eval(), vocab, name=str(output / "model"))
        save_model(trained, output / "model", card={"stage": 1, "recipe": recipe})
    wait_for_all()
    return load_model(output / "model", device=device)
