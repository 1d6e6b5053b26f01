"""Which genes to edit so that features of cells go where they should: found by gradient, checked by real edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import symbols
from .._names import require_choice
from ..models.edits import cut_cells, edit_cells
from ..models.feature_edits import require_features
from ..models.features import embedding_slopes, mean_features
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, require_sae
from ..models.sequences import Sequences
from ..models.set_search import Set, beam_search
from ..pp._columns import find_donors
from ..pp._design import get_labels, known_cells
from ..results.store import write_result
from ..stats.donors import donor_mean, unit_name
from ..stats.fdr import benjamini_hochberg
from ._cells import WHOLE, get_sequences
from ._readings import some_rows, split_donors

MODES = ("delete", "overexpress")
N_RANDOM = 20  # sets of each size


def search_features(
    adata: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    *,
    target: Mapping[int, float],
    avoid: Sequence[int] = (),
    bound: float = 0.5,
    mode: str = "delete",
    n_candidates: int = 30,
    max_size: int = 3,
    n_cells: int | None = 60,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Search for genes whose edits move the features of cells towards a target, and leave others alone.

    Parameters
    ----------
    adata
        Rank-encoded cells; donors are taken from the column whose name says so, if there is one.
    model
        Model.
    sae
        Autoencoder of this model.
    target
        Features that are to change, and how much each counts: positive ones are to rise, negative ones to
        fall.
    avoid
        Features that may change by no more than `bound`, up or down.
    bound
        In standard deviations of the feature over the cells.
    mode
        "delete" genes, or "overexpress" them (put them first).
    n_candidates
        Genes that are tried by real edits: those whose gradient promises most.
    max_size
        Genes that are edited together, at most.
    n_cells
        Cells to edit, drawn at random where there are more; `None` for all.
    rng
        Seed.
    key_added
        Key in `.uns`, by default "search_features".

    Returns
    -------
    `None`. Writes to `.uns["search_features"]` the tables

    `effects`
        A row a set of genes:

        `kind`
            "gradient": the best sets of each size among the genes whose gradient promises most; "most read":
            the same among as many genes that most cells have, with as many real edits; "random": mean of 20
            sets of that size, of genes that most cells have.
        `genes`, `symbols`, `size`
            Names in `.var_names` and symbols, with commas; how many.
        `searched`
            Shift in the cells that the set was searched with.
        `shift`, `shift_low`, `shift_high`
            Mean shift of the other cells, with its 95% interval over donors (or cells): the weighted sum of
            the changes of the target features, each in standard deviations over the cells.
        `p_value`, `q_value`
            Two-sided t test of that (jackknife); corrected for the sets found (Benjamini and Hochberg).
        `avoided`
            Largest mean change of a feature to avoid, in standard deviations.
        `n_units`, `unit`
            Donors (or query cells) of the cells that were not searched with.
    `genes`
        A row a candidate by gradient (`gene`, `symbol`): `promised`, the shift to first order, and `shift`,
        that of the real edit, in the cells that were searched with.

    Raises
    ------
    ValueError
        If a feature does not exist or does not vary, or is to be moved and to be avoided.

    Notes
    -----
    The state of a cell is the mean activation of each feature over its genes. The gradient of the target with
    respect to the embedding of each gene, times the gene's difference from the mean of all, promises what is
    lost with it; for "overexpress" it is taken at the first place. Promises only choose candidates: all that
    is reported is read from edited cells.

    Half of the donors (or cells) are searched with, the other half are those of `shift`.
    `params["promise_r"]` is the correlation of promised and real shifts over the candidates.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("heart_nuclei")[:40].copy()
    >>> model = mt.load_model("demo")
    >>> mt.pp.rank_value_encode(adata, model)
    >>> sae = mt.load_sae("demo")
    >>> mt.tl.search_features(adata, model, sae, target={160: -1}, n_candidates=4, max_size=2, n_cells=12)
    >>> mt.get.table(adata, "search_features")["kind"].unique().tolist()
    ['gradient', 'most read', 'random']
    """
    require_sae(sae, model)
    require_choice("mode", mode, MODES)
    aims = require_features(sae, list(target))
    kept = require_features(sae, avoid) if len(avoid) else np.zeros(0, dtype=np.int64)
    if len(both := np.intersect1d(aims, kept)):
        raise ValueError(f"Feature {both[0]} is to be moved and to be avoided.")
    donor_key = find_donors(adata.obs, None)
    cells, _ = known_cells(adata, donor_key)
    rows = some_rows(cells.n_obs, n_cells, rng)
    table = pd.DataFrame({"query": cells.obs_names[rows]})
    if donor_key is not None:
        table["donor"] = get_labels(cells, donor_key)[rows]
    whole = get_sequences(cells, model, max_length=WHOLE).take(rows)
    state = mean_features(model, sae, cut_cells(whole, model.cell_length))
    sd = state.std(axis=0)
    if (flat := sd[np.concatenate([aims, kept])] == 0).any():
        raise ValueError(
            f"Feature {np.concatenate([aims, kept])[flat][0]} does not vary between these cells."
        )
    weight = np.zeros(sae.width)
    weight[aims] = np.array([float(target[i]) for i in target]) / sd[aims]

    def changes(tokens: Sequence[int], of: np.ndarray) -> np.ndarray:
        """Change of all features of some cells if these genes are edited."""
        edit = np.repeat(np.arange(len(of)), len(tokens))
        edited = edit_cells(
            whole, of, edit, np.tile(np.asarray(tokens), len(of)), mode, max_length=model.cell_length
        )
        found = np.zeros((len(of), sae.width))
        some = np.flatnonzero(edited.changed)
        if len(some):
            found[some] = mean_features(model, sae, edited.sequences.take(some)) - state[of[some]]
        return found

    searched, judged = split_donors(table, rng)
    read = cut_cells(whole, model.cell_length)
    promised, often = _promises(model, sae, read.take(searched), weight, mode)
    pools = {
        "gradient": np.argsort(-promised, kind="stable")[:n_candidates],
        "most read": np.argsort(-often, kind="stable")[:n_candidates],
    }
    pools = {name: pool[often[pool] > 0] if mode == "delete" else pool for name, pool in pools.items()}
    found, genes = [], pd.DataFrame()
    for kind, pool in pools.items():
        known: dict[Set, float] = {}

        def score(sets: Sequence[Set], pool: np.ndarray = pool, known: dict = known) -> np.ndarray:
            for some in sets:
                if some not in known:
                    change = changes(pool[list(some)], searched)
                    off = np.abs(change[:, kept].mean(axis=0) / sd[kept]).max(initial=0)
                    known[some] = float((change @ weight).mean()) if off <= bound else np.nan
            return np.array([known[some] for some in sets])

        levels, singles = beam_search(score, len(pool), max_size=max_size)
        found += [(kind, [pool[list(level.sets[0])]], level.scores[0]) for level in levels]
        if kind == "gradient":
            genes = _candidates(cells, model, pool, promised[pool], singles)
    usual = pools["most read"]
    for size in range(1, min(max_size, len(usual)) + 1):
        generator = np.random.default_rng([rng, size])
        sets = [generator.choice(usual, size, replace=False) for _ in range(N_RANDOM)]
        found.append(("random", sets, np.nan))
    effects = _effects(cells, model, found, changes, judged, weight, kept, sd, table.iloc[judged], rng)
    r = genes["promised"].corr(genes["shift"]) if len(genes) > 2 and genes["shift"].nunique() > 1 else np.nan
    params = {
        "unit": "standard deviations",
        "target": {str(i): float(target[i]) for i in target},
        "avoid": kept.tolist(),
        "bound": bound,
        "mode": mode,
        "promise_r": float(r),
        "n_cells": len(rows),
        "donors": unit_name(table),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.SEARCH_FEATURES,
        {**model.params, **sae.params, **params},
        key_added=key_added,
        effects=effects,
        genes=genes,
    )


def _promises(
    model: MaxTokiModel, sae: SparseAutoencoder, cells: Sequences, weight: np.ndarray, mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean shift that the edit of each gene promises, by token, and in how many cells the gene is read."""
    slope = embedding_slopes(model, sae, cells, weight)
    table = model.hf.get_input_embeddings().weight.detach().float().cpu().numpy()
    ids = model.vocab.gene_ids
    usual = table[ids].mean(axis=0)
    often = np.bincount(cells.tokens, minlength=model.vocab.size).astype(float)
    promised = np.full(model.vocab.size, -np.inf)
    if mode == "delete":
        lost = -((table[cells.tokens] - usual) * slope).sum(axis=1)
        total = np.bincount(cells.tokens, lost, minlength=model.vocab.size)
        promised[ids] = total[ids] / len(cells)
        promised[often == 0] = -np.inf
    else:
        first = slope[cells.indptr[:-1] + 1].mean(axis=0)
        promised[ids] = (table[ids] - usual) @ first
    mask = np.zeros(model.vocab.size, dtype=bool)
    mask[ids] = True
    return promised, np.where(mask, often, 0)


def _names(cells: AnnData, model: MaxTokiModel, tokens: np.ndarray) -> tuple[list[str], list[str]]:
    """Names and symbols of genes; those that the cells lack by their Ensembl id."""
    ids = cells.var[_keys.TOKEN_ID].to_numpy()
    column = np.full(model.vocab.size, -1)
    column[ids[ids >= 0]] = np.flatnonzero(ids >= 0)
    ensembl, at = model.vocab.gene_of_token[tokens], column[tokens]
    names, said = np.asarray(cells.var_names, dtype=object), np.asarray(symbols(cells), dtype=object)
    return (
        [str(names[i]) if i >= 0 else str(e) for i, e in zip(at, ensembl, strict=True)],
        [str(said[i]) if i >= 0 else str(e) for i, e in zip(at, ensembl, strict=True)],
    )


def _candidates(cells, model, pool: np.ndarray, promised: np.ndarray, shift: np.ndarray) -> pd.DataFrame:
    names, said = _names(cells, model, pool)
    return pd.DataFrame({"gene": names, "symbol": said, "promised": promised, "shift": shift})


def _effects(
    cells, model, found, changes, judged, weight, kept, sd, table: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """Shifts of the cells that were not searched with."""
    rows = []
    for kind, sets, searched in found:
        change = np.mean([changes(tokens, judged) for tokens in sets], axis=0)
        mean = donor_mean((change @ weight)[:, None], table, seed=seed).iloc[0]
        names, said = _names(cells, model, sets[0]) if kind != "random" else ([], [])
        rows.append(
            {
                "kind": kind,
                "genes": ",".join(names),
                "symbols": ",".join(said),
                "size": len(sets[0]),
                "searched": searched,
                "shift": mean["estimate"],
                "shift_low": mean["low"],
                "shift_high": mean["high"],
                "p_value": mean["p_value"],
                "avoided": np.abs(change[:, kept].mean(axis=0) / sd[kept]).max(initial=0.0),
                "n_units": int(mean["n_units"]),
            }
        )
    effects = pd.DataFrame(rows)
    q_value = np.full(len(effects), np.nan)
    searched = (effects["kind"] != "random").to_numpy()
    q_value[searched] = benjamini_hochberg(effects.loc[searched, "p_value"])
    effects.insert(effects.columns.get_loc("p_value") + 1, "q_value", q_value)
    effects["unit"] = unit_name(table)
    return effects
