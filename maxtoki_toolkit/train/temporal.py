"""Stage 2: learn to tell time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from .._digest import digest
from .._validate import require_obs
from ..models.extend import extend_model, require_rope
from ..models.fingerprint import fingerprint
from ..models.load import load_model, save_model
from ..models.model import MaxTokiModel, require_whole
from ..models.time_head import TimeHead
from ..pp._design import get_groups, get_mask, get_times, known_cells
from ..pp._sampling import Sampler
from ..pp.sample_prompts import PromptSampling
from ..tl._time_unit import check_unit
from ._cells import as_parts, name_columns, read_together
from ._optimizer import require_optimizer
from ._settings import plain
from ._stored_prompts import StoredPrompts, read_stored
from ._teacher import fit_teacher
from ._temporal_module import TemporalModule
from ._trainer import (
    N_HELD_OUT,
    NOT_RECORDED,
    claim_run,
    fit,
    leaves_nothing,
    n_processes,
    require_run,
    wait_for_all,
)
from .prompt_stream import PromptCollator, PromptStream, Stage
from .recipe import Adaptation, TemporalPrompts, TemporalRecipe, TimeObjective

# Where adapters go: all matrices of a block.
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_GUESSED = ("time_key", "groupby", "donor_key")


@leaves_nothing
def temporal(
    cells: AnnData | str | Path | Sequence[AnnData | str | Path],
    model: MaxTokiModel,
    output: str | Path,
    *,
    time_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    time_unit: str | None = None,
    use: str | pd.Series | None = None,
    held_out: str | pd.Series | None = None,
    replay: AnnData | str | Path | Sequence[AnnData | str | Path] | None = None,
    prompts: str | None = None,
    recipe: TemporalRecipe | None = None,
) -> MaxTokiModel:
    """Train a model to tell time from a few cells, and to predict the cell at a time (stage 2).

    Parameters
    ----------
    cells
        Rank-encoded cells: AnnData, or paths of files that `mt.pp.encode_file` wrote, which are read a block
        at a time. Several are trained on together; a prompt takes its cells from one.
    model
        A stage-1 model, which gets time tokens and room for several cells; or a temporal model, to go on
        with on other cells. It is left as it is.
    output
        Folder of the run: checkpoints, `log.jsonl`, `tensorboard/`, and the model in `model/`. A run that was
        interrupted goes on from its last checkpoint when called again with the same settings, cells and
        model.
    time_key, time_unit
        Column of `.obs` with the time in whole units, and the unit: "years", "months", "weeks", "days" or
        "hours"; by default what the column's name or the range of the ages says, or months. Where `time_key`,
        `groupby` or `donor_key` is `None`, it is guessed from the names in `.obs`, with a warning that says
        which were taken.
    groupby
        Columns of `.obs` in which all cells of a prompt agree, e.g. ["cell_type", "sex"]; by default the cell
        type, `[]` for one group.
    donor_key
        Column of `.obs` with the donor, between whom a teacher chooses its penalty; may be missing.
    use, held_out
        Boolean columns of `.obs`, or booleans by name of cell: the cells to train on (all by default;
        `mt.pp.hold_out` writes "train"), and those whose prompts are predicted every `eval_every` steps,
        which are never trained on.
    replay
        Cells of stage 1 that are read again beside the prompts, one for every eight, and count to the cell
        task: what was learned of them is then kept. They need no times.
    prompts
        Key in `.uns` of the prompts to train on instead of drawing them, such as those of
        `mt.pp.spatial_prompts`; the cells have to be in memory. Prompts are used, or held out, if all of
        their cells are in `use`, or in `held_out`. The share `timelapse` of them asks for the lapse; there
        are no ages of single cells to learn, no curriculum and no teacher.
    recipe
        All other settings: `mt.train.TemporalRecipe.of(max_steps=2000, learning_rate=1e-3)`.

    Returns
    -------
    The trained model, as `mt.load_model(output / "model")` gives it, with its `time_head`.

    Raises
    ------
    ValueError
        If a setting makes no sense, times are not whole numbers, lapses have no token, no group has enough
        times, `output` holds a run with other settings, cells or start model, or the training diverges.

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
    >>> recipe = mt.train.TemporalRecipe.of(max_length=512, max_steps=2, batch_size=4)
    >>> temporal = mt.train.temporal(adata, model, tempfile.mkdtemp(), time_key="age_months", groupby="cell_type",
    ...                              recipe=recipe)
    >>> temporal.is_temporal, temporal.time_head.unit
    (True, 'months')
    """
    require_whole(model)
    recipe = recipe or TemporalRecipe()
    drawing, objective, adaptation = recipe.prompts, recipe.objective, recipe.adaptation
    optimization, run = recipe.optimization, recipe.run
    require_optimizer(optimization.optimizer, adapted=adaptation.lora_rank is not None)
    if objective.teacher not in (None, "ridge"):
        raise ValueError(f'There is no teacher {objective.teacher!r}; give "ridge" or None.')
    if objective.teacher is not None and not objective.running:
        raise ValueError("A teacher has a say at every gene: give running a weight, such as running=1.")
    claim_run(output := Path(output))
    device = require_run(run)
    columns = {"time_key": time_key, "groupby": groupby, "donor_key": donor_key, "time_unit": time_unit}
    cells = as_parts(cells)
    if prompts is None:
        columns = name_columns(cells, time_unit, optional=["donor_key"], **{k: columns[k] for k in _GUESSED})
    elif objective.teacher is not None or objective.running or any(columns[k] is not None for k in _GUESSED):
        raise ValueError(
            "Prompts that were drawn beforehand have their groups and times, and no ages of single cells: leave out "
            "time_key, groupby, donor_key, a teacher and running."
        )
    sequences, tables = read_together(cells, model, output / "cells")
    plan = (
        _drawn_plan(tables, columns, use, held_out, drawing, run.seed)
        if prompts is None
        else _stored_plan(cells, tables, prompts, time_unit, use, held_out, drawing.timelapse, run.seed)
    )
    time_unit = plan.unit
    # Which cells these are is in the digest.
    columns |= {
        name: mask if isinstance(mask, str) else None for name, mask in (("use", use), ("held_out", held_out))
    }
    record = {name: value for name, value in recipe.flat().items() if name not in NOT_RECORDED} | columns
    names = [name for table in tables for name in table.obs_names]
    record |= {
        "model": fingerprint(model),
        "cells": digest(*sequences.arrays, names, *plan.content),
        "prompts": prompts,
        "time_unit": time_unit,
        "time_read_as": plan.read_as,
    }
    model = _prepare(model, plan.reach, adaptation, run.seed)
    loss_scale = objective.loss_scale or float(max(plan.whole.draw(0, 2048).lapse.std(), 1.0))
    scale = _scale(model, objective, time_unit, loss_scale)
    time_head = TimeHead(
        objective.head,
        unit=time_unit,
        scale=scale,
        loss=objective.loss,
        hidden_size=model.hf.config.hidden_size,
    )
    if model.time_head is not None and model.time_head.kind == objective.head:
        time_head.load_state_dict(model.time_head.state_dict())

    max_steps = optimization.max_steps
    unit = optimization.batch_size * optimization.accumulate * n_processes()
    n_single = round(drawing.curriculum * max_steps) if plan.single is not None else 0
    stages = [Stage(n_single * unit, plan.single), Stage((max_steps - n_single) * unit, plan.whole)]
    test = None
    if plan.test is not None:
        n_tested = run.n_held_out or N_HELD_OUT
        test = PromptStream(sequences, [Stage(n_tested, plan.test)], batch_size=optimization.batch_size)
    guide = None
    if objective.teacher is not None:
        guide = fit_teacher(
            sequences,
            plan.group,
            np.nan_to_num(plan.age),
            plan.used,
            _donors(tables, columns["donor_key"]),
            n_tokens=model.vocab.size,
            n_groups=int(plan.group.max()) + 1,
            seed=run.seed,
        )
    again = None if replay is None else read_together(replay, model, output / "replay")[0]
    hf, merge = _trainable(model, adaptation)
    module = TemporalModule(
        hf,
        time_head,
        model.vocab,
        loss_scale=loss_scale,
        penalty=objective.penalty,
        weights=tuple(objective.task_weights),
        clock=objective.clock,
        running=objective.running,
    )
    record = plain(
        record
        | {
            "scale": scale,
            "loss_scale": loss_scale,
            "vocabulary_sha256": model.vocab.sha256,
            "n_cells": int(plan.used.sum()),
            "n_replayed": 0 if again is None else len(again),
            "replay": None if again is None else digest(*again.arrays),
        }
    )
    trained = fit(
        module,
        output,
        dataset=PromptStream(
            sequences,
            [stage for stage in stages if stage.n_prompts],
            batch_size=unit,
            n_taught=None if guide is None else round(objective.teach * max_steps) * unit,
        ),
        collator=PromptCollator(
            sequences,
            model.vocab,
            max_length=model.max_length,
            age=plan.age,
            gene_dropout=drawing.gene_dropout,
            replay=again,
            every_cell=drawing.every_cell,
            running=objective.running > 0,
            group=plan.group,
            teacher=guide,
            shortest=drawing.shortest,
        ),
        recipe=record,
        held_out=test,
        run=run,
        device=device,
        metric="loss",
        sequential=True,
        compute_metrics=_lapse_metrics(time_unit),
        labels="lapse",
    )
    if trained is not None:
        found = replace(
            model,
            hf=merge(trained.hf).to(torch.float32).eval(),
            name=str(output / "model"),
            time_head=trained.head,
        )
        save_model(found, output / "model", card={"stage": 2, "recipe": record})
    wait_for_all()
    return load_model(output / "model", device=device)


class _Plan(NamedTuple):
    """What is learned, and what is known of the cells."""

    single: Sampler | None
    """Prompts with one context cell, which come first."""
    whole: Sampler | StoredPrompts
    test: Sampler | StoredPrompts | None
    unit: str
    read_as: str
    reach: int
    """Longest lapse that gets a token."""
    used: np.ndarray
    group: np.ndarray
    age: np.ndarray
    """Time of each cell since the first of its group; NaN where there is none to learn."""
    content: tuple[np.ndarray, ...]
    """What a run that goes on must find unchanged."""


def _drawn_plan(
    tables: Sequence[AnnData],
    columns: Mapping[str, Any],
    use,
    held_out,
    drawing: TemporalPrompts,
    seed: int,
) -> _Plan:
    """Prompts of cells with times."""
    sampling = {name: getattr(drawing, name) for name in PromptSampling.names()} | {"seed": seed}
    time_key, unit = columns["time_key"], columns["time_unit"]
    group, time, used, tested = _design(tables, time_key, columns["groupby"], use, held_out)
    read_as = check_unit(time_key, time[used | tested], unit, may_name=True)
    sizes = {"context_size": tuple(drawing.context_size), "timelapse": drawing.timelapse}
    own = {"contexts": used, "queries": used}
    single = Sampler(group, time, **own, context_size=(1, 1), **sampling)
    whole = Sampler(group, time, **own, **sizes, **sampling)
    test = None
    if held_out is not None:
        test = Sampler(
            group, time, contexts=tested, queries=tested, **(sizes | {"timelapse": 1.0}), **sampling
        )
    reach = int(np.ptp(time[used]))
    content = (group, time, used, tested)
    return _Plan(single, whole, test, unit, read_as, reach, used, group, _age(group, time, used), content)


def _stored_plan(
    cells: Sequence, tables: Sequence[AnnData], key: str, unit: str | None, use, held_out, timelapse, seed
) -> _Plan:
    """Prompts that were drawn beforehand."""
    stored = read_stored(cells, tables, key, unit)
    masks = [_masks(table, use, held_out) for table in tables]
    used, tested = (np.concatenate(part) for part in zip(*masks, strict=True))
    kept = stored.among(used)
    if not len(kept.query):
        raise ValueError("There is no prompt whose cells are all among those to train on.")
    test = None
    if held_out is not None:
        test = StoredPrompts(stored.among(tested), timelapse=1.0, seed=seed)
        if not len(test.prompts.query):
            raise ValueError(
                "There is no prompt whose cells are all held out. Hold out whole groups, such as images."
            )
    lapses = np.abs(np.concatenate([stored.prompts.lapse, stored.prompts.steps.ravel()]))
    read_as = f"{stored.unit}, {kept.lapse.min()} to {kept.lapse.max()}"
    whole = StoredPrompts(kept, timelapse=timelapse, seed=seed)
    n = len(used)
    content = (*stored.prompts, used, tested)
    nothing = np.zeros(n, np.int64), np.full(n, np.nan)
    return _Plan(None, whole, test, stored.unit, read_as, int(lapses.max()), used, *nothing, content)


def _prepare(model: MaxTokiModel, reach: int, adaptation: Adaptation, seed: int) -> MaxTokiModel:
    """A copy of the model, with time tokens."""
    require_rope(adaptation.rope)
    if model.vocab.is_temporal:
        return replace(model, hf=copy.deepcopy(model.hf))
    vocab = model.vocab.with_times(*(adaptation.lapses or (-reach, reach)))
    how = {"rope": adaptation.rope, "rope_factor": adaptation.rope_factor}
    return extend_model(model, vocab, max_length=adaptation.max_length, seed=seed, **how)


def _trainable(model: MaxTokiModel, adaptation: Adaptation):
    """The model as it is to be trained, and what turns it back into a plain one."""
    n_layers, freeze_layers = len(model.hf.model.layers), adaptation.freeze_layers
    if not 0 <= freeze_layers <= n_layers:
        raise ValueError(f"freeze_layers must be 0..{n_layers} for this model, got {freeze_layers}.")
    for layer in model.hf.model.layers[:freeze_layers]:
        layer.requires_grad_(requires_grad=False)
    hf = model.hf
    if hf.dtype != torch.float32:
        hf = hf.float()
    if adaptation.lora_rank is None:
        return hf, lambda trained: trained.requires_grad_(requires_grad=True)
    from peft import LoraConfig, get_peft_model

    # What was added for time has to be learned in full.
    added = [*model.vocab.time_ids.tolist(), model.vocab["<boq>"], model.vocab["<eoq>"]]
    config = LoraConfig(
        r=adaptation.lora_rank,
        lora_alpha=adaptation.lora_alpha,
        lora_dropout=adaptation.lora_dropout,
        target_modules=list(_PROJECTIONS),
        trainable_token_indices={"embed_tokens": added},
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that it deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(hf, config)
    return adapted, lambda trained: trained.merge_and_unload()


def _design(tables: Sequence[AnnData], time_key: str, groupby, use, held_out):
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
        used, tested = _masks(adata, use, held_out)
        parts["used"].append(used & (group >= 0))
        parts["tested"].append(tested & (group >= 0))
    return tuple(np.concatenate(part) for part in parts.values())


def _masks(adata: AnnData, use, held_out) -> tuple[np.ndarray, np.ndarray]:
    """Which cells of one data set are trained on, and which are held out."""
    tested = np.zeros(adata.n_obs, bool) if held_out is None else _mask(adata, held_out, "held_out")
    return _mask(adata, use, "use") & ~tested, tested


def _mask(adata: AnnData, mask: str | pd.Series | None, name: str) -> np.ndarray:
    """Which cells of one data set; booleans by name may be those of several."""
    if isinstance(mask, pd.Series):
        if len(lost := adata.obs_names.difference(mask.index)):
            raise ValueError(
                f"{name} has no value for {len(lost)} of {adata.n_obs} cells (first: {lost[0]!r})."
            )
        mask = mask.loc[adata.obs_names].to_numpy()
    return get_mask(adata, mask, name)


def _donors(tables: Sequence[AnnData], donor_key: str | None) -> np.ndarray | None:
    """Donor of each cell, over all data sets."""
    if donor_key is None:
        return None
    for adata in tables:
        require_obs(adata, donor_key)
    return np.concatenate([adata.obs[donor_key].astype(str).to_numpy() for adata in tables])


def _scale(model: MaxTokiModel, objective: TimeObjective, unit: str, loss_scale: float) -> float:
    """The scale that was given; a head that goes on in its own unit keeps its own."""
    if objective.scale is not None:
        return objective.scale
    known = model.time_head
    if known is not None and (known.kind, known.unit) == (objective.head, unit):
        return known.scale
    return loss_scale if objective.head == "linear" else 1.0


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
