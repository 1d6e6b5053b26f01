"""What can be run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from ._allow import READS_TIME, columns
from ._parameters import read_parameters
from ._require import require_reports
from ._sources import notebook_paths, read_preset, read_source


def catalogue() -> pd.DataFrame:
    """The project's notebooks, and what data they need.

    Returns
    -------
    One row a notebook: `notebook` (its name), `title`, `data` (what `path` takes), `columns` (the columns of
    `.obs` that it asks for, as its parameters are), `reads_time` (the demo models cannot do that on your own
    cells) and `parameters`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> table = mt.reports.catalogue().set_index("notebook")
    >>> table.loc["fig5_age_acceleration", "title"]
    'Fig. 5: do the cells of a condition look older?'
    """
    require_reports()
    rows = []
    for name in notebook_paths():
        source = read_source(name)
        known = read_parameters(source.notebook)
        text = "\n".join(cell.source for cell in source.notebook.cells if cell.cell_type == "markdown")
        titles = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")]
        defaults = {key: parameter.default for key, parameter in known.items()}
        rows.append(
            {
                "notebook": name,
                "title": titles[0] if titles else "",
                "data": known["path"].help if "path" in known else "",
                "columns": ", ".join(dict.fromkeys(column for _, column, _ in columns(defaults))),
                "reads_time": name in READS_TIME,
                "parameters": ", ".join(known),
            }
        )
    return pd.DataFrame(rows)


def parameters(notebook: str | Path) -> pd.DataFrame:
    """The parameters of a notebook.

    Parameters
    ----------
    notebook
        As in `mt.reports.run`.

    Returns
    -------
    One row a parameter: `name`, `type`, `default` (as JSON) and `help`.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.reports.parameters("fig5_age_acceleration").loc[0, "name"]
    'path'
    """
    require_reports()
    known = read_parameters(read_source(notebook).notebook)
    return pd.DataFrame(
        [
            {"name": key, "type": entry.type, "default": json.dumps(entry.default), "help": entry.help}
            for key, entry in known.items()
        ],
        columns=["name", "type", "default", "help"],
    )


def preset(name: str | Path) -> dict[str, Any]:
    """Parameters of a notebook from a file, such as those of the paper.

    Parameters
    ----------
    name
        Name of a file in `notebooks/presets`, without its ending, or path of a YAML file.

    Returns
    -------
    Value by parameter. "unknown" is what the paper does not say: the notebook asks for it.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.reports.preset("fig4_attention_heads.paper")["model"]
    'maxtoki-217m'
    """
    values = read_preset(name)
    if not isinstance(values, dict):
        raise ValueError(f"{name} must hold parameters as `name: value`.")
    return values
