"""Which features carry the effect of editing a gene: put back one by one and together, then put in alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._features import find_genes
from ..models.edits import cut_cells, edit_cells, ranks_to_move
from ..models.layout import layout
from ..models.mediation import match_places, mediate
from ..models.model import MaxTokiModel
from ..models.prompts import write_prompts
from ..models.readout import lapse_readout
from ..models.sae import SparseAutoencoder, require_sae
from ..models.sequences import Sequences
from ..models.timelapse import require_temporal
from ..pp._design import known_cells
from ..results.store import write_result
from ..stats.donors import donor_ratio, unit_name
from ..stats.fdr import benjamini_hochberg
from ._cells import WHOLE, get_sequences
from ._readings import get_prompts, split_donors

RANKS = 20  # of "activate"
N_FEATURES = 40  # that are put back one by one: those of the largest gradient


def feature_mediators(
    adata: AnnData,
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    *,
    genes: Sequence[str],
    mode: str = "overexpress",
    k: int | None = None,
    max_features: int = 5,
    key: str | None = None,
    n_prompts: int | None = 100,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Edit genes of the query cells, and ask which features carry what that does to the predicted lapse.

    Parameters
    ----------
    adata
        Rank-encoded cells with prompts (`mt.pp.sample_prompts`).
    model
        A model that tells time.
    sae
        Autoencoder of this model.
    genes
        Genes that are edited together (symbols, Ensembl ids or `.var_names`).
    mode, k
        What is done to them, as in `mt.tl.perturb`.
    max_features
        Features of the greedy set.
    key
        Key in `.uns` of the prompts, by default "prompts".
    n_prompts
        Prompts to read, drawn at random where there are more; `None` for all.
    rng
        Seed of what is drawn.
    key_added
        Key in `.uns`, by default "feature_mediators".

    Returns
    -------
    `None`. Writes the table `effects` to `.uns["feature_mediators"]`, a row a feature or set:

    `kind`, `features`, `size`
        "single", "greedy" (the best set of each size), or "random" (sets of as many of the features that
        change, one for each size); numbers with commas; how many.
    `put_back`, `put_back_low`, `put_back_high`
        Share of the edit's effect that is gone if the features are as they were before; with its 95%
        interval over donors.
    `put_in`, `put_in_low`, `put_in_high`
        Share of the effect that the features bring about by themselves in cells that are not edited.
    `gradient`
        `put_back` of a single feature to first order.
    `p_value`, `q_value`
        Two-sided t test of `put_back` (jackknife over donors); corrected for the single features (Benjamini
        and Hochberg), and for the sets apart from them.
    `n_prompts`, `n_units`, `unit`
        Prompts, and how many donors (or query cells) they are of.

    Raises
    ------
    ValueError
        If the model cannot tell time, a gene is not in the vocabulary, or the edit changes no prediction.

    Notes
    -----
    The effect is the change of the predicted lapse, prompt by prompt; shares are slopes over prompts, through
    0, so that prompts in which little happens count little. Features are put back at all genes, at those that
    the edit has brought in to 0; they are put in at the genes that are in the cell before and after. Where
    the new genes themselves carry the effect, much is put back and little can be put in.

    Candidates and greedy sets are chosen on half of the donors, by gradient and then by real exchanges, and
    all shares are those of the other half. "put_in" near "put_back" says that the features are enough, a
    lower one that they only pass on what others do as well.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=8, donor_key="donor_id")
    >>> mt.tl.feature_mediators(adata, model, mt.load_sae("demo"), genes=["COL1A1"], max_features=2)
    >>> mt.get.table(adata, "feature_mediators")["kind"].unique().tolist()
    ['single', 'greedy', 'random']
    """
    require_sae(sae, model)
    require_temporal(model)
    dose = int(ranks_to_move(mode, k, RANKS)[0])
    cells, _ = known_cells(adata)
    table, prompts, _ = get_prompts(cells, model, "timelapse", key=key, n_prompts=n_prompts, rng=rng)
    columns = find_genes(cells, [genes] if isinstance(genes, str) else list(genes))
    tokens = cells.var[_keys.TOKEN_ID].to_numpy(np.int64)[columns]
    if (tokens < 0).any():
        raise ValueError(
            f"The model's vocabulary lacks the gene {cells.var_names[columns[tokens < 0][0]]!r}."
        )
    full = get_sequences(cells, model, max_length=WHOLE)
    query = prompts.query
    edit = np.repeat(np.arange(len(query)), len(tokens))
    changed = edit_cells(
        full, query, edit, np.tile(tokens, len(query)), mode, max_length=model.cell_length, k=dose
    )
    # Edited queries come after all cells, a row a prompt.
    both = Sequences.concatenate([cut_cells(full, model.cell_length), changed.sequences])
    edited = prompts._replace(query=len(full) + np.arange(len(query)))
    before, after = (
        write_prompts(part, both, model.vocab, max_length=model.max_length, answer=False).sequences
        for part in (prompts, edited)
    )
    parts = [layout(some, model.vocab) for some in (before, after)]
    places = match_places(before, after, *(part.segment for part in parts))
    read = lapse_readout(model)

    def exchange(rows: np.ndarray, sets: list[list[int]], *, slopes: bool = False):
        kept = np.isin(after.owner, rows)
        return mediate(
            model, sae, before.take(rows), after.take(rows), places[kept], read, read, sets, slopes=slopes
        )

    first, second = split_donors(table, rng)
    chosen, best = _choose(exchange, first, max_features)
    sets = [[i] for i in chosen] + [best[: i + 1] for i in range(len(best))]
    generator = np.random.default_rng(rng)
    sets += [sorted(generator.choice(chosen, i + 1, replace=False).tolist()) for i in range(len(best))]
    found = exchange(second, sets, slopes=True)
    effect = found.after - found.before
    if not effect.any():
        raise ValueError("The edit changes no prediction: there is nothing that features could carry.")
    mine = table.iloc[second]
    weight = np.repeat(effect[:, None] ** 2, len(sets), axis=1)
    shares = {
        "put_back": donor_ratio(
            (found.after[:, None] - found.put_back) * effect[:, None], weight, mine, seed=rng
        ),
        "put_in": donor_ratio(
            (found.put_in - found.before[:, None]) * effect[:, None], weight, mine, seed=rng
        ),
    }
    kinds = np.repeat(["single", "greedy", "random"], [len(chosen), len(best), len(best)])
    effects = pd.DataFrame(
        {
            "kind": kinds,
            "features": [",".join(map(str, some)) for some in sets],
            "size": [len(some) for some in sets],
        }
    )
    for name, part in shares.items():
        effects[name], effects[f"{name}_low"], effects[f"{name}_high"] = (
            part["estimate"],
            part["low"],
            part["high"],
        )
    slope = -(found.slope * effect[:, None]).sum(axis=0) / (effect**2).sum()
    effects["gradient"] = [slope[some[0]] if len(some) == 1 else np.nan for some in sets]
    effects["p_value"] = shares["put_back"]["p_value"]
    single = (effects["kind"] == "single").to_numpy()
    effects["q_value"] = np.nan
    for rows in (single, ~single):
        effects.loc[rows, "q_value"] = benjamini_hochberg(effects.loc[rows, "p_value"])
    effects["n_prompts"], effects["n_units"], effects["unit"] = (
        len(mine),
        shares["put_back"]["n_units"],
        unit_name(mine),
    )
    params = {
        "readout": "timelapse",
        "time_read_as": table.attrs.get("time_read_as", ""),
        "unit": "share of the effect",
        "genes": cells.var_names[columns].tolist(),
        "mode": mode,
        "k": dose,
        "effect": float(effect.mean()),
        "effect_unit": model.time_head.unit,
        "share_changed": float(changed.changed.mean()),
        "n_prompts": len(mine),
        "donors": unit_name(mine),
        "seed": rng,
    }
    write_result(
        adata,
        _keys.FEATURE_MEDIATORS,
        {**model.params, **sae.params, **params},
        key_added=key_added,
        effects=effects,
    )


def _choose(exchange, rows: np.ndarray, max_features: int) -> tuple[list[int], list[int]]:
    """Features of the largest gradient, and a set of them grown one at a time."""
    found = exchange(rows, [], slopes=True)
    effect = found.after - found.before
    if not effect.any():
        raise ValueError("The edit changes no prediction: there is nothing that features could carry.")
    # Put back, a mediator takes the effect away: its slope goes against it.
    carried = -(found.slope * effect[:, None]).sum(axis=0)
    candidates = np.argsort(-np.abs(carried), kind="stable")[:N_FEATURES]
    candidates = [int(i) for i in candidates if carried[i]]
    best: list[int] = []
    while len(best) < min(max_features, len(candidates)):
        sets = [[*best, i] for i in candidates if i not in best]
        found = exchange(rows, sets)
        left = ((found.put_back - found.before[:, None]) ** 2).sum(axis=0)
        best = sets[int(left.argmin())]
    return candidates, best
