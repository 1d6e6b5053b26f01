"""Effects of a screen in a file of their own, with what they were made from beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from .._files import atomic, sha256
from .._outputs import differences

UNIT = "effect_unit"
SUFFIXES = (".csv", ".gz", ".parquet")
CATEGORIES = ("cell", "group", "donor", "gene", "symbol")


def check_path(path: Path) -> None:
    """Refuse a path that no table can be written to."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end with .csv, .csv.gz or .parquet.")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ImportError(f"{path} needs pyarrow (pip install pyarrow), or write a .csv.gz.") from None


def write_effects(path: Path, table: pd.DataFrame, recipe: dict, unit: str) -> str:
    """Write the table and its unit, and its recipe and checksum to `path`.json; return the checksum."""
    table = table.assign(**{UNIT: unit})
    with atomic(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False)
        checksum = sha256(temporary)
        # First: a table without its recipe would be anybody's.
        with atomic(_beside(path)) as beside:
            beside.write_text(json.dumps({"recipe": recipe, "sha256": checksum}, indent=2))
    return checksum


def find_effects(path: Path, recipe: dict, *, overwrite: bool = False) -> str | None:
    """Checksum of the screen of this recipe, where it is there, complete; refuse to write over anything else.

    Over a screen of another recipe only if that is asked for.
    """
    found = _read_recipe(path)
    if not path.exists():
        return None
    if found is None:
        raise ValueError(f"{path} exists and is no screen. Choose another path.")
    if sha256(path) != found["sha256"]:
        raise ValueError(
            f"{path} has changed since it was written: it stays as it is. Move it, or choose another path."
        )
    if changed := differences(found["recipe"], recipe):
        if overwrite:
            return None
        raise ValueError(
            f"{path} holds a screen with other settings or data ({', '.join(changed)}). Choose another path, or ask for it "
            "to be replaced: overwrite=True."
        )
    return found["sha256"]


def _read_recipe(path: Path) -> dict | None:
    """What is noted beside the effects; `None` where nothing is. What is no note of ours is not for us to replace."""
    beside = _beside(path)
    if not beside.exists():
        return None
    try:
        found = json.loads(beside.read_text())
    except (ValueError, OSError):
        found = None
    if not (isinstance(found, dict) and {"recipe", "sha256"} <= set(found)):
        raise ValueError(f"{beside} exists and is of no screen. Choose another path.")
    return found


def read_effects(path: Path, checksum: str | None = None) -> pd.DataFrame:
    """Read the table; refuse one that is not that of the checksum."""
    if not path.is_file():
        raise FileNotFoundError(f"Did not find {path}, which the result refers to. Was it moved?")
    if checksum is not None and sha256(path) != checksum:
        raise ValueError(f"{path} has changed since the result was made. Run mt.tl.perturb again.")
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
    else:
        table = pd.read_csv(
            path,
            float_precision="round_trip",
            dtype=dict.fromkeys(CATEGORIES, str),
            keep_default_na=False,
            na_values=[""],
        )
    # For who opens the file; in Python, the unit is that of the result.
    return as_categories(table.drop(columns=UNIT, errors="ignore"))


def as_categories(table: pd.DataFrame) -> pd.DataFrame:
    """Names as categories, in the order in which they come."""
    for name in CATEGORIES:
        if name in table:
            values = table[name].astype(str)
            table[name] = pd.Categorical(values, categories=list(dict.fromkeys(values)))
    return table


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
