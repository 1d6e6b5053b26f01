"""MaxToki for biologists: rank-encode, embed and read single cells in AnnData.

>>> import maxtoki_toolkit as mt
>>> adata = mt.datasets.load("heart_nuclei")
>>> model = mt.load_model("demo")
>>> mt.pp.map_genes(adata, model)
>>> mt.pp.rank_value_encode(adata, model)
>>> mt.tl.embed(adata, model)
>>> adata.obsm["X_maxtoki"].shape[0] == adata.n_obs
True
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

from ._settings import settings

__version__ = version("maxtoki_toolkit")

__all__ = ["__version__", "datasets", "get", "load_model", "models", "pl", "pp", "settings", "tl", "train"]

# torch and scanpy take seconds to import, so each namespace is loaded when it is first used.
_NAMESPACES = {"datasets", "get", "models", "pl", "pp", "tl", "train"}


def __getattr__(name: str):
    if name in _NAMESPACES:
        return import_module(f"{__name__}.{name}")
    if name == "load_model":
        return import_module(f"{__name__}.models").load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
