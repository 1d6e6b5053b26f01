"""An executed notebook as one page that needs no network."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

ANSWER = "answer"  # the tag of cells that a page shows first
PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
# The page without what the template would load: require.js, MathJax and Mermaid.
_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}"""
# plotly's own copy is some megabytes; nothing else that looks like it is.
_LARGE = 500_000
# nbconvert warns of figures without a text in their place.
_LOG = logging.getLogger(__name__)
_LOG.setLevel(logging.ERROR)


def to_html(notebook: Any, *, title: str, folder: Path) -> str:
    """Page of an executed notebook; images of its text are looked for in `folder`."""
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter

    notebook = copy.deepcopy(notebook)
    notebook.metadata["title"] = title
    notebook.metadata.pop("widgets", None)
    _answer_first(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_static(output) for output in cell.outputs]
    exporter = HTMLExporter(raw_template=_TEMPLATE, embed_images=True, exclude_anchor_links=True, log=_LOG)
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title, "path": str(folder)}})
    page = BeautifulSoup(html, features="html.parser")
    _fold_code(page)
    needs_plotly = bool(page.select(".plotly-graph-div"))
    _drop_remote(page)
    if needs_plotly:
        script = page.new_tag("script")
        page.head.append(script)
        script.string = _plotly_js()
    return str(page)


def _answer_first(notebook: Any) -> None:
    """Put what the cells tagged "answer" say under the title: words, then figures, then tables."""
    import nbformat

    tagged = [cell for cell in notebook.cells if ANSWER in cell.metadata.get("tags", [])]
    outputs = sorted((out for cell in tagged for out in cell.get("outputs", [])), key=_order)
    first = notebook.cells[0] if notebook.cells else None
    if not outputs or first.cell_type != "markdown":
        return
    title, _, about = first.source.partition("\n")
    # The cell has no code of its own to show.
    shown = nbformat.v4.new_code_cell(
        "", outputs=copy.deepcopy(outputs), metadata={"transient": {"remove_source": True}}
    )
    notebook.cells[:1] = [
        nbformat.v4.new_markdown_cell(title),
        shown,
        nbformat.v4.new_markdown_cell(f"## What this is\n{about}"),
    ]


def _order(output: Any) -> int:
    if output.output_type in ("stream", "error"):
        return 0
    return 1 if "image/png" in output.get("data", {}) else 2


def _fold_code(page: Any) -> None:
    """Leave code a click away."""
    for code in page.select(".jp-CodeCell > .jp-Cell-inputWrapper"):
        details, summary = page.new_tag("details"), page.new_tag("summary")
        summary.string = "code"
        code.wrap(details)
        details.insert(0, summary)


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _static(output: Any) -> Any:
    """An output without what a page cannot show by itself."""
    data = output.get("data")
    if not data:
        return output
    # A widget has no kernel here; what it left as text or picture stays.
    data.pop(WIDGET, None)
    if PLOTLY in data:
        from plotly.io import to_html as draw

        figure = data.pop(PLOTLY)
        figure, config = {k: v for k, v in figure.items() if k != "config"}, figure.get("config")
        data["text/html"] = draw(
            figure,
            config=config,
            full_html=False,
            include_plotlyjs=False,
            validate=False,
            default_width="100%",
        )
    return output


def _drop_remote(page: Any) -> None:
    """Take out what would be loaded from elsewhere, and copies of plotly.js of single figures."""
    for script in page("script"):
        copied = len(script.string or "") > _LARGE and "plotly.js v" in script.string
        if copied or _is_remote(script.get("src")):
            script.decompose()
    for link in page("link"):
        if _is_remote(link.get("href")):
            link.decompose()
    for element in page(["img", "iframe", "video", "audio", "source", "embed", "object"]):
        address = element.get("src") or element.get("data")
        if _is_remote(address):
            # The reader can still follow it.
            instead = page.new_tag("a", href=address)
            instead.string = element.get("alt") or address
            element.replace_with(instead)


def _is_remote(address: str | None) -> bool:
    return bool(address) and address.strip().lower().startswith(("http:", "https:", "//"))
