"""MaxToki for biologists: rank-encode, embed and read single cells in AnnData.

>>> import maxtoki_toolkit as mt
>>> adata = mt.datasets.load("heart_nuclei")[:50].copy()
>>> model = mt.load_model("demo")
>>> mt.pp.map_genes(adata, model)
>>> mt.pp.rank_value_encode(adata, model)
>>> mt.tl.embed(adata, model)
>>> adata.obsm["X_maxtoki"].shape[0] == adata.n_obs
True
"""

from __future__ import annotations

from importlib.metadata import version

import lazy_loader

from ._settings import settings

__version__ = version("maxtoki_toolkit")

# torch and scanpy take seconds to import, so each namespace is loaded when it is first used.
__getattr__, _, __all__ = lazy_loader.attach(
    __name__,
    submodules={"datasets", "get", "models", "pl", "pp", "reports", "tl", "train", "widgets"},
    submod_attrs={
        "_doctor": ["doctor"],
        "models.classifier": ["load_classifier"],
        "models.load": ["load_model"],
        "models.sae": ["load_sae"],
    },
)
__all__ += ["__version__", "settings"]


def __dir__() -> list[str]:
    return sorted(__all__)
