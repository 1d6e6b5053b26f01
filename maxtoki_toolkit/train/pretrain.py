"""Stage 1: learn to predict the next gene of a cell."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData
from torch.utils.data import Subset

from ..models.build import build_model
from ..models.load import load_model, save_model
from ..models.model import MaxTokiModel
from ..models.vocabulary import MARKS, Vocabulary
from ._optimizer import require_optimizer
from ._settings import plain
from ._trainer import (
    NOT_RECORDED,
    claim_run,
    fit,
    leaves_nothing,
    require_run,
    wait_for_all,
)
from .corpus import Corpus, NextGeneCollator
from .recipe import PretrainRecipe, Run


@leaves_nothing
def pretrain(
    cells: AnnData | str | Path | Sequence[AnnData | str | Path],
    vocab: Vocabulary,
    output: str | Path,
    *,
    shape: str | Mapping | MaxTokiModel = "217m",
    held_out: AnnData | str | Path | Sequence[AnnData | str | Path] | None = None,
    recipe: PretrainRecipe | None = None,
) -> MaxTokiModel:
    """Train a model from random weights to predict each next gene (stage 1).

    Parameters
    ----------
    cells
        Rank-encoded cells, one or several: AnnData (`mt.pp.rank_value_encode(adata, vocab)`), or paths of
        files that `mt.pp.encode_file` wrote, which are read a block at a time.
    vocab
        Vocabulary.
    output
        Folder of the run: checkpoints, `log.jsonl`, and the model in `model/`. A run that was
        interrupted goes on from its last checkpoint when called again with the same settings and cells.
    shape
        "217m", "1b", or the fields of a `transformers.LlamaConfig`; `max_position_embeddings` is the length,
        in tokens, to which cells are cut. Or a model of this vocabulary, from whose weights the training goes
        on: one that `mt.models.extend_model` gave proteins or peaks, say.
    held_out
        Cells whose loss is logged, which are never trained on; `n_held_out` of the recipe says how many of
        them are read.
    recipe
        All other settings: `mt.train.PretrainRecipe.of(max_steps=2000, learning_rate=1e-3)`.

    Returns
    -------
    The trained model, as `mt.load_model(output / "model")` gives it.

    Raises
    ------
    ValueError
        If a setting makes no sense, `output` holds a run with other settings or cells, or the training
        diverges.

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
    >>> recipe = mt.train.PretrainRecipe.of(max_steps=2)
    >>> model = mt.train.pretrain(adata, vocab, tempfile.mkdtemp(), shape=shape, recipe=recipe)
    >>> model.hf.config.num_hidden_layers
    1
    """
    recipe = recipe or PretrainRecipe()
    run = recipe.run
    require_optimizer(recipe.optimization.optimizer)
    claim_run(output := Path(output))
    one = (AnnData, str, Path)
    cells = [cells] if isinstance(cells, one) else list(cells)
    held_out = [held_out] if isinstance(held_out, one) else list(held_out or [])
    device = require_run(run)
    model = _start(shape, vocab, run.seed)
    corpus = Corpus(cells, model, recipe.repeats, recipe.gene_dropout, output / "cells")
    test = Corpus(held_out, model, folder=output / "held_out") if held_out else None
    record = plain(
        {name: value for name, value in recipe.flat().items() if name not in ("repeats", *NOT_RECORDED)}
        | {
            "shape": _named(shape),
            "vocabulary_sha256": vocab.sha256,
            "n_examples": len(corpus),
            "cells": corpus.sha256,
            "held_out": None if test is None else test.sha256,
        }
    )
    trained = fit(
        model.hf,
        output,
        dataset=corpus,
        collator=NextGeneCollator(
            vocab["<pad>"],
            model.max_length,
            recipe.scored,
            marks=[vocab[MARKS[kind]] for kind in vocab.modalities],
            modality_dropout=recipe.modality_dropout,
        ),
        recipe=record,
        held_out=None if test is None else _some(test, run),
        run=run,
        device=device,
        metric="nats a gene",
    )
    if trained is not None:
        found = MaxTokiModel(trained.to(torch.float32), vocab, name=str(output / "model"))
        save_model(found, output / "model", card={"stage": 1, "recipe": record})
    wait_for_all()
    return load_model(output / "model", device=device)


def _start(shape: str | Mapping | MaxTokiModel, vocab: Vocabulary, seed: int) -> MaxTokiModel:
    """Random weights of a shape, or a copy of a model's own."""
    if not isinstance(shape, MaxTokiModel):
        return build_model(shape, vocab, seed=seed)
    if shape.vocab.sha256 != vocab.sha256:
        raise ValueError("The model to go on from has another vocabulary: pass vocab=model.vocab.")
    return replace(shape, hf=copy.deepcopy(shape.hf).to(torch.float32))


def _some(cells: Corpus, run: Run) -> Corpus | Subset:
    """As many cells as are to be read, the same ones every time."""
    if run.n_held_out is None or run.n_held_out >= len(cells):
        return cells
    return Subset(cells, np.random.default_rng(run.seed).permutation(len(cells))[: run.n_held_out].tolist())


def _named(shape: str | Mapping | MaxTokiModel) -> str | dict:
    """What stands for a shape, or for the weights of a model, in the record of the run."""
    if isinstance(shape, MaxTokiModel):
        return {"from": shape.name, "weights": shape.identity}
    return shape if isinstance(shape, str) else dict(shape)
