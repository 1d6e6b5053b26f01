"""Learn features of a model's states: sparse autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData

from .._digest import digest
from ..models.hooks import Site
from ..models.model import MaxTokiModel, require_model
from ..models.prompts import write_prompts
from ..models.sae import SparseAutoencoder, load_sae, require_site, save_sae
from ..models.sae_controls import moments, some
from ..models.sequences import Sequences
from ..pp._design import known_cells
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result
from ..tl._cells import get_sequences
from ._cells import as_parts, read_together
from ._optimizer import require_optimizer
from ._settings import plain
from ._sparse_module import Rows, SparseModule, StateCollator, token_chances
from ._stored_states import StoredStates, write_states
from ._trainer import (
    NOT_RECORDED,
    claim_run,
    fit,
    is_first_process,
    leaves_nothing,
    require_run,
    wait_for_all,
)
from .recipe import SparseRecipe

_FIRST = 256  # sequences whose states say where the autoencoder begins


@leaves_nothing
def sae(
    cells: AnnData | str | Path | Sequence[AnnData | str | Path],
    model: MaxTokiModel,
    output: str | Path,
    *,
    block: int | None = None,
    site: str = "output",
    width: int | None = None,
    k: int = 16,
    key: str | None = None,
    held_out: AnnData | str | Path | Sequence[AnnData | str | Path] | None = None,
    recipe: SparseRecipe | None = None,
) -> SparseAutoencoder:
    """Train a sparse autoencoder on a model's states: features, few of which are active at a gene.

    Parameters
    ----------
    cells
        Rank-encoded cells: AnnData, or paths of files that `mt.pp.encode_file` wrote.
    model
        The model whose states are read; it is left as it is.
    output
        Folder of the run: checkpoints, `log.jsonl`, and the autoencoder in `sae/`. A run that was interrupted
        goes on from its last checkpoint when called again with the same settings, cells and model.
    block, site
        Where: a transformer block from 0, by default the middle one; and "output", the residual stream after
        it, or "attention" or "mlp", what that part of it adds.
    width
        Number of features, by default four times the size of the states.
    k
        Features a gene.
    key
        Key in `.uns` of prompts (`mt.pp.sample_prompts`), whose genes are read in place of single cells.
    held_out
        Cells that are not trained on and whose variance explained is logged, every `eval_every` steps.
    recipe
        All other settings: `mt.train.SparseRecipe.of(max_steps=2000, kind="batchtopk")`.

    Returns
    -------
    The autoencoder, as `mt.load_sae(output / "sae")` gives it.

    Raises
    ------
    ValueError
        If a setting makes no sense, `output` holds a run with other settings, cells or model, or the training
        diverges.

    Notes
    -----
    States of genes are read, those of marks and times are not. They are computed when they are needed and not
    stored, unless `mt.train.SparseRecipe(store=True)` asks for it; abundant genes, which are much alike, are
    read less often (`flatten`). The loss is the share of the states' variance that the features leave
    unexplained, and `revive` times that of Gao et al. (arXiv 2406.04093, 2024), by which features that have
    fallen silent learn again. The loop is that of `transformers.Trainer`: on several GPUs run it with
    `accelerate launch`.

    `mt.tl.evaluate_sae` says how good the autoencoder is, `mt.tl.features` reads it.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:50].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> recipe = mt.train.SparseRecipe.of(max_steps=2, batch_size=8)
    >>> mt.train.sae(adata, model, tempfile.mkdtemp(), k=4, recipe=recipe)
    SparseAutoencoder(512 features, 4 a token, topk, output of block 2)
    """
    recipe = recipe or SparseRecipe()
    require_optimizer(recipe.optimization.optimizer)
    require_model(model)
    if recipe.optimization.optimizer == "muon":
        raise ValueError('An autoencoder has no blocks for "muon" to train: use optimizer="adamw".')
    if not recipe.read:
        raise ValueError("read=0 leaves no state to learn from: give a share above 0.")
    place = require_site(model, block, site)
    claim_run(output := Path(output))
    device = require_run(recipe.run)
    sequences = _sequences(cells, model, key, output / "cells")
    test = None if held_out is None else _sequences(held_out, model, key, output / "held_out")
    gene_ids = model.vocab.gene_ids
    first, scale = _begin(model, sequences, place, recipe.run.seed)
    width = width or 4 * first.shape[0]
    record = plain(
        {name: value for name, value in recipe.flat().items() if name not in ("store", *NOT_RECORDED)}
        | {"block": place.layer, "site": place.part, "width": width, "k": k, "prompts": key is not None}
        | {"model_sha256": model.identity, "cells": digest(*sequences.arrays), "n_sequences": len(sequences)}
    )
    card = {
        "model": model.name,
        "model_sha256": model.identity,
        "vocabulary_sha256": model.vocab.sha256,
        "block": place.layer,
        "site": place.part,
        "scale": scale,
        "recipe": record,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        coder = SparseAutoencoder(first.shape[0], width, k, recipe.kind, card=card)
    with torch.no_grad():
        coder.b_dec.copy_(first / scale)
    model.hf.to(device)
    module = SparseModule(
        coder, model, place, scale=scale, revive=recipe.revive, dead_after=recipe.dead_after
    )
    chance = token_chances(sequences, gene_ids, model.vocab.size, recipe.flatten)
    pad_id = model.vocab["<pad>"]
    stored = None
    if recipe.store:
        made_from = ("cells", "model_sha256", "block", "site")
        if is_first_process():
            write_states(model, sequences, place, output / "states", {key: record[key] for key in made_from})
        wait_for_all()
        stored = StoredStates(output / "states", sequences, first.shape[0])
    trained = fit(
        module,
        output,
        dataset=Rows(len(sequences)),
        collator=StateCollator(sequences, pad_id, chance, recipe.read, stored),
        recipe=record,
        held_out=None if test is None else Rows(len(test)),
        held_out_collator=None
        if test is None
        else StateCollator(test, pad_id, token_chances(test, gene_ids, model.vocab.size, 0.0), 1.0),
        run=recipe.run,
        device=device,
        metric="unexplained",
        labels="chosen",
        folder="sae",
    )
    if trained is not None:
        save_sae(_unscaled(trained.sae, scale), output / "sae")
    wait_for_all()
    return load_sae(output / "sae", device=str(model.device))


def _sequences(cells, model: MaxTokiModel, key: str | None, folder: Path) -> Sequences:
    """Cells, or prompts of cells, as sequences."""
    if key is None:
        return read_together(as_parts(cells), model, folder)[0]
    if not isinstance(cells, AnnData):
        raise ValueError(
            "Prompts are read from an AnnData in memory: give one AnnData with key, or leave key out."
        )
    cells, _ = known_cells(cells)
    stored = read_result(cells, key, "mt.pp.sample_prompts(adata, ...)")
    task = stored["params"]["task"]
    prompts = read_prompts(stored["prompts"], cells, cells, task=task)
    return write_prompts(
        prompts, get_sequences(cells, model), model.vocab, max_length=model.max_length, answer=task == "cell"
    ).sequences


def _begin(model: MaxTokiModel, sequences: Sequences, site: Site, seed: int) -> tuple[torch.Tensor, float]:
    """Mean state of the genes of some sequences, and the size of an entry about it."""
    found = moments(model, some(sequences, _FIRST, seed), site)
    variance = float(found.covariance.diagonal().mean())
    if variance <= 0:
        raise ValueError("The states at all genes are the same: there is nothing to learn from them.")
    return found.mean.float(), float(np.sqrt(variance))


@torch.no_grad()
def _unscaled(coder: SparseAutoencoder, scale: float) -> SparseAutoencoder:
    """The same for states as they are: features are in the unit of the states."""
    coder.W_dec.copy_(coder.directions)
    for part in (coder.encoder.bias, coder.b_dec, coder.threshold):
        part.mul_(scale)
    return coder.eval()
