"""Learn how perturbations move populations of cells: a set transformer on embeddings, decoded to expression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from .. import _keys
from .._digest import digest
from ..models.response import ResponseModel, load_response, save_response
from ..pp._columns import find_columns
from ..pp._design import as_list, get_mask
from ..stats.response_shifts import Known, mean_changes
from ..tl._populations import read_descriptors, read_populations
from ._response_module import ResponseModule, Sets, collate
from ._settings import plain
from ._trainer import (
    NOT_RECORDED,
    claim_run,
    fit,
    leaves_nothing,
    require_run,
    wait_for_all,
)
from .recipe import ResponseRecipe

_PENALTY = 0.01  # of the decoder, a cell


@leaves_nothing
def response(
    cells: AnnData,
    output: str | Path,
    *,
    perturbation_key: str | None = None,
    control: str | None = None,
    groupby: str | Sequence[str],
    use_rep: str = _keys.EMBEDDING,
    train: str | Sequence[bool] | None = None,
    descriptors: pd.DataFrame | None = None,
    layer: str | None = None,
    recipe: ResponseRecipe | None = None,
) -> ResponseModel:
    """Train a transformer over sets of cells to move controls to where treated cells are.

    Parameters
    ----------
    cells
        Cells with an embedding and raw counts.
    output
        Folder of the run: checkpoints, `log.jsonl`, and the model in `response/`. A run that was interrupted
        goes on from its last checkpoint when called again with the same settings and cells.
    perturbation_key, control
        Column of `.obs` with the perturbation, and its value for controls; guessed from the names in `.obs`.
    groupby
        Columns of `.obs` with the context: cell line, cell type or donor. Treated cells are learned beside
        controls of the same context.
    use_rep
        Key in `.obsm` of the embedding.
    train
        Cells to learn from: boolean column of `.obs`, or one boolean a cell; by default all.
    descriptors
        Rows are perturbations, columns numbers that describe them (a fingerprint, targets): what is not
        trained on can be predicted from them. By default each perturbation has a vector of its own.
    layer
        Layer with the raw counts; by default what was ranked, or `.X`.
    recipe
        All other settings: `mt.train.ResponseRecipe.of(max_steps=1000)`.

    Returns
    -------
    The model, as `mt.models.load_response(output / "response")` gives it.

    Raises
    ------
    KeyError
        If the embedding or a column is not there.
    ValueError
        If no context has controls and treated cells, `output` holds a run with other settings or cells, or
        the training diverges.

    Notes
    -----
    In the manner of State's transition model (Adduri et al., bioRxiv 2025), much smaller: cells of a set
    attend to each other, without positions, and the loss is the energy distance of predicted and true treated
    cells. The prediction begins as the mean shift of the perturbation over contexts, so that what is learned
    is how a population departs from it. A ridge regression from the embedding to log-normalised expression
    decodes the departure; the mean shift itself is read from the expression.

    `mt.tl.predict_response` trains and judges it beside simple ways, on populations left out.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.drug_screen(2, 2, n_plates=2, n_wells=24)
    >>> adata.obsm["X_some"] = adata.X[:, :20].toarray()
    >>> recipe = mt.train.ResponseRecipe.of(max_steps=2)
    >>> columns = {"perturbation_key": "drug", "control": "DMSO", "groupby": "line"}
    >>> model = mt.train.response(adata, tempfile.mkdtemp(), use_rep="X_some", recipe=recipe, **columns)
    >>> model.predict(adata.obsm["X_some"][adata.obs["drug"] == "DMSO"], "drug1").shape
    (500,)
    """
    recipe = recipe or ResponseRecipe()
    device = require_run(recipe.run)
    if recipe.optimization.optimizer != "adamw":
        raise ValueError('This network is too small for "muon": use optimizer="adamw".')
    if recipe.hidden_size % recipe.n_heads:
        raise ValueError(
            f"hidden_size ({recipe.hidden_size}) must be a multiple of n_heads ({recipe.n_heads})."
        )
    if recipe.set_size < 2:
        raise ValueError("set_size must be at least 2: a set of one cell has no distances.")
    if recipe.run.gradient_checkpointing:
        raise ValueError("This network is too small for gradient_checkpointing: leave it out.")
    columns = find_columns(cells.obs, perturbation_key=perturbation_key, control=control)
    found = read_populations(
        cells, columns["perturbation_key"], columns["control"], as_list(groupby), use_rep, layer
    )
    learn = get_mask(cells, train, "train")[found.rows]
    described, names = read_descriptors(descriptors, found.perturbations)
    pairs = [
        (np.flatnonzero(learn & (found.context == c) & (found.label == 0)), of, p)
        for c in range(len(found.contexts))
        for p in range(len(found.perturbations))
        if len(of := np.flatnonzero(learn & (found.context == c) & (found.label == p + 1)))
    ]
    pairs = [
        (control, treated, names.index(found.perturbations[p]))
        for control, treated, p in pairs
        if len(control)
    ]
    if not pairs:
        raise ValueError(
            f"No context of the cells to train on has controls ({columns['perturbation_key']!r} is {columns['control']!r}) and treated cells."
        )
    claim_run(output := Path(output))
    record = plain(
        {name: value for name, value in recipe.flat().items() if name not in NOT_RECORDED}
        | {
            "perturbation_key": columns["perturbation_key"],
            "control": columns["control"],
            "groupby": as_list(groupby),
            "use_rep": use_rep,
            "cells": digest(found.embedding, found.context, found.label, learn, described),
            "n_cells": int(learn.sum()),
        }
    )
    card = {
        "perturbations": names,
        "seen": sorted({names[p] for _, _, p in pairs}),
        "contexts": sorted({found.contexts[found.context[control[0]]] for control, _, _ in pairs}),
        "genes": cells.var_names.astype(str).tolist(),
        "use_rep": use_rep,
        "n_dims": found.embedding.shape[1],
        "n_described": described.shape[1],
        "set_size": recipe.set_size,
        "hidden_size": recipe.hidden_size,
        "n_layers": recipe.n_layers,
        "n_heads": recipe.n_heads,
        "recipe": record,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        model = ResponseModel(card)
    _begin(model, found, learn, pairs, described, by_descriptor=descriptors is not None)
    scaled = ((found.embedding - model.center.numpy()) / model.scale.numpy()).astype(np.float32)
    n = recipe.optimization.max_steps * recipe.optimization.batch_size * recipe.optimization.accumulate
    trained = fit(
        ResponseModule(model),
        output,
        dataset=Sets(scaled, pairs, recipe.set_size, n, recipe.run.seed),
        collator=collate,
        recipe=record,
        held_out=None,
        run=recipe.run,
        device=device,
        metric="energy distance",
        sequential=True,
        folder="response",
    )
    if trained is not None:
        save_response(trained.model, output / "response")
    wait_for_all()
    return load_response(output / "response")


def _begin(model: ResponseModel, found, learn, pairs, described, *, by_descriptor: bool) -> None:
    """Scale of the embedding, mean shifts, and the decoder, from the cells that are trained on."""
    from sklearn.linear_model import Ridge

    Z = found.embedding
    fitted = np.flatnonzero(learn)
    center = Z[fitted].mean(axis=0)
    scale = float(Z[fitted].std()) or 1.0
    n, names = len(model.card["perturbations"]), len(found.contexts)

    def means(values) -> np.ndarray:
        control = np.full((names, values.shape[1]), np.nan)
        treated = np.full((names, n, values.shape[1]), np.nan)
        for still, moved, p in pairs:
            c = found.context[still[0]]
            control[c], treated[c, p] = (
                np.asarray(values[rows].mean(axis=0)).ravel() for rows in (still, moved)
            )
        return mean_changes(Known(control, treated, described if by_descriptor else None))

    decoder = Ridge(alpha=_PENALTY * len(fitted)).fit(
        (Z[fitted] - center) / scale, found.expression[fitted].toarray()
    )
    shift, change = means(Z) / scale, means(found.expression)
    weights = decoder.coef_.T / scale
    parts = {
        "described": described,
        "shift": shift,
        "center": center,
        "scale": np.array([scale]),
        "decoder": weights,
        "bias": change - shift * scale @ weights,
    }
    for name, value in parts.items():
        getattr(model, name).copy_(torch.as_tensor(np.asarray(value, dtype=np.float32)))
