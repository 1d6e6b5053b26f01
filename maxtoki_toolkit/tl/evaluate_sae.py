"""How good a sparse autoencoder is: what it keeps, what it costs the model, and whether it would be found again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from .. import _keys
from .._warn import warn
from ..models.features import pool_features
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, require_sae
from ..models.sae_controls import moments, principal_directions, random_directions, share_of_components
from ..models.sae_quality import measure_quality
from ..pp._columns import find_donors
from ..pp._design import get_labels, known_cells
from ..results.store import write_result
from ..stats.donors import donor_ratio, unit_name
from ._cells import get_sequences
from .features import DENSE

MIN_GENES = 3  # a cell must have to be read
MIN_COST = 0.5  # nats: below it, shares of the loss that are recovered are noise


def evaluate_sae(
    adata: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    *,
    others: Sequence[SparseAutoencoder] = (),
    n_cells: int | None = 500,
    donor_key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Measure a sparse autoencoder on cells that it was not trained on, beside PCA and random directions.

    Parameters
    ----------
    adata
        Rank-encoded cells, at best of other donors than those of the training.
    model
        Model.
    sae
        Autoencoder of this model.
    others
        Autoencoders of the same states from other seeds: how many features they share says what a feature is
        worth.
    n_cells
        Cells to read, drawn at random where there are more; `None` for all.
    donor_key
        Column of `.obs` with the donor, guessed from its name; may be missing.
    rng
        Seed of the cells and of the random directions.
    key_added
        Key in `.uns`, by default "evaluate_sae".

    Returns
    -------
    `None`. Writes the table `measures` to `.uns["evaluate_sae"]`, a row a measure and dictionary:

    `dictionary`
        "sae"; "PCA", the principal components in both directions, of which the k largest count at a gene;
        "random", as many random directions as the autoencoder has features, of which k count; "subspace", the
        first k principal components, the same ones at every gene.
    `measure`
        "variance explained", a share of that of the states; "loss recovered", of what next-gene prediction
        loses if every state is the mean one, the share that is not lost with what the dictionary makes of it;
        "active features", at a gene; "dead features", share active nowhere; "dense features", share active at
        more than a tenth of all genes; "nearest direction", mean cosine of each feature with the one most
        like it; "found again", mean cosine of each feature with the one most like it in `others`.
    `value`, `low`, `high`
        With a 95% interval over donors (jackknife) where the measure is one of cells.
    `n_units`, `unit`
        Donors, or cells where donors are not known.

    Raises
    ------
    ValueError
        If an autoencoder is one of another model, or has fewer than two cells to read.

    Notes
    -----
    k directions chosen anew at each gene should explain more than the k best fixed ones ("subspace"), and the
    model should go on better with them than with k of the principal components: else there is nothing sparse
    about the states. Cosines of random directions are what dimensions alone make of them. Where the mean
    state costs less than half a nat a gene there is a warning: shares of so small a loss are noise.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:50].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.evaluate_sae(adata, model, mt.load_sae("demo"), n_cells=20)
    >>> measures = mt.get.table(adata, "evaluate_sae").set_index(["measure", "dictionary"])["value"]
    >>> bool(measures["variance explained", "sae"] > measures["variance explained", "random"])
    True
    """
    for coder in (sae, *others):
        require_sae(coder, model)
        if coder.site != sae.site:
            raise ValueError(
                f"others must read the same place: {coder.site.part} of block {coder.site.layer} is not {sae.site.part} of "
                f"block {sae.site.layer}."
            )
    donor_key = find_donors(adata.obs, donor_key)
    cells, _ = known_cells(adata, donor_key)
    sequences = get_sequences(cells, model)
    rows = np.flatnonzero(sequences.lengths >= MIN_GENES + 2)
    if n_cells is not None and n_cells < len(rows):
        rows = np.sort(np.random.default_rng(rng).choice(rows, n_cells, replace=False))
    if len(rows) < 2:
        raise ValueError(
            f"{len(rows)} cells have {MIN_GENES} genes that the model reads; at least 2 are needed."
        )
    sequences = sequences.take(rows)
    table = pd.DataFrame({"query": cells.obs_names[rows]})
    if donor_key is not None:
        table["donor"] = get_labels(cells, donor_key)[rows]

    found = moments(model, sequences, sae.site)
    coders = {
        "sae": sae,
        "PCA": principal_directions(sae, found),
        "random": random_directions(sae, found.mean, rng),
    }
    quality = measure_quality(model, list(coders.values()), sequences, found.mean)
    if (cost := float((quality.clean - quality.without).mean())) < MIN_COST:
        warn(
            f"The mean state in place of every state costs {cost:.2f} nats a gene: there is hardly a loss to recover, and shares "
            "of it mean little."
        )
    kept, by_components = 1 - quality.unexplained.sum(axis=0)[:2] / quality.variance.sum()
    if kept < by_components:
        warn(
            f"The autoencoder keeps {kept:.0%} of the variance of these states, principal components used in the same way "
            f"{by_components:.0%}: it has learned too little, or cells that are unlike these. Read its features with care, or train "
            "one longer, on such cells (mt.train.sae)."
        )
    variance = np.repeat(quality.variance[:, None], len(coders), axis=1)
    lost = np.repeat((quality.clean - quality.without)[:, None], len(coders), axis=1)
    parts = []
    for measure, above, below in (
        ("variance explained", variance - quality.unexplained, variance),
        ("loss recovered", quality.spliced - quality.without[:, None], lost),
        ("active features", quality.active, np.ones_like(quality.active)),
    ):
        part = donor_ratio(above, below, table, seed=rng)
        part.insert(0, "measure", measure)
        part.insert(0, "dictionary", list(coders))
        parts.append(part.rename(columns={"estimate": "value"}).drop(columns="p_value"))
    rows = [("subspace", "variance explained", share_of_components(found, sae.k))]
    rows += _of_features(model, sequences, coders)
    if others:
        again = np.mean([_nearest(sae.directions, other.directions) for other in others])
        null = np.mean(
            [_nearest(coders["random"].directions, random_directions(other, found.mean, rng + 1 + i).directions)
             for i, other in enumerate(others)]
        )  # fmt: skip
        rows += [("sae", "found again", again), ("random", "found again", null)]
    parts.append(pd.DataFrame(rows, columns=["dictionary", "measure", "value"]))
    measures = pd.concat(parts, ignore_index=True)
    measures["n_units"] = measures["n_units"].fillna(0).astype(int)
    measures["unit"] = unit_name(table)
    params = {
        "n_cells": len(table),
        "n_others": len(others),
        "n_genes_read": found.n,
        "clean_loss": float(-quality.clean.mean()),
        "mean_state_loss": float(-quality.without.mean()),
        "donor_key": donor_key or "",
        "seed": rng,
    }
    write_result(
        adata,
        _keys.EVALUATE_SAE,
        {**model.params, **sae.params, **params},
        key_added=key_added,
        measures=measures,
    )


def _of_features(model: MaxTokiModel, sequences, coders: dict) -> list[tuple[str, str, float]]:
    """Measures that are of the features and not of the cells."""
    rows = []
    for (name, coder), sums in zip(
        coders.items(), pool_features(model, list(coders.values()), sequences), strict=True
    ):
        density = np.asarray(sums.active.sum(axis=0)).ravel() / max(sums.n_read.sum(), 1)
        rows.append((name, "dead features", (density == 0).mean()))
        rows.append((name, "dense features", (density > DENSE).mean()))
        rows.append((name, "nearest direction", _nearest(coder.directions)))
    return rows


@torch.no_grad()
def _nearest(directions: torch.Tensor, others: torch.Tensor | None = None) -> float:
    """Mean cosine of each direction with the one most like it."""
    cosine = directions @ (directions if others is None else others).T
    if others is None:
        cosine.fill_diagonal_(-1)
    return float(cosine.max(dim=1).values.mean())
