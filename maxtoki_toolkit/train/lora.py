"""Stage 2 on few cells or a small machine: adapters instead of all weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anndata import AnnData

from ..models.model import MaxTokiModel
from .temporal import temporal

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora(
    cells: AnnData | str | Path | Sequence[AnnData | str | Path],
    model: MaxTokiModel,
    output: str | Path,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    learning_rate: float = 1e-3,
    **settings,
) -> MaxTokiModel:
    """Train low-rank adapters to tell time, and merge them into the model.

    Parameters
    ----------
    cells, model, output
        As in `mt.train.temporal`.
    rank, alpha, dropout
        Of the adapters on all projections of attention and MLP (peft's `r`, `lora_alpha`, `lora_dropout`).
    learning_rate
        Peak learning rate; adapters take a larger one than weights.
    settings
        All other settings of `mt.train.temporal`, `time_key` and `groupby` among them.

    Returns
    -------
    The trained model, as any other: the adapters are merged.

    Notes
    -----
    The embeddings of time tokens, `<boq>` and `<eoq>` and the time head are trained as well, the latter in full; all
    other weights stay as they are. Adapters are those of peft (LoRA, Hu et al., ICLR 2022).

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> adata = mt.datasets.load("myoblast_timecourse")
    >>> model = mt.load_model("demo", device="cpu")
    >>> mt.pp.rank_value_encode(adata, model, force=True)  # FPKM
    >>> adata.obs["hours"] = adata.obs["Hours"].astype(int)
    >>> tuned = mt.train.lora(adata, model, tempfile.mkdtemp(), time_key="hours", time_unit="hours", groupby=None,
    ...                       max_steps=1, batch_size=2, tensorboard=False)
    >>> tuned.time_head.unit
    'hours'
    """
    adapter = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": list(TARGETS),
    }
    return temporal(cells, model, output, adapter=adapter, learning_rate=learning_rate, **settings)
