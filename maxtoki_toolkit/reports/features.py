"""The features of a sparse autoencoder as one page."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from anndata import AnnData

from .. import _keys
from .._files import atomic
from .._outputs import refuse_inputs
from .._validate import require_obs
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder

_SIGN = '<meta name="generator" content="mt.reports.features">'


def features(
    cells: AnnData | str | Path,
    output: str | Path = "features.html",
    *,
    model: MaxTokiModel | None = None,
    sae: SparseAutoencoder | None = None,
    key: str = _keys.FEATURES,
    groupby: str | None = None,
    basis: str | None = None,
    n_cells: int = 8,
    title: str = "Features",
    layer: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a page to look through the features of an autoencoder: one file, which needs no network.

    Parameters
    ----------
    cells
        Cells, or the path of a file that `mt.pp.read_cells` reads. Where they lack a result of
        `mt.tl.features`, it is made here, from raw counts if need be; what was given stays as it is.
    output
        File to write.
    model
        Model, to read the features where they are not known, and the genes of the cells in which each is most
        active; `None` to do without.
    sae
        Its autoencoder.
    key
        Key in `.obsm` and `.uns` of the features.
    groupby
        Column of `.obs` to compare; by default the one whose name speaks of cell types. The 40 largest groups
        are compared.
    basis
        Key in `.obsm` of the map; by default "X_umap", or else the first with two columns, and "spatial".
    n_cells
        Cells in which a feature is most active, to be listed.
    title
        Title of the page.
    layer
        Layer with the raw counts, "raw" for those in `.raw`; `None` for `.X`.
    overwrite
        Replace a page that this function wrote.

    Returns
    -------
    Path of the page.

    Raises
    ------
    KeyError
        If there is no such result, column or map.
    ValueError
        If model or autoencoder are not those that the features were read with, or `output` is something else.

    Notes
    -----
    With 16,000 features and 2,000 cells the page takes less than 5 MB. Of larger data, the map shows some of
    the cells, drawn at random, and genes are shown of fewer of the top cells; the page says so. Names of
    cells and values of `groupby` are in the page: mind who may read them.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> cells = mt.datasets.load("heart_nuclei")[:50].copy()
    >>> page = tempfile.mkdtemp() + "/features.html"
    >>> mt.reports.features(cells, page, model=mt.load_model("demo"), sae=mt.load_sae("demo")).name
    'features.html'
    """
    from ..pp.rank_value_encode import rank_value_encode
    from ..pp.read_cells import read_cells
    from ..tl.features import features as read_features
    from ..widgets._feature_front import FeatureReader, page_of
    from ..widgets._feature_tables import find_maps

    output = Path(output)
    given = isinstance(cells, AnnData)
    refuse_inputs(output, [] if given else [cells])
    _require_free(output, overwrite=overwrite)
    adata = cells if given else read_cells(cells, layer=layer)
    # Before minutes of reading.
    require_obs(adata, groupby)
    find_maps(adata, basis)
    reads = key not in adata.uns or (model is not None and _keys.RANK not in adata.layers)
    if reads and (model is None or sae is None):
        raise ValueError(
            f"There is no .uns[{key!r}] in the cells. Give model and sae, to read their features."
        )
    if reads and given:
        adata = adata.copy()
    if _keys.RANK not in adata.layers and reads:
        # In memory, the counts of a file are in .X by now.
        rank_value_encode(adata, model, layer=layer if given else None)
    if key not in adata.uns:
        read_features(adata, model, sae, controls=False, key_added=key)
    reader = FeatureReader(adata, model, sae, key=key, groupby=groupby, basis=basis, n_cells=n_cells)
    page = page_of(reader.blocks(title), title).replace("<head>\n", f"<head>\n{_SIGN}\n", 1)
    with atomic(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _require_free(output: Path, *, overwrite: bool) -> None:
    """Raise if there is something that is not to be replaced."""
    if not output.exists():
        return
    with output.open("rb") if output.is_file() else BytesIO() as file:
        ours = _SIGN.encode() in file.read(500)
    if not ours:
        raise ValueError(
            f"{output} exists and was not written by mt.reports.features: it stays as it is. Give another one."
        )
    if not overwrite:
        raise ValueError(f"{output} exists. Give another one, or ask for it to be replaced: overwrite=True.")
