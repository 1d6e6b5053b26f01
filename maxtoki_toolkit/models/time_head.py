"""How a lapse is read at `<eoq>`, and the scale that belongs to the weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .vocabulary import Vocabulary

KINDS = ("expectation", "linear")
LOSSES = ("mse", "ce")


class Reading(NamedTuple):
    """What a time head reads."""

    lapse: torch.Tensor
    """Predicted lapse, in the head's unit, float32."""
    p_non_numeric: torch.Tensor
    """Probability of the tokens that are no lapse, float32; NaN for a linear head, which has none."""


class TimeHead(nn.Module):
    """Reads a lapse from the hidden state at `<eoq>`.

    Parameters
    ----------
    kind
        "expectation": the mean of the time tokens' values, weighted by their probabilities among themselves,
        times `scale`; it has no weights of its own. "linear": a weighted sum of the hidden state, times
        `scale`.
    unit
        Unit of the lapses the model was trained on, such as "months".
    scale
        What the head's output is multiplied with to be in that unit. In the original, trained with labels
        divided by 200 against tokens at face value, 200.
    loss
        How it was trained: "mse" or "ce" (cross entropy of the lapse's token; expectation only).
    hidden_size
        Of the model; needed for "linear".

    Notes
    -----
    Both forms are published: the expectation in maxToki (github.com/NVIDIA-Digital-Bio/maxToki), the linear
    head in the authors' fine-tuning code.
    """

    def __init__(
        self,
        kind: str,
        *,
        unit: str = "months",
        scale: float = 1.0,
        loss: str = "mse",
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"There is no time head {kind!r}; choose from {', '.join(KINDS)}.")
        if loss not in LOSSES or (loss == "ce" and kind == "linear"):
            raise ValueError(
                f'A time head is trained with "mse", an expectation also with "ce"; got {loss!r}.'
            )
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"The scale of a time head must be positive, got {scale}.")
        self.kind, self.unit, self.scale, self.loss = kind, unit, float(scale), loss
        if kind == "linear":
            if hidden_size is None:
                raise ValueError("A linear time head needs the model's hidden size.")
            self.linear = nn.Linear(hidden_size, 1)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    @property
    def card(self) -> dict:
        """What is stored beside the weights."""
        return {"kind": self.kind, "unit": self.unit, "scale": self.scale, "loss": self.loss}

    def forward(self, states: torch.Tensor, lm_head: nn.Module, vocab: Vocabulary) -> Reading:
        """Read lapses from hidden states [prompts, hidden size] at `<eoq>`."""
        if self.kind == "linear":
            lapse = self.linear(states.to(self.linear.weight.dtype)).float().squeeze(-1) * self.scale
            return Reading(lapse, torch.full_like(lapse, torch.nan))
        expected, p_non_numeric = expected_value(lm_head(states), vocab)
        return Reading(expected * self.scale, p_non_numeric)

    def extra_repr(self) -> str:
        """Show kind, scale and unit."""
        return f"{self.kind}, scale={self.scale:g} {self.unit}, loss={self.loss}"


def expected_value(logits: torch.Tensor, vocab: Vocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean value of the time tokens and the probability of all others, from logits [..., vocabulary].

    The mean is over the time tokens alone. Computed from logits in float32, it stays defined however little
    probability they have; the original returns 0 below 1e-9.
    """
    logits = logits.float()
    ids = torch.from_numpy(vocab.time_ids).to(logits.device)
    values = torch.from_numpy(vocab.time_values).to(logits.device, torch.float32)
    times = logits[..., ids]
    expected = (times.softmax(dim=-1) * values).sum(dim=-1)
    others = logits.index_fill(-1, ids, -torch.inf)
    return expected, (others.logsumexp(dim=-1) - times.logsumexp(dim=-1)).sigmoid()
