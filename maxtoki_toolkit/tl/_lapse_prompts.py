"""Prompts that ask for the lapse to query cells of the same AnnData, read and checked in one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from anndata import AnnData

from .. import _keys
from ..models.model import MaxTokiModel
from ..models.prompts import Prompts
from ..models.timelapse import require_temporal
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result
from ._time_unit import check_prompts


def lapse_prompts(
    adata: AnnData, model: MaxTokiModel, key: str | None
) -> tuple[pd.DataFrame, Prompts, Mapping[str, Any]]:
    """Table of the prompts (`time_read_as` in its `.attrs`), the rows of their cells, and their parameters."""
    require_temporal(model)
    stored = read_result(adata, key or _keys.PROMPTS, "mt.pp.sample_prompts(adata, ...)")
    params, table = stored["params"], stored["prompts"].reset_index(drop=True)
    if params["task"] != "timelapse" or params["queries_elsewhere"]:
        raise ValueError(
            "The prompts must ask for the lapse to query cells of the same AnnData: draw others with "
            "mt.pp.sample_prompts(adata, ...)."
        )
    table.attrs["time_read_as"] = check_prompts(params, table, model.time_head.unit)
    return table, read_prompts(table, adata, adata), params
