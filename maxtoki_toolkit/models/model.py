"""A loaded model: weights, vocabulary, and what it was trained to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .fingerprint import fingerprint
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from .time_head import TimeHead


@dataclass(frozen=True, eq=False)
class MaxTokiModel:
    """A MaxToki model, ready to be passed to the functions of `mt.tl`.

    Attributes
    ----------
    hf
        The transformers model, in evaluation mode; a plain `LlamaForCausalLM`.
    vocab
        Its tokens and gene medians.
    name
        "demo", a path or a hub id.
    sha256
        Checksum of the weights file; "" for a model that was never saved.
    time_head
        How a lapse is read from it; `None` for a model without temporal training.
    cell_length
        Tokens of a cell, its marks included; a temporal model reads several cells at once. All that the
        model can read, unless given.
    """

    hf: LlamaForCausalLM
    vocab: Vocabulary
    name: str
    sha256: str = ""
    time_head: TimeHead | None = None
    cell_length: int = 0

    def __post_init__(self) -> None:
        if not self.cell_length:
            object.__setattr__(self, "cell_length", self.max_length)
        rows = self.hf.get_input_embeddings().num_embeddings
        if rows != self.vocab.size:
            raise ValueError(
                f"The model has {rows:,} token embeddings, the vocabulary {self.vocab.size:,} tokens. "
                "They were not made for each other: give the dictionary that the model was trained with."
            )

    @property
    def is_temporal(self) -> bool:
        """Whether a time can be read: temporal vocabulary and temporal (stage 2) training."""
        return self.vocab.is_temporal and self.time_head is not None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hf.device

    @property
    def max_length(self) -> int:
        """Tokens that the model can read at once."""
        return self.hf.config.max_position_embeddings

    @property
    def identity(self) -> str:
        """Checksum that tells this model from others: of its file, or of its content where it was never saved."""
        return self.sha256 or fingerprint(self)

    @property
    def params(self) -> dict[str, str]:
        """What results record of the model."""
        return {
            "model": self.name,
            "model_sha256": self.identity,
            "vocabulary_sha256": self.vocab.sha256,
            "dtype": str(self.hf.dtype).removeprefix("torch."),
            "time_head": {} if self.time_head is None else self.time_head.card,
            "attention": self.hf.config._attn_implementation,
            "device": self.device.type,
        }

    def __repr__(self) -> str:
        config = self.hf.config
        return (
            f"MaxTokiModel({self.name!r}, {self.hf.num_parameters() / 1e6:.4g}M parameters, "
            f"{config.num_hidden_layers} layers x {config.num_attention_heads} heads, {self.vocab!r}, "
            f"{'temporal' if self.is_temporal else 'stage 1'}, {self.params['dtype']} on {self.device})"
        )


def require_model(model: object) -> None:
    """Raise if this is no model, such as the name of one, or one whose training diverged."""
    if not isinstance(model, MaxTokiModel):
        raise TypeError(f"Expected a model (mt.load_model), got {type(model).__name__}.")
    require_finite(model.hf, f"The model {model.name!r}")
    if model.time_head is not None:
        require_finite(model.time_head, f"The time head of the model {model.name!r}")


def require_whole(model: MaxTokiModel) -> None:
    """Raise if a model is shared out over processes: each would do a part of a job that needs all of them."""
    if any(hasattr(weight, "full_tensor") for weight in model.hf.parameters()):
        raise ValueError(
            f"{model.name!r} is shared out over processes (tensor_parallel), and this needs a model that is whole. Load it without."
        )


def require_finite(module: nn.Module, what: str) -> None:
    """Raise if weights are NaN or infinite."""
    with torch.no_grad():
        # A sum is finite only if all its terms are, and takes no memory.
        bad = [
            name
            for name, weight in module.named_parameters()
            if not _whole(weight.sum(dtype=torch.float32)).isfinite()
        ]
    if bad:
        raise ValueError(
            f"{what} has weights that are NaN or infinite ({len(bad)} of its tensors, the first {bad[0]}), as after a "
            "training that diverged. Nothing can be read with it: train again with a lower learning_rate, or load another."
        )


def _whole(value: torch.Tensor) -> torch.Tensor:
    """A value of which each process has a part."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
