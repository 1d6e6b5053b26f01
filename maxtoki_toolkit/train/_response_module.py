"""What is trained on populations: the transformer, its loss, and sets of cells to learn from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ..models.response import ResponseModel, energy_distance


class ResponseModule(nn.Module):
    """A model of responses with the energy distance of predicted and true treated cells as its loss."""

    def __init__(self, model: ResponseModel) -> None:
        super().__init__()
        self.model = model

    @property
    def hf(self) -> SimpleNamespace:
        """Sizes, by the names that the log of a training reads them by."""
        card = self.model.card
        return SimpleNamespace(
            config=SimpleNamespace(
                num_hidden_layers=card["n_layers"],
                hidden_size=card["hidden_size"],
                intermediate_size=2 * card["hidden_size"],
                num_attention_heads=card["n_heads"],
                num_key_value_heads=card["n_heads"],
                vocab_size=1,
                tie_word_embeddings=True,
                pad_token_id=0,
            )
        )

    def forward(
        self, control: torch.Tensor, treated: torch.Tensor, which: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Loss of a batch of sets."""
        return {"loss": energy_distance(self.model(control, which), treated).mean()}


class Sets(Dataset):
    """Pairs of sets of controls and treated cells of one population, the same for each number.

    Parameters
    ----------
    cells
        float32, cells x dimensions.
    pairs
        Of each population: rows of controls, rows of treated cells, number of the perturbation.
    size
        Cells of a set.
    n
        How many pairs of sets.
    seed
        Of the draws.
    """

    def __init__(self, cells: np.ndarray, pairs: list, size: int, n: int, seed: int) -> None:
        self.cells, self.pairs, self.size, self.n, self.seed = torch.from_numpy(cells), pairs, size, n, seed

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, i])
        control, treated, which = self.pairs[rng.integers(len(self.pairs))]
        # With replacement, so that all sets are of one size.
        rows = [rng.choice(part, self.size, replace=len(part) < self.size) for part in (control, treated)]
        return {
            "control": self.cells[rows[0]],
            "treated": self.cells[rows[1]],
            "which": torch.tensor(which),
        }


def collate(sets: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One batch of sets."""
    return {name: torch.stack([part[name] for part in sets]) for name in sets[0]}
