"""Where in the model and the prompt is what makes two prompts differ? Activation patching."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._names import require_choice
from ..models.layout import Layout
from ..models.model import MaxTokiModel
from ..models.patching import ALIGN, LEVELS, Patched, level_sites, patch_features, patch_states
from ..models.sae import SparseAutoencoder, require_sae
from ..pp._design import known_cells
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result, write_result
from ..stats.donors import donor_ratio, unit_name
from ..stats.fdr import benjamini_hochberg
from ._cells import get_sequences
from ._readings import Readings, draw_partners, get_prompts, get_readings, split_donors
from .ablate_prompt import ABLATIONS, ablated

N_FEATURES = 20  # that are patched


def patch(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    corrupted: str = "mask_query",
    queries: AnnData | None = None,
    key: str | None = None,
    level: str = "residual",
    sae: SparseAutoencoder | None = None,
    align: str = "tokens",
    readout: str | Callable = "timelapse",
    n_prompts: int | None = 100,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Put states of clean prompts into corrupted ones, and see how much of the clean reading comes back.

    Parameters
    ----------
    adata
        Rank-encoded cells with the clean prompts (`mt.pp.sample_prompts`).
    model
        A model that reads prompts.
    corrupted
        What is done to the clean prompts: an ablation of `mt.tl.ablate_prompt`, such as "mask_query" or
        "replace_context"; or the key in `.uns` of other prompts, row by row with the clean ones, such as
        those of `mt.pp.match_queries`.
    queries
        The AnnData with the query cells of `mt.pp.match_queries`, rank-encoded.
    key
        Key in `.uns` of the clean prompts, by default "prompts".
    level
        What is put in: "residual", the stream after so many blocks; "attention" or "mlp", what a block's part
        adds to it; "head", each head by itself; "feature", each of the 20 features of `sae` whose gradient is
        largest on half of the donors, the effects then being those of the other half.
    sae
        Autoencoder of this model, for features.
    align
        "tokens": all tokens of a segment, which must be as many in both prompts; "last": the last token of
        each segment.
    readout
        "timelapse", "likelihood", a gene or a function: see `mt.tl.ablate_heads`.
    n_prompts
        Prompts to read, drawn at random where there are more; `None` for all.
    rng
        Seed of what is drawn.
    key_added
        Key in `.uns`, by default "patch".

    Returns
    -------
    `None`. Writes the table `effects` to `.uns["patch"]`, a row a layer (head, feature) and segment of the
    prompt; effects are shares of what was lost, readings in `params["unit"]`:

    `layer`, `head`, `segment`
        Where: blocks before it ("residual") or block, from 0; head, -1 for none; part of the prompt.
    `feature`
        For "feature": its number.
    `effect`, `effect_low`, `effect_high`
        0: the corrupted reading stays, 1: the clean one comes back; with its 95% interval over donors.
    `null`, `null_low`, `null_high`
        The same with the states of another clean prompt.
    `p_value`, `q_value`
        Two-sided t test of the difference of both (jackknife over donors); corrected for all rows. NaN where
        no prompt's reading changes at all.
    `n_prompts`, `n_units`, `unit`
        Prompts that have the segment, and how many donors (or query cells) their queries are of.

    Raises
    ------
    ValueError
        If clean and corrupted prompts are not of the same segments and tokens, or are all read alike.

    Notes
    -----
    The effect is 0 where the corrupted reading stays and 1 where the clean one comes back: the slope, over
    prompts and through 0, of what comes back on what was lost, so that prompts in which little was lost count
    little and the sign does not matter. Intervals and p values leave out each donor in turn, as those of
    `mt.tl.ablate_prompt` do.

    States of another clean prompt are the null: they bring back what any states would that are not the
    corrupted ones. `p_value` is of the difference to it, `q_value` corrects for all rows (Benjamini and
    Hochberg) but those where no prompt's reading changes at all, such as the context's where the query was
    replaced. The trivial baseline is layer 0 of "residual": to put in the tokens themselves.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=3, context_size=1)
    >>> mt.tl.patch(adata, model, corrupted="mask_query", level="attention")
    >>> mt.get.table(adata, "patch")["layer"].max()
    np.int64(3)
    """
    require_choice("level", level, LEVELS)
    require_choice("align", align, ALIGN)
    if (level == "feature") != (sae is not None):
        raise ValueError('level="feature" needs an autoencoder, sae=..., and the other levels take none.')
    if sae is not None:
        require_sae(sae, model)
        if align != "tokens":
            raise ValueError('Features are patched gene by gene: leave align at "tokens".')
    if not model.vocab.is_temporal:
        raise ValueError(
            f"{model.name!r} has no time tokens and reads no prompts, so there is nothing to patch."
        )
    # In the order of their names: what is drawn does not depend on the file.
    sorted_cells, _ = known_cells(adata)
    table, prompts, cells = get_prompts(sorted_cells, model, readout, key=key, n_prompts=None, rng=rng)
    read_as = table.attrs.get("time_read_as", "")
    if corrupted in ABLATIONS:
        if corrupted == "drop_lapses":
            raise ValueError(
                '"drop_lapses" takes segments out of the prompt: there is nothing to align it with.'
            )
        # As in `mt.tl.ablate_prompt`: each has numbers of its own.
        generator = np.random.default_rng([rng, ABLATIONS.index(corrupted)])
        other, *changed = ablated(corrupted, prompts, cells, model.vocab, 0.25, generator)
    else:
        rows, other_table = _other_prompts(sorted_cells, corrupted, len(table))
        table, prompts = table.iloc[rows], prompts[rows]
        elsewhere = sorted_cells if queries is None else queries
        other = read_prompts(
            other_table, sorted_cells, elsewhere, task="timelapse" if prompts.timelapse.all() else "cell"
        )
        changed = [cells, cells if queries is None else get_sequences(queries, model)]
    if n_prompts is not None and n_prompts < len(table):
        rows = np.sort(np.random.default_rng(rng).permutation(len(table))[:n_prompts])
        table, prompts, other = table.iloc[rows], prompts[rows], other[rows]

    clean = get_readings(sorted_cells, model, readout, table, prompts, cells)
    dirty = get_readings(sorted_cells, model, readout, table, other, *changed)
    both = np.intersect1d(clean.rows, dirty.rows)
    if len(both) < 2:
        raise ValueError(
            f"Only {len(both)} prompts have {readout!r} in both query cells; at least 2 are needed."
        )
    if len(both) < len(table):
        table, prompts, other = table.iloc[both], prompts[both], other[both]
        clean = get_readings(sorted_cells, model, readout, table, prompts, cells)
        dirty = get_readings(sorted_cells, model, readout, table, other, *changed)
    _require_aligned(clean.parts, dirty.parts, align)
    if level == "feature":

        def read_both(rows: np.ndarray):
            return (
                get_readings(sorted_cells, model, readout, table.iloc[rows], prompts[rows], cells),
                get_readings(sorted_cells, model, readout, table.iloc[rows], other[rows], *changed),
            )

        def patched(
            clean: Readings, dirty: Readings, features: np.ndarray, partners: np.ndarray | None = None
        ):
            both = (clean.sequences, dirty.sequences, clean.parts, dirty.parts, clean.read, dirty.read)
            return patch_features(model, sae, *both, features, partners=partners)

        first, second = split_donors(table, rng)
        chosen_on, slopes = patched(*read_both(first), np.zeros(0, dtype=np.int64))
        lost = chosen_on.clean - chosen_on.corrupted
        wanted = np.argsort(-np.abs(lost @ slopes), kind="stable")[:N_FEATURES]
        clean, dirty = read_both(second)
        table = table.iloc[second]
        found, _ = patched(clean, dirty, wanted, draw_partners(clean.parts, rng))
        where = {"layer": sae.site.layer, "head": -1, "feature": wanted}
    else:
        layers, sites = zip(*level_sites(model, level), strict=True)
        found = patch_states(
            model,
            clean.sequences,
            dirty.sequences,
            clean.parts,
            dirty.parts,
            clean.read,
            dirty.read,
            sites,
            align=align,
            partners=draw_partners(clean.parts, rng),
        )
        where = {"layer": layers, "head": [-1 if site.head is None else site.head for site in sites]}
    effects = _effects(table, found, where, clean.parts.names, rng)
    params = {
        "readout": clean.readout,
        "time_read_as": read_as,
        "unit": clean.unit,
        "corrupted": corrupted,
        "level": level,
        "align": align,
        "n_prompts": len(table),
        "clean": float(found.clean.mean()),
        "corrupted_value": float(found.corrupted.mean()),
        "mean_difference": float(np.abs(found.clean - found.corrupted).mean()),
        "share_different": float((found.clean != found.corrupted).mean()),
        "donors": unit_name(table),
        "seed": rng,
    } | ({} if sae is None else sae.params)
    write_result(adata, _keys.PATCH, {**model.params, **params}, key_added=key_added, effects=effects)


def _other_prompts(adata: AnnData, key: str, n_clean: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Corrupted prompts, and the row of the clean one for each."""
    if key not in adata.uns:
        raise KeyError(
            f"corrupted={key!r} is neither an ablation ({', '.join(ABLATIONS)}) nor a key in .uns of prompts. Make some with "
            "mt.pp.match_queries(adata, ...)."
        )
    table = read_result(adata, key, "mt.pp.match_queries(adata, ...)")["prompts"]
    rows = table["prompt"].to_numpy(dtype=np.int64) if "prompt" in table else np.arange(len(table))
    if rows.max(initial=-1) >= n_clean or ("prompt" not in table and len(table) != n_clean):
        raise ValueError(
            f".uns[{key!r}] has {len(table)} prompts, for {n_clean} clean ones. They must be row by row: make them "
            "with mt.pp.match_queries from the clean ones."
        )
    return rows, table


def _require_aligned(clean: Layout, corrupted: Layout, align: str) -> None:
    """Raise if prompts cannot be put onto each other."""
    same = clean.names == corrupted.names
    unlike = (
        ((clean.size > 0) != (corrupted.size > 0)).any(axis=1) if same else np.ones(len(clean.size), bool)
    )
    if unlike.any():
        raise ValueError(
            f"{unlike.sum()} of {len(unlike)} corrupted prompts have other segments than the clean ones ({', '.join(clean.names)} "
            f"against {', '.join(corrupted.names)}, at most). Both need as many context cells."
        )
    if align == "tokens" and (unlike := (clean.size != corrupted.size).any(axis=1)).any():
        row = np.flatnonzero(unlike)[0]
        at = np.flatnonzero(clean.size[row] != corrupted.size[row])[0]
        raise ValueError(
            f"{unlike.sum()} of {len(unlike)} corrupted prompts have segments of another length (the first: {clean.names[at]} "
            f'of {corrupted.size[row, at]} tokens, the clean one of {clean.size[row, at]}). Pass align="last" to patch the '
            "last token of each segment, or corrupt without changing the length."
        )


def _effects(
    table: pd.DataFrame,
    found: Patched,
    where: dict,
    names: list[str],
    seed: int,
) -> pd.DataFrame:
    """Share of the clean reading that comes back, with donors as units."""
    lost = found.clean - found.corrupted
    if not lost.any():
        raise ValueError(
            "Clean and corrupted prompts are all read alike: nothing was lost that could come back."
        )
    shape = (len(lost), -1)
    back, other = (
        (part - found.corrupted[:, None, None]).reshape(shape) for part in (found.values, found.null)
    )
    known = np.isfinite(back)
    weight = np.where(known, lost[:, None] ** 2, 0)

    def slope(change: np.ndarray) -> pd.DataFrame:
        return donor_ratio(np.where(known, change * lost[:, None], 0), weight, table, seed=seed)

    effect, null, difference = slope(back), slope(other), slope(back - other)
    n_places = found.values.shape[1]
    effects = pd.DataFrame(
        {name: np.repeat(np.broadcast_to(values, n_places), len(names)) for name, values in where.items()}
    )
    effects["segment"] = np.tile(names, n_places)
    for name, part in (("effect", effect), ("null", null)):
        effects[name], effects[f"{name}_low"], effects[f"{name}_high"] = (
            part["estimate"],
            part["low"],
            part["high"],
        )
    # States before the first change are the same in both prompts: nothing can come back, and nothing was
    # tested.
    fixed = ~(known & (back != 0)).any(axis=0)
    effects["p_value"] = np.where(fixed, np.nan, difference["p_value"])
    effects["q_value"] = benjamini_hochberg(effects["p_value"])
    effects["n_prompts"] = known.sum(axis=0)
    effects["n_units"] = effect["n_units"]
    effects["unit"] = unit_name(table)
    return effects
