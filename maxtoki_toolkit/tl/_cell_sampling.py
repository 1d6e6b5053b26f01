"""Cells led to a target state by resampling the order of their genes, beside the edit alone and chains that are not led."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..models.edits import cut_cells, edit_cells
from ..models.model import MaxTokiModel
from ..models.sampling import Chains, as_cells, as_genes, chain_keys, gene_log_likelihoods, metropolis
from ..stats.donors import donor_mean
from ..stats.fdr import benjamini_hochberg
from ..stats.mcmc import effective_size, rhat
from ._steering import Steered
from .recipes import CellSampling

STATES = ("start", "abrupt", "unsteered", "steered")


class Sampled(NamedTuple):
    """What the chains gave."""

    effects: pd.DataFrame
    cells: pd.DataFrame
    genes: pd.DataFrame
    trace: pd.DataFrame
    last: np.ndarray
    """int64, cells x most genes: the last state of the first chain of each cell."""
    level: sp.csr_matrix
    """float32, cells x vocabulary: mean level over the kept draws of all steered chains."""


def sample_ranks(
    steered: Steered,
    model: MaxTokiModel,
    tokens: np.ndarray,
    known: np.ndarray,
    sampling: CellSampling,
    *,
    mode: str,
    k: int,
    strength: float,
    seed: int,
) -> Sampled:
    """Edit genes and hold them, and resample the others of each cell.

    Parameters
    ----------
    tokens
        Genes that are edited and held.
    known
        Tokens that may come into a cell.
    """
    settings = sampling.chains
    n_steps, n_chains, temperature = settings.n_steps, settings.n_chains, settings.temperature
    n, every = len(steered.rows), np.arange(len(steered.rows))
    start = as_genes(cut_cells(steered.whole, model.cell_length))
    abrupt, changed = start, np.zeros(n, dtype=bool)
    if len(tokens):
        edited = edit_cells(
            steered.whole,
            every,
            np.repeat(every, len(tokens)),
            np.tile(tokens, n),
            mode,
            max_length=model.cell_length,
            k=k,
        )
        abrupt, changed = as_genes(edited.sequences), edited.changed
    per_cell = n_chains + 1  # the last one is not led
    of = np.repeat(every, per_cell)
    led = np.tile(np.arange(per_cell) < n_chains, n)
    genes = abrupt[of]
    allowed = np.zeros((n, model.vocab.size), dtype=bool)
    allowed[:, known] = True
    row, at = np.nonzero(abrupt >= 0)
    allowed[row, abrupt[row, at]] = True
    # What was edited stays where it was put, or out.
    allowed[:, tokens] = False
    chains = Chains(
        genes,
        (genes >= 0) & ~np.isin(genes, tokens),
        allowed[of],
        chain_keys(seed, steered.table["query"], per_cell).ravel(),
    )
    room = model.cell_length - 2
    first = int(np.floor(settings.burn_in * n_steps)) + 1 if n_steps else 0
    level, n_kept = np.zeros((2, n, model.vocab.size), dtype=np.float32), 0
    likelihood, distance, accepted, moved = [], [], [], []
    steps = metropolis(
        model,
        chains,
        n_steps=n_steps,
        proposal=sampling.proposal,
        block_size=sampling.block_size,
        energy=lambda cells, rows: steered.distance(cells, of[rows]),
        weight=np.where(led, strength, 0.0),
        temperature=temperature,
        proposal_temperature=sampling.proposal_temperature,
    )
    for i, step in enumerate(steps):
        likelihood.append(step.log_likelihood)
        distance.append(step.energy)
        accepted.append(step.accepted)
        moved.append(step.moved)
        last = step.genes
        if i >= first:
            row, at = np.nonzero(step.genes >= 0)
            np.add.at(
                level,
                (led[row].astype(int), of[row], step.genes[row, at]),
                np.float32(1) - at / np.float32(room),
            )
            n_kept += 1
    level[1] /= n_kept * n_chains
    level[0] /= n_kept
    shape = (-1, n, per_cell)
    likelihood, distance = (np.array(part).reshape(shape) for part in (likelihood, distance))
    accepted, moved = (np.array(part).reshape(shape) for part in (accepted, moved))
    n_genes = {"start": (start >= 0).sum(axis=1), "abrupt": (abrupt >= 0).sum(axis=1)}
    began = gene_log_likelihoods(model, start).sum(axis=1) / n_genes["start"]
    from_start = steered.distance(as_cells(start, model), every)
    of_chain = likelihood / n_genes["abrupt"][:, None]
    cells = steered.table[[name for name in ("query", "donor") if name in steered.table]].copy()
    cells = cells.rename(columns={"query": "cell"})
    for name, values, initial in (("log_likelihood", of_chain, began), ("distance", distance, from_start)):
        cells[f"{name}_start"] = initial
        cells[f"{name}_abrupt"] = values[0, :, 0]
        cells[f"{name}_unsteered"] = values[first:, :, -1].mean(axis=0)
        cells[f"{name}_steered"] = values[first:, :, :-1].mean(axis=(0, 2))
    log_target = (likelihood - strength * distance)[first:, :, :-1] / temperature
    draws = np.moveaxis(log_target, 0, -1)
    cells["acceptance"] = accepted[1:, :, :-1].mean(axis=(0, 2)) if n_steps else np.nan
    cells["moved"] = moved[1:, :, :-1].mean(axis=(0, 2)) if n_steps else np.nan
    cells["rhat"], cells["effective_size"] = rhat(draws), effective_size(draws)
    cells["took_effect"] = changed
    number, cell, chain = np.indices(likelihood.shape).reshape(3, -1)
    trace = pd.DataFrame(
        {
            "cell": cells["cell"].to_numpy()[cell],
            "chain": chain,
            "steered": chain < n_chains,
            "step": number,
            "log_likelihood": of_chain.ravel(),
            "distance": distance.ravel(),
            "accepted": accepted.ravel(),
        }
    )
    levels = {"start": _levels(start, model, room), "abrupt": _levels(abrupt, model, room)}
    levels |= {"unsteered": level[0], "steered": level[1]}
    ids = model.vocab.gene_ids
    summary = pd.DataFrame(
        {"token": ids} | {f"level_{name}": levels[name].mean(axis=0)[ids] for name in STATES}
    )
    return Sampled(
        _effects(cells, steered.table, seed),
        cells,
        summary,
        trace,
        last[np.arange(n) * per_cell],
        sp.csr_matrix(level[1]),
    )


def _levels(genes: np.ndarray, model: MaxTokiModel, room: int) -> np.ndarray:
    """Level of each gene, cells x vocabulary: 1 for the highest, falling evenly to 0 for those that are not read."""
    found = np.zeros((len(genes), model.vocab.size), dtype=np.float32)
    row, at = np.nonzero(genes >= 0)
    found[row, genes[row, at]] = 1 - at / np.float32(room)
    return found


def _effects(cells: pd.DataFrame, table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean of both measures in each state, and the paired difference from the edit alone."""
    parts = []
    for measure in ("log_likelihood", "distance"):
        values = cells[[f"{measure}_{state}" for state in STATES]].to_numpy()
        mean = donor_mean(values, table, seed=seed)
        change = donor_mean(values - values[:, [STATES.index("abrupt")]], table, seed=seed)
        part = pd.DataFrame({"measure": measure, "state": STATES})
        part[["mean", "mean_low", "mean_high"]] = mean[["estimate", "low", "high"]]
        part[["difference", "difference_low", "difference_high", "p_value"]] = change[
            ["estimate", "low", "high", "p_value"]
        ]
        part["n_units"] = change["n_units"]
        parts.append(part)
    effects = pd.concat(parts, ignore_index=True)
    own = effects["state"] == "abrupt"
    effects.loc[own, "p_value"] = np.nan
    effects.insert(8, "q_value", benjamini_hochberg(effects["p_value"]))
    return effects
