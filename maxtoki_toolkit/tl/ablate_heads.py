"""What attention heads are for: take them out, one at a time or together, and see what becomes of a reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._names import require_choice
from ..models.ablation import HOW, Ablated, ablate, mean_activations
from ..models.hooks import n_heads, n_layers
from ..models.layout import n_classes, place_classes
from ..models.model import MaxTokiModel
from ..pp._design import known_cells
from ..results.store import write_result
from ..stats.donors import donor_mean, unit_name
from ..stats.fdr import benjamini_hochberg
from ._readings import Readings, draw_partners, get_prompts, get_readings


def ablate_heads(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    key: str | None = None,
    readout: str | Callable = "timelapse",
    how: str = "mean",
    heads: Sequence | None = None,
    max_heads: int | None = None,
    n_random: int = 20,
    n_prompts: int | None = 200,
    donor_key: str | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Read the same prompts with attention heads ablated.

    Parameters
    ----------
    adata
        Rank-encoded cells with prompts (`mt.pp.sample_prompts`).
    model
        Model. One without time tokens reads the cells one by one, without prompts.
    key
        Key in `.uns` of the prompts, by default "prompts".
    readout
        What is read:

        "timelapse"
            The predicted lapse, and its error; needs temporal training.
        "likelihood"
            Mean log-probability of the query cell's genes, given what comes before each.
        a gene
            Log-probability of this gene at its place in the query cell (symbol, Ensembl id or `.var_names`);
            prompts whose query cell lacks it are left out.
        a function
            Of the logits after the prompt (torch tensor, prompts x vocabulary), to one number a prompt.
    how
        What the head hands on instead: "zero"; "mean", its mean over the prompts at like places; "resample",
        what it makes of another prompt at the same place, drawn for each prompt.
    heads
        Heads, as pairs of block and head (from 0), or lists of such pairs that are ablated together. All
        heads, one at a time, by default.
    max_heads
        Look for the heads that together do most, one added at a time (greedy), up to so many. By default each
        of `heads` is ablated.
    n_random
        Random sets of each size beside those of the greedy search.
    n_prompts
        Prompts to read, drawn at random where there are more; `None` for all.
    donor_key
        Column of `.obs` with the donor (guessed from its name), for a model that reads cells one by one;
        prompts know theirs.
    rng
        Seed of what is drawn.
    key_added
        Key in `.uns`, by default "ablate_heads".

    Returns
    -------
    `None`. Writes the table `effects` to `.uns["ablate_heads"]`, a row a head or set of heads, or for
    "greedy" a row a step; readings are in `params["unit"]`:

    `heads`, `layer`, `head`, `n_heads`
        Which heads ("L0H1+L2H3"); layer and head, -1 for several; how many.
    `value_intact`, `change`, `change_low`, `change_high`
        Mean reading of the model as it is; mean change without the heads, with its 95% interval over donors.
    `p_value`, `q_value`
        Two-sided t test of that change with the error of the interval (jackknife over donors); corrected for
        all rows.
    `size`, `size_low`, `size_high`, `null_size`
        Mean size of the change, whatever its sign, with its interval; that of a change as large in a random
        direction.
    `excess`, `excess_low`, `excess_high`
        The difference of these two, with its interval over donors.
    `removed`
        Length of what the ablation changes in the residual stream, relative to the stream's.
    `share_changed`
        Share of the prompts that are read differently at all.
    `mean_error_intact`, `error_change`, `error_change_low`, `error_change_high`, `error_p_value`,
    `error_q_value`
        For "timelapse": mean absolute error, and what the ablation adds to it.
    `n_prompts`, `n_units`, `unit`
        Prompts, and how many donors (or query cells, where no donor is known) their queries are of.
    `added`, `size_chosen_on`, `random_size`, `random_low`, `random_high`, `random_p_value`, `n_random`
        For "greedy": the head added in this step; the size on the donors it was chosen on (`size` is on the
        others); that of random sets of as many heads, with the middle 95% of them, and the share of them that
        do as much.

    Raises
    ------
    ValueError
        If the model cannot tell time and `readout` is "timelapse", or a head does not exist.

    Notes
    -----
    A head is ablated at all tokens, before the output projection. Effects are paired by prompt; intervals and
    p values (two-sided, t test) leave out each donor in turn, as those of `mt.tl.ablate_prompt` do, and
    `q_value` corrects for the heads (Benjamini and Hochberg). "mean" keeps what the head always adds, so that
    less breaks for being unlike anything seen in training. The mean is over tokens of one segment of the
    prompt and one octave of the rank (places 0, 1-2, 3-6, 7-14 and so on; the last by itself): heads do
    different things for contexts and queries, high and low ranks, and finer classes would have too few
    tokens.

    The null of each head changes the residual stream by as much, at every token, in a random direction (one a
    prompt and block): `null_size`. The trivial explanation, that some heads simply write more, is in
    `removed`.

    The greedy search chooses on half the donors and is scored on the others, beside random sets, so that the
    curve does not reward the choice itself; donors of contexts may be on both sides.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=4, donor_key="donor_id")
    >>> mt.tl.ablate_heads(adata, model, heads=[(0, 1), [(2, 0), (3, 0)]])
    >>> mt.get.table(adata, "ablate_heads")["heads"].tolist()
    ['L0H1', 'L2H0+L3H0']
    """
    require_choice("how", how, HOW)
    sets = _sets(heads, model)
    if max_heads and any(len(some) > 1 for some in sets):
        raise ValueError("The search for max_heads makes sets itself: give heads as pairs of layer and head.")
    cells, _ = known_cells(adata, donor_key)
    drawn = get_prompts(cells, model, readout, key=key, n_prompts=n_prompts, rng=rng, donor_key=donor_key)

    def prepare(rows: np.ndarray) -> tuple[Readings, Callable[..., Ablated]]:
        table, prompts, read = drawn
        prompts = None if prompts is None else prompts[rows]
        readings = get_readings(cells, model, readout, table.iloc[rows], prompts, read)
        sequences, parts = readings.sequences, readings.parts
        sources = {}
        if how == "mean":
            sources["means"] = mean_activations(
                model, sequences, place_classes(sequences, parts), n_classes(parts)
            )
        if how == "resample":
            sources["partners"] = draw_partners(parts, rng)
        return readings, partial(
            ablate,
            model,
            sequences,
            parts,
            readings.read,
            how=how,
            **sources,
            seed=rng,
        )

    if max_heads:
        readings, effects = _greedy(drawn[0], prepare, sets, max_heads=max_heads, n_random=n_random, seed=rng)
    else:
        readings, read = prepare(np.arange(len(drawn[0])))
        effects = _effects(readings, read(sets), sets, rng)
    params = {
        "readout": readings.readout,
        "time_read_as": drawn[0].attrs.get("time_read_as", ""),
        "unit": readings.unit,
        "how": how,
        "search": "greedy" if max_heads else "exhaustive",
        "n_layers": n_layers(model),
        "n_heads": n_heads(model),
        "n_prompts": len(readings.table),
        "donors": unit_name(readings.table),
        "seed": rng,
    }
    write_result(adata, _keys.ABLATE_HEADS, {**model.params, **params}, key_added=key_added, effects=effects)


def _sets(heads: Sequence | None, model: MaxTokiModel) -> list[list[tuple[int, int]]]:
    """Sets of heads: a pair is a set of one."""
    layers, width = n_layers(model), n_heads(model)
    if heads is None:
        return [[(layer, head)] for layer in range(layers) for head in range(width)]
    sets = []
    for item in heads:
        pairs = [item] if len(item) == 2 and all(np.ndim(x) == 0 for x in item) else list(item)
        pairs = [(int(layer), int(head)) for layer, head in pairs]
        if bad := [pair for pair in pairs if not (0 <= pair[0] < layers and 0 <= pair[1] < width)]:
            raise ValueError(
                f"There is no head {bad[0]}; this model has layers 0..{layers - 1} and heads 0..{width - 1}."
            )
        sets.append(sorted(set(pairs)))
    if not sets:
        raise ValueError("heads is empty. Leave it out for all heads, one at a time.")
    return sets


def _label(heads: list[tuple[int, int]]) -> str:
    return "+".join(_keys.head_name(layer, head) for layer, head in heads)


def _effects(readings: Readings, found: Ablated, sets: list, seed: int) -> pd.DataFrame:
    """Paired effects, with donors as units."""
    table = readings.table
    change = found.values - found.intact[:, None]
    null = np.abs(found.null - found.intact[:, None])
    of_mean = donor_mean(change, table, seed=seed)
    size = donor_mean(np.abs(change), table, seed=seed)
    excess = donor_mean(np.abs(change) - null, table, seed=seed)
    effects = pd.DataFrame(
        {
            "heads": [_label(some) for some in sets],
            "layer": [some[0][0] if len(some) == 1 else -1 for some in sets],
            "head": [some[0][1] if len(some) == 1 else -1 for some in sets],
            "n_heads": [len(some) for some in sets],
            "value_intact": found.intact.mean(),
            "change": of_mean["estimate"],
            "change_low": of_mean["low"],
            "change_high": of_mean["high"],
            "p_value": of_mean["p_value"],
            "q_value": benjamini_hochberg(of_mean["p_value"]),
            "size": size["estimate"],
            "size_low": size["low"],
            "size_high": size["high"],
            "null_size": null.mean(axis=0),
            "excess": excess["estimate"],
            "excess_low": excess["low"],
            "excess_high": excess["high"],
            "removed": found.removed.mean(axis=0),
            "share_changed": (change != 0).mean(axis=0),
        }
    )
    if readings.readout == "timelapse":
        true = table["lapse"].to_numpy(float)
        intact = np.abs(found.intact - true)
        error = donor_mean(np.abs(found.values - true[:, None]) - intact[:, None], table, seed=seed)
        effects["mean_error_intact"] = intact.mean()
        for column, name in [("estimate", ""), ("low", "_low"), ("high", "_high")]:
            effects[f"error_change{name}"] = error[column]
        effects["error_p_value"] = error["p_value"]
        effects["error_q_value"] = benjamini_hochberg(error["p_value"])
    effects["n_prompts"] = len(table)
    effects["n_units"] = of_mean["n_units"]
    effects["unit"] = unit_name(table)
    return effects


def _greedy(
    table: pd.DataFrame, prepare: Callable, sets: list, *, max_heads: int, n_random: int, seed: int
) -> tuple[Readings, pd.DataFrame]:
    """Heads that together do most, chosen on half of the donors and scored on the others."""
    unit = "donor" if "donor" in table else "query"
    names = np.random.default_rng(seed).permutation(table[unit].unique())
    choosing = table[unit].isin(names[: len(names) // 2]).to_numpy()
    if min(choosing.sum(), (~choosing).sum()) < 2:
        raise ValueError(
            f"The greedy search chooses on half of the {unit_name(table)}s and scores on the others; "
            f"{len(names)} are too few. Give more prompts."
        )
    _, choose = prepare(np.flatnonzero(choosing))
    readings, score = prepare(np.flatnonzero(~choosing))

    def size(found: Ablated) -> np.ndarray:
        return np.abs(found.values - found.intact[:, None]).mean(axis=0)

    heads = [some[0] for some in sets]
    chosen, sizes = [], []
    while len(chosen) < min(max_heads, len(heads)):
        left = [head for head in heads if head not in chosen]
        found = size(choose([[*chosen, head] for head in left], null=False))
        chosen.append(left[int(found.argmax())])
        sizes.append(found.max())

    steps = [sorted(chosen[: i + 1]) for i in range(len(chosen))]
    drawn = [
        [heads[j] for j in np.random.default_rng([seed, len(step), i]).permutation(len(heads))[: len(step)]]
        for step in steps
        for i in range(n_random)
    ]
    effects = _effects(readings, score(steps), steps, seed)
    random = size(score(drawn, null=False)).reshape(len(steps), n_random)
    effects.insert(4, "added", [_label([head]) for head in chosen])
    effects["size_chosen_on"] = sizes
    effects["random_size"] = random.mean(axis=1)
    effects["random_low"], effects["random_high"] = np.quantile(random, [0.025, 0.975], axis=1)
    # A set that is drawn again must not be below itself by rounding.
    at_least = (random >= effects[["size"]].to_numpy() * (1 - 1e-9)).sum(axis=1)
    effects["random_p_value"] = (1 + at_least) / (1 + n_random)
    effects["n_random"] = n_random
    return readings, effects
