"""One cell as a model reads it: its ranked genes, edits of them, and what is read from both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._features import symbols
from ..models.likelihood import token_log_likelihoods
from ..models.model import MaxTokiModel
from ..models.prompts import Prompts, write_prompts
from ..models.sequences import Sequences
from ..models.timelapse import read_lapses
from ..pp._design import get_groups, known_cells
from ..tl._cells import get_sequences

LARGEST_CONTEXTS = 30  # prompts to choose from


def n_read(model: MaxTokiModel) -> int:
    """Genes of a cell that a model reads."""
    return model.cell_length - 2


def ranked_genes(adata: AnnData, cell: str) -> pd.DataFrame:
    """All ranked genes of a cell, the highest first.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    cell
        Name of the cell.

    Returns
    -------
    `gene`, `symbol`, `token`; `edited`, whether it was moved by hand. Row i has rank i + 1.
    """
    row = adata.obs_names.get_loc(cell)
    ranks = sp.csr_matrix(adata.layers[_keys.RANK][[row]])
    columns = ranks.indices[np.argsort(ranks.data, kind="stable")]
    return pd.DataFrame(
        {
            "gene": adata.var_names.to_numpy(dtype=object)[columns],
            "symbol": symbols(adata)[columns].astype(str),
            "token": adata.var[_keys.TOKEN_ID].to_numpy()[columns].astype(np.int32),
            "edited": False,
        }
    )


def move_gene(genes: pd.DataFrame, token: int, place: int) -> pd.DataFrame:
    """Give a gene another rank, from 1; those between its old and new one move by one place."""
    old = int(np.flatnonzero(genes["token"] == token)[0])
    new = int(np.clip(place, 1, len(genes))) - 1
    if new == old:
        return genes
    order = np.insert(np.delete(np.arange(len(genes)), old), new, old)
    moved = genes.iloc[order].reset_index(drop=True)
    moved.loc[new, "edited"] = True
    return moved


def delete_gene(genes: pd.DataFrame, token: int) -> pd.DataFrame:
    """Take a gene out; those below it move up by one place."""
    if len(genes) <= 2:
        raise ValueError("A cell keeps at least two genes.")
    return genes[genes["token"] != token].reset_index(drop=True)


def places_to_try(n: int) -> list[int]:
    """Ranks at which to try a gene: 1, 2, 5, 10 ... and the last."""
    steps = [step * 10**power for power in range(5) for step in (1, 2, 5)]
    return [step for step in steps if step < n] + [n]


def cell_prompts(adata: AnnData, cell: str, key: str) -> pd.DataFrame:
    """Prompts that can be asked with a cell as their query.

    Parameters
    ----------
    adata
        Cells with prompts.
    cell
        Name of the cell.
    key
        Key in `.uns` of the prompts.

    Returns
    -------
    Rows of the prompts, with their number as index. First those whose query the cell is (`own`), then those
    of the same group, with the cell in the place of their query and `lapse` from the context to this cell.
    None, if no prompts were drawn, or they ask for cells.
    """
    stored = adata.uns.get(key)
    if stored is None or stored["params"]["task"] != "timelapse" or stored["params"]["queries_elsewhere"]:
        return pd.DataFrame(columns=["query", "lapse", "own"])
    params, table = stored["params"], stored["prompts"].reset_index(drop=True)
    context = table[[name for name in table if name.startswith("context_")]]
    own = (table["query"] == cell).to_numpy()
    code, names = get_groups(adata, [str(name) for name in params["groupby"]])
    row = adata.obs_names.get_loc(cell)
    group = names[code[row]] if code[row] >= 0 else None
    alike = (table["group"] == group).to_numpy() & ~own & ~(context == cell).any(axis=1).to_numpy()
    rows = np.concatenate([np.flatnonzero(own), np.flatnonzero(alike)])[:LARGEST_CONTEXTS]
    found = table.iloc[rows].assign(own=own[rows], query=cell)
    time = float(adata.obs[str(params["time_key"])].iloc[row])
    found["lapse"] = time - (found["time"] - found["lapse"])
    return found


def context_of(prompt: pd.Series) -> tuple[list[str], np.ndarray]:
    """Names of the context cells of a prompt, and the lapses between them."""
    names = [str(value) for name, value in prompt.items() if str(name).startswith("context_") and value]
    return names, np.array([prompt[f"lapse_{i}"] for i in range(len(names) - 1)], dtype=np.int64)


def read_time(
    adata: AnnData, model: MaxTokiModel, prompt: pd.Series, cells: Sequence[np.ndarray]
) -> np.ndarray:
    """Predicted lapse to each of some versions of a query cell, in one call: what they share is computed once.

    Parameters
    ----------
    adata
        Cells of the context.
    model
        Model with temporal training.
    prompt
        Row of `cell_prompts`.
    cells
        Tokens of the genes of each version, the highest ranked first.

    Returns
    -------
    float32, in the unit of the time head.
    """
    context, steps = context_of(prompt)
    n = len(cells)
    prompts = Prompts(
        np.tile(np.arange(len(context)), (n, 1)),
        np.arange(n),
        np.tile(steps, (n, 1)),
        np.zeros(n, np.int64),
        np.ones(n, bool),
    )
    written = write_prompts(
        prompts,
        get_sequences(adata[context], model),
        model.vocab,
        max_length=model.max_length,
        answer=False,
        queries=_sequences(cells, model),
    )
    return read_lapses(model, written.sequences)[0]


def read_likelihood(model: MaxTokiModel, cells: Sequence[np.ndarray]) -> np.ndarray:
    """Mean log-probability of the genes of each version of a cell, in nats a gene, as `mt.tl.log_likelihood` has it."""
    sequences = _sequences(cells, model)
    found = token_log_likelihoods(model, sequences)
    found[sequences.indptr[1:] - 1] = np.nan
    return np.add.reduceat(np.nan_to_num(found), sequences.indptr[:-1]) / (sequences.lengths - 2)


def _sequences(cells: Sequence[np.ndarray], model: MaxTokiModel) -> Sequences:
    ends = np.array([model.vocab["<bos>"]]), np.array([model.vocab["<eos>"]])
    parts = [np.concatenate([ends[0], tokens[: n_read(model)], ends[1]]) for tokens in cells]
    return Sequences.of(parts)


def read_versions(
    adata: AnnData,
    model: MaxTokiModel,
    prompt: pd.Series | None,
    original: pd.DataFrame,
    now: pd.DataFrame,
    token: int | None,
) -> tuple[float, float, pd.DataFrame]:
    """Reading of a cell, of its edited version, and of the latter with one gene at other ranks.

    Parameters
    ----------
    adata, model
        Cells of the context, and the model.
    prompt
        Row of `cell_prompts`; `None` to read the log-likelihood of the cell.
    original, now
        Ranked genes before and after all edits.
    token
        Gene to try at other ranks; `None` for none.

    Returns
    -------
    Reading before, reading now, and `rank` and `reading` of the gene at other ranks.
    """
    places = [] if token is None else places_to_try(min(n_read(model), len(now)))
    versions = [original, now, *(move_gene(now, token, place) for place in places)]
    cells = [version["token"].to_numpy()[: n_read(model)] for version in versions]
    # Versions that are the same to the model are read once: no edit, no difference.
    keys = [cell.tobytes() for cell in cells]
    unique = dict(zip(keys, cells, strict=True))
    values = (
        read_likelihood(model, list(unique.values()))
        if prompt is None
        else read_time(adata, model, prompt, list(unique.values()))
    )
    of_key = dict(zip(unique, values, strict=True))
    before, after, *tried = (float(of_key[key]) for key in keys)
    return before, after, pd.DataFrame({"rank": places, "reading": tried})


def embedding_key(adata: AnnData, basis: str | None) -> str:
    """Key in `.obsm` of a map of the cells."""
    two = [key for key, value in adata.obsm.items() if value.shape[1] == 2]
    wanted = basis or ("X_umap" if "X_umap" in adata.obsm else (two or ["X_umap"])[0])
    if wanted not in adata.obsm or adata.obsm[wanted].shape[1] < 2:
        raise KeyError(
            f"Did not find .obsm[{wanted!r}] with two columns; there are: {', '.join(adata.obsm) or 'none'}. Run "
            'mt.tl.embed(adata, model), sc.pp.neighbors(adata, use_rep="X_maxtoki") and sc.tl.umap(adata), or give basis='
            "another key."
        )
    return wanted


def cell_points(adata: AnnData, basis: str, n_cells: int) -> pd.DataFrame:
    """Places of the cells on the map, of at most `n_cells` drawn at random: `name`, `row`, `x`, `y`."""
    _, rows = known_cells(adata)
    if len(rows) > n_cells:
        rows = np.sort(np.random.default_rng(0).choice(rows, n_cells, replace=False))
    values = np.asarray(adata.obsm[basis])[rows, :2]
    names = adata.obs_names.to_numpy(dtype=object)[rows]
    return pd.DataFrame({"name": names, "row": rows, "x": values[:, 0], "y": values[:, 1]})


def color_columns(adata: AnnData, most: int = 40) -> list[str]:
    """Columns of `.obs` that a map can be coloured by: numbers, and categories of which there are not too many."""
    return [
        name
        for name, column in adata.obs.items()
        if is_number(column) or column.astype(str).nunique() <= most
    ]


def is_number(column: pd.Series) -> bool:
    """Whether a column is coloured along a scale."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
