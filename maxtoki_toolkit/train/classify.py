"""Teach a model the labels of a reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData

from .._digest import digest
from .._ontology import term_distances
from .._warn import warn
from ..models.classifier import CellClassifier, classify_sequences, load_classifier, save_classifier
from ..models.model import MaxTokiModel, require_model
from ..pp._design import get_mask, known_cells
from ..pp._ranked_counts import counts_or_none
from ..stats.annotation import (
    Calibration,
    Calls,
    Regions,
    call,
    cross_call,
    fit_probe,
    folds_of,
    solve_probe,
    spread,
)
from ..stats.back_off import cross_back_off, fit_threshold
from ..stats.calibration import probabilities
from ..tl._annotation import (
    Labelled,
    donors_of,
    embedding_of,
    find_reference_columns,
    judge,
    kinds_of_labels,
    labelled,
    together,
)
from ..tl._cells import get_sequences
from ..tl._embedding_baselines import N_PCS, principal_components
from ._classifier_module import ClassifierModule, LabelledCells, adapters_of, add_adapters, balanced, smoothed
from ._optimizer import require_optimizer
from ._settings import plain
from ._sparse_module import Rows
from ._trainer import (
    N_HELD_OUT,
    NOT_RECORDED,
    claim_run,
    fit,
    leaves_nothing,
    require_run,
    wait_for_all,
)
from .recipe import ClassifierRecipe

PREDICTOR = "fine-tuned"


@leaves_nothing
def classify(
    adata: AnnData,
    model: MaxTokiModel,
    output: str | Path,
    *,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    held_out: float | str = 0.2,
    alpha: float = 0.05,
    recipe: ClassifierRecipe | None = None,
) -> CellClassifier:
    """Fine-tune a model to name cells by one or several columns of labels, and judge it on donors that it has not seen.

    Parameters
    ----------
    adata
        Labelled, rank-encoded cells.
    model
        Model, with or without temporal training; it is left as it is.
    output
        Folder of the run: checkpoints, `log.jsonl`, and the classifier in `classifier/`. A run that was
        interrupted goes on from its last checkpoint when called again with the same settings, cells and
        model.
    groupby
        Column or columns of `.obs` with the labels, each of which gets a head; by default the cell type.
    donor_key
        Column of `.obs` with the donor, guessed where it is `None`. Without donors, cells are held out, and
        scores say nothing of other donors.
    held_out
        Share of the donors that judge and calibrate, drawn by the seed so that labels are alike; or a boolean
        column of `.obs` with the cells that do.
    alpha
        Share of held-out cells that may be called unknown.
    recipe
        All other settings: `mt.train.ClassifierRecipe.of(max_steps=500, lora_rank=None)`; without a rank the
        heads alone are trained.

    Returns
    -------
    The classifier, as `mt.load_classifier(output)` gives it, for the `classifier` of `mt.tl.annotate`. Its
    `tables` are those of `mt.tl.annotate`, of the held-out donors, with a linear probe on the untrained
    embedding among the baselines.

    Raises
    ------
    ValueError
        If a column has but one label among the cells that are trained on, nothing can be held out, `output`
        holds a run of other settings, cells or model, or the training diverges.

    Notes
    -----
    Adapters (LoRA, Hu et al., ICLR 2022) go beside all projections. Heads read the mean state of a cell's
    genes and begin as the linear probe of the model as it was, so that training begins where the probe ends
    (Kumar et al., ICLR 2022). The loss is the cross entropy in which all labels of a column count the same;
    the share `smoothing` of what is asked for is spread over the label's neighbours in the Cell Ontology, at
    most two steps away, where there are some. The loop is that of `transformers.Trainer`.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> model = mt.load_model("demo")
    >>> adata = mt.datasets.load("heart_nuclei")[:200].copy()
    >>> mt.pp.rank_value_encode(adata, model)
    >>> recipe = mt.train.ClassifierRecipe.of(max_steps=4, batch_size=8)
    >>> classifier = mt.train.classify(adata[:150].copy(), model, tempfile.mkdtemp(), groupby="cell_type", recipe=recipe)
    >>> mine = adata[150:].copy()
    >>> mt.tl.annotate(mine, model, classifier=classifier)
    >>> bool((mine.obs["annotated_cell_type_best"].astype(str) == mine.obs["cell_type"].astype(str)).mean() > 0.5)
    True
    """
    recipe = recipe or ClassifierRecipe()
    optimization, run = recipe.optimization, recipe.run
    require_optimizer(optimization.optimizer, adapted=True)
    require_model(model)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be above 0 and below 1, got {alpha}.")
    claim_run(output := Path(output))
    device = require_run(run)
    columns, donor_key = find_reference_columns(adata, groupby, donor_key)
    cells, _ = known_cells(adata, donor_key)
    sequences = get_sequences(cells, model)
    targets = [labelled(cells, column) for column in columns]
    donor = donors_of(cells, donor_key)
    tested = _tested(cells, held_out, targets[0], donor, run.seed)
    model.hf.to(device)
    X = embedding_of(cells, model)

    # Heads know the labels of cells that are trained on; others are unknown to them.
    seen, codes = _codes(targets, tested, cells.n_obs)
    probes = [solve_probe(X[rows], code[rows]) for code in codes for rows in [~tested & (code >= 0)]]
    center, scale = X[~tested].mean(axis=0), X[~tested].std(axis=0) + 1e-6
    heads = [_restated(probe, center, scale) for probe in probes]
    steps = [term_distances([of.terms[i] for i in kept]) for of, kept in zip(targets, seen, strict=True)]
    record = plain(
        {name: value for name, value in recipe.flat().items() if name not in NOT_RECORDED}
        | {"groupby": columns, "donor_key": donor_key, "alpha": alpha, "model_sha256": model.identity}
        | {"cells": digest(*sequences.arrays, tested, *codes, *([] if donor is None else [donor]))}
        | {"labels": digest(*[of.labels for of in targets])}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        decoder = add_adapters(
            copy.deepcopy(model.hf.get_decoder()).float(),
            recipe.lora_rank,
            recipe.lora_alpha,
            recipe.lora_dropout,
        )
        module = ClassifierModule(
            decoder,
            heads,
            center,
            scale,
            wanted=[smoothed(part, recipe.smoothing) for part in steps],
            weights=[balanced(code[~tested], len(kept)) for code, kept in zip(codes, seen, strict=True)],
        )
    pad_id, all_codes = model.vocab["<pad>"], np.stack(codes, axis=1)
    train_rows, test_rows = np.flatnonzero(~tested), np.flatnonzero(tested)
    shown = test_rows[: run.n_held_out or N_HELD_OUT]
    trained = fit(
        module,
        output,
        dataset=Rows(len(train_rows)),
        collator=LabelledCells(sequences.take(train_rows), all_codes[train_rows], pad_id),
        recipe=record,
        held_out=Rows(len(shown)),
        held_out_collator=LabelledCells(sequences.take(shown), all_codes[shown], pad_id),
        run=run,
        device=device,
        metric="loss",
        labels="targets",
        folder="classifier",
    )
    if trained is not None:
        found = CellClassifier(
            labels={of.column: of.labels[kept] for of, kept in zip(targets, seen, strict=True)},
            heads={
                column: (head.weight.detach().cpu(), head.bias.detach().cpu())
                for column, head in zip(columns, trained.heads, strict=True)
            },
            center=torch.from_numpy(center),
            spread=torch.from_numpy(scale),
            adapters=adapters_of(trained.hf),
        )
        card = {
            "model": model.name,
            "model_sha256": model.identity,
            "vocabulary_sha256": model.vocab.sha256,
            "donor_key": donor_key or "",
            "alpha": alpha,
            "n_reference": int((~tested).sum()),
            "n_reference_donors": 0 if donor is None else len(np.unique(donor[~tested])),
            "held_out_donors": [] if donor is None else np.unique(donor[tested]).tolist(),
            "recipe": record,
        }
        judged = _judged(found, model, cells, sequences, X, targets, seen, donor, tested, alpha, run.seed)
        save_classifier(replace(judged, card=card | judged.card), output / "classifier")
    wait_for_all()
    return load_classifier(output / "classifier", device=str(model.device))


def _tested(
    cells: AnnData, held_out: float | str, of: Labelled, donor: np.ndarray | None, seed: int
) -> np.ndarray:
    """Which cells judge: those of a column, or of some donors."""
    if isinstance(held_out, str):
        tested = get_mask(cells, held_out, "held_out")
    else:
        if not 0 < held_out <= 0.5:
            raise ValueError(f"held_out must be above 0 and at most 0.5, got {held_out}.")
        # Cells without a label of the first column are dealt like one more label.
        code = np.full(cells.n_obs, -1)
        code[of.rows] = of.code
        tested = folds_of(code, donor, round(1 / held_out), seed) == 0
    if tested.all() or not tested.any():
        raise ValueError("held_out leaves no cells to train on, or none to judge by.")
    if donor is not None and (shared := np.intersect1d(donor[tested], donor[~tested])).size:
        warn(
            f"{len(shared)} donors have cells that are trained on and cells held out: scores say nothing of other donors."
        )
    return tested


def _codes(
    targets: list[Labelled], tested: np.ndarray, n_cells: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each column, which labels are trained on; and the place of each cell's label among these, -1 for none."""
    seen, codes = [], []
    for of in targets:
        kept = np.unique(of.code[~tested[of.rows]])
        if len(kept) < 2:
            raise ValueError(
                f"The cells to train on have {len(kept)} label(s) in .obs[{of.column!r}]: two at least are needed. "
                "Hold out fewer donors."
            )
        place = np.full(len(of.labels), -1)
        place[kept] = np.arange(len(kept))
        code = np.full(n_cells, -1)
        code[of.rows] = place[of.code]
        seen.append(kept)
        codes.append(code)
    return seen, codes


def _restated(probe, center: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a probe for states that are standardised otherwise."""
    weight = probe.weight * (scale / probe.spread)
    return weight, probe.bias + ((center - probe.center) / probe.spread) @ probe.weight.T


def _judged(
    classifier, model, cells, sequences, X, targets, seen, donor, tested, alpha, seed
) -> CellClassifier:
    """The classifier with what held-out cells say of it."""
    read = classify_sequences(classifier, model, sequences)
    counts = counts_or_none(cells, instead="Logistic regression on PCA is left out")
    components = None if counts is None else principal_components(cells, N_PCS, seed)
    arrays, parts, card = {}, [], {"temperature": {}, "threshold": {}, "sure": {}}
    for of, kept in zip(targets, seen, strict=True):
        held = tested[of.rows]
        train, test = of.rows[~held], of.rows[held]
        code, n = of.code, len(of.labels)
        if not len(test):
            raise ValueError(f"No held-out cell has a label in .obs[{of.column!r}].")
        regions = Regions.fit(read.states[train], code[~held])
        distance = regions.distance(read.states[test])
        logits = spread(read.logits[of.column][test], kept, n)
        could = np.isin(code[held], kept)
        if not could.any():
            raise ValueError(f"No held-out cell has a label of .obs[{of.column!r}] that was trained on.")
        here = None if donor is None else donor[test]
        fold = folds_of(code[held][could], _several(here, could), 5, seed)
        calibration = Calibration.fit(logits[could], code[held][could], distance[could], alpha)
        calls = call(logits, distance, calibration)
        inside = cross_call(logits[could], distance[could], code[held][could], fold, alpha)
        for whole, some in zip(calls, inside, strict=True):
            whole[could] = some
        kinds = kinds_of_labels(of.labels, of.terms)
        shares = probabilities(logits[could], calibration.temperature)
        sure = fit_threshold(kinds.climb(shares), code[held][could], kinds, alpha)
        backed_off = cross_back_off(logits[could], code[held][could], fold, kinds, alpha)
        baselines = {"probe": fit_probe(X[train], code[~held], n)(X[test]).argmax(axis=1)}
        if components is not None:
            plain = fit_probe(components[train], code[~held], n)(components[test])
            baselines["PCA logistic"] = plain.argmax(axis=1)
        baselines["majority"] = np.full(len(test), np.bincount(code[~held]).argmax())
        tables = judge(
            of._replace(rows=test, code=code[held]),
            could,
            Calls(*calls),
            backed_off,
            here,
            baselines=baselines,
            predictor=PREDICTOR,
            rng=seed,
        )
        tables["labels"]["n_reference"] = np.bincount(code[~held], minlength=n)
        parts.append(tables)
        arrays[of.column] = {
            "means": regions.means,
            "within": regions.within,
            "overall": regions.overall,
            "confidence": calibration.confidence,
            "distance": calibration.distance,
        }
        card["temperature"][of.column] = calibration.temperature
        card["threshold"][of.column] = calibration.threshold
        card["sure"][of.column] = sure
    return replace(classifier, arrays=arrays, tables=together(parts), card=card)


def _several(donor: np.ndarray | None, could: np.ndarray) -> np.ndarray | None:
    """Donors of some cells, if there are several."""
    if donor is None or len(np.unique(donor[could])) < 2:
        return None
    return donor[could]
