"""What features of a sparse autoencoder do: turn them up or down, and see what becomes of a reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._names import require_choice
from ..models.feature_edits import (
    FeatureChanges,
    feature_gradients,
    require_features,
    scale_features,
)
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, require_sae
from ..pp._design import known_cells
from ..results.store import write_result
from ..stats.donors import donor_mean, unit_name
from ..stats.fdr import benjamini_hochberg
from ._readings import Readings, get_prompts, get_readings, split_donors

N_FEATURES = 20  # that are edited if none are named
N_NULL = 4  # random directions in place of each feature's; they are pooled over features
WHERE = ("all", "query", "context")


def feature_effects(
    adata: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    *,
    features: Sequence[int] | None = None,
    doses: Sequence[float] = (0.0, 2.0),
    readout: str | Callable = "timelapse",
    key: str | None = None,
    where: str = "all",
    n_prompts: int | None = 100,
    donor_key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Read the same prompts with features turned up or down, one at a time.

    Parameters
    ----------
    adata
        Rank-encoded cells with prompts (`mt.pp.sample_prompts`).
    model
        Model. One without time tokens reads the cells one by one, without prompts.
    sae
        Autoencoder of this model.
    features
        Numbers of the features to edit. By default the 20 whose gradient is largest on half of the donors;
        the effects are then read on the other half.
    doses
        What a feature is multiplied with, wherever it is active: 0 takes it out, 2 doubles it.
    readout
        "timelapse", "likelihood", a gene or a function: see `mt.tl.ablate_heads`.
    key
        Key in `.uns` of the prompts, by default "prompts".
    where
        Genes at which features are edited: "all" of the prompt, those of the "query" cell, or those of the
        "context". An edit of all cells alike may cancel in a lapse.
    n_prompts
        Prompts to read, drawn at random where there are more; `None` for all.
    donor_key
        Column of `.obs` with the donor (guessed from its name), for a model that reads cells one by one;
        prompts know theirs.
    rng
        Seed of what is drawn.
    key_added
        Key in `.uns`, by default "feature_effects".

    Returns
    -------
    `None`. Writes to `.uns["feature_effects"]` the tables

    `effects`
        A row a feature and dose, in `params["unit"]`:

        `feature`, `dose`
            Which, and what it is multiplied with.
        `effect`, `effect_low`, `effect_high`
            Mean change of the reading, with its 95% interval over donors (jackknife).
        `gradient`
            The same to first order.
        `null_sd`
            Spread of the change if the stream is changed by as much in random directions.
        `p_value`, `q_value`
            Share of random directions, of all features at this dose, that do at least as much for their
            length; corrected for all rows (Benjamini and Hochberg).
        `norm`, `share_active`
            Mean length of what the feature adds to the stream of a prompt; share of the prompts where it is
            active at all.
        `n_prompts`, `n_units`, `unit`
            Prompts, and how many donors (or query cells) their queries are of.
    `gradients`
        A row for every feature of the autoencoder: `gradient`, the change of the reading as the feature is
        doubled, to first order, with `gradient_low`, `gradient_high`, and `share_active`. Of the prompts that
        features were chosen on, if they were.

    Raises
    ------
    ValueError
        If the autoencoder is one of another model, a feature does not exist, or the model cannot tell time
        and `readout` is "timelapse".

    Notes
    -----
    The state h at a gene becomes h + (dose - 1) z d, where z is the feature's activation there and d its
    direction: what the autoencoder leaves unexplained stays, and at dose 1 nothing changes, to the bit.
    Marks and times are not edited. What comes before the edit is computed once.

    Random directions are the null: the same lengths at the same genes, four directions a feature. Effects are
    divided by these lengths and compared with those of the random directions of all features.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=4, context_size=1)
    >>> mt.tl.feature_effects(adata, model, mt.load_sae("demo"), features=[3, 17], doses=[0, 1, 2])
    >>> effects = mt.get.table(adata, "feature_effects")
    >>> effects.loc[effects["dose"] == 1, "effect"].tolist()
    [0.0, 0.0]
    """
    require_sae(sae, model)
    require_choice("where", where, WHERE)
    doses = [float(dose) for dose in np.atleast_1d(doses)]
    if not doses or not np.isfinite(doses).all():
        raise ValueError("doses must be numbers, such as [0, 2].")
    cells, _ = known_cells(adata, donor_key)
    drawn = get_prompts(cells, model, readout, key=key, n_prompts=n_prompts, rng=rng, donor_key=donor_key)
    first, second = split_donors(drawn[0], rng) if features is None else (np.arange(len(drawn[0])),) * 2

    def prepare(rows: np.ndarray) -> Readings:
        table, prompts, sequences = drawn
        prompts = None if prompts is None else prompts[rows]
        return get_readings(cells, model, readout, table.iloc[rows], prompts, sequences)

    def slopes(readings: Readings) -> np.ndarray:
        return feature_gradients(
            model, sae, readings.sequences, readings.read, places=_places(readings, where)
        )

    readings = prepare(first)
    found = slopes(readings)
    gradients = _gradients(found, readings.table, rng)
    if features is None:
        wanted = np.argsort(-np.abs(gradients["gradient"].to_numpy()), kind="stable")[:N_FEATURES]
        readings = prepare(second)
        found = slopes(readings)
    else:
        wanted = require_features(sae, features)
    changes = scale_features(
        model,
        sae,
        readings.sequences,
        readings.read,
        wanted,
        doses,
        places=_places(readings, where),
        n_null=N_NULL,
        seed=rng,
    )
    effects = _effects(changes, found[:, wanted].mean(axis=0), wanted, doses, readings.table, rng)
    params = {
        "readout": readings.readout,
        "time_read_as": drawn[0].attrs.get("time_read_as", ""),
        "unit": readings.unit,
        "chosen": "by gradient, on other donors" if features is None else "named",
        "n_null": N_NULL,
        "where": where,
        "n_prompts": len(readings.table),
        "donors": unit_name(readings.table),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.FEATURE_EFFECTS,
        {**model.params, **sae.params, **params},
        key_added=key_added,
        effects=effects,
        gradients=gradients,
    )


def _places(readings: Readings, where: str) -> np.ndarray | None:
    """Tokens of the cells that are to be edited."""
    if where == "all":
        return None
    wanted = [name.partition("_")[0] == where for name in readings.parts.names]
    if not any(wanted):
        raise ValueError(
            f"where={where!r} needs prompts: what is read here are {', '.join(readings.parts.names)}."
        )
    return np.asarray(wanted)[readings.parts.segment].astype(np.int32)


def _gradients(slopes: np.ndarray, table: pd.DataFrame, seed: int) -> pd.DataFrame:
    mean = donor_mean(slopes, table, seed=seed)
    return pd.DataFrame(
        {
            "feature": np.arange(slopes.shape[1]),
            "gradient": mean["estimate"],
            "gradient_low": mean["low"],
            "gradient_high": mean["high"],
            "share_active": (slopes != 0).mean(axis=0),
        }
    )


def _effects(
    found: FeatureChanges,
    slope: np.ndarray,
    features: np.ndarray,
    doses: list[float],
    table: pd.DataFrame,
    seed: int,
) -> pd.DataFrame:
    """Effects with intervals over donors, beside those of random directions as long."""
    change = found.values - found.intact[:, None, None]
    null = (found.null - found.intact[:, None, None, None]).mean(axis=0)
    mean = donor_mean(change.reshape(len(change), -1), table, seed=seed)
    n_doses, norm = len(doses), found.norm.mean(axis=0)
    effect = mean["estimate"].to_numpy().reshape(-1, n_doses)
    with np.errstate(divide="ignore", invalid="ignore"):
        size, others = np.abs(effect) / norm[:, None], np.abs(null) / norm[:, None, None]
    p_value = np.full(effect.shape, np.nan)
    active = norm > 0
    for j, dose in enumerate(doses):
        if dose != 1:
            pool = others[active, j].ravel()
            # Rounding must not put an effect below one that is the same.
            least = size[active, j, None] * (1 - 1e-9)
            p_value[active, j] = (1 + (pool >= least).sum(axis=1)) / (1 + len(pool))
    factor = np.asarray(doses) - 1
    effects = pd.DataFrame(
        {
            "feature": np.repeat(features, n_doses),
            "dose": np.tile(doses, len(features)),
            "effect": mean["estimate"],
            "effect_low": mean["low"],
            "effect_high": mean["high"],
            "gradient": (slope[:, None] * factor).ravel(),
            "null_sd": np.sqrt((null**2).mean(axis=-1)).ravel(),
            "p_value": p_value.ravel(),
            "norm": np.repeat(norm, n_doses),
            "share_active": np.repeat((found.norm > 0).mean(axis=0), n_doses),
            "n_prompts": len(table),
            "n_units": mean["n_units"],
            "unit": unit_name(table),
        }
    )
    effects.insert(effects.columns.get_loc("p_value") + 1, "q_value", benjamini_hochberg(effects["p_value"]))
    return effects
