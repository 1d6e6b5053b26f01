"""From a file of settings to a clock and a report on it: what `maxtoki clock` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from . import _keys, pp, reports
from ._doors import checked
from ._files import read_yaml
from ._manifests import manifest, manifest_paths
from ._names import closest
from ._recipes import read_call
from ._warn import warn
from .corpus import in_words
from .datasets import CorpusRecipe, census, census_plan
from .models.costs import Cost, Shape, cost, measure
from .models.load import load_model, vocabulary_of_settings
from .models.model import MaxTokiModel
from .pp._store import open_store
from .train._cells import obs_of
from .train._trainer import is_first_process
from .train.clock import ClockRecipe, clock, count_split, ready_cells, split

REPORT = "clock_report"
_DRAWN = 400  # prompts whose lengths a plan goes by
# Columns of a corpus.
_CORPUS_COLUMNS = {"time_key": "age_months", "donor_key": "donor_id", "groupby": ["cell_type"]}
_MARKS = 3  # tokens of a prompt that are neither cell nor lapse


def read_settings(path: str | Path) -> dict[str, Any]:
    """Arguments of `mt.train.clock` from YAML, all of them known, without opening cells or model.

    Raises
    ------
    ValueError
        If a setting is unknown or missing.
    """
    settings = read_call(path, clock, ClockRecipe, ["vocab", "store"])
    cells = settings["cells"]
    settings["cells"] = [str(part) for part in (cells if isinstance(cells, list) else [cells])]
    known = public_clock(settings["cells"])
    first = Path(settings["cells"][0])
    if known is None and first.name == settings["cells"][0] and not (first.suffix or first.exists()):
        near = closest(first.name, public_clocks())
        raise ValueError(
            f"{path}: did not find {settings['cells'][0]}.{near} cells are paths, or a public data set: {', '.join(public_clocks())}."
        )
    if known is not None:
        # What the file says goes before the split of the manifest.
        given = settings["recipe"].flat().keys() & read_yaml(path).keys()
        split_by = {name: value for name, value in known["split"].items() if name not in given}
        settings["recipe"] = ClockRecipe.of(**settings["recipe"].flat() | split_by)
        settings = _CORPUS_COLUMNS | settings
    elif "store" in settings:
        raise ValueError(
            f"{path}: store has a meaning only where cells is a public data set ({', '.join(public_clocks())})."
        )
    return settings


def public_clocks() -> list[str]:
    """Public data sets of the Census whose manifest says how a clock is made of them."""
    return [name for name in manifest_paths() if "clock" in manifest(name)]


def public_clock(cells: list[str]) -> dict[str, Any] | None:
    """Filters of the Census and the split of a data set, where its name stands in place of paths."""
    if len(cells) == 1 and cells[0] in manifest_paths() and not Path(cells[0]).exists():
        if plan := manifest(cells[0]).get("clock"):
            return plan
        raise ValueError(
            f"The manifest of {cells[0]!r} says of no clock; those of {', '.join(public_clocks())} do. Give paths of cells."
        )
    return None


def run_clock(path: str | Path) -> MaxTokiModel:
    """Train and judge a clock, or go on with it, and write a report on it.

    Parameters
    ----------
    path
        YAML with the parameters of `mt.train.clock` and the settings of its recipe by their names. `cells`
        are paths: files with raw counts (read into memory), files that `mt.pp.encode_file` wrote, or folders
        of a corpus; or the name of a public data set ("aida"), which is gathered from the Census (or a copy
        of it, `store`) into `corpus` of the output, with the split of its manifest; `model` as in
        `mt.load_model`, with `vocab` {tokens: path, medians: path} for weights without one.

    Returns
    -------
    The trained model. The output has the report as `report/clock_report.html`, if the extra "notebook" is
    installed.
    """
    settings = read_settings(path)
    model = _model(path, settings)
    store, cells = settings.pop("store", None), settings.pop("cells")
    if (known := public_clock(cells)) is not None:
        folder = Path(settings["output"]) / "corpus"
        census(folder, model, store=store, recipe=CorpusRecipe.of(**known["corpus"]))
        cells = [str(folder)]
    cells = open_cells(cells)
    trained = checked(clock)(cells, model, **settings)
    if is_first_process():
        output = Path(settings["output"])
        try:
            reports.run(REPORT, output / "report", run=str(output.resolve()))
        except ImportError as error:
            warn(f"There is no report: {error}")
    return trained


def plan_clock(
    path: str | Path, *, gpu: str | None = None, n_devices: int = 1, hourly_price: float | None = None
) -> Cost:
    """Say what the training of a clock takes, before anything is written.

    Parameters
    ----------
    path
        As in `run_clock`.
    gpu
        Name of a GPU, such as "H100"; by default this machine is measured for a few seconds.
    n_devices
        How many of them.
    hourly_price
        Of one, in any currency.
    """
    settings = read_settings(path)
    known = public_clock(settings["cells"])
    print("Reading cells ..." if known is None else "Asking the store ...", flush=True)
    model = _model(path, settings)
    recipe: ClockRecipe = settings["recipe"]
    training = recipe.training
    if known is not None:
        plan = census_plan(settings.get("store"), recipe=CorpusRecipe.of(**known["corpus"]))
        print(
            f"{in_words(plan)}\nThe lengths of the cells are not known yet. An upper bound, with prompts of full length:"
        )
        longest = (max(training.prompts.context_size) + 1) * (model.cell_length + 1) + _MARKS
        lengths = np.array([min(longest, model.max_length)])
    else:
        columns = {name: settings.get(name) for name in ("time_key", "donor_key", "groupby")}
        parts, columns = ready_cells(
            open_cells(settings["cells"]), model, settings.get("time_unit"), **columns
        )
        table = split(parts, recipe, time_key=columns["time_key"], donor_key=columns["donor_key"])
        print(count_split(table, columns["donor_key"]).to_string())
        print(f"Times are read as {columns.pop('time_unit')}. Training alone, without the evaluation:")
        lengths = prompt_lengths(parts, model, columns, recipe)
    n = training.optimization.max_steps * training.optimization.batch_size * training.optimization.accumulate
    rng = np.random.default_rng(0)
    typical = lengths.mean()
    return cost(
        Shape.of(model.hf.config),
        rng.choice(lengths, n * n_devices),
        batch=int(typical * training.optimization.batch_size),
        training=True,
        half=training.run.bf16 or training.run.fp16,
        gpu=gpu,
        n_devices=n_devices,
        flop_per_second=None if gpu else measure(model, int(typical), training=True),
        hourly_price=hourly_price,
    )


def prompt_lengths(cells: list, model: MaxTokiModel, columns: dict, recipe: ClockRecipe) -> np.ndarray:
    """Tokens of some prompts as the training will draw them."""
    found = []
    for obs in map(obs_of, cells):
        table = AnnData(obs=obs)
        pp.sample_prompts(
            table,
            **columns,
            context_size=tuple(recipe.training.prompts.context_size),
            n_prompts=_DRAWN,
        )
        length = obs[_keys.N_RANKED].clip(upper=model.cell_length - 2) + 2
        names = table.uns[_keys.PROMPTS]["prompts"].filter(regex="^(context_|query)").to_numpy(dtype=str)
        size = length.reindex(names.ravel()).fillna(0).to_numpy().reshape(names.shape)
        n_lapses = (names != "").sum(axis=1) - 1
        found.append(np.minimum(size.sum(axis=1) + n_lapses + _MARKS, model.max_length))
    return np.concatenate(found).astype(int)


def open_cells(paths: list[str]) -> list[AnnData | str]:
    """Encoded files and the shards of a corpus by their paths; cells with counts in memory."""
    found = []
    for path in map(Path, paths):
        shards = sorted((path / "shards").glob("*.h5ad")) if path.is_dir() else []
        if shards:
            found += map(str, shards)
        elif _is_encoded(path):
            found.append(str(path))
        else:
            found.append(pp.read_cells(path))
    return found


def _is_encoded(path: Path) -> bool:
    if path.suffix not in (".h5ad", ".zarr"):
        return False
    with open_store(path) as store:
        return f"layers/{_keys.RANK}" in store


def _model(path: str | Path, settings: dict[str, Any]) -> MaxTokiModel:
    vocab = vocabulary_of_settings(path, settings.pop("vocab", None))
    return load_model(settings.pop("model"), vocab=vocab, device=settings["recipe"].training.run.device)
