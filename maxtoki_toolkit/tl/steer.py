"""Which edits move cells towards a target, and what such cells would look like."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._features import find_genes, symbols
from ..models.edits import MODES
from ..models.model import MaxTokiModel
from ..models.sampling import PROPOSALS
from ..pp._design import get_mask, known_cells
from ..results.store import write_result
from ..stats.donors import unit_name
from ._steer_ranks import sample_ranks
from ._steer_sets import Edits, search_sets
from ._steer_target import STRENGTH, get_steered

METHODS = ("greedy", "beam", "sets", "ranks")
_RHAT = 1.1


def steer(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    method: str = "beam",
    readout: str = "timelapse",
    genes: Sequence[str] | None = None,
    mode: str = "delete",
    k: int = 20,
    use: str | Sequence[bool] | None = None,
    reference: str | Sequence[bool] | None = None,
    n_cells: int | None = 20,
    n_anchors: int = 10,
    n_candidates: int = 50,
    max_size: int = 3,
    beam_width: int = 5,
    held_out: float = 0.5,
    n_null: int = 50,
    n_steps: int = 200,
    n_chains: int = 4,
    burn_in: float = 0.5,
    proposal: str = "block",
    block_size: int = 8,
    strength: float | None = None,
    temperature: float = 1.0,
    proposal_temperature: float = 1.0,
    likelihood_weight: float = 0.0,
    key: str | None = None,
    donor_key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Search for edits that move cells towards a target, or resample cells on their way to it.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Model; one with temporal training for `readout="timelapse"`.
    method
        Search for small sets of genes to edit, the same in all cells:

        "greedy", "beam"
            add the gene that helps most to the best set, or to the `beam_width` best;
        "sets"
            Metropolis-Hastings over sets;

        or change the cells themselves:

        "ranks"
            edit `genes`, hold them, and draw the order of all other genes by Metropolis-Hastings, from the model's own
            conditionals.
    readout
        "timelapse": a shorter predicted lapse of the query cells of `.uns["prompts"]`, that is younger; "embedding": nearer to the
        embedding of cells of `reference`; "likelihood": cells of `reference` more likely after the cell (`<bos> cell
        <eos> <bos>
        reference cell <eos>`; needs a model that reads two cells).
    genes
        Candidates, by default the `n_candidates` genes found in most of the cells; for "ranks" the genes that are
        edited and held, by default
        none.
    mode
        What is done to a gene: "delete", "inhibit" (to the last rank), "overexpress" (to the first), "activate" (up by
        `k` ranks) or
        "shift" (by `k` ranks, down where negative).
    k
        Ranks of "activate" and "shift".
    use
        Cells to steer: boolean column of `.obs`, or one boolean a cell; by default all but the reference, and for
        "timelapse" all query cells.
    reference
        Cells of the target state. They must not be cells by which the result is judged later: steered cells are led to them.
    n_cells
        Cells to steer at most, drawn at random; `None` for all.
    n_anchors
        Cells that stand for the reference: real cells nearest to the means of so many clusters (k-means) of their
        embeddings.
    n_candidates
        See `genes`.
    max_size, beam_width
        Largest set; sets of each size that "beam" goes on from.
    held_out
        Share of the donors (cells, where no donor is known) that are not searched but give the estimates.
    n_null
        Random sets of each size, drawn from the candidates.
    n_steps, n_chains, burn_in
        Steps of Metropolis-Hastings; chains (of each cell for "ranks"); share of the steps that is left out.
    proposal, block_size
        For "ranks": "block" draws up to `block_size` neighbouring genes anew, "suffix" all to the end, "position" one,
        which changes places with
        the gene it replaces.
    strength
        Nats that a unit of the distance is worth: by default 1 for "timelapse" (a unit of time), 100 for the others.
    temperature, proposal_temperature
        Of the target, and of the conditionals that are proposed from (which leaves the target as it is).
    likelihood_weight
        For sets: weight of the edited cells' log-likelihood in the score; 0 for the distance alone. "ranks" has it at 1.
    key
        Key in `.uns` of the prompts, by default "prompts".
    donor_key
        Column of `.obs` with the donor, for targets without prompts; prompts know their donors.
    rng
        Seed. The chains of a cell depend on it, on the cell's name and on the number of the chain, not on other cells.
    key_added
        Key in `.uns`, by default "steer".

    Returns
    -------
    `None`. Writes to `.uns["steer"]` the tables

    `effects`
        Of sets, a row a set; distances are in `params["unit"]`:

        `kind`
            "found", in order of the search; "best singles": the genes that are best by themselves, put
            together.
        `set`, `genes`, `size`
            Symbols, names in `.var_names`, and how many.
        `frequency`
            Share of the kept draws (method "sets").
        `searched_shift`
            What the search went by: distance gained by the cells that it was searched with. Too good, as it
            was chosen by.
        `shift`, `shift_low`, `shift_high`, `p_value`, `q_value`
            Mean distance gained (positive: nearer to the target) by the cells held out, with its 95% interval
            and two-sided t test (jackknife over donors or cells); corrected over the sets found (Benjamini
            and Hochberg).
        `null_mean`, `null_low`, `null_high`, `p_null`
            Of random sets of the same size: mean, 2.5% and 97.5% of their shifts, and the share that do as
            well.
        `likelihood_change`
            Change of the mean log-likelihood of the edited cells, nats a gene.
        `took_effect`
            Share of the cells in which the edit changed what the model reads.
        `n_units`
            Donors, or cells where no donor is known.

        Of states ("start"; "abrupt", the edit alone; "unsteered", resampled under the edit but not led;
        "steered"):

        `measure`
            "log_likelihood", in nats a gene, or "distance".
        `mean`, `mean_low`, `mean_high`
            Mean over cells, with its 95% interval over donors or cells.
        `difference`, `difference_low`, `difference_high`, `p_value`, `q_value`
            Paired difference from "abrupt", with the same.

    `genes`
        Of a search, one row a candidate (`gene`, `symbol`): `shift` of the edit of this gene alone, in the
        cells that were searched with (NaN where it changed nothing that the model reads: `took_effect`);
        `inclusion`, the share of the draws that have it (method "sets").

        Of "ranks", one row a gene (`gene`, `symbol`), `level_start`, `level_abrupt`, `level_unsteered` and
        `level_steered`, means over cells of 1 for the highest rank and 0 for genes that are not read, and
        whether it was `held`. `mt.get.steer_genes` has the largest first.
    `trace`
        Of "sets" and "ranks", a row a step: `chain`, `step` (0 is the start), whether the step's proposal was
        `accepted`; of sets `log_target` and `size`; of ranks `cell`, `steered` (False for the chain that is
        not led), `log_likelihood` in nats a gene and `distance`.
    `cells`
        Of "ranks", a row a cell: `log_likelihood` (nats a gene) and `distance` of each cell, with `_start`,
        `_abrupt`, `_unsteered`, `_steered` (the latter two means over the kept draws); `acceptance` of
        proposals, and the share that `moved` the chain; `rhat` and `effective_size` of the log target over
        the steered chains; whether the edit `took_effect`.

    and for "ranks" also

    `.layers["steer_rank"]`
        Ranks of the steered cells, a draw: the last state of the first chain; nothing for the other cells.
    `.layers["steer_level"]`
        Mean over the kept draws of each gene's level: 1 for the highest rank, falling evenly to 0 for genes
        that the model does not read.

    Raises
    ------
    KeyError
        If the cells are not rank-encoded, or prompts, a gene or a column are not there.
    ValueError
        If a setting is unknown, no gene takes effect, or the cells cannot be divided.

    Notes
    -----
    Metropolis-Hastings draws with probability proportional to exp((w log p(x) - strength d(x)) / temperature), where
    log p is the model's
    log-likelihood of the cell's genes in their order, d the distance to the target, and w is 1 for ranks and
    `likelihood_weight` for sets (for these
    the mean over cells of what the edit changes). A proposal is accepted with the ratio of the target times that of the
    probabilities of the way back and of the way there, both of which are known, so that the draws are exact in the
    long run; R-hat and effective
    sizes (rank-normalised, Vehtari et al. 2021) say whether they have come that far. It is the autoregressive
    counterpart of the sampler of
    CellxPert (arXiv 2605.00930), which draws masked expression bins; its target, steps, blocks and number of anchors
    are not known to us, so ours
    are choices. Our distance for "embedding" is Euclidean, to the nearest anchor, in units of the mean distance of the
    reference's own
    cells from theirs.

    Edits alone take a cell where no cell is. "ranks" says how far: the log-likelihood of the edited cell beside that
    of the cell as it was
    and of steered ones. "unsteered" is the null: a chain for each cell under the same edit, but with `strength` 0.

    At temperature 1 draws are as likely as the model's own cells usually are. If it is not sure of itself, as after little
    training, that is less likely than a real cell with an edit: lower the temperature, or compare with "unsteered".

    A set's estimate is of donors (or cells) that it was not searched with, with its interval over these (jackknife, t
    test, Benjamini and
    Hochberg over the sets found). Beside it are random sets of its size, and the best genes by themselves put
    together. A cell in which an edit
    changes nothing that the model reads is moved by exactly 0 and counts; `took_effect` is the share of the others.
    That a set moves what the model reads is no proof that it would move a cell.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20, donor_key="donor_id")
    >>> mt.tl.steer(adata, model, method="greedy", n_candidates=5, max_size=2, n_cells=6, n_null=2)
    >>> mt.get.table(adata, "steer")["size"].tolist()
    [1, 2, 1, 2]
    """
    _check(locals())
    given, (adata, kept) = adata, known_cells(adata, donor_key)
    use, reference = (
        mask if mask is None else get_mask(given, mask, name)[kept]
        for name, mask in (("use", use), ("reference", reference))
    )
    steered = get_steered(
        adata,
        model,
        readout=readout,
        use=use,
        reference=reference,
        n_cells=n_cells,
        n_anchors=n_anchors,
        key=key,
        donor_key=donor_key,
        rng=rng,
    )
    token = adata.var[_keys.TOKEN_ID].to_numpy().astype(np.int64)
    columns = _columns(adata, token, steered, model, genes, method, n_candidates)
    strength = STRENGTH[readout] if strength is None else float(strength)
    chosen = token[columns]
    params = {
        "method": method,
        "readout": readout,
        "unit": steered.unit,
        "time_read_as": steered.table.attrs.get("time_read_as", ""),
        "genes": adata.var_names[columns].tolist(),
        "mode": mode,
        "k": k,
        "n_cells": len(steered.rows),
        "units": unit_name(steered.table),
        "n_anchors": steered.n_anchors,
        "strength": strength,
        "temperature": float(temperature),
        "n_steps": n_steps,
        "n_chains": n_chains,
        "burn_in": float(burn_in),
        "seed": rng,
    }
    result = given
    name = key_added or _keys.STEER
    if method == "ranks":
        own = np.zeros(model.vocab.size, dtype=bool)
        own[token[token >= 0]] = True
        found = sample_ranks(
            steered,
            model,
            chosen,
            np.flatnonzero(own),
            mode=mode,
            k=k,
            n_steps=n_steps,
            n_chains=n_chains,
            burn_in=burn_in,
            proposal=proposal,
            block_size=block_size,
            temperature=temperature,
            proposal_temperature=proposal_temperature,
            strength=strength,
            seed=rng,
        )
        column = _column_of_token(token, model)
        table = found.genes[column[found.genes["token"]] >= 0].reset_index(drop=True)
        at = column[table.pop("token").to_numpy()]
        table.insert(0, "gene", adata.var_names[at].to_numpy(dtype=object))
        table.insert(1, "symbol", symbols(adata)[at])
        table["held"] = np.isin(at, columns)
        table = table[table.filter(like="level_").max(axis=1) > 0].reset_index(drop=True)
        result.layers[f"{name}_rank"] = _rank_layer(found.last, kept[steered.rows], column, given.shape)
        result.layers[f"{name}_level"] = _level_layer(found.level, kept[steered.rows], column, given.shape)
        params |= {"proposal": proposal, "block_size": block_size}
        params |= {"proposal_temperature": float(proposal_temperature)}
        tables = {"effects": found.effects, "genes": table, "trace": found.trace, "cells": found.cells}
    else:
        found = search_sets(
            Edits(steered, model, chosen, mode, k),
            adata.var_names[columns].to_numpy(dtype=object),
            symbols(adata)[columns],
            method=method,
            max_size=max_size,
            width=beam_width,
            n_steps=n_steps,
            n_chains=n_chains,
            burn_in=burn_in,
            temperature=temperature,
            strength=strength,
            likelihood_weight=likelihood_weight,
            held_out=held_out,
            n_null=n_null,
            seed=rng,
        )
        params |= {"max_size": max_size, "beam_width": beam_width, "held_out": float(held_out)}
        params |= {"n_null": n_null, "likelihood_weight": float(likelihood_weight), **found.params}
        tables = {"effects": found.effects, "genes": found.genes}
        if found.trace is not None:
            tables["trace"] = found.trace
    write_result(result, _keys.STEER, {**model.params, **params}, key_added=name, **tables)
    _warn_of_chains(tables["cells"]["rhat"].dropna().median() if method == "ranks" else params["rhat"])


def _warn_of_chains(rhat: float) -> None:
    """Chains that differ have not yet forgotten where they began."""
    if rhat > _RHAT:
        warnings.warn(
            f"The chains have not converged (R-hat {rhat:.2f}, {_RHAT} at most is asked for): what they show depends on where they "
            "began. Take more steps (n_steps).",
            UserWarning,
            stacklevel=3,
        )


def _check(settings: dict) -> None:
    """Raise at the first setting that makes no sense."""
    for name, known in {"method": METHODS, "mode": MODES, "proposal": PROPOSALS}.items():
        if settings[name] not in known:
            raise ValueError(f"There is no {name} {settings[name]!r}; choose from {', '.join(known)}.")
    for name, least in {
        "max_size": 1,
        "beam_width": 1,
        "n_chains": 1,
        "n_steps": 0,
        "n_null": 0,
        "n_candidates": 1,
    }.items():
        if settings[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {settings[name]}.")
    if not 0 <= settings["burn_in"] < 1:
        raise ValueError(f"burn_in must be at least 0 and below 1, got {settings['burn_in']}.")
    if not settings["temperature"] > 0 or not settings["proposal_temperature"] > 0:
        raise ValueError("temperature and proposal_temperature must be above 0.")
    strength = settings["strength"]
    if strength is not None and not strength > 0:
        raise ValueError(
            f"strength must be above 0, got {strength}. The chains that are not led come with the result."
        )


def _columns(adata, token, steered, model, genes, method, n_candidates) -> np.ndarray:
    """Columns of the candidates, or of the genes that are held."""
    if genes is None and method == "ranks":
        return np.zeros(0, dtype=int)
    column = _column_of_token(token, model)
    if genes is None:
        at = steered.whole.positions
        is_read = (at > 0) & (at < model.cell_length - 1)
        times = np.bincount(steered.whole.tokens[is_read], minlength=model.vocab.size)
        times[column < 0] = 0
        most = np.argsort(-times, kind="stable")[:n_candidates]
        return column[most[times[most] > 0]]
    if isinstance(genes, str):
        genes = [genes]
    found = find_genes(adata, genes) if len(genes) else np.zeros(0, dtype=int)
    if (lost := token[found] < 0).any():
        raise ValueError(
            f"The model's vocabulary lacks the gene {np.asarray(genes)[lost][0]!r}: it cannot read it."
        )
    found = column[token[found]]
    if len(np.unique(found)) < len(found):
        raise ValueError("A gene is given twice.")
    if not len(found) and method != "ranks":
        raise ValueError("There is no gene to edit.")
    return found


def _column_of_token(token: np.ndarray, model: MaxTokiModel) -> np.ndarray:
    """First column of each token, -1 for none."""
    column = np.full(model.vocab.size, -1)
    has = np.flatnonzero(token >= 0)[::-1]
    column[token[has]] = has
    return column


def _rank_layer(last: np.ndarray, rows: np.ndarray, column: np.ndarray, shape) -> sp.csr_matrix:
    """Ranks of some cells."""
    row, at = np.nonzero(last >= 0)
    values = (at + 1).astype(np.uint16)
    return sp.csr_matrix((values, (rows[row], column[last[row, at]])), shape=shape)


def _level_layer(level: sp.csr_matrix, rows: np.ndarray, column: np.ndarray, shape) -> sp.csr_matrix:
    """Levels of some cells, in the AnnData's columns."""
    level = level.tocoo()
    known = column[level.col] >= 0
    return sp.csr_matrix((level.data[known], (rows[level.row[known]], column[level.col[known]])), shape=shape)
