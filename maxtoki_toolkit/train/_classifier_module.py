"""A model with adapters and heads that name cells, its loss, and its batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..models.embedding import gene_places, mean_over
from ..models.sequences import Sequences, pad

# Where adapters go: all matrices of a block.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NEAR = 2  # steps in the ontology within which labels are neighbours: parents, children, siblings


class ClassifierModule(nn.Module):
    """What is trained: heads, and with a rank the adapters of the decoder.

    Parameters
    ----------
    hf
        The decoder, frozen but for its adapters.
    heads
        Of each column, weight and bias to begin with.
    center, spread
        By what mean states are standardised.
    wanted
        Of each column, labels x labels: what is asked for of cells of each label, rows that sum to 1.
    weights
        Of each column, the weight of a cell of each label.
    """

    def __init__(
        self,
        hf: nn.Module,
        heads: Sequence[tuple[np.ndarray, np.ndarray]],
        center: np.ndarray,
        spread: np.ndarray,
        *,
        wanted: Sequence[np.ndarray],
        weights: Sequence[np.ndarray],
    ) -> None:
        super().__init__()
        self.hf = hf
        self.adapts = any(part.requires_grad for part in hf.parameters())
        self.heads = nn.ModuleList(nn.Linear(weight.shape[1], weight.shape[0]) for weight, _ in heads)
        for head, (weight, bias) in zip(self.heads, heads, strict=True):
            head.load_state_dict(
                {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}
            )
        self.register_buffer("center", torch.from_numpy(center).float())
        self.register_buffer("spread", torch.from_numpy(spread).float())
        for i, (asked, weight) in enumerate(zip(wanted, weights, strict=True)):
            self.register_buffer(f"wanted_{i}", torch.from_numpy(asked).float(), persistent=False)
            self.register_buffer(f"weight_{i}", torch.from_numpy(weight).float(), persistent=False)

    def forward(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Mean loss of the heads; and which cells each head names right, NaN where there is no label."""
        with torch.set_grad_enabled(self.adapts and torch.is_grad_enabled()):
            states = self.hf(input_ids=input_ids, use_cache=False).last_hidden_state.float()
        standard = (mean_over(states, gene_places(states, lengths)) - self.center) / self.spread
        losses, right = [], []
        for i, head in enumerate(self.heads):
            target = targets[:, i]
            known = target >= 0
            logits, at = head(standard), target.clamp(min=0)
            each = -(getattr(self, f"wanted_{i}")[at] * F.log_softmax(logits, dim=1)).sum(dim=1)
            weight = getattr(self, f"weight_{i}")[at] * known
            losses.append((each * weight).sum() / weight.sum().clamp(min=1e-6))
            right.append(torch.where(known, (logits.argmax(dim=1) == target).float(), torch.nan))
        return {"loss": torch.stack(losses).mean(), "right": torch.stack(right, dim=1).detach()}


class LabelledCells:
    """Pad cells and say their labels.

    Parameters
    ----------
    sequences
        Cells.
    targets
        int, cells x columns: labels, -1 for none.
    pad_id
        Token of the padding.
    """

    def __init__(self, sequences: Sequences, targets: np.ndarray, pad_id: int) -> None:
        self.sequences, self.targets, self.pad_id = sequences, targets, pad_id

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Batch some cells."""
        rows = np.asarray(rows)
        return {
            "input_ids": pad(self.sequences, rows, self.pad_id),
            "lengths": torch.from_numpy(self.sequences.lengths[rows]),
            "targets": torch.from_numpy(self.targets[rows]),
        }


def smoothed(steps: np.ndarray, smoothing: float) -> np.ndarray:
    """What is asked for of each label: itself, and a share for its neighbours in the ontology, half as much a step.

    A label without neighbours is asked for alone.
    """
    near = np.where(np.isfinite(steps) & (steps <= _NEAR), 0.5 ** np.nan_to_num(steps), 0.0)
    np.fill_diagonal(near, 0.0)
    total = near.sum(axis=1, keepdims=True)
    share = smoothing * (total > 0)
    return np.eye(len(steps)) * (1 - share) + share * near / np.where(total > 0, total, 1)


def balanced(code: np.ndarray, n_labels: int) -> np.ndarray:
    """Weight of a cell of each label, so that all labels count the same; 1 on average over cells."""
    size = np.bincount(code[code >= 0], minlength=n_labels)
    return np.where(size > 0, size.sum() / np.maximum(size * (size > 0).sum(), 1), 0.0)


def add_adapters(decoder: nn.Module, rank: int | None, alpha: float, dropout: float) -> nn.Module:
    """Freeze a decoder and, with a rank, put adapters beside all its projections (in place)."""
    decoder.requires_grad_(requires_grad=False)
    if rank is None:
        return decoder
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(PROJECTIONS))
    return inject_adapter_in_model(config, decoder)


def adapters_of(decoder: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The two factors of each adapter, scaled, by the name of its projection."""
    return {
        name: (
            part.lora_A["default"].weight.detach().cpu().clone(),
            (part.scaling["default"] * part.lora_B["default"].weight).detach().cpu().clone(),
        )
        for name, part in decoder.named_modules()
        if hasattr(part, "lora_A")
    }
