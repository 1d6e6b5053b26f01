"""A clock without this package: tokens in, a lapse out, as a program of PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .._files import atomic
from ._quiet import quiet_transformers
from .model import MaxTokiModel
from .timelapse import require_temporal

_SHORTEST = 4  # tokens: `<boq>`, a cell and `<eoq>` have more
_EXAMPLE = 16


class _Clock(nn.Module):
    """The lapse that is read at the last token of a prompt."""

    def __init__(self, model: MaxTokiModel) -> None:
        super().__init__()
        self.model, self.lm_head, self.time_head = model.hf.model, model.hf.lm_head, model.time_head
        self.vocab = model.vocab

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        states = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.time_head(states[:, -1], self.lm_head, self.vocab).lapse


def export_clock(model: MaxTokiModel, path: str | Path) -> None:
    """Write a model's reading of time with `torch.export`, for programs that have PyTorch alone.

    Parameters
    ----------
    model
        A model with temporal training, on the CPU.
    path
        File to write, `.pt2`; it must not exist.

    Returns
    -------
    `None`. `torch.export.load(path).module()` takes one prompt, int64 tokens [1, n] that end with `<eoq>`, of
    any length that the model reads, and returns the lapse [1] in the unit of its time head.

    Raises
    ------
    ValueError
        If the model cannot tell time or is not on the CPU, or something is at `path`.

    Notes
    -----
    Weights are in the file. It is bound to the version of PyTorch that wrote it, or later ones. Lapses equal
    those of `mt.tl.predict_timelapse` to 1e-4 of the largest; one prompt is read at a time, so the engine is
    faster for many.

    Examples
    --------
    Half a minute for the demo model:

    >>> import maxtoki_toolkit as mt
    >>> model = mt.load_model("demo")
    >>> mt.models.export_clock(model, "clock.pt2")  # doctest: +SKIP
    >>> clock = torch.export.load("clock.pt2").module()  # doctest: +SKIP
    """
    require_temporal(model)
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"The file is a .pt2. Give such a name, not {path}.")
    if path.exists():
        raise ValueError(f"{path} exists. Give another name.")
    if model.device.type != "cpu":
        raise ValueError(f'The model is on {model.device}. Load it again: mt.load_model(..., device="cpu").')
    example = torch.full((1, _EXAMPLE), model.vocab["<eoq>"])
    length = torch.export.Dim("tokens", min=_SHORTEST, max=model.max_length)
    with torch.no_grad(), quiet_transformers():
        program = torch.export.export(
            _Clock(model).eval(), (example,), dynamic_shapes={"input_ids": {1: length}}
        )
        with atomic(path) as temporary:
            torch.export.save(program, temporary)
