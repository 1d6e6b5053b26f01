"""Metropolis-Hastings over the order of a cell's genes, with the model's own conditionals as proposals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from .._progress import hidden, progress
from .engine import is_out_of_memory, token_batches, tokens_at_once
from .generation import scrambled
from .likelihood import token_log_likelihoods
from .masked import attending_by, masked
from .model import MaxTokiModel
from .sequences import Sequences

PROPOSALS = ("block", "suffix", "position")
# Of cells and the numbers of their chains: how far each is from where it should be.
Energy = Callable[[Sequences, np.ndarray], np.ndarray]


class Chains(NamedTuple):
    """Where chains start, and what they may change. A state is as many distinct genes as its cell has at the start."""

    genes: np.ndarray
    """int64, chains x most genes: tokens from the highest ranked on, -1 beyond the last one."""
    free: np.ndarray
    """bool, chains x most genes: places whose gene may change; the others are clamped."""
    allowed: np.ndarray
    """bool, chains x vocabulary: genes that may stand in a free place."""
    key: np.ndarray
    """int64, chains: seeds (`chain_keys`). A chain's random numbers depend on its own and on the step alone."""


class Step(NamedTuple):
    """All chains after a step."""

    genes: np.ndarray
    """int64, chains x most genes."""
    log_likelihood: np.ndarray
    """float64, chains: of the genes, each given those before, in nats; the end of the cell does not count."""
    energy: np.ndarray
    """float64, chains: not weighted."""
    accepted: np.ndarray
    """bool, chains."""
    moved: np.ndarray
    """bool, chains: the state is another one. A proposal may be the state itself, and is then accepted."""


def metropolis(
    model: MaxTokiModel,
    chains: Chains,
    *,
    n_steps: int,
    proposal: str = "block",
    block_size: int = 8,
    energy: Energy | None = None,
    weight: float | np.ndarray = 1.0,
    temperature: float = 1.0,
    proposal_temperature: float = 1.0,
    max_tokens: int | None = None,
) -> Iterator[Step]:
    """Sample orders of genes x with probability proportional to exp((log p(x) - weight energy(x)) / temperature).

    log p is the model's log-likelihood, so that without energy, at temperature 1, the target is exactly what
    the model expects of a cell of this length in which the clamped genes stand where they stand.

    Parameters
    ----------
    model
        Model.
    chains
        Starts. All chains take their steps together.
    n_steps
        Steps.
    proposal
        Where to begin is drawn evenly from the free places, whatever the state; from there

        "block"
            the genes of up to `block_size` free places are drawn anew, one after the other, each from the
            model's distribution given those above it, among the allowed genes that stand nowhere else in the
            cell;
        "suffix"
            the same down to the next clamped place, or the end of the cell;
        "position"
            one gene is drawn, among the allowed genes that stand neither above nor in a clamped place. If it
            stands further down the two change places, otherwise it takes the other's.
    block_size
        Places of a block.
    energy
        Distance to a target state; by default 0.
    weight
        What a unit of the energy is worth, in nats; of all chains, or of each.
    temperature
        Of the target.
    proposal_temperature
        Of the conditionals that proposals are drawn from. The target does not depend on it.
    max_tokens
        Padded tokens a batch.

    Yields
    ------
    The chains as they start, and then after each step.

    Notes
    -----
    A proposal x' is accepted with probability min(1, pi(x') q(x | x') / (pi(x) q(x' | x))) (Hastings, 1970).
    Both q are the products of the probabilities with which the genes were, or would be, drawn.
    """
    _check(chains, model, proposal, block_size, temperature, proposal_temperature)
    genes, n = chains.genes.astype(np.int64), len(chains.genes)
    places = np.argsort(~chains.free, axis=1, kind="stable")
    n_free = chains.free.sum(axis=1)
    run_end = _run_ends(chains.free)
    weight = np.broadcast_to(np.asarray(weight, dtype=float), n)
    energy = energy or (lambda cells, rows: np.zeros(len(rows)))
    with hidden():
        found = gene_log_likelihoods(model, genes, max_tokens=max_tokens)
        cost = np.asarray(energy(as_cells(genes, model), np.arange(n)), dtype=float)
    nothing = np.zeros(n, dtype=bool)
    yield Step(genes.copy(), found.sum(axis=1), cost.copy(), nothing, nothing)
    length = {"block": block_size, "suffix": genes.shape[1], "position": 1}[proposal]
    for step in progress(range(n_steps), desc="Sampling", unit="step"):
        if not (n_free > 0).any():
            yield Step(genes.copy(), found.sum(axis=1), cost.copy(), nothing, nothing)
            continue
        some = np.flatnonzero(n_free > 0)
        first = places[some, (uniform(chains.key[some], step, 0) * n_free[some]).astype(np.int64)]
        last = np.minimum(first + length, run_end[some, first])
        with hidden():
            new, log_ratio = _propose(
                model, chains, genes, some, first, last, proposal, proposal_temperature, step, max_tokens
            )
            differs = (new != genes[some]).any(axis=1)
            rows, at, new = some[differs], first[differs], new[differs]
            accepted, moved = np.zeros((2, n), dtype=bool)
            accepted[some] = ~differs
            if len(rows):
                proposed = gene_log_likelihoods(model, new, first=at, max_tokens=max_tokens)
                # What comes before the first changed gene is as likely as it was.
                before = np.arange(genes.shape[1]) < at[:, None]
                proposed = np.where(before, found[rows], proposed)
                new_cost = np.asarray(energy(as_cells(new, model), rows), dtype=float)
                log_target = (proposed - found[rows]).sum(axis=1) - weight[rows] * (new_cost - cost[rows])
                log_alpha = log_target / temperature + log_ratio[differs]
                taken = np.log(uniform(chains.key[rows], step, 1)) < log_alpha
                accepted[rows] = moved[rows] = taken
                rows = rows[taken]
                genes[rows], found[rows], cost[rows] = new[taken], proposed[taken], new_cost[taken]
        yield Step(genes.copy(), found.sum(axis=1), cost.copy(), accepted, moved)


def gene_log_likelihoods(
    model: MaxTokiModel, genes: np.ndarray, *, first: np.ndarray | None = None, max_tokens: int | None = None
) -> np.ndarray:
    """Log-probability of each gene given those above it, float64, chains x most genes; 0 where there is none, or above `first`."""
    cells = as_cells(genes, model)
    found = token_log_likelihoods(
        model, cells, first=None if first is None else first + 1, max_tokens=max_tokens
    )
    values = np.zeros(genes.shape)
    inside = genes >= 0
    is_gene = np.ones(len(cells.tokens), dtype=bool)
    is_gene[cells.indptr[:-1]] = is_gene[cells.indptr[1:] - 1] = False
    values[inside] = np.nan_to_num(found[is_gene])
    return values


def as_cells(genes: np.ndarray, model: MaxTokiModel) -> Sequences:
    """Rows of genes as `<bos>` genes `<eos>`."""
    n_genes = (genes >= 0).sum(axis=1)
    indptr = np.concatenate([[0], np.cumsum(n_genes + 2)])
    tokens = np.empty(indptr[-1], dtype=np.int32)
    mark = np.zeros(len(tokens), dtype=bool)
    mark[indptr[:-1]] = mark[indptr[1:] - 1] = True
    tokens[~mark] = genes[genes >= 0]
    tokens[indptr[:-1]], tokens[indptr[1:] - 1] = model.vocab["<bos>"], model.vocab["<eos>"]
    return Sequences(tokens, indptr)


def as_genes(cells: Sequences) -> np.ndarray:
    """Cells `<bos>` genes `<eos>` as rows of genes, int64, -1 beyond the last one."""
    n_genes = cells.lengths - 2
    inside = np.arange(n_genes.max(initial=0)) < n_genes[:, None]
    genes = np.full(inside.shape, -1, dtype=np.int64)
    is_gene = np.ones(len(cells.tokens), dtype=bool)
    is_gene[cells.indptr[:-1]] = is_gene[cells.indptr[1:] - 1] = False
    genes[inside] = cells.tokens[is_gene]
    return genes


def chain_keys(seed: int, names: Sequence[str], n_chains: int) -> np.ndarray:
    """Seeds of the chains of cells, int64, names x chains: each of its own cell's name and its own number."""
    of_name = [
        int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8], "big", signed=True) for name in names
    ]
    of_name = scrambled(scrambled(torch.tensor([seed])) ^ torch.tensor(of_name, dtype=torch.int64))
    return scrambled(of_name[:, None] + torch.arange(n_chains)).numpy()


def uniform(key: np.ndarray, step: int, what: int) -> np.ndarray:
    """A number in (0, 1) for each key, float64."""
    number = scrambled(scrambled(torch.from_numpy(key) + step) + what)
    return (((number >> 11) & ((1 << 53) - 1)).numpy() + 0.5) / (1 << 53)


def _check(chains, model, proposal, block_size, temperature, proposal_temperature) -> None:
    if proposal not in PROPOSALS:
        raise ValueError(f"There is no proposal {proposal!r}; choose from {', '.join(PROPOSALS)}.")
    if block_size < 1 or not temperature > 0 or not proposal_temperature > 0:
        raise ValueError(
            "block_size must be at least 1 and both temperatures above 0; got "
            f"{block_size}, {temperature}, {proposal_temperature}."
        )
    genes = chains.genes
    if (genes < 0).all(axis=1).any():
        raise ValueError("A chain has no genes to start from.")
    row, place = np.nonzero(chains.free)
    if (genes[row, place] < 0).any() or not chains.allowed[row, genes[row, place]].all():
        raise ValueError("A chain starts with a gene in a free place that is not allowed there.")
    known = np.zeros(model.vocab.size, dtype=bool)
    known[model.vocab.gene_ids] = True
    if chains.allowed[:, ~known].any():
        raise ValueError("Only genes are allowed in a cell.")


def _run_ends(free: np.ndarray) -> np.ndarray:
    """For each place the next one that is not free, chains x places."""
    width = free.shape[1]
    ends = np.where(free, width, np.arange(width))
    return np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]


def _propose(model, chains, genes, rows, first, last, proposal, temperature, step, max_tokens):
    """New genes of some chains, and the log of the ratio of the probabilities of the way back and of the way there."""
    old, place = genes[rows], np.arange(genes.shape[1])
    inside = (place >= first[:, None]) & (place < last[:, None])
    # Genes that stand where they cannot be taken from.
    kept = ~inside if proposal != "position" else (place < first[:, None]) | ~chains.free[rows]
    allowed = chains.allowed[rows].copy()
    row, at = np.nonzero(kept & (old >= 0))
    allowed[row, old[row, at]] = False
    n, size = last - first, int((last - first).max())
    column = first[:, None] + np.arange(size)
    current = np.take_along_axis(old, np.minimum(column, genes.shape[1] - 1), axis=1)
    current = np.where(np.arange(size) < n[:, None], current, -1)
    numbers = np.stack([uniform(chains.key[rows], step, 2 + j) for j in range(size)], axis=1)
    drawn, log_q = np.full((len(rows), size), -1), np.zeros((2, len(rows)))
    pending = token_batches(first + 1 + 2 * n, tokens_at_once(model, max_tokens))[::-1]
    while pending:
        some = pending.pop()
        above = np.where(place < first[some, None], old[some], -1)[:, : first[some].max()]
        try:
            drawn[some], log_q[:, some] = _draw(
                model, above, allowed[some], n[some], current[some], numbers[some], temperature
            )
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if len(some) == 1 or not is_out_of_memory(error):
                raise
            pending += np.array_split(some, 2)
    new = old.copy()
    if proposal == "position":
        gene, row = drawn[:, 0], np.arange(len(rows))
        new = np.where(old == gene[:, None], old[row, first][:, None], old)
        new[row, first] = gene
    else:
        new[inside] = drawn[drawn >= 0]
    return new, log_q[1] - log_q[0]


@torch.inference_mode()
def _draw(model, above, allowed, n, current, numbers, temperature):
    """Genes drawn after those above, n of each cell, with the log-probability of these and of those that stand there.

    Parameters
    ----------
    above
        Genes above, cells x most, -1 beyond the last one.
    allowed
        Cells x vocabulary.
    n
        Genes to draw.
    current
        Cells x most genes to draw: those that stand there, -1 beyond the last one.
    numbers
        Random numbers of the same shape.
    """
    (count, size), device = current.shape, model.device
    allowed, current, numbers = (torch.from_numpy(part).to(device) for part in (allowed, current, numbers))
    length = torch.from_numpy((above >= 0).sum(axis=1) + 1).to(device)
    first = np.full((count, 1), model.vocab["<bos>"])
    tokens = np.concatenate([first, np.where(above >= 0, above, model.vocab["<pad>"])], axis=1)
    tokens = torch.from_numpy(tokens).to(device)
    width, row = tokens.shape[1], torch.arange(count, device=device)
    cache = DynamicCache(config=model.hf.config)
    precise = torch.float32 if device.type == "mps" else torch.float64
    drawn, log_q = torch.full_like(current, -1), torch.zeros(2, count, dtype=precise, device=device)
    with attending_by(model, masked):
        states = model.hf.model(
            input_ids=tokens, past_key_values=cache if size > 1 else None, use_cache=size > 1
        ).last_hidden_state[row, length - 1]
        # What is drawn and what stands there go on from the same start, side by side.
        states, allowed = states.repeat(2, 1), allowed.repeat(2, 1)
        if size > 1:
            cache.batch_select_indices(row.repeat(2))
        number, more = torch.arange(2 * count, device=device), torch.from_numpy(n).to(device)
        before = torch.arange(width, device=device) < length[:, None]
        for j in range(size):
            logits = model.hf.lm_head(states).float() / temperature
            log_p = logits.masked_fill(~allowed, -torch.inf).log_softmax(dim=1)
            total = log_p[:count].exp().to(precise).cumsum(dim=1)
            # The first gene at which the sum passes the number: one of no probability never is.
            gene = torch.searchsorted(total, numbers[:, j : j + 1].to(precise) * total[:, -1:], right=True)[
                :, 0
            ]
            gene = torch.cat([gene.clamp(max=log_p.shape[1] - 1), current[:, j].clamp(min=0)])
            wanted = j < more
            drawn[:, j] = torch.where(wanted, gene[:count], -1)
            log_q += torch.where(wanted, log_p[number, gene].reshape(2, -1), 0)
            if j + 1 == size:
                break
            # A cell that has its genes goes on with any, to no effect.
            allowed[number, gene] &= ~wanted.repeat(2)
            seen = torch.cat([before, torch.ones(count, j + 1, dtype=torch.bool, device=device)], dim=1)
            states = model.hf.model(
                input_ids=gene[:, None],
                position_ids=(length + j).clamp(max=model.max_length - 1).repeat(2)[:, None],
                attention_mask=seen.repeat(2, 1)[:, None, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, 0]
    return drawn.cpu().numpy(), log_q.double().cpu().numpy()
