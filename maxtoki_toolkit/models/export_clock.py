"""A clock without this package: tokens in, a lapse out, as a program of PyTorch or ONNX."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from .._files import atomic
from ._quiet import quiet_transformers
from .model import MaxTokiModel
from .timelapse import require_temporal

_SHORTEST = 4  # tokens: `<boq>`, a cell and `<eoq>` have more
_EXAMPLE = 16
_FORMATS = (".pt2", ".onnx")
_MOST = 1536 << 20  # bytes of weights; PyTorch writes more than that into a second file


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
    """Write a model's reading of time for programs that have PyTorch alone, or ONNX alone.

    Parameters
    ----------
    model
        A model with temporal training, on the CPU.
    path
        File to write, `.pt2` (by `torch.export`) or `.onnx` (extra `onnx`); it must not exist.

    Returns
    -------
    `None`. `torch.export.load("clock.pt2").module()` takes one prompt, int64 tokens [1, n] that end with
    `<eoq>`, of any length that the model reads (rows of `mt.pp.write_paragraphs` go on with their answer: cut
    them behind `model.vocab["<eoq>"]`), and returns the lapse [1] in the unit of its time head. In
    ONNX they are the input "input_ids" and the output "lapse".

    Raises
    ------
    ImportError
        If ONNX is asked for and its packages are not installed.
    ValueError
        If the model cannot tell time, is not on the CPU or too large for ONNX (1.6 GB), or something is at
        `path`.

    Notes
    -----
    Weights are in the file. A `.pt2` is bound to the version of PyTorch that wrote it, or later ones. Lapses
    equal those of `mt.tl.predict_timelapse` to 1e-4 of the largest; one prompt is read at a time, so the
    engine is faster for many.

    Examples
    --------
    Half a minute for the demo model:

    >>> import maxtoki_toolkit as mt
    >>> model = mt.load_model("demo")
    >>> mt.models.export_clock(model, "clock.pt2")  # doctest: +SKIP
    >>> clock = torch.export.load("clock.pt2").module()  # doctest: +SKIP
    >>> mt.models.export_clock(model, "clock.onnx")  # doctest: +SKIP
    """
    require_temporal(model)
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise ValueError(f"The file is a {' or a '.join(_FORMATS)}. Give such a name, not {path}.")
    if path.exists():
        raise ValueError(f"{path} exists. Give another name.")
    if model.device.type != "cpu":
        raise ValueError(f'The model is on {model.device}. Load it again: mt.load_model(..., device="cpu").')
    if path.suffix == ".onnx":
        _require_onnx(model)
    example = torch.full((1, _EXAMPLE), model.vocab["<eoq>"])
    length = torch.export.Dim("tokens", min=_SHORTEST, max=model.max_length)
    with torch.no_grad(), quiet_transformers():
        program = torch.export.export(
            _Clock(model).eval(), (example,), dynamic_shapes={"input_ids": {1: length}}
        )
        with atomic(path) as temporary:
            if path.suffix == ".pt2":
                torch.export.save(program, temporary)
            else:
                _as_onnx(program).save(temporary)


def _require_onnx(model: MaxTokiModel) -> None:
    """Raise if ONNX is not installed, or cannot hold the weights."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'A clock as ONNX needs {error.name}, of the extra "onnx": pip install -c constraints.txt -e ".[onnx]".'
        ) from None
    if (size := sum(weight.nbytes for weight in model.hf.parameters())) >= _MOST:
        raise ValueError(
            f"One ONNX file holds 1.6 GB of weights, and the model has {size / 1e9:.1f}. Write a .pt2."
        )


def _as_onnx(program):
    """The same program in ONNX."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # that torchvision, which nobody needs here, is not installed
    try:
        with warnings.catch_warnings():
            # PyTorch uses what it deprecates itself.
            warnings.simplefilter("ignore", FutureWarning)
            return torch.onnx.export(
                program, dynamo=True, input_names=["input_ids"], output_names=["lapse"], verbose=False
            )
    finally:
        logger.setLevel(level)
