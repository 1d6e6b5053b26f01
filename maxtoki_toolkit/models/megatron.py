"""Checkpoints of the original (NeMo, Megatron-core), read and written without either and without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import chi2

from .._files import atomic
from .._warn import warn
from ._megatron_config import read_config, write_config
from ._megatron_weights import PADDED_TO, arrange_weights, read_weights
from ._quiet import quiet_transformers
from ._torch_dist import METADATA, write_state
from .fingerprint import weights_digest
from .load import (
    CARD,
    pick_device,
    read_card,
    read_time_head,
    read_vocabulary,
    require_as_saved,
    write_time_head,
)
from .model import MaxTokiModel, require_model, require_whole
from .vocabulary import QUERY, Vocabulary

if TYPE_CHECKING:
    from .time_head import TimeHead

_NOISE_P = 1e-6


def from_megatron(
    directory: str | Path,
    *,
    vocab: Vocabulary | None = None,
    device: str = "cpu",
    time_head: TimeHead | None = None,
) -> MaxTokiModel:
    """Read a checkpoint of the original, as NeMo saves it.

    Parameters
    ----------
    directory
        Folder with `context/model.yaml` and `weights/` (torch_dist), or with the files of both.
    vocab
        The model's vocabulary; by default the dictionaries that `to_megatron` writes into `context/`.
    device
        "auto" or a torch device.
    time_head
        How a lapse is read (`mt.models.TimeHead`); by default the one that `to_megatron` writes into
        `context/`. A checkpoint of the original does not say.

    Returns
    -------
    A `MaxTokiModel` in float32, with `time_head=None` where none is given or found.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a weight is missing, left over or of another shape, if the vocabulary has more tokens than the
        checkpoint, if `.metadata` names a class that could run code, if the network is no Llama, if weights
        are not finite, if a time head is given for time tokens that were never trained, or if weights,
        dictionaries or time head are not those that `to_megatron` wrote together.

    Warns
    -----
    UserWarning
        If the time tokens were never trained, or if more rows lie beyond the vocabulary than padding
        explains.

    Notes
    -----
    Time tokens were never trained if the embeddings of the lapses, `<boq>` and `<eoq>` are all zero, or if
    all of them could be independent draws of N(0, initial standard deviation): the squared length of each and
    of all together, their mean, and the length of their sum lie within chance at p = 1e-6. The published
    stage-1 checkpoint with time tokens is of this kind. The marks count because every temporal prompt trains
    them, while few lapses occur in training.

    Rows beyond the vocabulary are cropped. A RoPE `scale_factor` of 1 becomes plain RoPE, which differs in
    the last bit of a few frequencies at most. Byte entries and optimizer states are not read. A checkpoint of
    the original has no `cell_length`: for a model that reads several cells, set it with
    `dataclasses.replace`.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> folder = tempfile.mkdtemp() + "/nemo"
    >>> mt.models.to_megatron(mt.load_model("demo"), folder)
    >>> model = mt.models.from_megatron(folder)
    >>> model.vocab.sha256 == mt.load_model("demo").vocab.sha256
    True
    """
    from transformers import LlamaForCausalLM

    directory = Path(directory)
    context, weights = (
        directory / name if (directory / name).is_dir() else directory for name in ("context", "weights")
    )
    device = pick_device(device)
    card = read_card(context)
    beside = vocab is None
    vocab = read_vocabulary(context) if beside else vocab
    config = read_config(context / "model.yaml", vocab)
    state = read_weights(weights, config)
    untrained = _untrained_times(state["model.embed_tokens.weight"], vocab, config.initializer_range)
    if untrained and time_head is not None:
        raise ValueError(f"A time head cannot read {directory}: {untrained} Leave time_head out.")
    with quiet_transformers():
        hf, report = LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    if problems := sorted([*report["missing_keys"], *report["unexpected_keys"]]):
        raise ValueError(f"{len(problems)} weights do not fit transformers' Llama (first: {problems[0]}).")
    if untrained:
        warn(untrained)
    found = None if time_head or untrained else read_time_head(context, card)
    head = time_head or found
    model = MaxTokiModel(
        hf.to(device).eval(),
        vocab,
        name=str(directory),
        time_head=head.to(device) if head else None,
        cell_length=card.get("cell_length", 0),
    )
    require_model(model)
    if beside or found:
        require_as_saved(context, card, weights=weights_digest(hf), vocabulary=vocab.sha256)
    return model


def to_megatron(model: MaxTokiModel, directory: str | Path) -> None:
    """Write a model as NeMo lays out its checkpoints; the folder appears when it is complete.

    Parameters
    ----------
    model
        The model; its weights keep their dtype.
    directory
        Folder to write. It must not exist, or be empty.

    Raises
    ------
    ValueError
        If the folder is not empty, if weights are not finite, or if the original has nothing like this model.

    Notes
    -----
    `weights/` holds the weights with layers stacked, the vocabulary padded with zero rows to a multiple of
    128, and empty `_extra_state` entries; `context/` holds `model.yaml` and the two dictionaries. Time head
    and `cell_length` have no place in the layout: they are beside the dictionaries, in
    `time_head.safetensors` and `maxtoki.json`, where `from_megatron` finds them and the original does not
    look.

    Megatron-core 0.16.1 reads the weights and computes the same logits to 1e-5. NeMo also reads
    `context/io.json`, a graph of Python objects that only NeMo can write: take it from a checkpoint of the
    same shape. Reading with NeMo and Transformer Engine is untested.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp()) / "nemo"
    >>> mt.models.to_megatron(mt.load_model("demo"), folder)
    >>> sorted(path.name for path in (folder / "weights").iterdir())
    ['.metadata', '__0_0.distcp', 'common.pt', 'metadata.json']
    """
    directory = Path(directory)
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise ValueError(f"{directory} exists and is not empty. Give a new folder; nothing was written.")
    require_model(model)
    require_whole(model)
    state = arrange_weights(model.hf.state_dict(), model.hf.config)
    backend = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    with atomic(directory) as temporary:
        context, weights = temporary / "context", temporary / "weights"
        context.mkdir(parents=True)
        rows = model.vocab.size + -model.vocab.size % PADDED_TO
        write_config(context / "model.yaml", model, rows=rows)
        model.vocab.save(context)
        card = {
            "format": 1,
            "weights_sha256": weights_digest(model.hf),
            "vocabulary_sha256": model.vocab.sha256,
            "cell_length": model.cell_length,
            "time_head": write_time_head(context, model.time_head),
        }
        (context / CARD).write_text(json.dumps(card, indent=2) + "\n")
        write_state(weights, state)
        torch.save({}, weights / "common.pt")
        (weights / "metadata.json").write_text(json.dumps(backend))


def is_megatron(path: str | Path) -> bool:
    """Whether a folder is a checkpoint in this layout."""
    path = Path(path)
    return (path / "weights").is_dir() or (path / METADATA).is_file() or any(path.glob("*.distcp"))


def _untrained_times(embedding: torch.Tensor, vocab: Vocabulary, std: float) -> str:
    """Say so if the time tokens were never trained; "" otherwise."""
    if not vocab.is_temporal:
        return ""
    ids = np.array([*vocab.time_ids, *(vocab[mark] for mark in QUERY)])
    rows = embedding[torch.from_numpy(ids)].double().numpy()
    if rows.any() and not _is_noise(rows / std):
        return ""
    first, last = vocab.time_values[[0, -1]]
    return (
        f"{len(ids):,} token embeddings, of the time tokens {first}..{last}, <boq> and <eoq>, were never trained: "
        f"they are {'random' if rows.any() else 'zero'}. The model cannot tell time until mt.train.temporal has "
        "trained it."
    )


def _is_noise(rows: np.ndarray) -> bool:
    """Whether rows [tokens, hidden size] could be independent draws of N(0, 1), by four chi-square tests."""
    n, width = rows.shape
    lengths = (rows**2).sum(axis=1)
    statistics = [*lengths, lengths.sum(), (rows.sum(axis=0) ** 2).sum() / n, rows.sum() ** 2 / rows.size]
    freedom = [*[width] * n, n * width, width, 1]
    p = 2 * np.minimum(chi2.cdf(statistics, freedom), chi2.sf(statistics, freedom))
    return bool(p.min() * len(p) > _NOISE_P)
