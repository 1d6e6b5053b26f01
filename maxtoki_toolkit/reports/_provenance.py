"""How a report was made: versions, model, data, parameters and seed, with checksums of what was read."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .._files import sha256
from .._manifests import manifest, manifest_paths
from .._reference import resource
from ._parameters import UNKNOWN, Parameter

# Where it is in the metadata of a notebook.
METADATA = "maxtoki_toolkit"
_PACKAGES = ("maxtoki_toolkit", "torch", "transformers", "anndata", "scanpy", "numpy")
_WEIGHTS = "model.safetensors"
# Where results go does not change them.
_WRITTEN = ("output", "store")


def provenance(
    name: str, notebook: Any, known: Mapping[str, Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the results rest on, before the notebook is run."""
    values = {key: parameter.default for key, parameter in known.items()} | dict(given)
    code = "\n\n".join(cell.source for cell in notebook.cells)
    record = {
        "date": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        "notebook": name,
        "notebook_sha256": hashlib.sha256(code.encode()).hexdigest(),
        "versions": {"python": platform.python_version(), **{key: _version(key) for key in _PACKAGES}},
        "files": {
            key: {"name": value, "sha256": found}
            for key, value in values.items()
            if key not in _WRITTEN and (found := checksum(key, value))
        },
        "parameters": values,
        "seed": values.get("seed", values.get("seeds")),
    }
    # What is compared later comes from a file.
    return json.loads(json.dumps(record))


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two reports are of the same notebook, parameters, data and model."""
    return _identity(one) == _identity(other)


def _identity(record: Mapping[str, Any]) -> tuple:
    # A file is itself by its content, wherever it lies.
    named = {*record["files"], *_WRITTEN}
    return (
        record["notebook_sha256"],
        record["versions"]["maxtoki_toolkit"],
        {key: file["sha256"] for key, file in record["files"].items()},
        {key: value for key, value in record["parameters"].items() if key not in named},
    )


def markdown(record: Mapping[str, Any]) -> str:
    """Return the same for readers."""
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    rows = [
        ("date", record["date"]),
        ("notebook", f"{as_text(record['notebook'])}, {_code(record['notebook_sha256'])}"),
    ]
    rows += [("versions", versions)]
    rows += [
        (key, f"{as_text(file['name'])}, {_code(file['sha256'])}") for key, file in record["files"].items()
    ]
    if "path" in record["parameters"] and "path" not in record["files"]:
        rows += [("path", "none: the notebook's own cells, simulated or shipped with the package")]
    rows += [("seed", as_text(record["seed"]))]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    values = "\n".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in record["parameters"].items()
    )
    return f"## How this was made\n\n| | |\n|---|---|\n{table}\n\nParameters:\n\n```\n{values}\n```"


def _code(digest: str) -> str:
    return f"SHA-256 `{digest}`"


# What means something in Markdown or HTML.
_SPECIAL = re.compile(r"[<>&\[\]!*`$|\\\"']")


def as_text(value: Any) -> str:
    """Text of anybody, such as the name of a file, that a page shows as it is: neither HTML nor Markdown."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", " ".join(str(value).split()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return UNKNOWN


def checksum(key: str, value: Any) -> str:
    """SHA-256 of the file, store or weights that a parameter names; "" where it names none."""
    if not isinstance(value, str) or not value:
        return ""
    if key == "model" and (found := _known_weights(value)):
        return found
    # Text of any kind may be too long, or otherwise no path.
    try:
        path = Path(value).resolve()
        weights = path / _WEIGHTS
        if weights.is_file():
            return _hashed(weights)
        if path.is_file():
            return _hashed(path)
        # A zarr store, or a folder of 10x.
        if path.is_dir() and (key == "path" or path.suffix.lower() == ".zarr"):
            parts = sorted(part for part in path.rglob("*") if part.is_file())
            lines = [f"{part.relative_to(path).as_posix()} {_hashed(part)}" for part in parts]
            return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    except OSError:
        pass
    return UNKNOWN if key == "model" else ""


def _known_weights(model: str) -> str:
    """Checksum of weights that ship or are in the registry, by the name that `mt.load_model` takes."""
    if model in manifest_paths():
        files = manifest(model)["files"]
        return next((file["sha256"] for file in files if file["name"] == _WEIGHTS), "")
    try:
        return _hashed(resource(model.replace("-", "_")) / _WEIGHTS)
    except OSError:
        return ""


def _hashed(path: Path) -> str:
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, modified: int) -> str:
    """Checksum of a file, read once however many reports are made of it."""
    return sha256(path)
