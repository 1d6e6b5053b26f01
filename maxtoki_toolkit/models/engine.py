"""Run a model over many sequences: batches by token budget, and smaller ones when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch

from .._progress import progress
from .model import MaxTokiModel
from .sequences import Sequences, pad

Result = TypeVar("Result")

# Padded tokens a batch. On a CPU larger batches gain nothing; on a GPU they keep it busy.
DEFAULT_TOKENS = {"cpu": 1 << 14, "mps": 1 << 15, "cuda": 1 << 17}


def token_batches(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Group sequences of similar length into batches of at most `max_tokens` padded tokens.

    The longest come first, so that a batch too large for the memory shows at once. A sequence longer than
    the budget is a batch of its own.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(lengths):
        width = max(int(lengths[longest_first[start]]), 1)
        stop = start + max(max_tokens // width, 1)
        batches.append(longest_first[start:stop])
        start = stop
    return batches


@torch.inference_mode()
def run(
    model: MaxTokiModel,
    sequences: Sequences,
    compute: Callable[[torch.Tensor, torch.Tensor], Result],
    *,
    max_tokens: int | None = None,
    desc: str = "",
) -> Iterator[tuple[np.ndarray, Result]]:
    """Apply `compute` to all sequences, in batches, longest first.

    Parameters
    ----------
    model
        Its device and `<pad>` are used.
    sequences
        What to run over.
    compute
        Function of padded tokens [batch, length] and lengths [batch], both on the model's device.
    max_tokens
        Padded tokens a batch. Halved whenever memory runs out, down to single sequences.
    desc
        What the progress bar says.

    Yields
    ------
    Rows of `sequences` in the batch, and what `compute` returned.
    """
    max_tokens = max_tokens or DEFAULT_TOKENS.get(model.device.type, DEFAULT_TOKENS["cpu"])
    lengths = sequences.lengths
    pending = token_batches(lengths, max_tokens)[::-1]
    with progress(total=len(lengths), desc=desc, unit="cell") as bar:
        while pending:
            rows = pending.pop()
            tokens = pad(sequences, rows, model.vocab["<pad>"]).to(model.device)
            try:
                result = compute(tokens, torch.from_numpy(lengths[rows]).to(model.device))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if len(rows) == 1 or not _out_of_memory(error):
                    raise
                del tokens
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()
                rest = np.concatenate([rows, *pending[::-1]])
                max_tokens = len(rows) * int(lengths[rows].max()) // 2
                pending = [rest[batch] for batch in token_batches(lengths[rest], max_tokens)][::-1]
                continue
            yield rows, result
            bar.update(len(rows))


def _out_of_memory(error: Exception) -> bool:
    # The CPU and MPS allocators raise a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory")
    )
