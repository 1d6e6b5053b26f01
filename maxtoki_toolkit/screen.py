"""From a file of settings to the tables and figures of a screen: what `maxtoki screen` runs."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import anndata as ad
import pandas as pd

from . import _keys, get, pl, pp, tl
from ._files import atomic, read_yaml
from .models.load import load_model

# Sections of the file, with what they are passed to.
SECTIONS = {"prompts": pp.sample_prompts, "perturb": tl.perturb, "stats": tl.perturbation_stats}
_OWN = {"cells", "output", "model", "revision", "device", "layer", *SECTIONS}
_NOT_ASKED = {"adata", "model", "copy", "key_added", "key", "path", "layer", "task"}


def read_settings(path: str | Path) -> dict:
    """Settings of a screen, all of them known.

    Parameters
    ----------
    path
        YAML with `cells` (.h5ad with raw counts), `output` (a folder), `model` (as in `mt.load_model`), and as sections
        `prompts`, `perturb` and `stats` the parameters of `mt.pp.sample_prompts`, `mt.tl.perturb` and `mt.tl.perturbation_stats`.
    """
    settings = read_yaml(path)
    _refuse(path, "", set(settings), _OWN)
    for name, function in SECTIONS.items():
        section = settings.setdefault(name, {}) or {}
        if not isinstance(section, dict):
            raise ValueError(f"{name} in {path} must hold settings as `name: value`.")
        parameters = inspect.signature(function).parameters
        _refuse(path, f"{name} has ", set(section), set(parameters) - _NOT_ASKED)
        settings[name] = section
    needed = ["cells", "output"] + ([] if "genes" in settings["perturb"] else ["perturb: genes"])
    if settings["perturb"].get("readout", "timelapse") == "timelapse":
        needed += [f"prompts: {key}" for key in ("time_key", "groupby") if key not in settings["prompts"]]
    elif settings["prompts"]:
        raise ValueError(
            f"prompts in {path} has no meaning: readout={settings['perturb']['readout']!r} reads single cells."
        )
    if missing := [key for key in needed if ":" in key or key not in settings]:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    return settings


def _refuse(path, where: str, found: set, known: set) -> None:
    if unknown := sorted(map(str, found - known)):
        raise ValueError(
            f"{path}: {where}unknown settings: {', '.join(unknown)}. Known are {', '.join(sorted(known))}."
        )


def run_screen(path: str | Path) -> pd.DataFrame | None:
    """Run a screen, or go on with it, and write its tables and figures.

    Parameters
    ----------
    path
        YAML; see `read_settings`.

    Returns
    -------
    Effects over donors; `None` where another process has to finish.
    """
    settings = read_settings(path)
    folder, layer = Path(settings["output"]), settings.get("layer")
    model = load_model(
        settings.get("model", "demo"),
        revision=settings.get("revision"),
        device=settings.get("device", "auto"),
    )
    adata = ad.read_h5ad(settings["cells"])
    pp.map_genes(adata, model)
    pp.rank_value_encode(adata, model, layer=layer)
    asked = settings["perturb"]
    if asked.get("readout", "timelapse") == "timelapse":
        pp.sample_prompts(adata, **settings["prompts"])
    folder.mkdir(parents=True, exist_ok=True)
    tl.perturb(adata, model, layer=layer, path=folder / "effects.csv.gz", **asked)
    if _keys.PERTURBATION not in adata.uns:
        return None
    tl.perturbation_stats(adata, layer=layer, **settings["stats"])
    stats = get.perturbation_stats(adata)
    for name, table in [("stats", stats), ("controls", get.perturbation_controls(adata))]:
        with atomic(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    figures = {"ranked": pl.perturbation(adata).figure}
    if stats["p_value"].notna().any():
        figures["volcano"] = pl.perturbation_volcano(adata)
    else:
        warnings.warn(
            "No gene could be compared with genes like it: screen more genes, or set n_controls.",
            stacklevel=2,
        )
    for name, figure in figures.items():
        for ending in ("png", "pdf"):
            with atomic(folder / f"{name}.{ending}") as temporary:
                figure.savefig(temporary, dpi=200, bbox_inches="tight")
    return stats
