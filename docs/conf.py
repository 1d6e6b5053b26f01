"""Sphinx: `sphinx-build -W docs docs/_build` (extra `docs`)."""

import os
import shutil
from importlib.metadata import version as installed
from pathlib import Path

import maxtoki_toolkit as mt
from maxtoki_toolkit.results.schema import SCHEMA

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# Pages that live elsewhere in the repository, so that there is one of each.
COPIED = {
    "tutorials": ["*.ipynb"],
    "notebooks": ["*.ipynb", "README.md", "presets/*.yaml"],
    "benchmarks": ["README.md"],
    "data_manifests": ["README.md"],
    ".": ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"],
}
MODULES = {
    "pp": "Preprocessing",
    "tl": "Tools",
    "pl": "Plots",
    "get": "Tables behind results",
    "models": "Models",
    "train": "Training",
    "datasets": "Data",
    "reports": "Reports",
    "widgets": "Widgets",
}


def gather() -> None:
    """Copy the pages that live elsewhere, and list every public function."""
    for folder, patterns in COPIED.items():
        if folder != ".":
            shutil.rmtree(DOCS / folder, ignore_errors=True)
        for page in (page for pattern in patterns for page in (ROOT / folder).glob(pattern)):
            target = DOCS / page.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            if page.suffix in (".md", ".ipynb"):
                text = page.read_text(encoding="utf-8")
                target.write_text(
                    text.replace("](docs/", "](").replace("](../docs/", "](../"), encoding="utf-8"
                )
            else:
                shutil.copy(page, target)
    lines = ["# API", "", "`import maxtoki_toolkit as mt`", ""]
    lines += ["```{eval-rst}", ".. currentmodule:: maxtoki_toolkit", "```", ""]
    sections = {"": ("Loading and settings", ["load_model", "settings"])}
    sections |= {
        name: (title, sorted(getattr(mt, name).__all__))
        for name, title in MODULES.items()
        if hasattr(mt, name)
    }
    for name, (title, members) in sections.items():
        prefix = f"{name}." if name else ""
        lines += [f"## {title}" + (f": `mt.{name}`" if name else ""), "", "```{eval-rst}"]
        lines += [".. autosummary::", "   :toctree: generated", ""]
        lines += [f"   {prefix}{member}" for member in members]
        lines += ["```", ""]
    (DOCS / "api.md").write_text("\n".join(lines))
    list_tables()


def list_tables() -> None:
    """A page of what functions store, from the schema."""
    lines = ["# What is stored", ""]
    lines += [
        "`mt.get.table(adata, key, table)` reads any of these tables, the first of a key if none is named;"
    ]
    lines += [
        "`mt.get.results(adata)` lists those that are there. Columns and units are in the docstrings of the functions,"
    ]
    lines += ["section Returns.", "", "| key in `.uns` | written by | table | rows |", "|---|---|---|---|"]
    for key, result in SCHEMA.items():
        rows = result.tables or {"": "(settings only)"}
        first = f"| `{key}` | {{py:func}}`mt.{result.function} <maxtoki_toolkit.{result.function}>` |"
        for i, (table, what) in enumerate(rows.items()):
            lines += [f"{first if i == 0 else '| | |'} {f'`{table}`' if table else ''} | {what} |"]
    (DOCS / "stored.md").write_text("\n".join(lines) + "\n")


gather()

project = "maxtoki_toolkit"
version = release = installed("maxtoki_toolkit")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
# Their lists of names come over the network, which a build elsewhere may not have.
if "READTHEDOCS" in os.environ:
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "maxtoki_toolkit"
nb_execution_mode = "off"
suppress_warnings = ["mystnb.unknown_mime_type"]  # live figures have a still one beside them
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autosummary_generate = True
autodoc_typehints = "none"
napoleon_google_docstring = False


def setup(app) -> None:
    """Links of these pages to what lies one folder up in the repository go to the copies."""

    def to_copy(app, name: str, text: list[str]) -> None:
        if "/" not in name:
            for folder in COPIED:
                text[0] = text[0].replace(f"](../{folder}/", f"]({folder}/")
            for page in COPIED["."]:
                text[0] = text[0].replace(f"](../{page}", f"]({page}")

    app.connect("source-read", to_copy)
