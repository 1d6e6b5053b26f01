"""A corpus to train on, from the CELLxGENE Census or any TileDB-SOMA store."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .._warn import warn
from ._corpus_recipe import CorpusRecipe


class CorpusPlan(NamedTuple):
    """What a corpus will hold."""

    filters: pd.DataFrame
    """One row a filter, in the order in which they are applied: `filter`, and the `n_cells` and `n_donors` it leaves."""
    composition: pd.DataFrame
    """One row a donor and tissue: `donor`, `sex`, `age_years`, `tissue`, `n_cells`."""
    n_cells: int
    """Cells."""
    n_donors: int
    """Donors."""
    gigabytes: float
    """Estimate of the size on disk."""


def census(
    output: str | Path,
    model,
    *,
    store: str | Path | None = None,
    organism: str = "homo_sapiens",
    value_filter: str | None = None,
    recipe: CorpusRecipe | None = None,
    cells_per_shard: int = 32_768,
    share_array: bool = False,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Make a corpus to train on from the CELLxGENE Census, or any store of TileDB-SOMA, larger than memory if need be.

    Cells are filtered and balanced, read a block at a time, and written as rank-encoded shards, which
    `mt.train.pretrain` and `mt.train.temporal` take as they are. Which cells are taken depends on the names
    of donors and cells and the seed alone. A call that was interrupted goes on when it is made again, and
    gives the same shards.

    Parameters
    ----------
    output
        Folder to write: `shards`, `filters.csv` (`mt.get.corpus_filters`), `composition.csv`
        (`mt.get.corpus_composition`, `mt.pl.corpus_composition`) and the numbers of the cells in the store.
    model
        A model or a `Vocabulary`.
    store
        Path or address of an experiment or a Census, or the date of a release of the Census. By default the
        release that `mt.datasets.manifest("census")` pins.
    organism
        Which one of a Census.
    value_filter
        Cells to look at, in the words of TileDB-SOMA: `"tissue_general == 'lung' and sex == 'female'"`. The
        engine itself leaves out the others.
    recipe
        Filters, balance, and names of columns: `mt.datasets.CorpusRecipe`. By default what is known of the
        paper's corpora: normal cells of tissues, each once, none malignant, droplet protocols, at most 25% of
        any tissue.
    cells_per_shard
        Cells of a shard.
    share_array
        Share the shards out over the tasks of the SLURM array that this process is of.
    overwrite
        Replace a corpus that is there, of other settings or another store. What this function did not write
        stays in any case.

    Returns
    -------
    One row a shard: `path`, `n_cells`. In the cells of the shards `.obs` has all columns of the store;
    `donor_id` begins with the data set, so that no two of them share a donor, and `age_months` is the age,
    missing where it cannot be known.

    Raises
    ------
    ImportError
        Without the extra `census`.
    FileNotFoundError, ConnectionError
        If the store or the network is not there.
    KeyError
        If the store lacks a column that is asked for.
    ValueError
        If no cells are left; the message says which filter left none. If `output` holds something else.

    Notes
    -----
    Memory is that of a block of cells, whatever their number, but for the choice: 24 bytes for each cell that
    passes the filters, and as much again while donors or tissues are cut. Cells that express no gene of the
    vocabulary are left out of their shard, with a warning.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> import tiledbsoma.io
    >>> folder = tempfile.mkdtemp()
    >>> adata = mt.datasets.aging_atlas(400, 10, n_genes=500)
    >>> del adata.uns["truth"]
    >>> uri = tiledbsoma.io.from_anndata(f"{folder}/atlas", adata, measurement_name="RNA", X_layer_name="raw")
    >>> recipe = mt.datasets.CorpusRecipe.of(
    ...     keep={"is_primary_data": None, "disease": None, "tissue_type": None, "assay": None, "condition": "control"},
    ...     time_key="age_months", max_tissue_share=1.0, cells_per_donor=20,
    ... )
    >>> shards = mt.datasets.census(f"{folder}/corpus", mt.load_model("demo"), store=uri, recipe=recipe)
    >>> int(shards["n_cells"].sum()) <= 20 * 10
    True
    """
    from ..pp._soma import open_experiment  # pp loads torch
    from ..pp._vocabulary import as_vocabulary
    from ._census import prepare, write_shards

    folder, recipe, vocab = Path(output), recipe or CorpusRecipe(), as_vocabulary(model)
    with open_experiment(store, organism) as experiment:
        settings = {"organism": organism, "value_filter": value_filter, "recipe": recipe}
        settings |= {"cells_per_shard": cells_per_shard, "overwrite": overwrite}
        selection, job = prepare(experiment, folder, vocab, **settings)
        shards = write_shards(
            experiment,
            selection,
            folder,
            vocab,
            job,
            recipe=recipe,
            cells_per_shard=cells_per_shard,
            share_array=share_array,
            overwrite=overwrite,
        )
    if len(shards) == -(-len(selection.joinids) // cells_per_shard):
        if n_lost := len(selection.joinids) - shards["n_cells"].sum():
            warn(
                f"{n_lost:,} of {len(selection.joinids):,} cells express no gene of the vocabulary and are left out."
            )
    return shards


def census_plan(
    store: str | Path | None = None,
    *,
    organism: str = "homo_sapiens",
    value_filter: str | None = None,
    recipe: CorpusRecipe | None = None,
) -> CorpusPlan:
    """Say which cells and donors `mt.datasets.census` would take, what each filter leaves, and the size on disk; write nothing.

    Parameters
    ----------
    store, organism, value_filter, recipe
        As in `mt.datasets.census`.

    Returns
    -------
    A `CorpusPlan`: `filters`, `composition`, `n_cells`, `n_donors`, `gigabytes`.

    Raises
    ------
    ImportError, FileNotFoundError, ConnectionError, KeyError, ValueError
        As in `mt.datasets.census`.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> import tiledbsoma.io
    >>> adata = mt.datasets.aging_atlas(400, 10, n_genes=500)
    >>> del adata.uns["truth"]
    >>> path = tempfile.mkdtemp() + "/atlas"
    >>> uri = tiledbsoma.io.from_anndata(path, adata, measurement_name="RNA", X_layer_name="raw")
    >>> columns = dict.fromkeys(["is_primary_data", "disease", "tissue_type", "assay"])
    >>> recipe = mt.datasets.CorpusRecipe.of(keep=columns, time_key="age_months", max_tissue_share=1.0)
    >>> mt.datasets.census_plan(uri, recipe=recipe).n_cells
    400
    """
    from ..pp._soma import open_experiment
    from ._census import describe_job, select

    recipe = recipe or CorpusRecipe()
    with open_experiment(store, organism) as experiment:
        describe_job(experiment, organism, value_filter, recipe)  # whether the counts are there
        return _plan_of(experiment, select(experiment, value_filter, recipe), recipe)


def census_start(
    output: Path,
    vocab,
    *,
    store: str | Path | None = None,
    organism: str = "homo_sapiens",
    value_filter: str | None = None,
    recipe: CorpusRecipe,
    cells_per_shard: int = 32_768,
    overwrite: bool,
) -> CorpusPlan:
    """Choose the cells of a corpus and write which, as `census` does first; it takes them from there."""
    from ..pp._soma import open_experiment
    from ._census import prepare

    with open_experiment(store, organism) as experiment:
        settings = {"organism": organism, "value_filter": value_filter, "recipe": recipe}
        settings |= {"cells_per_shard": cells_per_shard, "overwrite": overwrite}
        selection, _ = prepare(experiment, output, vocab, **settings)
        return _plan_of(experiment, selection, recipe)


def _plan_of(experiment, selection, recipe: CorpusRecipe) -> CorpusPlan:
    from ._census import estimate_bytes

    size = estimate_bytes(experiment, selection.joinids, recipe)
    n_donors = selection.composition["donor"].nunique()
    return CorpusPlan(
        selection.filters, selection.composition, len(selection.joinids), n_donors, float(size / 1e9)
    )
