"""Checksums of what a model is made of, wherever it is and however it was saved."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .model import MaxTokiModel

# Fields of the configuration that change what is computed with the same weights.
_FIELDS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "max_position_embeddings",
)


def fingerprint(model: MaxTokiModel) -> str:
    """Checksum of all that results depend on: weights, vocabulary, time head, and how they are used.

    Unlike `model.sha256` it is there for a model that was never saved, and follows weights that were changed
    in place.
    """
    head = model.time_head
    parts = [
        weights_digest(model.hf),
        model.vocab.sha256,
        model.cell_length,
        {name: getattr(model.hf.config, name) for name in _FIELDS},
        None if head is None else [head.card, weights_digest(head)],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Checksum of all weights by name, shape and value; the same on every device and in every precision that holds them."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {list(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().float().contiguous().numpy().reshape(-1))
    return digest.hexdigest()
