"""Look through attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from anndata import AnnData

from .._validate import require_adata
from ._require import require_widgets

if TYPE_CHECKING:
    from ipywidgets import VBox


def heads(adata: AnnData, *, key: str | Sequence[str] | None = None) -> VBox:
    """Look through what is known of the attention heads of a model.

    Choose a statistic, of what (a gene set, a part of prompts), and in which cells; then click a head, or
    choose it. Beside the heads: the genes that this one attends to most beyond what their rank explains, how
    much it gives to the parts of prompts, and the statistic in each group of cells.

    Parameters
    ----------
    adata
        Cells with a result of `mt.tl.attention`, of cells, prompts or both; and of `mt.tl.head_enrichment`,
        `mt.tl.head_segments` and `mt.tl.head_profiles`, as far as they were run. A panel for which something
        is missing says what to run.
    key
        Key or keys in `.uns` of the results to show; by default all that are there, whatever their keys. Gene
        sets that were given as lists are called by the key that their result was written to.

    Returns
    -------
    An ipywidgets container, for the last line of a cell. A notebook that is executed without anybody there,
    or exported, shows a picture of it instead.

    Raises
    ------
    KeyError
        If there is no such result.
    ImportError
        If the extra "notebook" is not installed.

    Notes
    -----
    A filled point or a dot on a square stands for q < 0.05, with the correction of the function that computed
    it; looking through many statistics until one is called is not corrected for. Lines are 95% intervals over
    donors.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.tl.attention(adata, model, groupby="cell_type", donor_key="donor_id", n_cells=1)
    >>> explorer = mt.widgets.heads(adata)
    >>> len(explorer.children)
    2
    """
    require_widgets()
    require_adata(adata)
    import ipywidgets

    from ._container import Container, is_attended, live_figure, picture_only, quietly, refresh, static_bundle
    from ._head_tables import head_tables
    from ._head_views import choices, choose, head_views, heads_figure, heads_picture

    tables = head_tables(adata, [key] if isinstance(key, str) else key)
    views_of = cache(lambda state: head_views(adata, tables, state))
    state = choose(tables)
    figure = heads_figure(views_of(state))
    bundle = static_bundle(heads_picture(views_of(state)), figure, f"Attention heads of {adata.n_obs} cells")
    if not is_attended():
        return picture_only(bundle)

    live = live_figure(figure)
    menus = {
        "statistic": ipywidgets.Dropdown(options=choices(tables), description="Statistic"),
        "of": ipywidgets.Dropdown(options=[state.of], description="of"),
        "group": ipywidgets.Dropdown(options=[state.group], description="in cells"),
        "name": ipywidgets.Dropdown(options=[state.name], description="Head"),
    }
    wide = {"statistic": "330px", "of": "230px", "group": "230px", "name": "150px"}
    for name, menu in menus.items():
        menu.layout.width = wide[name]
        menu.style.description_width = "initial"

    def show(change: dict | None = None) -> None:
        """Bring menus and figure in line with what is chosen."""
        now = choose(tables, *(menu.value for menu in menus.values()))
        quietly(menus["of"], show, now.of, choices(tables, now.statistic))
        quietly(menus["group"], show, now.group, choices(tables, now.statistic, now.of))
        quietly(menus["name"], show, now.name, views_of(now).grid["name"].tolist())
        nonlocal figure
        before, figure = figure, heads_figure(views_of(now))
        refresh(live, before, figure)

    def pick(trace, points, selector) -> None:
        """Take the head that was clicked."""
        if points.point_inds:
            row, column = points.point_inds[0]
            grid = views_of(choose(tables, *(menu.value for menu in menus.values()))).grid
            chosen = (grid["layer"] == row) & (grid["head"] == column)
            menus["name"].value = grid.loc[chosen, "name"].iloc[0]

    for menu in menus.values():
        menu.observe(show, "value")
    live.data[0].on_click(pick)
    show()
    bar = ipywidgets.HBox(list(menus.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
    return Container([bar, live], bundle)
