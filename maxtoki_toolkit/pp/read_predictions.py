"""Predictions that the original's runs leave behind."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch

_NAME = re.compile(r"predictions__rank_(\d+)(?:__batch_(\d+))?\.pt")
LAPSES, CHOSEN = "regression_preds", "timelapse_token_preds"
_GENERATED, _LENGTHS, _FINISHED = "generated_tokens", "lengths", "finished_naturally"


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read `predictions__rank_0.pt`, or the files of all batches, as the original's `predict` writes them.

    Parameters
    ----------
    path
        One file, or the folder of a run with all of its files.

    Returns
    -------
    A row a prompt, in the order of the data that was predicted, with its number as index. Of lapses:

    `predicted`
        The lapse, as it was written. The original multiplies with 200 in any case, so that of a model trained
        with cross entropy it is 200 times too large.
    `token`
        Token id of the most likely lapse, if it was written.

    Of generated cells:

    `input_ids`
        Tokens that were generated, int64, `<eos>` included where the cell has one.
    `finished`
        Whether the model ended the cell.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If files are of several processes, whose order of rows is not known, batches are missing, or a file is
        no prediction, or not a plain one: it is read with `weights_only=True`, so nothing in it is run.

    Notes
    -----
    Batches are put in the order of their numbers. The original's own reader takes them in the order of their
    names, in which batch 10 comes before batch 2.

    Examples
    --------
    >>> import tempfile, torch, maxtoki_toolkit as mt
    >>> path = tempfile.mkdtemp() + "/predictions__rank_0.pt"
    >>> torch.save({"regression_preds": torch.tensor([[12.0, -3.5]])}, path)
    >>> mt.pp.read_predictions(path)["predicted"].tolist()
    [12.0, -3.5]
    """
    path = Path(path)
    files = [path] if path.is_file() else list(path.glob("predictions__rank_*.pt"))
    named = [(_NAME.fullmatch(part.name), part) for part in files]
    if not named or None in [found for found, _ in named]:
        raise FileNotFoundError(f"Did not find predictions__rank_*.pt at {path}.")
    if len({found[1] for found, _ in named}) > 1:
        raise ValueError(
            f"{path} holds predictions of several processes: which rows each of them had, the files do not say. Predict on one, or "
            "read them one by one."
        )
    batches = sorted((-1 if found[2] is None else int(found[2]), part) for found, part in named)
    numbers = [number for number, _ in batches]
    if path.is_dir() and numbers != list(range(numbers[0], numbers[0] + len(numbers))) or -1 in numbers[:-1]:
        raise ValueError(
            f"{path} lacks batches, or holds those of two runs: it has {_some(numbers)}. Rows would be misplaced."
        )
    if path.is_dir() and numbers[0] > 0:
        raise ValueError(f"{path} lacks batches before number {numbers[0]}. Rows would be misplaced.")
    return pd.concat([_read(part) for _, part in batches], ignore_index=True)


def _some(numbers: list[int]) -> str:
    shown = ["all in one" if number < 0 else str(number) for number in numbers]
    return ", ".join(shown[:6]) + (" ..." if len(shown) > 6 else "")


def _read(path: Path) -> pd.DataFrame:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{path} was not read: it holds more than tensors, or is damaged ({reason})."
        ) from None
    if not isinstance(content, dict) or not {LAPSES, _GENERATED} & set(content):
        raise ValueError(f"{path} is no prediction: it has neither {LAPSES} nor {_GENERATED}.")
    if _GENERATED in content:
        tokens = content[_GENERATED].numpy()
        lengths = content[_LENGTHS].flatten().numpy()
        if len(lengths) != len(tokens) or (lengths > tokens.shape[1]).any():
            raise ValueError(f"{path} is damaged: {_LENGTHS} do not fit {_GENERATED}.")
        table = pd.DataFrame({"finished": content[_FINISHED].flatten().numpy().astype(bool)})
        table.insert(
            0, "input_ids", [row[:n].astype(np.int64) for row, n in zip(tokens, lengths, strict=True)]
        )
        return table
    lapse = content[LAPSES].flatten().float().numpy()
    table = pd.DataFrame({"predicted": lapse})
    # One row a batch, the last one padded: no more of them count than there are lapses.
    if CHOSEN in content and content[CHOSEN].numel() >= len(lapse):
        table["token"] = content[CHOSEN].flatten().numpy()[: len(lapse)].astype(np.int64)
    return table
