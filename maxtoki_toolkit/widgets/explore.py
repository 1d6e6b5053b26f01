"""Look through cells as a model reads them."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from .. import _keys
from .._validate import require_obs, require_rank, require_unique_names
from ..models.model import MaxTokiModel, require_model
from ..tl._cells import require_encoding
from ._require import require_widgets

if TYPE_CHECKING:
    from ipywidgets import VBox

_MOST_GENES = 1000  # beyond those that are read


def explore(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    basis: str | None = None,
    color: str | None = None,
    cell: str | None = None,
    key: str = _keys.PROMPTS,
    n_cells: int = 20_000,
) -> VBox:
    """Look through cells, reorder the genes of one by hand, and see the predicted lapse move.

    Click a cell on the map, or type its name. Choose one of its genes and move it up, down, to a rank, or
    out; the model then reads the cell again. Beside the map: the reading with this gene at other ranks.

    Parameters
    ----------
    adata
        Rank-encoded cells with a map in `.obsm`. With prompts (`mt.pp.sample_prompts`) and a model that tells
        time, the lapse from a context to the cell is read.
    model
        Model. One without temporal training, or without prompts, shows the log-likelihood of the cell
        instead.
    basis
        Key in `.obsm` of the map; by default "X_umap", or else the first with two columns.
    color
        Column of `.obs` to colour by at first; by default that of the prompts' groups, or else the first.
    cell
        Name of the cell to begin with; by default the query of the first prompt, or else the first cell.
    key
        Key in `.uns` of the prompts.
    n_cells
        Cells on the map, at most; drawn at random where there are more. All can be chosen by name.

    Returns
    -------
    An ipywidgets container, for the last line of a cell. A notebook that is executed without anybody there,
    or exported, shows a picture of it instead.

    Raises
    ------
    KeyError
        If there is no map, or no such cell or column.
    ValueError
        If the cells were encoded for another vocabulary.
    ImportError
        If the extra "notebook" is not installed.

    Notes
    -----
    Genes of the chosen cell are edited, as the query of the prompt; its context stays as it is. A cell that
    is no query borrows the context of a prompt of the same group. The model reads so many genes of a cell,
    and those below only when others are taken out. What moves a prediction here is what the model makes of
    one cell: for an effect with an interval over donors, use `mt.tl.perturb` or `mt.tl.ablate_prompt`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=20)
    >>> mt.tl.embed(adata, model)
    >>> explorer = mt.widgets.explore(adata, model, basis="X_maxtoki")
    >>> len(explorer.children)
    4
    """
    require_widgets()
    require_unique_names(adata)
    require_rank(adata)
    require_model(model)
    require_encoding(adata.uns.get(_keys.ENCODING, {}), model)
    require_obs(adata, color)
    import ipywidgets as w

    from . import _cell_tables as tables
    from . import _cell_views as views
    from ._container import Container, is_attended, live_figure, picture_only, quietly, refresh, static_bundle

    basis = tables.embedding_key(adata, basis)
    points = tables.cell_points(adata, basis, n_cells)
    columns = tables.color_columns(adata)
    stored = adata.uns.get(key)
    params = stored["params"] if stored else {"groupby": [], "time_key": ""}
    wanted = [color, *params["groupby"], *columns]
    color = next((str(name) for name in wanted if name in columns), None)
    if cell is None:
        queries = stored["prompts"]["query"] if stored else adata.obs_names
        cell = next((str(name) for name in queries if name in adata.obs_names), str(adata.obs_names[0]))
    if cell not in adata.obs_names:
        raise KeyError(f"Did not find the cell {cell!r} in .obs_names (the first is {adata.obs_names[0]!r}).")
    tells_time = model.is_temporal
    unit = model.time_head.unit if tells_time else ""
    n_read = tables.n_read(model)

    state = {}

    def take(name: str) -> None:
        """Begin with another cell."""
        genes = tables.ranked_genes(adata, name)
        prompts = tables.cell_prompts(adata, name, key) if tells_time else None
        number = None if prompts is None or not len(prompts) else int(prompts.index[0])
        state.update(cell=name, original=genes, now=genes, prompts=prompts, prompt=number)
        state["token"] = int(genes["token"].iloc[0])

    def prompt_now():
        return None if state["prompt"] is None else state["prompts"].loc[state["prompt"]]

    def read() -> dict:
        """Reading of the cell, before and after its edits."""
        prompt, now, token = prompt_now(), state["now"], state["token"]
        before, after, tried = tables.read_versions(adata, model, prompt, state["original"], now, token)
        place = int(np.flatnonzero(now["token"] == token)[0])
        return {
            "before": before,
            "after": after,
            "tried": tried,
            "gene": now["symbol"].iloc[place],
            "rank": place + 1,
            "reading": views.LIKELIHOOD if prompt is None else f"predicted lapse ({unit})",
            "truth": np.nan if prompt is None else float(prompt["lapse"]),
        }

    def draw(found: dict) -> dict:
        return views.cells_figure(
            adata, points, basis=basis, color=state["color"], cell=state["cell"], **found
        )

    state["color"] = color
    take(cell)
    found = read()
    figure = draw(found)
    picture = views.cells_picture(
        adata,
        points,
        state["now"],
        basis=basis,
        color=color,
        cell=cell,
        text=f"{found['reading']}: {found['after']:.4g}",
    )
    bundle = static_bundle(picture, figure, f"Explorer of {adata.n_obs} cells")
    if not is_attended():
        return picture_only(bundle)

    live = live_figure(figure)
    narrow = {"description_width": "initial"}
    shade = w.Dropdown(options=columns, value=color, description="Colour by", style=narrow)
    names = adata.obs_names.astype(str).tolist() if adata.n_obs <= n_cells else []
    name = w.Combobox(options=names, value=cell, description="Cell", continuous_update=False, style=narrow)
    asked = w.Dropdown(options=[("none", None)], description="Prompt", style=narrow)
    genes = w.Select(options=[("", None)], rows=14, layout=w.Layout(width="270px"))
    up, down, out, undo = (
        w.Button(description=text, tooltip=tip, layout=w.Layout(width="128px"))
        for text, tip in [
            ("▲ up", "One rank higher"),
            ("▼ down", "One rank lower"),
            ("✕ delete", "Take the gene out of the cell"),
            ("undo all", "The cell as it was"),
        ]
    )
    place = w.BoundedIntText(value=1, min=1, max=1, layout=w.Layout(width="128px"))
    move = w.Button(description="move to rank", layout=w.Layout(width="128px"))
    card, result, context = w.HTML(), w.HTML(), w.HTML()
    for menu, width in [(shade, "230px"), (name, "230px"), (asked, "330px")]:
        menu.layout.width = width

    def show() -> None:
        """Bring everything in line with the state."""
        found = read()
        now, prompt = state["now"], prompt_now()
        edited = not now["token"].equals(state["original"]["token"])
        result.value = views.reading_html(
            found["before"], found["after"], reading=found["reading"], truth=found["truth"], edited=edited
        )
        listed = now.head(n_read + _MOST_GENES)
        lines = [
            (line, int(token))
            for line, token in zip(views.gene_labels(listed, n_read), listed["token"], strict=True)
        ]
        quietly(genes, choose_gene, state["token"], lines)
        place.max, place.value = len(now), found["rank"]
        if state["prompts"] is not None and len(state["prompts"]):
            options = [(_prompt_label(i, row), int(i)) for i, row in state["prompts"].iterrows()]
        else:
            options = [("none", None)]
        quietly(asked, choose_prompt, state["prompt"], options)
        quietly(name, choose_cell, state["cell"])
        card.value = views.cell_html(adata, state["cell"])
        context.value = views.prompt_html(adata, prompt, str(params["time_key"]), unit) or _why_no_time(
            model, key, has_prompts=stored is not None
        )
        nonlocal figure
        old, figure = figure, draw(found)
        if refresh(live, old, figure):
            listen()

    def click(trace, points, selector) -> None:
        """Take the cell that was clicked."""
        if points.point_inds:
            take(str(adata.obs_names[int(trace.customdata[points.point_inds[0]])]))
            show()

    def listen() -> None:
        for trace in live.data:
            if trace.customdata is not None:
                trace.on_click(click)

    def choose_cell(change) -> None:
        if change["new"] in adata.obs_names:
            take(change["new"])
            show()
        elif change["new"]:
            card.value = f"There is no cell {html.escape(repr(change['new']), quote=False)}."

    def choose_prompt(change) -> None:
        state["prompt"] = change["new"]
        show()

    def choose_gene(change) -> None:
        if change["new"] is not None:
            state["token"] = change["new"]
            show()

    def choose_color(change) -> None:
        state["color"] = change["new"]
        show()

    def shift(to: int) -> None:
        state["now"] = tables.move_gene(state["now"], state["token"], to)
        show()

    def delete(_) -> None:
        at = place_of(state["token"])
        if len(state["now"]) > 2:
            state["now"] = tables.delete_gene(state["now"], state["token"])
            state["token"] = int(state["now"]["token"].iloc[min(at, len(state["now"])) - 1])
            show()

    def place_of(token: int) -> int:
        return int(np.flatnonzero(state["now"]["token"] == token)[0]) + 1

    def restore(_) -> None:
        state["now"] = state["original"]
        show()

    handlers = {shade: choose_color, name: choose_cell, asked: choose_prompt, genes: choose_gene}
    for control, handler in handlers.items():
        control.observe(handler, "value")
    up.on_click(lambda _: shift(place_of(state["token"]) - 1))
    down.on_click(lambda _: shift(place_of(state["token"]) + 1))
    move.on_click(lambda _: shift(place.value))
    out.on_click(delete)
    undo.on_click(restore)
    listen()
    show()
    row = w.Layout(flex_flow="row wrap", align_items="flex-start")
    buttons = w.VBox([up, down, place, move, out, undo])
    text = w.VBox([result, context], layout=w.Layout(flex="1 1 300px", margin="0 0 0 20px"))
    return Container(
        [w.HBox([shade, name, asked], layout=row), card, live, w.HBox([genes, buttons, text], layout=row)],
        bundle,
    )


def _prompt_label(number: int, prompt) -> str:
    n = sum(bool(value) for name, value in prompt.items() if str(name).startswith("context_"))
    return f"{number}: {n} context cells" + ("" if prompt["own"] else ", of another cell")


def _why_no_time(model: MaxTokiModel, key: str, *, has_prompts: bool) -> str:
    """Why there is no lapse."""
    if not model.is_temporal:
        why = "This model cannot tell time: it has no temporal training."
    elif not has_prompts:
        why = f"There are no prompts in .uns[{html.escape(repr(key), quote=False)}]: run mt.pp.sample_prompts(adata, time_key=..., groupby=...)."
    else:
        why = "There is no prompt of this cell's group, and a lapse needs a context to count from."
    return f"{why}<br>Shown instead: how likely the model finds the order of the genes in this cell. This is <b>not</b> a time."
