"""How old the cells of a file look: what `maxtoki age` runs."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
from anndata import AnnData

from . import _keys, get, pl, pp, tl
from ._outputs import check_output, new_output
from ._validate import require_obs
from .models.model import MaxTokiModel
from .models.timelapse import require_temporal
from .pipeline import save_figures
from .pp._columns import as_labels, find_columns, guess_unit
from .pp._identity import input_identity
from .pp.parse_age import time_in_numbers
from .reports.cells import unit_factor, whole_times

BY, RESULT = "maxtoki age", "ages.h5ad"


def age_file(
    path: str | Path,
    output: str | Path,
    model: MaxTokiModel,
    *,
    time_key: str | None = None,
    donor_key: str | None = None,
    groupby: str | None = None,
    condition_key: str | None = None,
    control: str | None = None,
    time_unit: str | None = None,
    n_contexts: int = 8,
    layer: str | None = None,
    gene_key: str | None = None,
    force: bool = False,
    overwrite: bool = False,
) -> AnnData:
    """Read the age of every cell of a file, and write tables and a figure.

    Parameters
    ----------
    path
        Cells, as `mt.pp.read_cells` reads them.
    output
        Folder to write; it appears when everything is done.
    model
        A model with temporal training, best on none of these donors.
    time_key, donor_key, groupby
        Columns of `.obs` with the known ages (numbers, or text as `mt.pp.parse_age` reads it), donors and
        cell types; guessed from their names if not given.
    condition_key, control
        Column with the condition, and the value of those whose cells are the reference; guessed. Without one,
        all cells of known age are.
    time_unit
        Unit of the known ages, where the name of the column does not say it.
    n_contexts
        As in `mt.tl.AgeSampling`.
    layer, gene_key, force
        As in `mt.pp.rank_value_encode` and `mt.pp.map_genes`.
    overwrite
        Replace what this function has written to `output` from another input or with other settings.

    Returns
    -------
    The cells, with the ages. The folder holds `cells.csv`, `donors.csv`, `groups.csv`, the figure `ages`, and
    all of it as `ages.h5ad`, without counts. If it is there already, from this input with these settings, it
    is read.

    Raises
    ------
    ValueError
        If a column is missing, no reference donor has an age, or the unit of the ages is in doubt.
    """
    require_temporal(model)
    given = {
        "time_key": time_key,
        "donor_key": donor_key,
        "groupby": groupby,
        "condition_key": condition_key,
        "control": control,
    }
    settings = {"time_unit": time_unit, "n_contexts": n_contexts, "layer": layer, "gene_key": gene_key}
    job = {"input": input_identity(path), **model.params, **given, **settings, "force": force}
    output = Path(output)
    if check_output(output, by=BY, job=job, overwrite=overwrite, inputs=[path]):
        return ad.read_h5ad(output / RESULT)
    adata = pp.read_cells(path, layer=layer)
    columns = find_columns(adata.obs, optional=("condition_key",), **given)
    require_obs(adata, *(value for name, value in columns.items() if name != "control" and value is not None))
    unit = time_unit or guess_unit(adata.obs[columns["time_key"]])
    if unit is None:
        raise ValueError(
            f"Give time_unit: the unit of .obs[{columns['time_key']!r}] is not known from its name."
        )
    time_key = time_in_numbers(adata, columns["time_key"], unit)
    # In a column of our own, whose name says the unit.
    time = whole_times(adata.obs, time_key, unit) * unit_factor(unit, model.time_head.unit)
    own = f"{_keys.KNOWN_AGE}_{model.time_head.unit}"
    adata.obs[own] = np.rint(time)
    reference = np.isfinite(time)
    if columns.get("condition_key"):
        labels = np.array(as_labels(adata.obs[columns["condition_key"]].astype(object)), dtype=object)
        reference &= labels == columns["control"]
    pp.map_genes(adata, model, gene_key=gene_key)
    pp.rank_value_encode(adata, model, layer=layer, force=force)
    tl.predict_age(
        adata,
        model,
        time_key=own,
        donor_key=columns["donor_key"],
        groupby=columns["groupby"],
        reference=reference,
        sampling=tl.AgeSampling(n_contexts=n_contexts),
    )
    names = [_keys.PREDICTED_AGE + suffix for suffix in ("", "_low", "_high")]
    shown = [own, *(columns[key] for key in ("donor_key", "groupby", "condition_key") if columns.get(key))]
    with new_output(output, by=BY, job=job, overwrite=overwrite, inputs=[path]) as folder:
        adata.obs[[*dict.fromkeys(shown), *names]].to_csv(folder / "cells.csv", index_label="cell")
        get.table(adata, "predict_age").to_csv(folder / "donors.csv", index=False)
        get.table(adata, "predict_age", "groups").to_csv(folder / "groups.csv", index=False)
        AnnData(obs=adata.obs, uns=adata.uns).write_h5ad(folder / RESULT)
        save_figures({"ages": pl.predicted_ages(adata)}, folder)
    return adata
