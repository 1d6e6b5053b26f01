"""Run a model over many sequences: what they share once, batches by token budget, smaller when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from .._progress import progress
from .._settings import settings
from .cache import Prefix, SharedCache
from .masked import attending_by, masked
from .model import MaxTokiModel
from .prefix import Forest
from .sequences import Sequences, pad

Result = TypeVar("Result")

# Padded tokens a batch. On a CPU larger ones only cost memory traffic (16,384: 0.6 times as fast, 217M
# shape); on a GPU they keep it busy.
DEFAULT_TOKENS = {"cpu": 1 << 11, "mps": 1 << 15, "cuda": 1 << 17}


class Batch(NamedTuple):
    """Some sequences, from where each leaves what is known of it."""

    rows: np.ndarray
    """Which sequences these are."""
    tokens: torch.Tensor
    """int64, batch x longest: padded on the right."""
    first: torch.Tensor
    """int64, batch: position in its sequence of the first token."""
    lengths: torch.Tensor
    """int64, batch: tokens, without padding."""
    inputs: dict
    """What to call the transformers model with."""


def tokens_at_once(
    model: MaxTokiModel, wanted: int | None, by_device: Mapping[str, int] = DEFAULT_TOKENS
) -> int:
    """Padded tokens a batch: those wanted, or of the settings, or what suits the device."""
    return wanted or settings.max_tokens or by_device.get(model.device.type, by_device["cpu"])


def token_batches(lengths: np.ndarray, max_tokens: int, before: np.ndarray | None = None) -> list[np.ndarray]:
    """Group sequences of similar length into batches of at most `max_tokens` padded tokens.

    The longest come first, so that a batch too large for the memory shows at once. A sequence longer than the
    budget is a batch of its own. Shared tokens `before` a sequence take memory but are not computed: they may
    fill another budget of the same size.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    before = np.zeros_like(lengths) if before is None else before
    batches, start = [], 0
    while start < len(lengths):
        width = max(int(lengths[longest_first[start]]), 1)
        stop = start + max(max_tokens // width, 1)
        if (reach := before[longest_first[start:stop]]).any():
            size = np.arange(1, len(reach) + 1)
            fits = size * (width + np.maximum.accumulate(reach)) <= 2 * max_tokens
            stop = start + max(int(fits.argmin()) if not fits.all() else len(fits), 1)
        batches.append(longest_first[start:stop])
        start = stop
    return batches


@torch.inference_mode()
def run(
    model: MaxTokiModel,
    sequences: Sequences,
    compute: Callable[[Batch], Result],
    *,
    forest: Forest | None = None,
    keep: np.ndarray | None = None,
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
        Function of a batch, which calls the transformers model once with `batch.inputs`.
    forest
        What the sequences share (`prefix_forest`): a sequence then has in its batch only the tokens from
        where it leaves another one, attends to all before, and comes after that one. `None` runs each as a
        whole.
    keep
        Of how many first tokens of each sequence the keys and values are wanted: `compute` finds them in
        `batch.inputs["past_key_values"].kept`. By default those that others branch off from.
    max_tokens
        Padded tokens a batch. Halved whenever memory runs out, down to single sequences.
    desc
        What the progress bar says.

    Yields
    ------
    Rows of `sequences` in the batch, and what `compute` returned.
    """
    max_tokens = tokens_at_once(model, max_tokens)
    n = len(sequences)
    if forest is None:
        forest = Forest(np.full(n, -1), np.zeros(n, dtype=np.int64))
    own = sequences.lengths - forest.shared
    waiting = forest.n_children
    keep = forest.n_kept if keep is None else np.maximum(keep, forest.n_kept)
    branches = np.argsort(forest.parent, kind="stable")
    first_branch = np.searchsorted(forest.parent[branches], np.arange(n + 1))
    known: dict[int, Prefix] = {}
    ready = np.flatnonzero(forest.parent < 0)
    with progress(total=n, desc=desc, unit="cell") as bar:
        while len(ready):
            now, ready = _choose(ready, np.where(waiting > 0, keep, 0), max_tokens)
            pending = _batches(now, own, forest.shared, max_tokens)
            while pending:
                rows = pending.pop()
                try:
                    batch, cache = _batch(model, sequences, rows, forest, known, keep)
                    with nullcontext() if cache is None else attending_by(model, masked):
                        result = compute(batch)
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if len(rows) == 1 or not is_out_of_memory(error):
                        raise
                    batch = cache = None
                    if model.device.type == "cuda":
                        torch.cuda.empty_cache()
                    max_tokens = len(rows) * int(own[rows].max()) // 2
                    pending = _batches(np.concatenate([rows, *pending[::-1]]), own, forest.shared, max_tokens)
                    continue
                if cache is not None:
                    known |= {int(rows[i]): kept for i, kept in cache.kept.items() if waiting[rows[i]]}
                for parent in forest.parent[rows[forest.parent[rows] >= 0]]:
                    waiting[parent] -= 1
                    if not waiting[parent]:
                        del known[int(parent)]
                freed = [branches[first_branch[row] : first_branch[row + 1]] for row in rows[keep[rows] > 0]]
                ready = np.concatenate([ready, *freed])
                yield rows, result
                bar.update(len(rows))


def whole_batch(model: MaxTokiModel, sequences: Sequences, rows: np.ndarray) -> Batch:
    """Some sequences as a batch that shares nothing."""
    tokens = pad(sequences, rows, model.vocab["<pad>"]).to(model.device)
    lengths = torch.from_numpy(sequences.lengths[rows]).to(model.device)
    return Batch(rows, tokens, torch.zeros_like(lengths), lengths, {"input_ids": tokens, "use_cache": False})


def last_states(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The state of each sequence's last token, batch x hidden size."""
    return states[torch.arange(len(states), device=states.device), batch.lengths - 1]


def _choose(ready: np.ndarray, keep: np.ndarray, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """What to run now, and what later, so that few tokens are kept at a time.

    Sequences that nothing branches off from only free memory, so they come first; then of the others,
    latest found first, as many as fit in the budget.
    """
    ends = keep[ready] == 0
    if ends.any():
        return ready[ends], ready[~ends]
    latest = ready[::-1]
    n = max(int(np.searchsorted(np.cumsum(keep[latest]), max_tokens, side="right")), 1)
    return latest[:n], latest[n:][::-1]


def _batches(rows: np.ndarray, own: np.ndarray, shared: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Batches of these rows, to be popped."""
    return [rows[batch] for batch in token_batches(own[rows], max_tokens, shared[rows])][::-1]


def _batch(
    model: MaxTokiModel,
    sequences: Sequences,
    rows: np.ndarray,
    forest: Forest,
    known: dict[int, Prefix],
    keep: np.ndarray,
) -> tuple[Batch, SharedCache | None]:
    """The tokens of some rows and, where anything is shared, their cache."""
    device, shared = model.device, forest.shared[rows]
    tokens = pad(sequences, rows, model.vocab["<pad>"], first=shared)
    if device.type == "cuda":
        tokens = tokens.pin_memory()
    tokens = tokens.to(device, non_blocking=True)
    first = torch.from_numpy(shared).to(device)
    lengths = torch.from_numpy(sequences.lengths[rows] - shared).to(device)
    inputs = {"input_ids": tokens, "use_cache": False}
    cache = None
    if shared.any() or keep[rows].any():
        prefixes = [known.get(int(parent)) for parent in forest.parent[rows]]
        cache = SharedCache(prefixes, shared.tolist(), keep[rows].tolist())
        position = first[:, None] + torch.arange(tokens.shape[1], device=device)
        inputs |= {
            "past_key_values": cache,
            "attention_mask": cache.mask(tokens.shape[1], device),
            # Padding may lie beyond the last position; nothing is read there.
            "position_ids": position.clamp(max=model.max_length - 1),
        }
    return Batch(rows, tokens, first, lengths, inputs), cache


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    # The CPU and MPS allocators raise a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in ("out of memory", "can't allocate memory", "not enough memory")
    )
