"""Names for the cells of a file: what `maxtoki annotate` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anndata as ad
from anndata import AnnData

from . import _keys, get, pl, pp, tl
from ._outputs import check_output, new_output
from .models.classifier import load_classifier
from .models.model import MaxTokiModel
from .pipeline import save_figures
from .pp._design import as_list
from .pp._identity import input_identity
from .tl._annotation import TABLES, find_reference_columns

BY, RESULT = "maxtoki annotate", "annotated.h5ad"


def annotate_file(
    path: str | Path,
    output: str | Path,
    model: MaxTokiModel,
    *,
    reference: str | Path | None = None,
    classifier: str | Path | None = None,
    groupby: str | Sequence[str] | None = None,
    donor_key: str | None = None,
    method: str = "probe",
    layer: str | None = None,
    gene_key: str | None = None,
    force: bool = False,
    overwrite: bool = False,
) -> AnnData:
    """Name every cell of a file by a labelled file or a classifier, and write tables and a figure.

    Parameters
    ----------
    path
        Cells, as `mt.pp.read_cells` reads them.
    output
        Folder to write; it appears when everything is done.
    model
        Model.
    reference, classifier
        A file of labelled cells, or the folder that `mt.train.classify` wrote; one of them.
    groupby, donor_key, method
        As in `mt.tl.annotate`.
    layer, gene_key, force
        As in `mt.pp.rank_value_encode` and `mt.pp.map_genes`, of both files.
    overwrite
        Replace what this function has written to `output` from another input or with other settings.

    Returns
    -------
    The cells, with labels. The folder holds `cells.csv`, the tables `scores.csv`, `labels.csv`,
    `confusion.csv` and `calibration.csv`, a figure for each column of labels, and all of it as
    `annotated.h5ad`, without counts. If it is there already, from these inputs with these settings, it is
    read.

    Raises
    ------
    ValueError
        As `mt.tl.annotate`.
    """
    if (reference is None) == (classifier is None):
        raise ValueError("Give either a reference or a classifier.")
    inputs = [part for part in (path, reference, classifier) if part is not None]
    loaded = None if classifier is None else load_classifier(classifier, device=str(model.device))
    job = {
        "input": input_identity(path),
        "reference": None if reference is None else input_identity(reference),
        "classifier": None if loaded is None else loaded.card["classifier_sha256"],
        **model.params,
        "groupby": as_list(groupby),
        "donor_key": donor_key,
        "method": method,
        "layer": layer,
        "gene_key": gene_key,
        "force": force,
    }
    output = Path(output)
    if check_output(output, by=BY, job=job, overwrite=overwrite, inputs=inputs):
        return ad.read_h5ad(output / RESULT)
    if reference is not None:
        reference, groupby, donor_key = _read_reference(reference, groupby, donor_key, layer)
        _encode(reference, model, gene_key, layer=layer, force=force)
    adata = pp.read_cells(path, layer=layer)
    _encode(adata, model, gene_key, layer=layer, force=force)
    tl.annotate(
        adata,
        model,
        reference=reference,
        classifier=loaded,
        groupby=groupby,
        donor_key=donor_key,
        method=method,
    )
    params = adata.uns[_keys.ANNOTATE]["params"]
    with new_output(output, by=BY, job=job, overwrite=overwrite, inputs=inputs) as folder:
        mine = [name for name in adata.obs if str(name).startswith(f"{_keys.ANNOTATED}_")]
        adata.obs[mine].to_csv(folder / "cells.csv", index_label="cell")
        for name in TABLES:
            get.table(adata, _keys.ANNOTATE, name).to_csv(folder / f"{name}.csv", index=False)
        AnnData(obs=adata.obs, uns={_keys.ANNOTATE: adata.uns[_keys.ANNOTATE]}).write_h5ad(folder / RESULT)
        save_figures({column: pl.annotate(adata, column=column) for column in params["groupby"]}, folder)
    return adata


def _read_reference(
    path: str | Path, groupby: str | Sequence[str] | None, donor_key: str | None, layer: str | None
) -> tuple[AnnData, list[str], str | None]:
    """Labelled cells and their columns; what is wrong with these is said of this file, before anything is computed."""
    reference = pp.read_cells(path, layer=layer)
    return reference, *find_reference_columns(reference, groupby, donor_key)


def _encode(adata: AnnData, model: MaxTokiModel, gene_key: str | None, **ranking) -> None:
    pp.map_genes(adata, model, gene_key=gene_key)
    pp.rank_value_encode(adata, model, **ranking)
