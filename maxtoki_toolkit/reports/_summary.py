"""The page that lists many reports."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .._files import atomic

_THUMBNAILS, _SIZE = 3, (260, 200)
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem; border-bottom: 1px solid #ddd; }
td.why { max-width: 26rem; overflow-wrap: anywhere; white-space: pre-line; }
td.number { text-align: right; }
code { font-size: 85%; overflow-wrap: anywhere; }
img { margin: 0 .4rem .4rem 0; border: 1px solid #ddd; }
.failed { color: #a50026; font-weight: 600; }
"""


def write_summary(rows: list[Mapping[str, Any]], total: int, output: Path) -> None:
    """Write `output`/index.html, with nothing in it that lies elsewhere but the reports it links."""
    left = "" if len(rows) == total else f" {total - len(rows)} are still to come."
    states = [row["status"] for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    names = ("report", "status", "minutes", "why not", "parameters", "figures")
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Reports</title><style>{_STYLE}</style></head><body>
<h1>Reports</h1>
<p>{escape(counts)}.{left}</p>
<table><thead><tr>{"".join(f"<th>{name}</th>" for name in names)}</tr></thead>
<tbody>
{chr(10).join(_row(row, output) for row in rows)}
</tbody></table></body></html>
"""
    with atomic(output / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _row(row: Mapping[str, Any], output: Path) -> str:
    name, minutes = escape(row["notebook"]), row["minutes"]
    images = ""
    if row["report"]:
        path = Path(os.path.relpath(row["report"], output))
        name = f'<a href="{quote(path.as_posix())}">{escape((path.parent / row["notebook"]).as_posix())}</a>'
        images = "".join(
            f'<img src="data:image/png;base64,{image}" alt="figure {number} of {escape(row["notebook"])}">'
            for number, image in enumerate(row["images"], start=1)
        )
    return (
        f'<tr><td>{name}</td><td class="{row["status"].split()[0]}">{row["status"]}</td>'
        f'<td class="number">{"" if minutes != minutes else f"{minutes:.1f}"}</td>'
        f'<td class="why">{escape(row["why"])}</td><td><code>{escape(row["parameters"])}</code></td><td>{images}</td></tr>'
    )


def thumbnails(report: str) -> list[str]:
    """The first figures of a report, small, as PNG in base64."""
    if not report:
        return []
    import nbformat
    from PIL import Image

    notebook = nbformat.read(Path(report).with_suffix(".ipynb"), as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    found = []
    for content in figures[:_THUMBNAILS]:
        image = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
        image.thumbnail(_SIZE)
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        found.append(base64.b64encode(file.getvalue()).decode())
    return found
