"""Join the samples of a study, listed in a sheet, into one file of cells."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.utils import make_index_unique

from .._counts import check_counts
from .._outputs import check_output, new_output
from .._progress import progress
from ._counts import counts_hint, get_counts
from ._formats import stem_of
from ._store import open_store
from .read_cells import read_cells

_ID = r"ENS[A-Z]*G\d{11}"
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "feature_id", "ensembl")
# Droplets with fewer counts hold no cell.
_EMPTY = 10


def import_samples(
    sheet: str | Path, output: str | Path, *, layer: str | None = None, overwrite: bool = False
) -> pd.DataFrame:
    r"""Join the samples that a sheet lists into one file of cells.

    Genes are joined by their Ensembl ids; a gene that a sample lacks is 0 in its cells. Antibodies, hashtags
    and guides are left out.

    Parameters
    ----------
    sheet
        Table (CSV, or separated by semicolons or tabs), one row a sample: `path` of what `mt.pp.read_cells`
        reads, from the folder of the sheet if it is not absolute; `sample`, its name (by default that of the
        file); and any other columns, such as donor, age and condition, which all cells of the sample get.
    output
        `.h5ad` or `.zarr` to write.
    layer
        Layer with the raw counts, as in `mt.pp.read_cells`; of each sample that is no 10x output.
    overwrite
        Replace cells that this function has written to `output`. Anything else that is there stays in any
        case.

    Returns
    -------
    One row a sample: `sample`, `path`, `n_cells`, `n_genes`, `n_missing` (genes of others that it lacks),
    `notes` (what does not match). The file has raw counts as `.X`, cells named barcode-sample, the columns of
    the sheet in `.obs`, and in `.var` the `symbol` and `n_samples`, in how many samples the gene was.

    Raises
    ------
    ValueError
        If the samples cannot be joined, where the message lists all that is wrong; or if something is at
        `output` already.

    Examples
    --------
    >>> import tempfile, pathlib, maxtoki_toolkit as mt
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for seed in (0, 1):
    ...     mt.datasets.aging_atlas(100, 10, seed=seed).write_h5ad(folder / f"s{seed}.h5ad")
    >>> text = "path,sample,donor,age\ns0.h5ad,a,d1,30\ns1.h5ad,b,d2,70\n"
    >>> _ = (folder / "samples.csv").write_text(text)
    >>> mt.pp.import_samples(folder / "samples.csv", folder / "cells.h5ad")["n_cells"].tolist()
    [100, 100]
    """
    output = Path(output)
    if output.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"{output} is neither .h5ad nor .zarr.")
    table = _read_sheet(Path(sheet))
    paths = [Path(sheet).parent / path for path in table.pop("path")]
    written = {"by": "mt.pp.import_samples", "overwrite": overwrite, "inputs": [sheet, *paths]}
    check_output(output, **written)
    names = table["sample"].tolist()
    cells, notes, wrong = [], [], []
    with progress(total=len(paths), desc="Reading samples", unit="sample") as bar:
        for name, path in zip(names, paths, strict=True):
            try:
                sample, note = _read_sample(path, layer)
            except (ValueError, KeyError, OSError) as error:
                wrong.append(f"{name}: {error.args[0] if isinstance(error, KeyError) else error}")
            else:
                cells.append(sample)
                notes.append(note)
            bar.update()
    if not wrong:
        wrong = _mismatches(names, cells, table)
    if wrong:
        raise ValueError(f"{len(wrong)} of these samples cannot be joined:\n  " + "\n  ".join(wrong))

    joined, missing = _join(names, cells)
    for column in table:
        value = table.set_index("sample", drop=False)[column]
        values = value.loc[joined.obs["sample"]].to_numpy()
        # Text as categories, which files can hold with some missing: ages such as 45 and "67y" are text.
        joined.obs[column] = values if value.dtype.kind in "if" else pd.Categorical(values)
    with new_output(output, **written) as temporary, open_store(temporary, "w") as store:
        ad.io.write_elem(store, "/", joined)
    for note, n in zip(notes, missing, strict=True):
        if n:
            note.append(f"lacks {n:,} genes of other samples, which are 0 in its cells")
    for column in table.columns[table.isna().any()]:
        for row in np.flatnonzero(table[column].isna()):
            notes[row].append(f"has no {column}")
    sizes = [sample.shape for sample in cells]
    return pd.DataFrame(
        {
            "sample": names,
            "path": [str(path) for path in paths],
            "n_cells": [n for n, _ in sizes],
            "n_genes": [n for _, n in sizes],
            "n_missing": missing,
            "notes": ["; ".join(note) for note in notes],
        }
    )


def _read_sheet(sheet: Path) -> pd.DataFrame:
    """Return the rows of the sheet, with `path` and `sample`."""
    if not sheet.is_file():
        raise FileNotFoundError(f"Did not find the sheet {sheet}.")
    try:
        text = sheet.read_text(encoding="utf-8-sig")
        header = text.splitlines()[0]
        table = pd.read_csv(sheet, sep=max(",;\t", key=header.count), dtype=str, encoding="utf-8-sig")
    except (UnicodeDecodeError, IndexError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{sheet} is no table of text ({error}). Save the sheet as CSV.") from None
    table.columns = [str(name).strip() for name in table.columns]
    table = table.rename(columns={name: name.lower() for name in table if name.lower() in ("path", "sample")})
    table = table.apply(lambda column: column.str.strip()).replace("", np.nan).dropna(how="all")
    table = table.reset_index(drop=True)
    if "path" not in table:
        raise ValueError(f"{sheet} has no column 'path'; it has {', '.join(table.columns)}.")
    if not table.columns.is_unique:
        raise ValueError(f"{sheet} has several columns {table.columns[table.columns.duplicated()][0]!r}.")
    if table.empty:
        raise ValueError(f"{sheet} lists no samples.")
    if "sample" not in table:
        table.insert(0, "sample", [stem_of(str(path)) for path in table["path"]])
    for column in ("path", "sample"):
        if table[column].isna().any():
            raise ValueError(f"{sheet} has no {column} in row {table[column].isna().argmax() + 1}.")
        if (again := table[column][table[column].duplicated()]).size:
            hint = "" if column == "path" else " Give each a name of its own, in the column 'sample'."
            raise ValueError(f"{sheet} has {column} {again.iloc[0]!r} more than once.{hint}")
    for column in table.columns.difference(["path", "sample"]):
        number = pd.to_numeric(table[column], errors="coerce")
        # 007 is a name.
        if (
            number.notna().equals(table[column].notna())
            and not table[column].str.match(r"0\d", na=False).any()
        ):
            table[column] = number
    return table


def _read_sample(path: Path, layer: str | None) -> tuple[AnnData, list[str]]:
    """Raw counts of a sample, its genes by id, and what is to be known of it."""
    layer = layer if path.suffix.lower() in (".h5ad", ".zarr") else None
    cells = read_cells(path, layer=layer)
    counts = sp.csr_matrix(get_counts(cells, layer))
    check_counts(counts, force=False, hint=counts_hint(cells, layer))
    var, notes = cells.var, []
    if "feature_types" in var and (other := var["feature_types"].astype(str) != "Gene Expression").any():
        kinds = ", ".join(var["feature_types"][other].astype(str).unique())
        notes.append(f"{other.sum():,} features that are no genes left out ({kinds})")
        counts, var = counts[:, ~other.to_numpy()], var[~other]
    few = np.asarray(counts.sum(axis=1)).ravel() < _EMPTY
    if few.mean() > 0.5:
        raise ValueError(
            f"{few.sum():,} of {len(few):,} cells have fewer than {_EMPTY} counts: these are all droplets, most of them empty. "
            "Give the filtered matrix."
        )
    genes, symbol = _gene_names(var)
    # In one type, or joining would make it a wider one.
    var = pd.DataFrame({"symbol": symbol}, index=make_index_unique(genes))
    return AnnData(counts.astype(np.float32), obs=cells.obs.copy(), var=var), notes


def _gene_names(var: pd.DataFrame) -> tuple[pd.Index, np.ndarray]:
    """Ensembl ids without versions, where there are any, else the names; and the symbols."""
    names = var.index.astype(str)
    for column in (None, *(name for name in _ID_COLUMNS if name in var)):
        ids = names if column is None else pd.Index(var[column].astype(str))
        if ids.str.match(_ID).mean() > 0.5:
            break
    else:
        return names, names.to_numpy()
    whole = ids.str.replace(rf"^({_ID})\.\d+$", r"\1", regex=True)
    keys = [
        key for key in ("symbol", "gene_symbols", "gene_symbol", "feature_name", "gene_name") if key in var
    ]
    symbol = var[keys[0]].astype(str).to_numpy() if keys else names.to_numpy()
    return pd.Index(whole.to_numpy()), symbol


def _mismatches(names: list[str], cells: list[AnnData], table: pd.DataFrame) -> list[str]:
    """What keeps samples from being joined."""
    wrong = []
    with_ids = [sample.var_names.str.match(_ID).mean() > 0.5 for sample in cells]
    if len(set(with_ids)) > 1:
        few = sum(with_ids) <= len(with_ids) / 2
        for name, sample, has in zip(names, cells, with_ids, strict=True):
            if has == few:
                what = "Ensembl ids" if has else "names that are no Ensembl ids"
                wrong.append(
                    f"{name}: its genes have {what} ({sample.var_names[0]!r}), those of most others have not."
                )
        return wrong
    largest = max(cells, key=lambda sample: sample.n_vars).var_names
    seen: dict[tuple, str] = {}
    for name, sample in zip(names, cells, strict=True):
        shared = sample.var_names.isin(largest).mean()
        if shared < 0.5:
            wrong.append(
                f"{name}: only {shared:.0%} of its genes are in the sample with most genes: is it of another species?"
            )
        if own := [column for column in table if column in sample.obs and column != "sample"]:
            wrong.append(
                f"{name}: it has a column of its own .obs[{own[0]!r}]. Name that of the sheet otherwise."
            )
        totals = np.asarray(sample.X.sum(axis=1)).ravel()
        cell_keys = list(zip(sample.obs_names, totals.tolist(), strict=True))
        same = [seen[key] for key in cell_keys if key in seen]
        if len(same) > 0.5 * len(cell_keys):
            wrong.append(
                f"{name}: {len(same):,} of its {len(cell_keys):,} cells are those of {same[0]}: is it one sample, listed twice?"
            )
        seen |= dict.fromkeys(cell_keys, name)
    return wrong


def _join(names: list[str], cells: list[AnnData]) -> tuple[AnnData, list[int]]:
    """All cells with all genes, and how many of these each sample lacks."""
    joined = ad.concat(cells, join="outer", keys=names, label="sample", index_unique="-", fill_value=0)
    symbol = pd.concat([sample.var["symbol"] for sample in cells])
    genes = joined.var_names
    joined.var["symbol"] = symbol[~symbol.index.duplicated()].loc[genes].to_numpy()
    joined.var["n_samples"] = np.sum([genes.isin(sample.var_names) for sample in cells], axis=0)
    joined.X = sp.csr_matrix(joined.X)
    return joined, [len(genes) - sample.n_vars for sample in cells]
