"""A clock that is judged: hold out, train, predict what was held out beside baselines, and say so in a card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import __version__, _keys
from .._files import atomic
from .._recipes import Checked
from .._warn import warn
from ..models.model import MaxTokiModel
from ..pp._counts import iter_csr
from ..pp._design import get_labels
from ..pp._ranked_counts import has_counts, ranked_counts
from ..pp._store import open_store, read_frames
from ..pp.hold_out import hold_out
from ..pp.rank_value_encode import rank_value_encode
from ..pp.sample_prompts import sample_prompts
from ..results.store import writable
from ..tl.predict_timelapse import predict_timelapse
from ..tl.timelapse_baselines import timelapse_baselines
from ._cells import as_parts, name_columns, obs_of
from ._trainer import claim_run, is_first_process, leaves_nothing, require_run, wait_for_all
from .recipe import TemporalRecipe
from .temporal import temporal

# Which cells are held out and why (columns of `mt.pp.hold_out`), and where the contexts of their queries come
# from.
SETS = {
    "held_out_donors": "held_out_donors",
    "held_out_times": "held_out",
    "held_out_groups": "held_out_groups",
}
EVALUATION, TESTED, CARD = "evaluation.csv", "evaluation.h5ad", "card.md"
_MOST_CELLS = 30_000  # that are read for the evaluation: held-out ones, and those the baselines are fitted to
_CHUNK = 8192


@dataclass(frozen=True, kw_only=True)
class HoldOut(Checked):
    """What a clock is judged by, and is not trained on.

    Attributes
    ----------
    donors, times, groups
        As in `mt.pp.hold_out`: names or share of donors; ranges of time; values of columns of `.obs`, or
        terms of the Cell Ontology with all their kinds.
    """

    donors: float | str | Sequence[str] | Sequence[int] = 0.2
    times: Sequence[tuple[int, int]] = ()
    groups: Mapping[str, str | Sequence[str] | Sequence[int]] | None = None


@dataclass(frozen=True, kw_only=True)
class ClockRecipe(Checked):
    """Settings of `mt.train.clock`.

    Attributes
    ----------
    hold_out, training
        See `HoldOut` and `TemporalRecipe`.
    n_tested, n_fitted
        Prompts of each held-out set that are predicted, and prompts of training cells that baselines are
        fitted to.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.train.ClockRecipe.of(donors=0.3, max_steps=500).hold_out.donors
    0.3
    """

    hold_out: HoldOut = field(default_factory=HoldOut)
    training: TemporalRecipe = field(default_factory=TemporalRecipe)
    n_tested: int = 1000
    n_fitted: int = 2000


@leaves_nothing
def clock(
    cells: AnnData | str | Path | Sequence[AnnData | str | Path],
    model: MaxTokiModel,
    output: str | Path,
    *,
    time_key: str | None = None,
    donor_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    time_unit: str | None = None,
    recipe: ClockRecipe | None = None,
) -> MaxTokiModel:
    """Train a clock on some donors, and judge it by others.

    Parameters
    ----------
    cells
        Cells with raw counts or rank-encoded, or paths of files that `mt.pp.encode_file`, `encode_files` or
        `mt.datasets.census` wrote. Several are trained on together.
    model
        A stage-1 or a temporal model to start from.
    output
        Folder of the run: `training/` (with `log.jsonl` and the model in `model/`), `evaluation.csv`,
        `evaluation.h5ad` (the predicted prompts, for `mt.pl.timelapse_scatter`) and `card.md`. A run that was
        interrupted goes on when it is called again.
    time_key, time_unit
        Column of `.obs` with the time in whole units, or (in memory) as text that `mt.pp.parse_age` reads;
        and the unit, by default what the column's name or the range of the ages says, or months.
    donor_key
        Column of `.obs` with the donor.
    groupby
        Columns of `.obs` in which all cells of a prompt agree, by default the cell type; `[]` for one group.
        It, the time and the donor are guessed from the names in `.obs` where they are `None`, with a warning
        that says which were taken.
    recipe
        What is held out, how it is trained, and how many prompts are predicted:
        `mt.train.ClockRecipe.of(donors=0.2, max_steps=2000)`.

    Returns
    -------
    The trained model. `evaluation.csv` has one row a held-out set, group and predictor, with r, slope and
    errors in `time_unit`, their 95% intervals over donors and a null of permuted donors: the clock, ridge
    regression on expression and on embeddings, SGD, and the most common lapse.

    Raises
    ------
    ValueError
        If a donor or group to hold out is not there, times are not whole numbers, names of cells repeat, or
        what `mt.train.temporal` refuses.

    Notes
    -----
    Queries of held-out donors are read after contexts of held-out donors, so neither was seen in training.
    Queries at held-out times are read after contexts of any held-out donor, those of held-out groups after
    contexts of the same group. The evaluation reads at most 30,000 cells, donors by turns. Of files, which
    hold no counts, the baselines read ranks in place of expression.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> recipe = mt.train.ClockRecipe.of(donors=0.4, max_steps=2, batch_size=2, n_held_out=4, n_tested=20, n_fitted=40)
    >>> output = tempfile.mkdtemp()
    >>> trained = mt.train.clock(adata, model, output, time_key="age_months", donor_key="donor_id",
    ...                          groupby="cell_type", recipe=recipe)
    >>> import pandas as pd
    >>> pd.read_csv(f"{output}/evaluation.csv")["set"].unique().tolist()
    ['held_out_donors']
    """
    recipe, output = recipe or ClockRecipe(), Path(output)
    require_run(recipe.training.run)
    parts, columns = ready_cells(
        as_parts(cells), model, time_unit, time_key=time_key, donor_key=donor_key, groupby=groupby
    )
    time_key, donor_key, groupby, time_unit = columns.values()
    seed = recipe.training.run.seed
    table = split(parts, recipe, time_key=time_key, donor_key=donor_key)
    claim_run(output / "training")
    trained = temporal(
        parts,
        model,
        output / "training",
        time_key=time_key,
        groupby=groupby,
        donor_key=donor_key,
        time_unit=time_unit,
        use=table.obs["train"],
        held_out=table.obs["held_out"],
        recipe=recipe.training,
    )
    if is_first_process() and not (output / CARD).exists():
        tested = _subset(parts, _rows_to_test(table, donor_key, seed), table.obs)
        scores = _evaluate(tested, trained, time_key, groupby, donor_key, recipe)
        with atomic(output / EVALUATION) as temporary:
            scores.to_csv(temporary, index=False)
        with atomic(output / TESTED) as temporary:
            AnnData(obs=tested.obs, uns=tested.uns).write_h5ad(temporary)
        with atomic(output / CARD) as temporary:
            temporary.write_text(_card(table, scores, trained, time_key, donor_key, time_unit))
    wait_for_all()
    return trained


def split(parts: list, recipe: ClockRecipe, *, time_key: str, donor_key: str) -> AnnData:
    """`.obs` of all data sets, with the columns of `mt.pp.hold_out` for what the recipe holds out."""
    held, table = recipe.hold_out, _all_obs(parts)
    hold_out(
        table,
        donor_key=donor_key,
        donors=held.donors,
        time_key=time_key,
        times=held.times,
        groups=held.groups,
        rng=recipe.training.run.seed,
    )
    if not any(table.obs[name].any() for name in SETS):
        raise ValueError(
            "Nothing is held out: a clock is judged by donors, times or groups that it was not trained on."
        )
    return table


def count_split(table: AnnData, donor_key: str) -> pd.DataFrame:
    """Cells and donors that are trained on, held out for each reason, and left out."""
    obs = table.obs
    masks = {name: obs[name] for name in ("train", *SETS)}
    masks["left out"] = ~(obs["train"] | obs["held_out"])
    counts = [(int(mask.sum()), obs.loc[mask, donor_key].nunique()) for mask in masks.values()]
    return pd.DataFrame(counts, [name.replace("_", " ") for name in masks], ["cells", "donors"])


def ready_cells(
    parts: list, model: MaxTokiModel, unit: str | None, **columns: str | Sequence[str] | None
) -> tuple[list, dict[str, Any]]:
    """Parts that are rank-encoded, and what `name_columns` makes of the columns."""
    ready = []
    for part in parts:
        if isinstance(part, AnnData) and _keys.RANK not in part.layers:
            part = part.copy()
            rank_value_encode(part, model)
        ready.append(part)
    return ready, name_columns(ready, unit, **columns)


def _all_obs(parts: Sequence[AnnData | str | Path]) -> AnnData:
    """`.obs` of all cells, by their names, which must not repeat."""
    frames = [obs_of(part) for part in parts]
    obs = pd.concat(frames) if len(frames) > 1 else frames[0].copy()
    if (repeated := obs.index.duplicated()).any():
        raise ValueError(
            f"{repeated.sum()} names of cells repeat between the data sets (first: {obs.index[repeated][0]!r}). Give each of "
            "them names of its own, e.g. adata.obs_names = study + '_' + adata.obs_names."
        )
    return AnnData(obs=obs)


def _rows_to_test(table: AnnData, donor_key: str, seed: int) -> pd.Index:
    """Names of the cells that the evaluation reads: half held out and half trained on, donors by turns."""
    rng = np.random.default_rng(seed)
    chosen = []
    for column in ("held_out", "train"):
        rows = np.flatnonzero(table.obs[column].to_numpy())
        donor = get_labels(table[rows], donor_key)
        order = rng.permutation(len(rows))
        turn = pd.Series(donor[order]).groupby(donor[order]).cumcount().to_numpy()
        chosen.append(rows[order[np.argsort(turn, kind="stable")][: _MOST_CELLS // 2]])
    return table.obs_names[np.sort(np.concatenate(chosen))]


def _subset(parts: Sequence[AnnData | str | Path], names: pd.Index, obs: pd.DataFrame) -> AnnData:
    """Some of the cells in memory, with the ranks (and counts, where all have them) of one set of genes."""
    read = [part if isinstance(part, AnnData) else _from_file(part, names) for part in parts]
    read = [part[part.obs_names.isin(names)] for part in read]
    genes = np.unique(np.concatenate([_genes(part) for part in read]))
    with_counts = all(has_counts(part, None) for part in read)
    ranks = [_by_gene(part.layers[_keys.RANK], part, genes) for part in read]
    counts = [_by_gene(ranked_counts(part), part, genes) for part in read] if with_counts else None
    first = read[0]
    var = pd.concat([part.var.iloc[np.flatnonzero(part.var[_keys.TOKEN_ID] >= 0)] for part in read])
    var = var.set_axis(var[_keys.ENSEMBL_ID].astype(str))
    var = var[~var.index.duplicated()].loc[genes, [_keys.ENSEMBL_ID, _keys.TOKEN_ID]]
    uns = {_keys.ENCODING: first.uns[_keys.ENCODING]}
    uns[_keys.ENCODING] = {"params": dict(uns[_keys.ENCODING]["params"]) | {"layer": "X"}}
    order = np.concatenate([part.obs_names for part in read])
    return AnnData(
        None if counts is None else sp.vstack(counts, format="csr"),
        obs=obs.loc[order],
        var=var.rename_axis(None),
        layers={_keys.RANK: sp.vstack(ranks, format="csr")},
        uns=writable(uns),
    )


def _genes(part: AnnData) -> np.ndarray:
    """Ensembl ids of the genes that are ranked."""
    return part.var[_keys.ENSEMBL_ID].to_numpy(dtype=str)[part.var[_keys.TOKEN_ID].to_numpy() >= 0]


def _by_gene(matrix: sp.spmatrix, part: AnnData, genes: np.ndarray) -> sp.csr_matrix:
    """Columns of the genes that are ranked, in the order of `genes`."""
    columns = np.flatnonzero(part.var[_keys.TOKEN_ID].to_numpy() >= 0)
    place = np.searchsorted(genes, _genes(part))
    entries = sp.csr_matrix(matrix)[:, columns].tocoo()
    return sp.csr_matrix((entries.data, (entries.row, place[entries.col])), shape=(part.n_obs, len(genes)))


def _from_file(path: str | Path, names: pd.Index) -> AnnData:
    """Some cells of an encoded file."""
    with open_store(path) as store:
        obs, var = read_frames(store)
        wanted = obs.index.isin(names)
        ranks = ad.io.sparse_dataset(store[f"layers/{_keys.RANK}"])
        blocks = [
            block[wanted[start : start + block.shape[0]]]
            for start, block in iter_csr(ranks, _CHUNK)
            if wanted[start : start + block.shape[0]].any()
        ]
        encoding = ad.io.read_elem(store[f"uns/{_keys.ENCODING}"])
    layer = sp.vstack(blocks, format="csr") if blocks else sp.csr_matrix((0, len(var)), dtype=np.uint16)
    return AnnData(
        obs=obs[wanted], var=var, layers={_keys.RANK: layer}, uns=writable({_keys.ENCODING: encoding})
    )


def _evaluate(
    tested: AnnData, model: MaxTokiModel, time_key: str, groupby, donor_key: str, recipe: ClockRecipe
) -> pd.DataFrame:
    """Scores of each held-out set; results are left in `tested.uns`."""
    prompts, seed = recipe.training.prompts, recipe.training.run.seed
    settings = {"time_key": time_key, "groupby": groupby, "donor_key": donor_key, "rng": seed}
    settings["context_size"] = tuple(prompts.context_size)
    sample_prompts(
        tested,
        n_prompts=recipe.n_fitted,
        contexts="train",
        queries="train",
        key_added="train_prompts",
        **settings,
    )
    found = []
    for name, contexts in SETS.items():
        if not tested.obs[name].any():
            continue
        try:
            sample_prompts(
                tested, n_prompts=recipe.n_tested, contexts=contexts, queries=name, key_added=name, **settings
            )
        except ValueError as error:
            warn(f"{name} is not evaluated: {error}")
            continue
        timelapse, baselines = f"{name}_timelapse", f"{name}_baselines"
        predict_timelapse(tested, model, key=name, key_added=timelapse)
        timelapse_baselines(tested, model, key=timelapse, rng=seed, key_added=baselines)
        found.append(tested.uns[baselines]["scores"].assign(set=name))
    if not found:
        raise ValueError(
            "Nothing that is held out has prompts of its own: hold out more donors, or larger ranges of time."
        )
    scores = pd.concat(found, ignore_index=True)
    return scores[["set", *scores.columns.drop("set")]]


def _card(
    table: AnnData, scores: pd.DataFrame, model: MaxTokiModel, time_key: str, donor_key: str, unit: str
) -> str:
    """What the model is, what it was trained and judged on, and how well it does beside baselines."""
    params = table.uns[_keys.HOLD_OUT]["params"]
    counts = count_split(table, donor_key)
    n, times = counts.loc["train"], table.obs.loc[table.obs["train"], time_key]
    rows = [
        f"# {Path(model.name).parent.parent.name}: a clock",
        "",
        f"Reads times in {unit}. Trained by maxtoki_toolkit {__version__} (`mt.train.clock`) on "
        f"{n['cells']:,} cells of {n['donors']:,} donors, at {times.min():g} to {times.max():g} {unit}.",
        "",
        "## Held out",
        "",
        "| what | cells | donors |",
        "|---|---|---|",
    ]
    for name, n in counts.drop(["train", "left out"]).iterrows():
        rows.append(f"| {name} | {n['cells']:,} | {n['donors']:,} |")
    rows += ["", f"Donors: {', '.join(params['donors']) or 'none'}."]
    if params["times"]:
        rows.append(f"Times: {', '.join(f'{first} to {last}' for first, last in params['times'])} {unit}.")
    for column, values in params["groups"].items():
        rows.append(f"{column}: {', '.join(map(str, values))}.")
    rows += [
        "",
        "## Evaluation",
        "",
        "Lapses of prompts of held-out cells; 95% intervals over donors (jackknife).",
        "",
        f"| held out | predictor | r | median error ({unit}) | prompts | donors |",
        "|---|---|---|---|---|---|",
    ]
    for row in scores[scores["group"] == "all"].to_dict("records"):
        rows.append(
            f"| {row['set'].replace('held_out_', '')} | {row['predictor']} | {_with_interval(row, 'r')} | "
            f"{_with_interval(row, 'median_error')} | {row['n_prompts']:,} | {row['n_units']:,} |"
        )
    recipe = json.dumps(writable(params), indent=2, default=str)
    rows += ["", "## Settings of the hold-out", "", "```json", recipe, "```", ""]
    return "\n".join(rows)


def _with_interval(row: Mapping, name: str) -> str:
    low, high = row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)
    return f"{row[name]:.3g} ({low:.3g} to {high:.3g})" if np.isfinite(low) else f"{row[name]:.3g}"
