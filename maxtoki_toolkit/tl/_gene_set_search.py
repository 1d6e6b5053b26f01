"""Small sets of genes whose edits move cells towards a target: searched with some cells, estimated on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..models.edits import cut_cells, edit_cells
from ..models.model import MaxTokiModel
from ..models.sampling import chain_keys
from ..models.set_search import Set, beam_search, metropolis_sets
from ..stats.donors import donor_mean
from ..stats.fdr import benjamini_hochberg
from ..stats.mcmc import effective_size, rhat
from ._edit_readouts import read_likelihoods
from ._steering import Steered
from .recipes import GeneSetSearch

# Edited cells that are held at once.
_HELD = 4096
# Sets of a chain that are estimated, those visited most.
_N_VISITED = 5


class Edits:
    """Shifts towards the target that sets of edits bring about, each computed once."""

    def __init__(self, steered: Steered, model: MaxTokiModel, tokens: np.ndarray, mode: str, k: int):
        self.steered, self.model, self.tokens = steered, model, tokens
        self.mode, self.k = mode, k
        self.start = cut_cells(steered.whole, model.cell_length)
        self.distance = steered.distance(self.start, np.arange(len(steered.rows)))
        self.likelihood: np.ndarray | None = None

    def shift(self, sets: Sequence[Set], of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance gained, sets x cells, exactly 0 where nothing that the model reads was changed; and where it was."""
        gained, changed = np.zeros((len(sets), len(of))), np.zeros((len(sets), len(of)), dtype=bool)
        for at, cell, cells in self._edited(sets, of, changed):
            gained[at, cell] = self.distance[of[cell]] - self.steered.distance(cells, of[cell])
        return gained, changed

    def likelihood_change(self, sets: Sequence[Set], of: np.ndarray) -> np.ndarray:
        """Change of the mean log-likelihood of a cell's genes, in nats a gene, sets x cells."""
        if self.likelihood is None:
            self.likelihood = read_likelihoods(self.model, self.start, None)
        change = np.zeros((len(sets), len(of)))
        for at, cell, cells in self._edited(sets, of, np.zeros(change.shape, dtype=bool)):
            change[at, cell] = read_likelihoods(self.model, cells, None) - self.likelihood[of[cell]]
        return change

    def _edited(self, sets, of, changed):
        """Edited cells that differ from what they were, some sets at a time; notes in `changed` which they are."""
        size = max(_HELD // max(len(of), 1), 1)
        for first in range(0, len(sets), size):
            part = sets[first : first + size]
            numbers = [len(s) for s in part for _ in of]
            edit = np.repeat(np.arange(len(numbers)), numbers)
            token = np.array([self.tokens[i] for s in part for _ in of for i in s], dtype=np.int64)
            if not len(token):
                continue
            found = edit_cells(
                self.steered.whole,
                np.tile(of, len(part)),
                edit,
                token,
                self.mode,
                max_length=self.model.cell_length,
                k=self.k,
            )
            changed[first : first + size] = found.changed.reshape(len(part), len(of))
            if found.changed.any():
                rows = np.flatnonzero(found.changed)
                yield first + rows // len(of), rows % len(of), found.sequences.take(rows)


class Found(NamedTuple):
    """What a search found."""

    tables: dict[str, pd.DataFrame]
    """`effects`, `genes` and, of chains, `trace`."""
    params: dict


def search_sets(
    edits: Edits,
    names: np.ndarray,
    symbols: np.ndarray,
    search: GeneSetSearch,
    *,
    strength: float,
    seed: int,
) -> Found:
    """Search sets with some of the donors (or cells), and estimate what was found on the others."""
    table = edits.steered.table
    searched, judged = _split(table, search.held_out, seed)
    chains, weight = search.chains, search.likelihood_weight
    n = len(edits.tokens)
    known: dict[Set, float] = {(): 0.0}

    def score(sets: Sequence[Set]) -> np.ndarray:
        new = list(dict.fromkeys(s for s in sets if s not in known))
        if new:
            gained, changed = edits.shift(new, searched)
            # A set that changes nothing the model reads is not a set without effect: it cannot be judged.
            values = np.where(changed.any(axis=1), gained.mean(axis=1), np.nan)
            if weight:
                total = edits.likelihood_change(new, searched) * (edits.start.lengths[searched] - 2)
                values = values + weight * total.mean(axis=1) / strength
            known.update(zip(new, values.tolist(), strict=True))
        return np.array([known[s] for s in sets])

    singles = score([(i,) for i in range(n)])
    reached = np.isfinite(singles)
    if not reached.any():
        raise ValueError(
            f"None of the {n} genes is among what the model reads of the cells, before or after the edit: nothing can be "
            "searched. Give other genes, or cells that express them."
        )
    params = {"n_searched": len(searched), "n_judged": len(judged), "rhat": np.nan, "effective_size": np.nan}
    inclusion, tables = np.full(n, np.nan), {}
    if search.method == "metropolis":
        usable = np.flatnonzero(reached)
        # Half of the proposals are even, half favour genes that do well alone; the acceptance makes up for
        # it.
        gain = strength * (singles[usable] - singles[usable].max()) / chains.temperature
        weights = 0.5 / len(usable) + 0.5 * np.exp(gain) / np.exp(gain).sum()
        steps = metropolis_sets(
            lambda sets: strength * np.nan_to_num(score([tuple(int(usable[i]) for i in s) for s in sets])),
            len(usable),
            max_size=search.max_size,
            n_steps=chains.n_steps,
            seeds=chain_keys(seed, ["sets"], chains.n_chains)[0],
            temperature=chains.temperature,
            weights=weights,
        )
        first = chains.burn_in * chains.n_steps
        visited, rows = [], []
        for i, step in enumerate(steps):
            for chain, (members, value, taken) in enumerate(zip(*step, strict=True)):
                rows.append((chain, i, value, len(members), bool(taken)))
                if i >= first:
                    visited.append(tuple(int(usable[m]) for m in members))
        trace = pd.DataFrame(rows, columns=["chain", "step", "log_target", "size", "accepted"])
        tables["trace"] = trace
        kept = trace[trace["step"] >= first]
        draws = kept.pivot(index="chain", columns="step", values="log_target").to_numpy()
        params |= {"rhat": float(rhat(draws)), "effective_size": float(effective_size(draws))}
        inclusion = np.bincount([i for s in visited for i in s], minlength=n) / len(visited)
        often = pd.Series([s for s in visited if s]).value_counts(sort=False)
        often = sorted(often.items(), key=lambda item: (-item[1], -known[item[0]]))[:_N_VISITED]
        found = [(s, count / len(visited)) for s, count in often]
    else:
        width = 1 if search.method == "greedy" else search.beam_width
        levels, _ = beam_search(score, n, max_size=search.max_size, width=width)
        found = [(s, np.nan) for level in levels for s in level.sets]
    tables["effects"] = _effects(edits, found, known, singles, judged, names, symbols, search.n_null, seed)
    tables["genes"] = pd.DataFrame(
        {"gene": names, "symbol": symbols, "shift": singles, "inclusion": inclusion, "took_effect": reached}
    )
    return Found(tables, {**params, "n_evaluated": len(known)})


def _split(table: pd.DataFrame, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells to search with, and cells of other donors (or other cells) to estimate with."""
    units = table["donor" if "donor" in table else "query"].to_numpy(dtype=object)
    names = np.unique(units.astype(str))
    n_out = int(round(held_out * len(names)))
    if held_out == 0:
        return np.arange(len(units)), np.arange(len(units))
    if not 0 < n_out < len(names):
        raise ValueError(
            f"{len(names)} {'donor' if 'donor' in table else 'cell'}s cannot be divided into some to search with and some to "
            "estimate with. Steer more, or set held_out=0: estimates are then of the cells that were searched, and too good."
        )
    out = np.random.default_rng([seed, 1]).permutation(names)[:n_out]
    held = np.isin(units.astype(str), out)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _effects(edits, found, known, singles, judged, names, symbols, n_null, seed) -> pd.DataFrame:
    """One row a set: those found, the best genes by themselves put together, and random sets of each size."""
    usable = np.flatnonzero(np.isfinite(singles))
    sizes = sorted({len(s) for s, _ in found})
    ranked = usable[np.argsort(-singles[usable], kind="stable")]
    best = [tuple(sorted(ranked[:size].tolist())) for size in sizes]
    rng = np.random.default_rng([seed, 2])
    null = {
        size: [tuple(sorted(rng.choice(usable, size, replace=False).tolist())) for _ in range(n_null)]
        for size in sizes
    }
    sets = [s for s, _ in found] + best
    every = list(dict.fromkeys(sets + [s for some_sets in null.values() for s in some_sets]))
    gained, changed = edits.shift(every, judged)
    of_set = dict(zip(every, gained, strict=True))
    took = dict(zip(every, changed.mean(axis=1), strict=True))
    table = edits.steered.table.iloc[judged].reset_index(drop=True)
    scored = donor_mean(np.stack([of_set[s] for s in sets], axis=1), table, seed=seed)
    likelihood = edits.likelihood_change(sets, judged).mean(axis=1)
    frequency = [share for _, share in found] + [np.nan] * len(best)
    rows = []
    for i, s in enumerate(sets):
        drawn = np.array([of_set[other].mean() for other in null[len(s)]])
        rows.append(
            {
                "kind": "found" if i < len(found) else "best singles",
                "set": " + ".join(symbols[list(s)]),
                "genes": ";".join(names[list(s)]),
                "size": len(s),
                "frequency": frequency[i],
                "searched_shift": known.get(s, np.nan),
                "shift": scored["estimate"][i],
                "shift_low": scored["low"][i],
                "shift_high": scored["high"][i],
                "p_value": scored["p_value"][i],
                "null_mean": drawn.mean(),
                "null_low": np.quantile(drawn, 0.025),
                "null_high": np.quantile(drawn, 0.975),
                "p_null": (1 + (drawn >= scored["estimate"][i]).sum()) / (n_null + 1),
                "likelihood_change": likelihood[i],
                "took_effect": took[s],
                "n_units": scored["n_units"][i],
            }
        )
    effects = pd.DataFrame(rows)
    is_found = effects["kind"] == "found"
    effects.insert(10, "q_value", np.nan)
    effects.loc[is_found, "q_value"] = benjamini_hochberg(effects.loc[is_found, "p_value"])
    return effects
