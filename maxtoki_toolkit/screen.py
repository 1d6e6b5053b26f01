"""From a file of settings to the tables and figures of a screen: what `maxtoki screen` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

import pandas as pd
from anndata import AnnData

from . import _keys, get, pl, pp, tl
from ._files import atomic, read_yaml
from ._outputs import check_names, claim, refuse_inputs
from ._warn import warn
from .models.costs import Cost, plan, require_gpu
from .models.load import SHIPPED, load_model
from .models.model import MaxTokiModel
from .pp._store import open_counts, open_store
from .tl.perturb import set_up
from .tl.recipes import Cells, ScreenFile

BY, EFFECTS = "maxtoki screen", "effects.csv.gz"
_FIGURES = [f"{name}.{ending}" for name in ("ranked", "volcano") for ending in ("png", "pdf")]
WRITTEN = ["stats.csv", "controls.csv", *_FIGURES]
# Sections of the file, with what they are passed to.
SECTIONS = {"prompts": pp.sample_prompts, "perturb": tl.perturb, "stats": tl.perturbation_stats}
# Groups of settings that stand among those of a section.
MORE = {"prompts": pp.PromptSampling, "perturb": Cells}
_OWN = dict.fromkeys(("cells", "output", "model", "device"), str)
_OWN |= dict.fromkeys(("revision", "layer"), str | None)
_NOT_ASKED = {"adata", "model", "key_added", "key", "path", "task", "sampling", "return"}
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
        YAML with `cells` (raw counts: .h5ad, .zarr or 10x), `output` (a folder), `model`, `revision` and
        `device` (as in `mt.load_model`), `layer` (with the raw counts, by default `.X`; "raw" for those in
        `.raw`), and as sections `prompts`, `perturb` and `stats` the parameters of `mt.pp.sample_prompts`,
        `mt.tl.perturb` (where single cells are read with those of `mt.tl.Cells`) and
        `mt.tl.perturbation_stats`.

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
        if name in MORE:
            types |= get_type_hints(MORE[name])
        _refuse(path, f"{name} has ", set(section), set(types) - _NOT_ASKED)
        _check_types(path, f"{name}: ", section, types)
        settings[name] = section
    needed = ["cells", "output", "model"] + ([] if "genes" in settings["perturb"] else ["perturb: genes"])
    if settings["perturb"].get("readout", "timelapse") != "timelapse" and settings["prompts"]:
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
        allowed = [_IN_YAML[origin] for kind in kinds if (origin := get_origin(kind) or kind) in _IN_YAML]
        if not any(type(found[name]) in come_as for come_as, _ in allowed):
            words = " or ".join(word for _, word in allowed)
            raise ValueError(f"{path}: {where}{name} must be {words}, got {found[name]!r}.")


def run_screen(
    path: str | Path, *, share_array: bool = False, overwrite: bool = False
) -> pd.DataFrame | None:
    """Run a screen, or go on with it, and write its tables and figures.

    Parameters
    ----------
    path
        YAML; see `read_settings`.
    share_array
        Share the parts out over the tasks of the SLURM array that this process is of.
    overwrite
        Replace a screen that is there, of other settings or cells. What else is there stays in any case.

    Returns
    -------
    Effects over donors; `None` where another process has to finish.

    Raises
    ------
    ValueError
        If `output` holds files of these names that are of no screen, or of another one.
    """
    settings = read_settings(path)
    folder, cells, layer = Path(settings["output"]), Path(settings["cells"]), settings.get("layer")
    with open_store(cells) as store:
        open_counts(store, layer)  # it says what is wrong with a file
    refuse_inputs(folder / EFFECTS, [cells])
    # Cells and model are known by what they are, beside the effects.
    ours = {"by": BY, "job": {key: settings.get(key) for key in (*SECTIONS, "layer")}, "overwrite": overwrite}
    check_names(folder, WRITTEN, **ours)
    if _reads_time(settings) and settings["model"] in SHIPPED:
        warn(
            "The time of the demo model is that of a simulation: the effects mean nothing on real cells. As model, give the "
            "folder of one that mt.train.temporal has trained."
        )
    adata, model, asked = _ready(settings)
    file = ScreenFile(path=folder / EFFECTS, share_array=share_array, overwrite=overwrite)
    tl.perturb(adata, model, path=file, **asked)
    if _keys.PERTURBATION not in adata.uns:
        return None
    tl.perturbation_stats(adata, **settings["stats"])
    claim(folder, WRITTEN, **ours)
    stats = get.table(adata, "perturbation_stats")
    for name, table in [("stats", stats), ("controls", get.table(adata, "perturbation_stats", "controls"))]:
        with atomic(folder / f"{name}.csv") as temporary:
            table.assign(effect_unit=table.attrs["unit"]).to_csv(temporary, index=False)
    figures = {"ranked": pl.perturbation(adata).figure}
    if stats.loc[stats["matched_to"] == "", "p_value"].notna().any():
        figures["volcano"] = pl.perturbation_volcano(adata)
    else:
        warn("No gene could be compared with genes like it: screen more genes, or set n_controls.")
    for name, figure in figures.items():
        for ending in ("png", "pdf"):
            with atomic(folder / f"{name}.{ending}") as temporary:
                figure.savefig(temporary, dpi=200, bbox_inches="tight")
    return stats


def plan_screen(
    path: str | Path, *, gpu: str | None = None, n_devices: int = 1, hourly_price: float | None = None
) -> Cost:
    """Say what the model takes for a screen, before anything is written.

    Of a large screen, some parts are edited and counted; what prompts and edits share is counted once, as it
    is read.

    Parameters
    ----------
    path
        As in `run_screen`.
    gpu, n_devices, hourly_price
        As in `models.costs.plan`.
    """
    require_gpu(gpu)
    settings = read_settings(path)
    print("Reading cells ...", flush=True)
    adata, model, asked = _ready(settings)
    screen = set_up(adata, model, **asked)
    print(f"{len(screen.unit) * len(screen.doses):,} edits of {len(screen.units.table):,} prompts or cells.")
    return plan(model, screen.work(), gpu=gpu, n_devices=n_devices, hourly_price=hourly_price)


def _reads_time(settings: dict) -> bool:
    return settings["perturb"].get("readout", "timelapse") == "timelapse"


def _ready(settings: dict) -> tuple[AnnData, MaxTokiModel, dict]:
    """Encoded cells with prompts, the model, and the arguments of `mt.tl.perturb`."""
    layer = settings.get("layer")
    cells_on, asked = Cells.split(settings["perturb"])
    model = load_model(
        settings["model"], revision=settings.get("revision"), device=settings.get("device", "auto")
    )
    adata = pp.read_cells(settings["cells"], layer=layer)
    pp.map_genes(adata, model)
    pp.rank_value_encode(adata, model, layer=layer)
    if _reads_time(settings):
        sampling, others = pp.PromptSampling.split(settings["prompts"])
        pp.sample_prompts(adata, sampling=sampling, **others)
    if settings["perturb"].keys() & set(Cells.names()):
        asked["on"] = cells_on
    return adata, model, asked
