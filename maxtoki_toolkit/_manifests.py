"""The manifests in `data_manifests/`: what there is, where it comes from, and its files, verified."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ._files import sha256
from ._progress import progress
from ._reference import resource
from ._settings import settings

KINDS = ("dataset", "checkpoint", "reference")
UNKNOWN = "unknown"
_TEXT = ("name", "title", "description", "licence", "revision", "genes")
_FIELDS = {*_TEXT, "kind", "source", "shipped", "download", "files", "columns", "use", "notes", "clock"}
_ROLES = {"cell_type", "cell_state", "donor", "sex", "time", "time_unit", "condition", "batch"}


def manifest(name: str) -> dict[str, Any]:
    """The manifest of one entry, checked.

    Parameters
    ----------
    name
        A name from `available()`.

    Returns
    -------
    The content of its YAML file: source, licence, revision, files with size and SHA-256, and the columns
    of `obs` by their role.

    Raises
    ------
    ValueError
        If there is no such entry, or its manifest breaks the schema.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> mt.datasets.manifest("heart_nuclei")["columns"]["cell_type"]
    'cell_type'
    """
    paths = manifest_paths()
    if name not in paths:
        close = get_close_matches(str(name), paths, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"No entry {name!r} in the registry.{hint} mt.datasets.available() lists all {len(paths)}."
        )
    path = paths[name]
    try:
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    check(entry)
    if entry["name"] != name:
        raise ValueError(f"{path} names {entry['name']!r}. Make the name and the file name equal.")
    return entry


def fetch(name: str) -> dict[str, Path]:
    """Local paths of the files of an entry, verified, downloaded once into `settings.cache_dir`.

    Parameters
    ----------
    name
        A name from `available()`.

    Returns
    -------
    Path by file name, in the order of the manifest. The files of one download share a folder.

    Raises
    ------
    ValueError
        If there is no such entry, or a file is not what the manifest says; a bad download is not kept.
    FileNotFoundError
        If the registry knows no file with a checksum for this entry.
    ConnectionError
        If the download fails.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> list(mt.datasets.fetch("human_tfs"))
    ['human_tfs_lambert2018.txt']
    """
    entry = manifest(name)
    if not fetchable(entry):
        raise FileNotFoundError(_bring_your_own(entry))
    return {
        file["name"]: _shipped(file) if entry["shipped"] else _download(entry, file)
        for file in entry["files"]
    }


def check(entry: Any) -> None:
    """Refuse a manifest that breaks the schema described in `data_manifests/README.md`.

    Parameters
    ----------
    entry
        The parsed content of one manifest.

    Raises
    ------
    ValueError
        With everything that is wrong, in one message.

    Examples
    --------
    >>> from maxtoki_toolkit._manifests import check, manifest
    >>> check(manifest("heart_nuclei"))
    """
    if not isinstance(entry, dict):
        raise ValueError(f"A manifest is a mapping of fields, but this one is a {type(entry).__name__}.")
    if problems := list(_problems(entry)):
        raise ValueError(f"The manifest of {entry.get('name')!r} is not valid: {'; '.join(problems)}.")


def _problems(entry: dict) -> Iterator[str]:
    for field in sorted(map(str, entry.keys() - _FIELDS)):
        yield f"unknown field {field!r}"
    for field in _TEXT:
        if not _is_text(entry.get(field)):
            yield f"{field} must be text"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", str(entry.get("name"))):
        yield "name must be lower-case letters, digits, '_' and '-'"
    if entry.get("kind") not in KINDS:
        yield f"kind must be one of {', '.join(KINDS)}"
    source = entry.get("source")
    if not (
        isinstance(source, dict)
        and source.keys() == {"citation", "accession"}
        and all(map(_is_text, source.values()))
    ):
        yield "source must hold citation and accession as text"
    for field in ("use", "notes"):
        if field in entry and not _is_text(entry[field]):
            yield f"{field} must be text"
    if entry.get("kind") in ("checkpoint", "reference") and "use" not in entry:
        yield "use must say how to open what holds no cells"
    if "clock" in entry:
        plan = entry["clock"]
        if not (
            isinstance(plan, dict)
            and plan.keys() == {"corpus", "split"}
            and all(isinstance(part, dict) for part in plan.values())
        ):
            yield "clock must hold corpus and split, each a mapping of settings"
    yield from _access_problems(entry)
    yield from _column_problems(entry)


def _access_problems(entry: dict) -> Iterator[str]:
    shipped, download, listed = entry.get("shipped"), entry.get("download"), entry.get("files")
    if not isinstance(shipped, bool):
        yield "shipped must be true or false"
    if shipped is True and "download" in entry:
        yield "download has no place in a shipped entry"
    if shipped is False and download not in ("automatic", "manual"):
        yield "download must be automatic or manual"
    if download == "manual" and listed == UNKNOWN:
        return
    if not (isinstance(listed, list) and listed and all(isinstance(file, dict) for file in listed)):
        yield "files must be a list of files (or 'unknown' where download is manual)"
        return
    names = [str(file.get("name")) for file in listed]
    if len(set(names)) < len(names):
        yield "two files have the same name"
    if (
        entry.get("kind") == "dataset"
        and download != "manual"
        and (len(names) != 1 or not names[0].endswith(".h5ad"))
    ):
        yield "a data set that can be loaded is one .h5ad file"
    for file in listed:
        yield from _file_problems(file, shipped=shipped is True, manual=download == "manual")


def _file_problems(file: dict, *, shipped: bool, manual: bool) -> Iterator[str]:
    name = file.get("name")
    # The name becomes a path in the cache, so it must not be able to leave its folder.
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)):
        yield f"file name {name!r} must be a plain file name"
    for field in sorted(map(str, file.keys() - {"name", "size", "sha256", "url", "repo", "path"})):
        yield f"{name} has the unknown field {field!r}"
    size, digest = file.get("size"), file.get("sha256")
    if not (type(size) is int and size > 0) and not (manual and size == UNKNOWN):
        yield f"size of {name} must be its number of bytes"
    if not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)) and not (
        manual and digest == UNKNOWN
    ):
        yield f"sha256 of {name} must be 64 lower-case hexadecimal digits (download: manual where it is unknown)"
    where = file.keys() & {"url", "repo", "path"}
    if shipped and where:
        yield f"{name} is shipped and needs no {', '.join(sorted(where))}"
    if not shipped and where not in ({"url"}, {"repo", "path"}):
        yield f"{name} needs either url, or repo and path"
    if not all(_is_text(file[field]) for field in where):
        yield f"{', '.join(sorted(where))} of {name} must be text"
    elif (
        "url" in where and not re.match(r"https?://", file["url"]) and not (manual and file["url"] == UNKNOWN)
    ):
        yield f"url of {name} must start with https:// or http://"


def _column_problems(entry: dict) -> Iterator[str]:
    columns = entry.get("columns")
    if entry.get("kind") != "dataset":
        if columns is not None:
            yield "columns belong to a data set"
    elif not (isinstance(columns, dict) and all(map(_is_text, columns.values()))):
        yield "columns must name the column of obs for each role (an empty mapping where there is none)"
    else:
        for role in sorted(map(str, columns.keys() - _ROLES)):
            yield f"unknown column role {role!r} (use {', '.join(sorted(_ROLES))})"
        if ("time" in columns) != ("time_unit" in columns):
            yield "time and time_unit go together"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _folder() -> Path:
    """Where the manifests lie: inside an installed package, beside it in a source checkout."""
    package = Path(str(files("maxtoki_toolkit")))
    places = [package / "data_manifests", package.parent / "data_manifests"]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"Found no manifests in {' or '.join(map(str, places))}. Install maxtoki_toolkit again."
    )


def manifest_paths() -> dict[str, Path]:
    return {path.stem: path for path in _folder().glob("*.yaml")}


def fetchable(entry: dict) -> bool:
    return entry["shipped"] or entry["download"] == "automatic"


def _shipped(file: dict) -> Path:
    path = resource(file["name"])
    if (found := sha256(path)) != file["sha256"]:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found}, expected {file['sha256']}. Install maxtoki_toolkit again."
        )
    return path


def _download(entry: dict, file: dict) -> Path:
    from_hub = "repo" in file
    where = f"{file['repo']}/{file['path']}" if from_hub else file["url"]
    try:
        path = _from_hub(entry, file) if from_hub else _from_url(entry, file)
    except OSError as error:
        raise ConnectionError(
            f"Could not download {where}: {str(error).rstrip('.')}. Check the connection and try again."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"{where} is not the file that the registry knows, and was not kept: {error} Try again; if the file "
            "was replaced on purpose, its manifest needs the new size and sha256."
        ) from None
    return path


def _from_hub(entry: dict, file: dict) -> Path:
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(file["repo"], file["path"], revision=entry["revision"]))
    if (found := sha256(path)) != file["sha256"]:
        # The cache keeps the content in a folder of its own and links to it.
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ValueError(f"its SHA-256 is {found}, expected {file['sha256']}.")
    return path


def _from_url(entry: dict, file: dict) -> Path:
    import pooch

    folder = Path(settings.cache_dir) / entry["name"]
    path = folder / file["name"]
    if path.is_file() and sha256(path) != file["sha256"]:
        path.unlink()
    try:
        with progress(total=file["size"], desc=file["name"], unit="B") as bar:
            pooch.retrieve(
                file["url"], f"sha256:{file['sha256']}", fname=path.name, path=folder, progressbar=bar
            )
    finally:
        # An empty folder is left by a download that failed.
        with suppress(OSError):
            folder.rmdir()
    return path


def _bring_your_own(entry: dict) -> str:
    urls = (
        [f"{file['name']} at {file['url']}" for file in entry["files"] if "url" in file]
        if isinstance(entry["files"], list)
        else []
    )
    parts = [
        f"{entry['name']!r} cannot be downloaded for you, because no file of it with a checksum is on record.",
        f"Known: {entry['title']}.",
        f"Citation: {entry['source']['citation'].rstrip('.')}.",
        f"Accession: {entry['source']['accession'].rstrip('.')}.",
        f"Licence: {entry['licence'].rstrip('.')}.",
        *([f"Files: {', '.join(urls)}."] if urls else []),
        f"Genes: {entry['genes'].rstrip('.')}.",
        *([entry["notes"].strip()] if "notes" in entry else []),
        entry.get("use", "").strip()
        or "To bring your own copy: adata = anndata.read_h5ad(path), with raw counts in .X and genes as Ensembl ids "
        "or symbols, then mt.pp.map_genes(adata, model).",
    ]
    return " ".join(filter(None, parts))
