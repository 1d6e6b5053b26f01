"""What the attention heads look at: sums over many cells or prompts, with no attention matrix kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys
from .._features import symbols
from .._outputs import check_output, new_output
from ..models.attention import STATISTICS, stream_attention
from ..models.model import MaxTokiModel
from ..models.prompts import write_prompts
from ..models.sequences import Sequences
from ..pp._columns import find_donors
from ..pp._design import get_groups, get_labels, known_cells
from ..pp._ranked_counts import counts_or_none
from ..results.head_sums import Shape, Sums, checksum_of
from ..results.store import write_result
from ..stats.expression import per_ten_thousand
from ._cells import count_truncated, get_sequences
from ._gene_sets import TRANSCRIPTION_FACTORS, find_members
from ._lapse_prompts import lapse_prompts
from ._tokens import (
    could_attend,
    evenly_given,
    evenly_received,
    length_edges,
    n_position_bins,
    position_bins,
    token_parts,
)

BY = "mt.tl.attention"
LARGEST = 1 << 28  # bytes in .uns: every copy of the AnnData has them, and h5ad reads them all
_BUFFER = 1 << 27  # bytes of sums at a time
_TOKENS = 1 << 22  # tokens at a time
_BLOCKS = 20  # of cells, where no donor is known


def attention(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    key: str | None = None,
    gene_sets: Mapping[str, Sequence[str] | str] | str | None = TRANSCRIPTION_FACTORS,
    groupby: str | None = None,
    donor_key: str | None = None,
    n_cells: int = 20,
    n_examples: int = 3,
    path: str | Path | None = None,
    overwrite: bool = False,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Sum up what every attention head looks at, in single cells or in prompts.

    Parameters
    ----------
    adata
        Rank-encoded cells.
    model
        Any model for single cells, one with temporal training for prompts.
    key
        Key in `.uns` of prompts that ask for a lapse (`mt.pp.sample_prompts`); `None` to read single cells.
    gene_sets
        Gene sets whose share of the attention is kept for each sequence: names and their genes (symbols,
        Ensembl ids or `.var_names`); "TF" for the human transcription factors of Lambert et al. (Cell 2018).
        The sums of all genes are kept in any case, so `mt.tl.head_enrichment` can ask for other sets later.
    groupby
        Column of `.obs` with the cell type. For prompts, by default their own group.
    donor_key
        Column of `.obs` with the donor, guessed from its name. For prompts, by default that of the query cell
        as the prompts have it.
    n_cells
        Cells of each group and donor, at most (of each group, where no donor is known). Which ones depends on
        `rng` and their names alone, not on the order or number of the other cells. All prompts are read.
    n_examples
        Sequences of which what each token receives is kept, for `mt.pl.prompt_attention`.
    path
        `.zarr` store to write the sums of the genes to. Needed when they take more than 256 MB; `.uns` then
        has the path and a checksum.
    overwrite
        Replace sums that this function has written to `path`. Anything else that is there stays in any case.
    rng
        Seed.
    key_added
        Key in `.uns`, by default "attention", or "prompt_attention" for prompts.

    Returns
    -------
    `None`. Writes `.uns["attention"]`; see `mt.get.attention` and `mt.get.attention_genes`. A unit is
    a group and donor (or a block of cells, where no donor is known).

    `units`, `sequences`
        Tables of the units (`group`, `donor`, `n_sequences`), and of the cells or prompts that were read
        (`name`, `number`, and their `unit`).
    `genes`
        Table of the genes among their tokens: `gene`, `ensembl_id`, `symbol`; in what share of the cells it
        is (`detection`), its `mean_rank` there, its mean `expression`, and `n_tokens`. Expression is of the
        counts that were ranked, or where these are gone the vocabulary's medians (`params["expression"]`).
    `mass`, `expected`
        float32, units x genes x heads: attention that a gene received, and that tokens at its position
        receive on average; `n_tokens` and `could_attend` (units x genes) count its tokens and those that see
        them.
    `given`, `given_expected`, `given_evenly`
        float32, sequences x 2 x heads x groups of tokens (the last without heads): share of the attention
        that all tokens give (0) and that the last token gives (1) to each part of the sequence and each gene
        set; the same if tokens at the same distance got equal parts; and of a head that attends to all alike.
    `statistics`
        float32, sequences x heads x (entropy in nats, and over that of an even spread; distance in tokens,
        and over that of an even spread; share on the first token).
    `tokens`, `received`, `last`
        Table of the tokens of the examples (`example`, `name`, `position`, `token`, `gene` as a row of
        `genes`, `segment`, and `could_attend`, how many tokens see it), what each receives from all, and from
        the last token, by head.

    Raises
    ------
    ValueError
        If prompts are asked of a model without temporal training, a gene set has fewer than three genes, or
        the result is large and there is no `path`, or something is there already.
    KeyError
        If the prompts or a column are missing.

    Notes
    -----
    Attention is causal: early tokens can be seen by more, so that high ranked genes receive more from any
    head. The expectation beside each sum is the mean over the sampled cells at the same rank, in the same
    part of the sequence, for sequences of like lengths (classes of 30 or more, where there are so many;
    within a class, along a line in what an even spread would give). For the parts of a sequence it is taken
    within each sequence: what a head gives to tokens at a distance is shared out evenly among them, so that a
    head that only looks nearby favours no part. Distances are exact up to 8 and then in steps of a quarter;
    the first token, where heads rest, is apart.

    What a head attends to says where it reads from, not what it does with it.

    A sequence takes 2 to 3 times as long as a plain forward pass, and memory for a block of the attention
    instead of all of it: a cell of 4,096 tokens takes 0.4 GB beside the weights and a minute of one CPU core
    with the 217M shape.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, groupby="cell_type", donor_key="donor_id", n_cells=1)
    >>> mt.get.attention(adata)[["layer", "head"]].drop_duplicates().shape
    (16, 2)
    """
    if path is not None:
        _check_path(path := Path(path), overwrite=overwrite)
    if key is None:
        donor_key = find_donors(adata.obs, donor_key)
    cells, _ = known_cells(adata, groupby, donor_key)
    if key is None:
        read = read_cells(cells, get_sequences(cells, model), groupby, donor_key, n_cells, rng)
    else:
        read = _read_prompts(cells, model, key, groupby, donor_key)
    table, units, sequences = _by_unit(read)
    genes, gene_of_token = _genes(cells, model, read.cells, sequences)
    sets = {} if gene_sets is None else gene_sets
    sets = {sets: sets} if isinstance(sets, str) else dict(sets)
    member = [find_members(genes, wanted, name) for name, wanted in sets.items()]
    membership = np.stack(member, axis=1) if member else np.zeros((len(genes), 0), dtype=bool)

    config = model.hf.config
    n_heads = config.num_hidden_layers * config.num_attention_heads
    size = 8 * len(units) * len(genes) * (n_heads + 1)
    if size > LARGEST and path is None:
        raise ValueError(
            f"The sums of {len(genes):,} genes, {n_heads} heads and {len(units):,} groups and donors take {size / 1e9:.1f} GB, "
            f"more than the {LARGEST / 1e9:.2f} GB that go to .uns. Say where to write them, path='attention.zarr', or do "
            "without groupby."
        )
    shape = Shape(len(units), len(genes), n_heads)
    with nullcontext() if path is None else new_output(path, by=BY, overwrite=overwrite) as temporary:
        sums = Sums.make(shape, temporary)
        found = _stream(
            model,
            sequences,
            table,
            gene_of_token,
            membership,
            sums,
            shape,
            prompts=key is not None,
            n_examples=n_examples,
        )
        checksum = "" if path is None else checksum_of(sums)
    genes["n_tokens"] = np.sum(found.pop("n_by_gene"), axis=0).astype(np.int64)
    genes["detection"] = genes["n_tokens"] / found.pop("n_cells")
    genes["mean_rank"] = found.pop("rank_sum") / np.maximum(genes["n_tokens"], 1)

    params = {
        "prompts": key,
        "gene_sets": list(sets),
        "segments": found.pop("segments"),
        "statistics": list(STATISTICS),
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "groupby": read.groupby,
        "donor_key": read.donor_key,
        "donors_known": read.donors_known,
        "expression": genes.attrs["expression"],
        "n_cells": n_cells,
        "n_sequences": len(table),
        "n_units": len(units),
        "n_truncated": count_truncated(cells[read.cells], model),
        "n_clipped": read.n_clipped,
        "time_read_as": read.time_read_as,
        "path": None if path is None else str(path),
        "sha256": checksum,
        "seed": rng,
        "unit": "share of the attention",
    }
    write_result(
        adata,
        _keys.ATTENTION if key is None else _keys.PROMPT_ATTENTION,
        {**model.params, **params},
        key_added=key_added,
        units=units,
        sequences=table,
        genes=genes,
        membership=membership.astype(np.uint8),
        **found,
        **(sums._asdict() if path is None else {}),
    )


def _check_path(path: Path, *, overwrite: bool) -> None:
    """Before anything is read."""
    if path.suffix != ".zarr":
        raise ValueError(f"path={str(path)!r} must end with .zarr.")
    check_output(path, by=BY, overwrite=overwrite)


class _Read(NamedTuple):
    """What is read."""

    table: pd.DataFrame
    """One row a sequence: `name`, `group`, `donor` or block, and for prompts the donors of their context."""
    sequences: Sequences
    cells: np.ndarray
    """Rows of all cells that take part."""
    groupby: str
    donor_key: str
    donors_known: bool
    n_clipped: int = 0
    time_read_as: str = ""


def read_cells(adata, cells: Sequences, groupby, donor_key, n_cells: int, seed: int) -> _Read:
    """Cells drawn by group and donor, the same whatever else there is."""
    group, groups = get_groups(adata, groupby)
    known = donor_key is not None
    donor = get_labels(adata, donor_key).astype(str) if known else np.full(adata.n_obs, "")
    used = np.flatnonzero(group >= 0)
    names = adata.obs_names.to_numpy(dtype=object)
    # A number for each name: the draw does not depend on what else there is.
    drawn = pd.util.hash_array(names[used].astype(object), hash_key=f"{seed % 10**16:016d}", categorize=False)
    order = used[np.lexsort((names[used].astype(str), drawn, donor[used], group[used]))]
    unit = pd.MultiIndex.from_arrays([group[order], donor[order]])
    place = pd.Series(0, index=range(len(order))).groupby(unit.factorize()[0]).cumcount().to_numpy()
    order, place = order[place < n_cells], place[place < n_cells]
    if not len(order):
        raise ValueError("There is no cell with a group and a donor.")
    table = pd.DataFrame({"name": names[order], "group": np.array(groups, dtype=object)[group[order]]})
    table["donor"] = donor[order] if known else [f"block {i % _BLOCKS:02d}" for i in place]
    table["number"] = np.arange(len(order))
    return _Read(table, cells.take(order), order, groupby or "", donor_key or "", known)


def _read_prompts(adata, model, key: str, groupby, donor_key) -> _Read:
    prompts, rows, params = lapse_prompts(adata, model, key)
    written = write_prompts(
        rows, get_sequences(adata, model), model.vocab, max_length=model.max_length, answer=False
    )
    table = pd.DataFrame({"name": prompts["query"].to_numpy(dtype=object)})
    group = prompts["group"].to_numpy() if groupby is None else get_labels(adata, groupby)[rows.query]
    table["group"] = group.astype(str).astype(object)
    known = donor_key is not None or "donor" in prompts
    if donor_key is not None:
        donor = np.append(get_labels(adata, donor_key), "")
        table["donor"] = donor[rows.query]
        for i, column in enumerate(rows.context.T):
            table[f"donor_{i}"] = donor[column]
    elif known:
        for name in ["donor", *(c for c in prompts if c.startswith("donor_"))]:
            table[name] = prompts[name].astype(str).to_numpy(dtype=object)
    else:
        # The same query cell is always in the same block.
        drawn = pd.util.hash_array(table["name"].to_numpy(dtype=object), categorize=False)
        table["donor"] = [f"block {i:02d}" for i in drawn % _BLOCKS]
    table["number"] = np.arange(len(table))
    used = np.unique(np.concatenate([rows.context.ravel(), rows.query]))
    return _Read(
        table,
        written.sequences,
        used[used >= 0],
        groupby or ", ".join(np.atleast_1d(params["groupby"]).tolist()),
        donor_key or str(params["donor_key"]),
        known,
        int((written.n_clipped > 0).sum()),
        prompts.attrs["time_read_as"],
    )


def _by_unit(read: _Read) -> tuple[pd.DataFrame, pd.DataFrame, Sequences]:
    """Sequences in the order of their units, and the units."""
    order = np.lexsort((read.table["number"], read.table["donor"], read.table["group"]))
    table = read.table.iloc[order].reset_index(drop=True)
    keys = table[["group", "donor"]]
    table["unit"] = keys.ne(keys.shift()).any(axis=1).cumsum() - 1
    sequences = read.sequences.take(order)
    table["n_tokens"] = sequences.lengths
    units = table.groupby("unit").agg(
        group=("group", "first"), donor=("donor", "first"), n_sequences=("name", "size")
    )
    return table, units.reset_index(drop=True), sequences


def _genes(
    adata: AnnData, model: MaxTokiModel, used: np.ndarray, sequences: Sequences
) -> tuple[pd.DataFrame, np.ndarray]:
    """Genes among the tokens, with their mean expression in the cells; and the gene of each token, -1 for none."""
    token = adata.var[_keys.TOKEN_ID].to_numpy()
    seen = np.zeros(model.vocab.size, dtype=bool)
    seen[sequences.tokens] = True
    column = np.flatnonzero((token >= 0) & seen[token])
    column = column[np.unique(token[column], return_index=True)[1]]
    gene_of_token = np.full(model.vocab.size, -1)
    gene_of_token[token[column]] = np.arange(len(column))
    genes = pd.DataFrame(
        {
            "gene": adata.var_names.to_numpy(dtype=object)[column],
            "ensembl_id": model.vocab.gene_of_token[token[column]],
            "symbol": symbols(adata)[column].astype(object),
        }
    )
    counts = counts_or_none(adata, used, instead="Expression is the median of the vocabulary")
    if counts is None:
        genes["expression"] = model.vocab.median_of_token[token[column]]
        genes.attrs["expression"] = "median of the vocabulary"
        return genes, gene_of_token
    genes["expression"] = np.asarray(per_ten_thousand(counts, np.float64).mean(axis=0)).ravel()[column]
    genes.attrs["expression"] = "mean counts per 10,000 of the cells"
    return genes, gene_of_token


def _chunks(table: pd.DataFrame, sequences: Sequences, shape: Shape) -> list[tuple[int, int]]:
    """Stretches of units whose sums and tokens fit in memory."""
    tokens = np.bincount(table["unit"], sequences.lengths, shape.units)
    most = max(_BUFFER // max(4 * shape.genes * shape.heads, 1), 1)
    chunks, first = [], 0
    for unit in range(shape.units):
        full = tokens[first : unit + 1].sum() > _TOKENS or unit - first >= most
        if full and unit > first:
            chunks.append((first, unit))
            first = unit
    return [*chunks, (first, shape.units)]


def _stream(
    model,
    sequences,
    table,
    gene_of_token,
    membership,
    sums: Sums,
    shape: Shape,
    *,
    prompts: bool,
    n_examples,
) -> dict:
    """Fill the sums of the genes; return everything else that is kept."""
    edges = length_edges(sequences.lengths)
    names = token_parts(sequences, model.vocab, prompts=prompts).names
    groups_of_gene = np.vstack([membership, np.zeros((1, membership.shape[1]), dtype=bool)])
    n, n_groups = len(table), len(names) + membership.shape[1]
    given, given_expected = (np.zeros((n, 2, shape.heads, n_groups), dtype=np.float32) for _ in range(2))
    given_evenly = np.zeros((n, 2, n_groups), dtype=np.float32)
    statistics = np.zeros((n, shape.heads, len(STATISTICS)), dtype=np.float32)
    rank_sum, n_cells = np.zeros(shape.genes), 0
    n_bins = n_position_bins(names, edges)
    position = _Positions(n_bins, shape.heads)
    places = []
    examples: dict[int, tuple] = {}
    unit_of, number = table["unit"].to_numpy(), table["number"].to_numpy()
    bounds = np.searchsorted(unit_of, np.arange(shape.units + 1))
    for first, stop in _chunks(table, sequences, shape):
        rows = np.arange(bounds[first], bounds[stop])
        part = sequences.take(rows)
        parts = token_parts(part, model.vocab, prompts=prompts)
        gene = gene_of_token[part.tokens]
        segment = parts.segment[:, None] == np.arange(len(names))
        groups = np.hstack([segment, groups_of_gene[gene]])
        given_evenly[rows] = evenly_given(part, groups)
        classes = position_bins(part, parts._replace(names=names), edges)
        is_gene = gene >= 0
        unit_gene = (np.repeat(unit_of[rows], part.lengths) - first) * shape.genes + gene
        size = ((stop - first) * shape.genes, shape.heads)
        even = evenly_received(part)
        mass = np.zeros(size, dtype=np.float32)
        for batch, found in stream_attention(model, part, groups):
            own = rows[batch]
            given[own], given_expected[own] = found.given, found.expected
            statistics[own] = found.statistics
            _add(mass, unit_gene[found.at], found.received, is_gene[found.at])
            position.add(classes[found.at], even[found.at], found.received, is_gene[found.at])
            row_of = np.searchsorted(part.indptr, found.at, side="right") - 1
            for row in batch[number[own] < n_examples]:
                mine = row_of == row
                examples[int(number[rows[row]])] = (rows[row], found.received[mine], found.last[mine])
        kept = slice(first, stop)
        sums.mass[kept] = mass.reshape(stop - first, shape.genes, shape.heads)
        place = (unit_gene[is_gene], classes[is_gene])
        seen, by_even = (
            sp.csr_matrix((values, place), shape=(size[0], n_bins))
            for values in (np.ones(is_gene.sum()), even[is_gene])
        )
        places.append((first, stop, seen, by_even))
        sums.n_tokens[kept] = np.asarray(seen.sum(axis=1)).reshape(stop - first, -1)
        sums.could_attend[kept] = np.bincount(
            unit_gene[is_gene], could_attend(part)[is_gene], minlength=size[0]
        ).reshape(stop - first, -1)
        rank_sum += np.bincount(gene[is_gene], parts.rank[is_gene], minlength=shape.genes)
        n_cells += int((part.tokens == model.vocab["<bos>"]).sum())
    level, slope = position.fit()
    for first, stop, seen, by_even in places:
        expected = np.maximum(seen @ level + by_even @ slope, 0)
        sums.expected[first:stop] = expected.reshape(stop - first, shape.genes, shape.heads)
    return {
        "segments": names,
        "given": given,
        "given_expected": given_expected,
        "given_evenly": given_evenly,
        "statistics": statistics,
        "n_by_gene": sums.n_tokens[:],
        "rank_sum": rank_sum,
        "n_cells": n_cells,
        **_example_tables(model, sequences, table, gene_of_token, examples, names, prompts=prompts),
    }


class _Positions:
    """Mean attention that tokens of a class of positions receive: a line in what an even spread would give each.

    Lengths differ within a class; a head that attends to all tokens alike follows that line exactly.
    """

    def __init__(self, n_bins: int, n_heads: int) -> None:
        self.moments = np.zeros((n_bins, 3))  # tokens, even spread, its square
        self.mass, self.product = np.zeros((n_bins, n_heads)), np.zeros((n_bins, n_heads))

    def add(self, bins: np.ndarray, even: np.ndarray, received: np.ndarray, used: np.ndarray) -> None:
        received = received.astype(np.float64)
        _add(self.moments, bins, np.stack([np.ones_like(even), even, even**2], axis=1), used)
        _add(self.mass, bins, received, used)
        _add(self.product, bins, received * even[:, None], used)

    def fit(self) -> tuple[np.ndarray, np.ndarray]:
        """Level and slope, bins x heads."""
        n, even, square = (
            np.maximum(column, tiny)[:, None] for column, tiny in zip(self.moments.T, (1, 0, 0), strict=True)
        )
        spread = square - even**2 / n
        varies = spread > 1e-6 * np.maximum(square, 1e-12)
        slope = np.where(varies, (self.product - self.mass * even / n) / np.where(varies, spread, 1), 0)
        return self.mass / n - slope * even / n, slope


def _add(sums: np.ndarray, row: np.ndarray, values: np.ndarray, used: np.ndarray) -> None:
    """Add the values of tokens to their rows."""
    rows, place = np.unique(row[used], return_inverse=True)
    gather = sp.csr_matrix(
        (np.ones(len(place), dtype=np.float32), (place, np.arange(len(place)))), shape=(len(rows), len(place))
    )
    sums[rows] += gather @ values[used]


def _example_tables(model, sequences, table, gene_of_token, examples: dict, names, *, prompts: bool) -> dict:
    """Tokens of the examples, and what they receive."""
    texts = np.full(model.vocab.size, "", dtype=object)
    texts[list(model.vocab.tokens.values())] = [str(token) for token in model.vocab.tokens]
    frames, received, last = [], [], []
    for number in sorted(examples):
        row, mass, by_last = examples[number]
        one = sequences.take(np.array([row]))
        parts = token_parts(one, model.vocab, prompts=prompts)
        frames.append(
            pd.DataFrame(
                {
                    "example": number,
                    "name": table["name"].iloc[row],
                    "position": np.arange(len(one.tokens)),
                    "token": texts[one.tokens],
                    "gene": gene_of_token[one.tokens],
                    "segment": np.array(parts.names, dtype=object)[parts.segment],
                    "could_attend": could_attend(one),
                }
            )
        )
        received.append(mass)
        last.append(by_last)
    if not frames:
        return {}
    return {
        "tokens": pd.concat(frames, ignore_index=True),
        "received": np.concatenate(received),
        "last": np.concatenate(last),
    }
