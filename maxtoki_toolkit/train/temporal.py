"""Stage 2: learn to tell time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData

from .._digest import digest
from .._validate import require_obs
from ..models.extend import extend_model, require_rope
from ..models.fingerprint import fingerprint
from ..models.load import load_model, pick_device, save_model
from ..models.model import MaxTokiModel
from ..models.time_head import TimeHead
from ..pp._design import get_groups, get_mask, get_times, known_cells
from ..pp._sampling import Sampler
from ..tl._time_unit import check_unit
from ._cells import read_together
from ._optimizer import require_optimizer
from ._settings import plain
from ._teacher import fit_teacher
from ._temporal_module import TemporalModule
from ._trainer import claim_run, fit, is_first_process, leaves_nothing, n_processes, wait_for_all
from .prompt_stream import PromptCollator, PromptStream, Stage


@leaves_nothing
def temporal(
    cells: AnnData | str | Path | Sequence[AnnData | str | Path],
    model: MaxTokiModel,
    output: str | Path,
    *,
    time_key: str,
    groupby: str | Sequence[str] | None,
    time_unit: str = "months",
    use: str | None = None,
    held_out: str | None = None,
    head: str = "linear",
    loss: str = "mse",
    scale: float | None = None,
    loss_scale: float | None = None,
    penalty: float = 0.1,
    task_weights: tuple[float, float] = (1.0, 1.0),
    context_size: tuple[int, int] = (2, 3),
    timelapse: float = 0.5,
    zero_lapse: str = "query",
    forward: bool = False,
    balance: float = 0.1,
    curriculum: float = 0.3,
    clock: float = 1.0,
    running: float = 0.0,
    teacher: str | None = None,
    teach: float = 0.7,
    donor_key: str | None = None,
    shortest: int | None = None,
    replay: AnnData | str | Path | Sequence[AnnData | str | Path] | None = None,
    every_cell: bool = False,
    gene_dropout: float = 0.0,
    lapses: tuple[int, int] | None = None,
    max_length: int = 16_384,
    rope: str = "llama3",
    freeze_layers: int = 0,
    adapter: Mapping | None = None,
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
    n_held_out: int = 512,
    eval_every: int = 500,
    save_every: int = 500,
    device: str = "auto",
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    tensorboard: bool = True,
    seed: int = 0,
) -> MaxTokiModel:
    """Train a model to tell time from a few cells, and to predict the cell at a time (stage 2).

    Parameters
    ----------
    cells
        Rank-encoded cells: AnnData, or paths of files that `mt.pp.encode_file` wrote, which are read a block at
        a time. Several are trained on together; a prompt takes its cells from one.
    model
        A stage-1 model, which gets time tokens and room for several cells; or a temporal model, to go on
        with on other cells. It is left as it is.
    output
        Folder of the run: checkpoints, `log.jsonl`, `tensorboard/`, and the model in `model/`. A run that was
        interrupted goes on from its last checkpoint when called again with the same settings, cells and model.
    time_key, time_unit
        Column of `.obs` with the time in whole units, and the unit: "years", "months", "weeks", "days" or "hours".
    groupby
        Columns of `.obs` in which all cells of a prompt agree, e.g. ["cell_type", "sex"].
    use, held_out
        Boolean columns of `.obs`: the cells to train on (all by default; `mt.pp.hold_out` writes "train"), and
        those whose prompts are predicted every `eval_every` steps, which are never trained on.
    head
        How a lapse is read: "linear" from the hidden state at `<eoq>`, or "expectation" over the time tokens.
    loss
        "mse", or for an expectation "ce", the cross entropy of the lapse's token.
    scale, loss_scale
        What the head's output is multiplied with to be in `time_unit` (by default 1 for an expectation, so that
        token values and lapses share one scale, and `loss_scale` for a linear head), and what errors are
        divided by before they are squared (by default the standard deviation of the lapses). The original
        has 200 for both.
    penalty
        Weight of the probability of tokens that are no lapse, with an expectation trained by "mse" (original: 10).
    task_weights
        Weights of the two tasks, lapse and cell, each a mean of its own.
    context_size, timelapse, zero_lapse, forward, balance
        The prompts, as in `mt.pp.sample_prompts`; `timelapse` is the share that asks for the lapse.
    curriculum
        Share of the steps that come first and ask only for the lapse from a single context cell.
    clock
        Weight of a further loss: the time of each cell since the first time of its group, read at the cell's `<eos>`
        by a linear layer that is not kept. It tells the model what to look for in a cell, which lapses alone,
        differences of two unknowns, do too faintly: small models were seen to stay at r 0 without it.
    running
        Weight of the same, and of the lapse, read at every gene of a cell rather than at its end alone.
    teacher, teach, donor_key
        "ridge": for the share `teach` of the steps the running clock follows ridge regressions of time on the places of genes,
        one for each group, fitted to the cells that are trained on: the sum over the genes read so far, and what the others
        add on average. Such labels are without noise and there is one at every gene. True times take over
        then. The penalty is chosen between donors where `donor_key` names their column.
    shortest
        Cut the cells of half of the prompts to a number of genes from this one on, so that shallow cells are read too.
    replay
        Cells of stage 1 that are read again beside the prompts, one for every eight, and count to the cell task: what
        was learned of them is then kept. They need no times.
    every_cell
        Learn to predict every cell of a prompt from those before it, and not the answer alone: a model that is to
        generate cells is taught several times as much by each prompt. (The original learns answers alone.)
    gene_dropout
        Share of the genes left out of a cell each time it is read, so that few cells go further.
    lapses
        Lowest and highest lapse to make tokens for, if the model has none; by default what the cells span, in
        both directions.
    max_length, rope
        Tokens that the temporal model reads, and how positions are stretched to that; see `mt.models.extend_model`.
    freeze_layers
        First blocks whose weights stay as they are.
    adapter
        Fields of a `peft.LoraConfig`, to train adapters in place of the weights; see `mt.train.lora`.
    max_steps, batch_size, accumulate
        Optimiser steps; prompts a device and forward pass; forward passes a step. Prompts of one step are of
        similar length.
    learning_rate, warmup, hold, floor, weight_decay
        Peak of the learning rate, which rises linearly over the share `warmup` of the steps, is held for the share `hold` of the
        rest and falls by a cosine to the share `floor` of the peak; decay of AdamW.
    optimizer, embedding_rate
        "adamw"; or "muon", for the matrices of the blocks, with AdamW at `embedding_rate` for embeddings and heads.
    n_held_out, eval_every, save_every
        Prompts to predict, and steps between predictions and between checkpoints; the last two are kept.
    device
        "auto", "cpu", "cuda" or "mps".
    bf16
        Compute in bfloat16 where that is safe; the weights stay float32.
    gradient_checkpointing
        Recompute activations instead of keeping them: slower, with less memory.
    tensorboard
        Also log to `output/tensorboard`.
    seed
        Seed of new weights and prompts.

    Returns
    -------
    The trained model, as `mt.load_model(output / "model")` gives it, with its `time_head`.

    Raises
    ------
    ValueError
        If a setting makes no sense, times are not whole numbers, lapses have no token, no group has enough times,
        `output` holds a run with other settings, cells or start model, or the training diverges.

    Notes
    -----
    Prompts are drawn and written when they are needed; prompt i of a seed is always the same. On several GPUs
    or machines run it with `accelerate launch`; the prompts of a step are then shared out, and the loss
    is that of one process with the whole batch. The log has the held-out errors in `time_unit`.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(200, 10)
    >>> mt.pp.map_genes(adata)
    >>> vocab = mt.models.Vocabulary.from_anndata(adata)
    >>> mt.pp.rank_value_encode(adata, vocab)
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...              max_position_embeddings=64)
    >>> model = mt.models.build_model(shape, vocab)
    >>> temporal = mt.train.temporal(adata, model, tempfile.mkdtemp(), time_key="age_months", groupby="cell_type",
    ...                              max_length=512, max_steps=2, batch_size=4, tensorboard=False)
    >>> temporal.is_temporal, temporal.time_head.unit
    (True, 'months')
    """
    recipe = {name: value for name, value in locals().items() if name not in _NOT_RECIPE}
    require_optimizer(optimizer, adapter)
    if teacher not in (None, "ridge"):
        raise ValueError(f'There is no teacher {teacher!r}; give "ridge" or None.')
    if teacher is not None and not running:
        raise ValueError("A teacher has a say at every gene: give running a weight, such as running=1.")
    claim_run(output := Path(output))
    device = pick_device(device)
    sequences, tables = read_together(cells, model, output / "cells")
    group, time, used, tested = _design(tables, time_key, groupby, use, held_out)
    names = [name for table in tables for name in table.obs_names]
    recipe |= {
        "model": fingerprint(model),
        "cells": digest(sequences.tokens, sequences.indptr, names, group, time, used, tested),
    }
    recipe["time_read_as"] = check_unit(time_key, time[used | tested], time_unit, "pass time_unit=.")
    model = _prepare(model, time[used], lapses, max_length, rope, seed)

    settings = {"zero_lapse": zero_lapse, "forward": forward, "balance": balance, "seed": seed}
    sizes = {"context_size": tuple(context_size), "timelapse": timelapse}
    whole = Sampler(group, time, contexts=used, queries=used, **sizes, **settings)
    loss_scale = loss_scale or float(max(whole.draw(0, 2048).lapse.std(), 1.0))
    if scale is None:
        scale = _scale(model, head, time_unit, loss_scale)
    time_head = TimeHead(
        head, unit=time_unit, scale=scale, loss=loss, hidden_size=model.hf.config.hidden_size
    )
    if model.time_head is not None and model.time_head.kind == head:
        time_head.load_state_dict(model.time_head.state_dict())

    unit = batch_size * accumulate * n_processes()
    n_single = round(curriculum * max_steps)
    single = Sampler(group, time, contexts=used, queries=used, context_size=(1, 1), **settings)
    stages = [Stage(n_single * unit, single), Stage((max_steps - n_single) * unit, whole)]
    test = None
    if held_out is not None:
        sizes["timelapse"] = 1.0
        sampler = Sampler(group, time, contexts=tested, queries=tested, **sizes, **settings)
        test = PromptStream(sequences, [Stage(n_held_out, sampler)], batch_size=batch_size)
    age = _age(group, time, used)
    guide = None
    if teacher is not None:
        guide = fit_teacher(
            sequences,
            group,
            np.nan_to_num(age),
            used,
            _donors(tables, donor_key),
            n_tokens=model.vocab.size,
            n_groups=int(group.max()) + 1,
            seed=seed,
        )
    again = None if replay is None else read_together(replay, model, output / "replay")[0]
    hf, merge = _trainable(model, freeze_layers, adapter)
    module = TemporalModule(
        hf,
        time_head,
        model.vocab,
        loss_scale=loss_scale,
        penalty=penalty,
        weights=tuple(task_weights),
        clock=clock,
        running=running,
    )
    recipe = plain(
        recipe
        | {
            "scale": scale,
            "loss_scale": loss_scale,
            "vocabulary_sha256": model.vocab.sha256,
            "n_cells": int(used.sum()),
            "n_replayed": 0 if again is None else len(again),
            "replay": None if again is None else digest(again.tokens, again.indptr),
        }
    )
    trained_now = fit(
        module,
        output,
        dataset=PromptStream(
            sequences,
            [stage for stage in stages if stage.n_prompts],
            batch_size=unit,
            n_taught=None if guide is None else round(teach * max_steps) * unit,
        ),
        collator=PromptCollator(
            sequences,
            model.vocab,
            max_length=model.max_length,
            age=age,
            gene_dropout=gene_dropout,
            replay=again,
            every_cell=every_cell,
            running=running > 0,
            group=group,
            teacher=guide,
            shortest=shortest,
        ),
        recipe=recipe,
        held_out=test,
        eval_every=eval_every,
        save_every=save_every,
        device=device,
        metric="loss",
        sequential=True,
        compute_metrics=_lapse_metrics(time_unit),
        gradient_checkpointing=gradient_checkpointing,
        tensorboard=tensorboard,
    )
    if trained_now and is_first_process():
        trained = replace(
            model,
            hf=merge(module.hf).to(torch.float32).eval(),
            name=str(output / "model"),
            time_head=time_head,
        )
        save_model(trained, output / "model", card={"stage": 2, "recipe": recipe})
    wait_for_all()
    return load_model(output / "model", device=device)


# What does not change the weights, or is not a setting.
_NOT_RECIPE = (
    "cells",
    "replay",
    "model",
    "output",
    "device",
    "eval_every",
    "save_every",
    "n_held_out",
    "tensorboard",
)


def _prepare(model: MaxTokiModel, time, lapses, max_length: int, rope: str, seed: int) -> MaxTokiModel:
    """A copy of the model, with time tokens."""
    require_rope(rope)
    if model.vocab.is_temporal:
        return replace(model, hf=copy.deepcopy(model.hf))
    reach = int(time.max() - time.min())
    vocab = model.vocab.with_times(*(lapses or (-reach, reach)))
    return extend_model(model, vocab, max_length=max_length, rope=rope, seed=seed)


def _trainable(model: MaxTokiModel, freeze_layers: int, adapter: Mapping | None):
    """The model as it is to be trained, and what turns it back into a plain one."""
    n_layers = len(model.hf.model.layers)
    if not 0 <= freeze_layers <= n_layers:
        raise ValueError(f"freeze_layers must be 0..{n_layers} for this model, got {freeze_layers}.")
    for layer in model.hf.model.layers[:freeze_layers]:
        layer.requires_grad_(requires_grad=False)
    hf = model.hf
    if hf.dtype != torch.float32:
        hf = hf.float()
    if adapter is None:
        return hf, lambda trained: trained.requires_grad_(requires_grad=True)
    from peft import LoraConfig, get_peft_model

    # What was added for time has to be learned in full.
    added = [*model.vocab.time_ids.tolist(), model.vocab["<boq>"], model.vocab["<eoq>"]]
    config = LoraConfig(**{"trainable_token_indices": {"embed_tokens": added}, **adapter})
    with warnings.catch_warnings():
        # peft asks transformers by a name that it deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(hf, config)
    return adapted, lambda trained: trained.merge_and_unload()


def _design(tables: Sequence[AnnData], time_key: str, groupby, use: str | None, held_out: str | None):
    """Group, time, and which cells to train and test on, over all data sets; prompts stay within one."""
    parts = {"group": [], "time": [], "used": [], "tested": []}
    offset = 0
    for adata in tables:
        known, rows = known_cells(adata, time_key, groupby)
        group, names = get_groups(adata, groupby)
        time = np.zeros(adata.n_obs, dtype=np.int64)
        time[rows] = get_times(known, time_key)
        # Others have no part in any prompt; their time is any that there is.
        group[others := np.setdiff1d(np.arange(adata.n_obs), rows)] = -1
        time[others] = time[rows[0]]
        parts["group"].append(np.where(group >= 0, group + offset, -1))
        offset += len(names)
        parts["time"].append(time)
        tested = np.zeros(adata.n_obs, bool) if held_out is None else get_mask(adata, held_out, "held_out")
        parts["used"].append(get_mask(adata, use, "use") & ~tested & (group >= 0))
        parts["tested"].append(tested & (group >= 0))
    return tuple(np.concatenate(part) for part in parts.values())


def _donors(tables: Sequence[AnnData], donor_key: str | None) -> np.ndarray | None:
    """Donor of each cell, over all data sets."""
    if donor_key is None:
        return None
    for adata in tables:
        require_obs(adata, donor_key)
    return np.concatenate([adata.obs[donor_key].astype(str).to_numpy() for adata in tables])


def _scale(model: MaxTokiModel, head: str, unit: str, loss_scale: float) -> float:
    """A head that goes on in its own unit keeps its scale."""
    known = model.time_head
    if known is not None and (known.kind, known.unit) == (head, unit):
        return known.scale
    return loss_scale if head == "linear" else 1.0


def _age(group: np.ndarray, time: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Time of each cell since the first time of its group."""
    first = np.full(group.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, group[used], time[used])
    return np.where(used, time - first[group], np.nan)


def _lapse_metrics(unit: str):
    def compute(evaluated) -> dict[str, float]:
        predicted, true = evaluated.predictions, evaluated.label_ids
        if isinstance(predicted, tuple):
            predicted = predicted[0]
        asked = ~np.isnan(true)
        predicted, true = predicted[asked], true[asked]
        error = np.abs(predicted - true)
        return {
            "r": float(np.corrcoef(predicted, true)[0, 1]) if np.ptp(predicted) > 0 else np.nan,
            "slope": float(np.polyfit(true, predicted, 1)[0]),
            f"median_error_{unit}": float(np.median(error)),
            f"mean_error_{unit}": float(error.mean()),
        }

    return compute
