"""From a file of settings to the tables and figures of a screen: what `maxtoki screen` runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

import anndata as ad
import pandas as pd

from . import _keys, get, pl, pp, tl
from ._files import atomic, read_yaml
from .models.load import SHIPPED, load_model
from .pp._store import open_store

# Sections of the file, with what they are passed to.
SECTIONS = {"prompts": pp.sample_prompts, "perturb": tl.perturb, "stats": tl.perturbation_stats}
_OWN = dict.fromkeys(("cells", "output", "model", "device"), str)
_OWN |= dict.fromkeys(("revision", "layer"), str | None)
_NOT_ASKED = {"adata", "model", "copy", "key_added", "key", "path", "layer", "task", "return"}
# As what the values of a type come from YAML, and what a message calls them.
_IN_YAML = {
    bool: ({bool}, "true or false"),
    int: ({int}, "a whole number"),
    float: ({int, float}, "a number"),
    str: ({str}, "a text"),
    tuple: ({list}, "a list"),
    Sequence: ({list}, "a list"),
    Mapping: ({dict}, "`name: value`"),
    NoneType: ({NoneType}, "null"),
}


def read_settings(path: str | Path) -> dict:
    """Settings of a screen, all of them known.

    Parameters
    ----------
    path
        YAML with `cells` (.h5ad or .zarr with raw counts), `output` (a folder), `model`, `revision` and `device` (as in
        `mt.load_model`), `layer` (with the raw counts, by default `.X`), and as sections `prompts`, `perturb` and `stats` the parameters
        of `mt.pp.sample_prompts`, `mt.tl.perturb` and `mt.tl.perturbation_stats`.

    Raises
    ------
    ValueError
        If a setting is unknown, missing or of another type.
    """
    settings = read_yaml(path)
    _refuse(path, "", set(settings), {*_OWN, *SECTIONS})
    _check_types(path, "", settings, _OWN)
    for name, function in SECTIONS.items():
        section = settings.setdefault(name, {}) or {}
        if not isinstance(section, dict):
            raise ValueError(f"{name} in {path} must hold settings as `name: value`.")
        types = get_type_hints(function)
        _refuse(path, f"{name} has ", set(section), set(types) - _NOT_ASKED)
        _check_types(path, f"{name}: ", section, types)
        settings[name] = section
    needed = ["cells", "output", "model"] + ([] if "genes" in settings["perturb"] else ["perturb: genes"])
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


def _check_types(path, where: str, found: dict, types: dict) -> None:
    for name in [name for name in found if name in types]:
        kinds = get_args(types[name]) if isinstance(types[name], UnionType) else (types[name],)
        allowed = [_IN_YAML[get_origin(kind) or kind] for kind in kinds]
        if not any(type(found[name]) in come_as for come_as, _ in allowed):
            words = " or ".join(word for _, word in allowed)
            raise ValueError(f"{path}: {where}{name} must be {words}, got {found[name]!r}.")


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
    folder, cells, layer = Path(settings["output"]), Path(settings["cells"]), settings.get("layer")
    asked = settings["perturb"]
    reads_time = asked.get("readout", "timelapse") == "timelapse"
    with open_store(cells):
        pass  # it says what is wrong with a file
    if reads_time and settings["model"] in SHIPPED:
        warnings.warn(
            "The time of the demo model is that of a simulation: the effects mean nothing on real cells. As model, give the "
            "folder of one that mt.train.temporal has trained.",
            UserWarning,
            stacklevel=2,
        )
    model = load_model(
        settings["model"], revision=settings.get("revision"), device=settings.get("device", "auto")
    )
    adata = (ad.read_zarr if cells.suffix == ".zarr" else ad.read_h5ad)(cells)
    pp.map_genes(adata, model)
    pp.rank_value_encode(adata, model, layer=layer)
    if reads_time:
        pp.sample_prompts(adata, **settings["prompts"])
    folder.mkdir(parents=True, exist_ok=True)
    tl.perturb(adata, model, layer=layer, path=folder / "effects.csv.gz", **asked)
    if _keys.PERTURBATION not in adata.uns:
        return None
    tl.perturbation_stats(adata, layer=layer, **settings["stats"])
    stats = get.perturbation_stats(adata)
    for name, table in [("stats", stats), ("controls", get.perturbation_controls(adata))]:
        with atomic(folder / f"{name}.csv") as temporary:
            table.assign(effect_unit=table.attrs["unit"]).to_csv(temporary, index=False)
    figures = {"ranked": pl.perturbation(adata).figure}
    if stats.loc[stats["matched_to"] == "", "p_value"].notna().any():
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
