"""What of this machine and installation works, what will be slow and why, and what to do about it."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pandas as pd

from ._manifests import fetch, manifest, manifest_paths
from ._settings import settings

OK, SLOW, BROKEN = "ok", "slow", "broken"
_PACKAGE = "maxtoki_toolkit"
# benchmarks/results of 2026-11-21: 217 million parameters, float32, two cores of an AMD EPYC, without a GPU.
MEASURED = {
    "a time prompt of four cells": (0.9605, "inference.json"),
    "an edited prompt of a screen": (0.5329, "screen.json"),
    "a generated cell of 512 genes": (13.17, "generation.json"),
}
_SMALL_MEMORY, _SMALL_DISK = 6, 5
_EXTRAS = {
    "train": "mt.train",
    "interp": "mt.tl.gene_network beside regulons",
    "validation": "the notebook fig6_validation_panels",
    "notebook": "notebooks, mt.reports and mt.widgets",
    "distributed": "Dask clusters and several GPUs",
    "census": "mt.datasets.census",
    "files": "folders of `datasets` and parquet",
    "onnx": "clocks as ONNX",
}
Row = tuple[str, str, str, str]


def doctor() -> pd.DataFrame:
    """Check Python, packages, device, memory, disk, shipped data and models, and what notebooks need.

    Returns
    -------
    One row a check: `check`, `status` ("ok", "slow" or "broken"), `found` and `advice` (what to do; empty if
    nothing). There is no name of yours in it.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> table = mt.doctor()
    >>> table["check"].to_list()[:2]
    ['python', 'packages']
    """
    return pd.DataFrame(examine(), columns=["check", "status", "found", "advice"])


def examine() -> Iterator[Row]:
    """Make the checks one by one, since some take seconds."""
    for name, check in CHECKS.items():
        yield from _run(name, check)


def _run(name: str, check: Callable[[], Iterator[Row]]) -> list[Row]:
    """Rows of a check; one that cannot even be made is broken."""
    try:
        rows = list(check())
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        advice = f"Install the packages again: pip install --force-reinstall {_PACKAGE}."
        rows = [(name, BROKEN, f"{type(error).__name__}: {error}", advice)]
    return [(title, status, anonymous(found), anonymous(advice)) for title, status, found, advice in rows]


def anonymous(text: str) -> str:
    """Text without the home folder and the name of whoever runs this."""
    for home in {str(Path.home()), os.path.realpath(Path.home())} - {"/"}:
        text = text.replace(home, "~")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        return text
    # As a part of a path: "root" and "test" are words, too.
    return text.replace(f"{os.sep}{user}{os.sep}", f"{os.sep}USER{os.sep}")


def _python() -> Iterator[Row]:
    from packaging.specifiers import SpecifierSet

    needed = metadata.metadata(_PACKAGE)["Requires-Python"] or ""
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    if SpecifierSet(needed).contains(platform.python_version(), prereleases=True):
        yield "python", OK, found, ""
    else:
        yield "python", BROKEN, found, f"Python {needed} is needed: make a new environment with it."


def _packages() -> Iterator[Row]:
    required, optional = _requirements()
    wrong = [text for requirement in required if (text := _wrong(requirement))]
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in (_PACKAGE, "anndata", "scanpy", "numpy")
    )
    if wrong:
        names = " ".join(f'"{text}"' for text in wrong)
        yield "packages", BROKEN, f"missing or too old: {', '.join(wrong)}", f"pip install -U {names}"
    else:
        yield "packages", OK, f"{versions}; all {len(required)} that are needed", ""
    for extra, use in _EXTRAS.items():
        lacking = [text for requirement in optional.get(extra, []) if (text := _wrong(requirement))]
        found = f"not installed: {', '.join(lacking)}" if lacking else "installed"
        advice = f'Only for {use}: pip install "{_PACKAGE}[{extra}]"' if lacking else ""
        yield f"extra {extra}", OK, found, advice


def _requirements() -> tuple[list, dict[str, list]]:
    """What the installed package asks for, always and with each extra."""
    from packaging.requirements import Requirement

    required, optional = [], {}
    for requirement in map(Requirement, metadata.requires(_PACKAGE) or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            required.append(requirement)
            continue
        for extra in _EXTRAS:
            if requirement.name != _PACKAGE and requirement.marker.evaluate({"extra": extra}):
                optional.setdefault(extra, []).append(requirement)
    return required, optional


def _wrong(requirement) -> str:
    """The requirement, if it is not met."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name}{requirement.specifier}"
    met = requirement.specifier.contains(found, prereleases=True)
    return "" if met else f"{requirement.name}{requirement.specifier}"


def _device() -> Iterator[Row]:
    import torch

    from .models.load import pick_device

    device = pick_device()
    # A driver that does not fit shows only when something is computed.
    ones = torch.ones(8, 8, device=device)
    if (ones @ ones).sum().item() != 512:
        yield (
            "device",
            BROKEN,
            f"torch {torch.__version__} computes wrongly on {device}",
            "Install torch again.",
        )
    elif device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found = f"torch {torch.__version__} on {properties.name}, {properties.total_memory / 2**30:.0f} GB"
        yield "device", OK, found, ""
    elif device == "mps":
        yield "device", OK, f"torch {torch.__version__} on Apple MPS", ""
    else:
        yield "device", SLOW, f"torch {torch.__version__} on the CPU", _cpu_advice()


def _cpu_advice() -> str:
    measured = "; ".join(f"{what} took {seconds:.3g} s" for what, (seconds, _) in MEASURED.items())
    files = ", ".join(file for _, file in MEASURED.values())
    text = (
        f"The demo models run well here. With 217 million parameters on two cores of an AMD EPYC, {measured} "
        f"(benchmarks/results: {files}): take few cells, or a machine with a GPU."
    )
    if shutil.which("nvidia-smi"):
        text += (
            " There is an NVIDIA driver, which this torch does not use: install a CUDA build (pytorch.org)."
        )
    return text


def _threads() -> Iterator[Row]:
    import torch

    threads, cores = torch.get_num_threads(), settings.n_jobs
    found = f"{threads} of torch, {cores} for encoding (mt.settings.n_jobs)"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < usable / 2:
        advice = f"There are {usable} cores: unset OMP_NUM_THREADS, or torch.set_num_threads({usable})."
        yield "threads", SLOW, found, advice
    elif threads < usable and "NUMBA_NUM_THREADS" not in os.environ:
        advice = "NUMBA_NUM_THREADS is not set: numba, which scanpy uses, will give torch all cores again. Set it as OMP_NUM_THREADS."
        yield "threads", SLOW, found, advice
    else:
        yield "threads", OK, found, ""


def _memory() -> Iterator[Row]:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        yield "memory", OK, "not known on this system", ""
        return
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        # A container or a job may use less than the machine has.
        total = min(total, int(text))
    found = f"{total / 2**30:.1f} GB"
    if total / 2**30 < _SMALL_MEMORY:
        advice = "Encode and embed from file to file (maxtoki encode, maxtoki embed): that does not grow with the cells."
        yield "memory", SLOW, found, advice
    else:
        yield "memory", OK, found, ""


def _disk() -> Iterator[Row]:
    for name, folder in [("cache", Path(settings.cache_dir)), ("working folder", Path.cwd())]:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free / 2**30
        found = f"{folder}, {free:.0f} GB free"
        if not _writable(there):
            way = "set MAXTOKI_CACHE to another folder" if name == "cache" else "change to a folder of yours"
            yield name, BROKEN, f"{found}, cannot be written", f"Nothing can be kept there: {way}."
        elif free < _SMALL_DISK:
            yield name, SLOW, found, "Downloaded weights take 0.9 GB (217M) and 4 GB (1B): make room."
        else:
            yield name, OK, found, ""


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _attention() -> Iterator[Row]:
    from importlib.util import find_spec

    import torch
    from torch.nn.functional import scaled_dot_product_attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 16, 8, generator=generator)
    by_hand = (q @ k.mT / 8**0.5).softmax(-1) @ v
    off = (scaled_dot_product_attention(q, k, v) - by_hand).abs().max().item()
    kernels = [
        name
        for name, enabled in {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "math": torch.backends.cuda.math_sdp_enabled(),
        }.items()
        if enabled
    ]
    extra = "installed" if find_spec("flash_attn") else "not installed, and not needed"
    found = f"SDPA ({', '.join(kernels)}); flash-attn {extra}"
    if off > 1e-4:
        yield (
            "attention",
            BROKEN,
            f"SDPA is off by {off:.1g}",
            "Install torch again, or pass attention='eager'.",
        )
    else:
        yield "attention", OK, found, ""


def _data() -> Iterator[Row]:
    shipped = [name for name in sorted(manifest_paths()) if manifest(name)["shipped"]]
    damaged = []
    for name in shipped:
        try:
            fetch(name)
        except (FileNotFoundError, ValueError):
            damaged.append(name)
    if damaged:
        yield "shipped data", BROKEN, f"damaged: {', '.join(damaged)}", f"Install {_PACKAGE} again."
    else:
        yield "shipped data", OK, f"{', '.join(shipped)}: checksums are right", ""


def _models() -> Iterator[Row]:
    from .models.load import SHIPPED, load_model

    for name in SHIPPED:
        try:
            # This compares checksums of weights, vocabulary and time head.
            model = load_model(name, device="cpu")
        except (OSError, ValueError) as error:
            yield f"model {name}", BROKEN, str(error), f"Install {_PACKAGE} again."
        else:
            yield (
                f"model {name}",
                OK,
                f"SHA-256 {model.sha256[:12]}..., {model.hf.num_parameters():,} parameters",
                "",
            )


def _jupyter() -> Iterator[Row]:
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        yield "jupyter kernel", OK, "not installed", f'Only for notebooks: pip install "{_PACKAGE}[notebook]"'
        return
    advice = f"{Path(sys.executable).name} -m ipykernel install --sys-prefix"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield "jupyter kernel", BROKEN, "there is no kernel python3", advice
        return
    # A plain name is the Python that starts it.
    if Path(command).is_absolute() and not Path(command).samefile(sys.executable):
        yield "jupyter kernel", BROKEN, f"python3 is another Python, {command}", advice
    else:
        yield "jupyter kernel", OK, "python3 is this Python", ""


CHECKS: dict[str, Callable[[], Iterator[Row]]] = {
    "python": _python,
    "packages": _packages,
    "device": _device,
    "threads": _threads,
    "memory": _memory,
    "disk": _disk,
    "attention": _attention,
    "shipped data": _data,
    "models": _models,
    "jupyter kernel": _jupyter,
}
