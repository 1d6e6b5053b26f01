"""Muon for the matrices inside the blocks, AdamW for embeddings, heads and gains, as one optimiser."""

from __future__ import annotations

import os

import torch
from torch import nn

OPTIMIZERS = ("adamw", "muon")
BETAS = (0.9, 0.95)  # of AdamW beside Muon


class MuonAdamW(torch.optim.Optimizer):
    """Both optimisers behind one interface, for one schedule and one checkpoint.

    Parameters
    ----------
    module
        What is trained. Matrices whose name has ".layers." go to Muon.
    matrix_rate, other_rate
        Learning rates.
    weight_decay
        Of the embeddings and heads; matrices have none.

    Notes
    -----
    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) is that of torch; its steps are
    orthogonalised, so that all directions of a matrix learn.
    """

    def __init__(self, module: nn.Module, matrix_rate: float, other_rate: float, weight_decay: float) -> None:
        matrices, others = [], []
        for name, weight in module.named_parameters():
            if weight.requires_grad:
                (matrices if weight.ndim == 2 and ".layers." in name else others).append(weight)
        gains = [weight for weight in others if weight.ndim < 2]
        tables = [weight for weight in others if weight.ndim >= 2]
        groups = [
            {"params": tables, "weight_decay": weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ]
        self.parts = [
            torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.0),
            torch.optim.AdamW([g for g in groups if g["params"]], lr=other_rate, betas=BETAS),
        ]
        super().__init__([*matrices, *tables, *gains], {"lr": matrix_rate})
        self._share()

    def _share(self) -> None:
        # The same dictionaries, so that a schedule that writes here is read there.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict:
        """State of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a checkpoint."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()


def is_sharded() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def require_optimizer(name: str, *, adapted: bool = False) -> None:
    """Raise if there is no such optimiser, or it does not suit adapters."""
    if name not in OPTIMIZERS:
        raise ValueError(f"There is no optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}.")
    if name == "muon" and is_sharded():
        raise ValueError('Muon needs whole matrices, which FSDP leaves nowhere: use optimizer="adamw".')
    if name == "muon" and adapted:
        raise ValueError(
            'Adapters are matrices of low rank, which Muon is not made for: use optimizer="adamw".'
        )
