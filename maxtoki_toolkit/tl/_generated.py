"""What generated cells are about: their time, group and donor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .._validate import require_obs
from ..models.model import MaxTokiModel
from ..pp._design import as_list, get_groups, is_missing, known_cells
from ._prompted import named_rows, stored_prompts
from ._rank_features import rank_features


class About(NamedTuple):
    """One entry a cell."""

    group: np.ndarray
    """str, cells: names of the groups as of `get_groups`; "" for none."""
    time: np.ndarray | None
    """Values of the column of times, cells."""
    donor: np.ndarray | None
    """str, cells; "" for none."""
    prompt: np.ndarray | None
    """str, cells: cells of one prompt were written from the same."""


def rank_levels(
    adata: AnnData, generated: AnnData, model: MaxTokiModel
) -> tuple[sp.csr_matrix, sp.csr_matrix, int]:
    """Rank features of true and of generated cells, down to the last gene of the median true cell; and how many genes that is.

    A model may read many more genes than cells have. Against these, having a gene at all would outweigh its
    rank.
    """
    room = model.cell_length - 2
    features = rank_features(adata, model), rank_features(generated, model)
    length = int(np.median(np.diff(features[0].indptr)))
    for X in features:
        X.data = np.maximum(1 - (1 - X.data) * (room / length), 0)
        X.data[X.data < 0.5 / length] = 0
        X.eliminate_zeros()
    return *features, length


def about_cells(
    adata: AnnData,
    *,
    time_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
) -> About:
    """What the columns of `.obs` say."""
    require_obs(adata, time_key, donor_key)
    code, names = get_groups(adata, groupby)
    donor = None
    if donor_key is not None:
        column = adata.obs[donor_key]
        donor = np.where(is_missing(column), "", column.astype(str).to_numpy(dtype=object))
    return About(
        np.array([*names, ""], dtype=object)[code],
        None if time_key is None else adata.obs[time_key].to_numpy(),
        donor,
        None,
    )


def about_generated(
    generated: AnnData,
    adata: AnnData,
    *,
    time_key: str | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
) -> About:
    """What the columns of generated cells say or, for columns that they do not have, their prompts in `adata`.

    The donor is that of the last context cell: the query is not in the prompt. It is left out where nothing
    tells it.
    """
    columns = as_list(groupby)
    require_obs(adata, time_key, donor_key, *columns)
    obs = generated.obs.reset_index(drop=True)
    if donor_key == "donor" and {"prompt", "lapse"} <= set(obs):
        del obs["donor"]  # mt.tl.generate writes that of the query
    wanted = [
        name
        for name in dict.fromkeys((time_key, donor_key, *columns))
        if name is not None and name not in obs
    ]
    if wanted and "prompt" not in obs:
        named = [name for name in wanted if name != donor_key]
        if named:
            raise KeyError(
                f"Did not find .obs[{named[0]!r}] of the generated cells, nor the prompts that they are of "
                "(.obs['prompt'], as mt.tl.generate writes it)."
            )
    elif wanted and "lapse" not in obs:
        source = _rows(adata, obs["prompt"])
        for name in wanted:
            obs[name] = source[name].to_numpy()
    elif wanted:
        obs = _from_prompts(
            obs, adata, wanted, time_key, donor_key, columns, stored_prompts(adata, generated)
        )
    obs.index = obs.index.astype(str)
    found = about_cells(
        AnnData(obs=obs),
        time_key=time_key,
        groupby=groupby,
        donor_key=donor_key if donor_key in obs else None,
    )
    return found._replace(
        prompt=obs["prompt"].astype(str).to_numpy(dtype=object) if "prompt" in obs else None
    )


def known_generated(generated: AnnData, about: About) -> tuple[AnnData, About]:
    """Generated cells of which all is known, in the order of their names, and what they are about."""
    columns = {name: getattr(about, name) for name in ("time", "group", "donor")}
    obs = pd.DataFrame(
        {name: values for name, values in columns.items() if values is not None}, index=generated.obs_names
    )
    _, rows = known_cells(AnnData(obs=obs), list(obs))
    return generated[rows], About(*(None if values is None else values[rows] for values in about))


def _from_prompts(obs, adata, wanted, time_key, donor_key, columns, stored) -> pd.DataFrame:
    """Columns filled from the temporal prompts."""
    params, table = stored["params"], stored["prompts"]
    number = obs["prompt"].astype(int).to_numpy()
    if number.max() >= len(table):
        raise ValueError(
            f"The generated cells are of {number.max() + 1} prompts at least, and there are {len(table)}. Generate them again."
        )
    prompt = table.iloc[number].reset_index(drop=True)
    for name in wanted:
        if name == time_key and params["time_key"] == time_key:
            # A lapse may have been asked for that is not the prompt's.
            obs[name] = (prompt["time"] - prompt["lapse"] + obs["lapse"]).astype(int)
        elif name == donor_key:
            contexts = prompt.filter(regex=r"^context_\d+$").replace("", np.nan)
            obs[name] = _rows(adata, contexts.ffill(axis=1).iloc[:, -1])[name].to_numpy()
        elif name in columns and name in list(params["groupby"]):
            obs[name] = _rows(adata, prompt["context_0"])[name].to_numpy()
        else:
            raise ValueError(
                f"The prompts do not say which .obs[{name!r}] the generated cells have: they were drawn with time_key="
                f"{params['time_key']!r}, groupby={list(params['groupby'])}. Give the generated cells that column."
            )
    return obs


def _rows(adata: AnnData, names: pd.Series) -> pd.DataFrame:
    """`.obs` of the cells named."""
    return adata.obs.iloc[named_rows(adata, names.astype(str).to_numpy(dtype=object))]
