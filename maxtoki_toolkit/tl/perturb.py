"""Genes moved, taken out or put in: what becomes of the reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from .._digest import digest
from .._names import require_choice
from ..models.edits import ranks_to_move
from ..models.model import MaxTokiModel
from ..pp._design import known_cells
from ..results.effects_file import check_path
from ..results.store import write_result
from ._asked_genes import ALL, ask_genes
from ._cells import known_among
from ._edit_readouts import READOUTS
from ._edited_units import cell_units, prompt_units, with_controls
from ._screen import Screen, read_parts, run_in_parts
from .recipes import Cells, ScreenFile

ON = ("query", "context", "both")
UNITS = {"likelihood": "nats a gene", "embedding": "cosine"}
LARGEST = 1 << 28  # bytes in .uns
_RANKS = 50  # what "activate" moves a gene by, as in the original


def perturb(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    genes: str | Sequence[str | Sequence[str]] | Mapping[str, str | Sequence[str]],
    mode: str = "inhibit",
    k: int | Sequence[int] | None = None,
    on: str | Cells = "query",
    readout: str = "timelapse",
    key: str | None = None,
    n_controls: int = 0,
    path: str | Path | ScreenFile | None = None,
    rng: int = 0,
    key_added: str | None = None,
) -> None:
    """Edit genes in cells and read them again: what moves the reading, and which way.

    Parameters
    ----------
    adata
        Rank-encoded cells, for the timelapse with prompts (`mt.pp.sample_prompts`).
    model
        A model; one with temporal training for the timelapse.
    genes
        Genes (symbols, Ensembl ids or `.var_names`), each edited alone; a tuple or list among them is a set
        whose genes are edited together, and {name: genes} are sets with names. "all" for every gene of the
        cells that the model knows.
    mode
        What is done to the ranking of a cell:

        "inhibit"
            To the last rank of the cell. Out of distribution: a gene that is not expressed has no rank at
            all, and the last one is of a gene that is barely seen.
        "delete"
            Taken out. Nearest to a cell that does not express the gene, but what the gene does to others
            stays.
        "activate"
            Up by `k` ranks, by default 50; an absent gene is put in k ranks above the end.
        "overexpress"
            To the first rank, put in where it is absent; a set in the order given. Far out of distribution:
            no cell has a transcription factor as its highest gene, and published screens called what this
            alone does.
        "shift"
            Up by `k` ranks, or down where it is negative: a dose.

        None of them changes any other gene, as a real perturbation does.
    k
        Ranks for "activate" and "shift", or several.
    on
        Which cells are edited. Of prompts: the "query", all of the "context", or "both". Where single cells
        are read, `mt.tl.Cells` with those to edit (all by default), their groups and donors, and those of a
        target state; prompts know their own.
    readout
        "timelapse"
            Change of the predicted lapse; from an edit of the query, positive is older.
        "likelihood"
            Of single cells: change of the mean log-probability of the genes of a target cell that is read
            after the edited one, in nats a gene (positive: the edited cell leads to the target), or without a
            target of the cell's own genes (how plausible it is). For models without temporal training. It is
            no time: two cells one after the other are not what such a model was trained on. One target of the
            same group is drawn for each cell.
        "embedding"
            Of single cells: change of the cosine between a cell's embedding and the mean of the target cells
            of its group, or without a target the cosine distance that the cell moves by, which has no
            direction.
    key
        Key in `.uns` of the prompts, by default "prompts".
    n_controls
        Also edit, for each gene or set, this many control sets of as many other genes: those most like its
        genes in rank, detection and expression. With "all", genes are each other's controls.
    path
        `.csv`, `.csv.gz` or `.parquet` to write the effects to, with their unit as `effect_unit`, for large
        screens; `mt.tl.ScreenFile` to replace one that is there, or to share it over a SLURM array. Parts are
        kept beside it until it is complete: a screen that was killed goes on where it was, and gives the same
        table. Processes of `accelerate launch` share the parts.
    rng
        Seed of the target cells.
    key_added
        Key in `.uns`, by default "perturbation".

    Returns
    -------
    `None`. Writes to `.uns["perturbation"]` the tables

    `effects`
        A row a prompt (or cell) and edit, in `params["unit"]`; with a file, in that:

        `prompt`, `cell`, `group`, `donor`, `lapse`
            Number of the prompt (or cell), its query cell, group and donor, and its true lapse, where there
            are any.
        `gene`, `symbol`, `k`
            Ensembl id or name of the set, its symbol, and the ranks it is moved by (0 where the mode has
            none).
        `effect`
            `value` less `value_intact`; NaN where the model does not read the gene.
        `present`, `rank_before`, `rank_after`
            Whether an edited cell has the gene, and its rank there, from 1 (mean over the edited cells and
            the genes of a set; NaN where it is absent).
        `n_lost`, `n_gained`
            Other genes pushed out of what the model reads, and let in.
        `value`, `value_intact`, `took_effect`
            Readings with the edit and without; whether the edit changed what the model reads.

    `genes`
        A row a `gene` or set, with its `symbol`: its `members` and how many (`n_genes`); for a control, what
        it is `matched_to`; and in how many rows it was read (`n_read`) and its edit took effect
        (`n_took_effect`).

    Raises
    ------
    ValueError
        If the model cannot tell time and the readout is the timelapse, a setting is unknown or has no meaning
        here, or the effects are large and there is no `path`.
    KeyError
        If there are no prompts, or a gene is not known.

    Notes
    -----
    Edits are made in the whole ranking of a cell; what the model reads is cut after that. A gene that the
    model reads neither before nor after an edit has the effect NaN, never 0: nothing was seen of it. So has
    an absent gene, unless the mode puts it in. An edit that leaves what is read as it was has an effect of
    exactly 0 and `took_effect` False. With "all", genes that are not read in a cell have no row there.

    Taking a gene out of a cell that is longer than the model reads lets the next one in, and putting one in
    pushes the last out: `n_gained` and `n_lost` count them.

    The effect is what the model makes of an edit. It is not what happens to a cell: no gene answers to
    another here, and a gene that goes with age moves the reading whether or not it drives anything.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=4, donor_key="donor_id")
    >>> mt.tl.perturb(adata, model, genes=["FOXO3", ("FOXO3", "KLF2")], mode="overexpress")
    >>> mt.get.table(adata, "perturbation").shape[0]
    8
    """
    file = path if isinstance(path, ScreenFile) or path is None else ScreenFile(path=path)
    if file is not None:
        check_path(Path(file.path))
    screen = set_up(
        adata,
        model,
        genes=genes,
        mode=mode,
        k=k,
        on=on,
        readout=readout,
        key=key,
        n_controls=n_controls,
        rng=rng,
    )
    units, asked = screen.units, screen.asked

    edited = on if isinstance(on, str) else "query"
    settings = {"mode": mode, "k": screen.doses.tolist(), "on": edited, "readout": readout, "seed": rng}
    unit = UNITS.get(readout) or model.time_head.unit
    if file is None:
        effects = _in_memory(screen)
    else:
        # What the effects depend on, and so not the device.
        recipe = {name: value for name, value in model.params.items() if name != "device"} | settings
        recipe |= {"genes": digest(asked.table), "cells": digest(*units.cells.arrays, units.table)}
        recipe["prompts"] = digest(*(units.prompts or ()), units.members, units.target)
        written = run_in_parts(screen, file, recipe, unit)
        if written is None:  # another process puts the parts together
            return
        effects, checksum = written

    table = asked.table.copy()
    rows = effects["gene"].cat.codes.to_numpy()
    place = pd.Index(table["gene"]).get_indexer(effects["gene"].cat.categories)[rows]
    for name, column in [("n_read", effects["effect"].notna()), ("n_took_effect", effects["took_effect"])]:
        table[name] = np.bincount(place[column.to_numpy()], minlength=len(table))
    params = {
        **settings,
        "unit": unit,
        "whole_vocabulary": screen.whole,
        "prompts": (key or _keys.PROMPTS) if readout == "timelapse" else "",
        "target": readout != "timelapse" and len(units.target) > 0,
        "groupby": units.groupby,
        "donor_key": units.donor_key,
        "time_read_as": units.time_read_as,
        "n_controls": n_controls,
        "n_units": len(units.table),
        "n_edits": len(effects),
        "n_genes": len(asked.tokens),
        "n_truncated": int((units.cells.lengths > screen.max_length).sum()),
        "path": None if file is None else str(file.path),
        "sha256": "" if file is None else checksum,
    }
    write_result(
        adata,
        _keys.PERTURBATION,
        {**model.params, **params},
        key_added=key_added,
        genes=table,
        **({"effects": effects} if file is None else {}),
    )


def set_up(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    genes: str | Sequence[str | Sequence[str]] | Mapping[str, str | Sequence[str]],
    mode: str = "inhibit",
    k: int | Sequence[int] | None = None,
    on: str | Cells = "query",
    readout: str = "timelapse",
    key: str | None = None,
    n_controls: int = 0,
    rng: int = 0,
) -> Screen:
    """Say what is edited and read, before anything is."""
    doses = ranks_to_move(mode, k, _RANKS)
    _check(on, readout, key)
    if readout == "timelapse":
        cells, _ = known_cells(adata)
        units = prompt_units(cells, model, key, on)
    else:
        chosen, cells, _ = known_among(on if isinstance(on, Cells) else None, adata)
        units = cell_units(cells, model, chosen, rng)
    asked = ask_genes(cells, model, genes)
    if n_controls:
        asked = with_controls(cells[units.used], model, asked, units, n_controls)
    whole = isinstance(genes, str) and genes == ALL
    return Screen(model, units, asked, mode, doses, readout, whole=whole)


def _in_memory(screen: Screen) -> pd.DataFrame:
    """All effects, or raise if they are too many for `.uns`."""
    found = list(read_parts(screen))
    effects = screen.table(pd.concat(found, ignore_index=True))
    if (size := int(effects.memory_usage().sum())) > LARGEST:
        raise ValueError(
            f"The effects take {size / 1e9:.1f} GB, more than the {LARGEST / 1e9:.2f} GB that go to .uns. Say where to "
            "write them: path='effects.csv.gz'."
        )
    return effects


def _check(on: str | Cells, readout: str, key: str | None) -> None:
    """Refuse what has no meaning for what is read: prompts or single cells."""
    require_choice("readout", readout, READOUTS)
    if isinstance(on, str):
        require_choice("on", on, ON)
    if readout == "timelapse" and isinstance(on, Cells):
        raise ValueError(
            "mt.tl.Cells are for single cells (readout='likelihood' or 'embedding'); prompts have their own groups and "
            "donors: mt.pp.sample_prompts(adata, ...)."
        )
    if readout != "timelapse" and (key is not None or on in ON[1:]):
        raise ValueError(
            f"readout={readout!r} reads single cells (on=mt.tl.Cells(...)): there is no context, and no prompts of a key."
        )
