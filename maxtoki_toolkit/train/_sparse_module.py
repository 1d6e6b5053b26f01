"""A frozen model and an autoencoder that learns from its states, and the losses of the latter."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..models.hooks import Site, states_at
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder, keep_largest
from ..models.sequences import Sequences, pad
from ._stored_states import StoredStates

_SLOW = 0.99  # how much of the threshold stays at each step


class SparseModule(nn.Module):
    """What is trained: the autoencoder. The model's weights are no part of it.

    Parameters
    ----------
    sae, model, site
        Autoencoder, and where its states come from.
    scale
        Size of a state's entries, so that learning rates mean the same everywhere.
    revive
        Weight of the loss of dead features, which learn to say what the living leave out (Gao et al. 2024).
    dead_after
        A feature is dead that none of so many last tokens had.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        model: MaxTokiModel,
        site: Site,
        *,
        scale: float,
        revive: float,
        dead_after: int,
    ) -> None:
        super().__init__()
        self.sae, self.scale, self.revive, self.dead_after = sae, scale, revive, dead_after
        self.register_buffer("idle", torch.zeros(sae.width))
        # In a tuple, so that it is neither trained nor saved.
        self._frozen = (model, site)

    @property
    def hf(self) -> nn.Module:
        """The network whose states are read."""
        return self._frozen[0].hf

    def forward(
        self, chosen: torch.Tensor, input_ids: torch.Tensor | None = None, states: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Loss of the states at the chosen tokens, which are computed unless they are given."""
        model, site = self._frozen
        with torch.no_grad():
            if states is None:
                states = states_at(model, {"input_ids": input_ids, "use_cache": False}, site)[chosen]
            states = states.float() / self.scale
        # All of it in float32: it is little beside the model.
        with torch.autocast(states.device.type, enabled=False):
            loss, unexplained = self._loss(states)
        return {"loss": loss, "unexplained": unexplained.expand(len(chosen))}

    def _loss(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and the share of the variance that all features leave unexplained."""
        sae = self.sae
        total = (states - states.mean(dim=0)).pow(2).sum().clamp(min=1e-6)
        if sae.kind == "topk":
            values, indices = Largest.apply(states - sae.b_dec, sae.encoder.weight, sae.encoder.bias, sae.k)
            made = [sae.gather(values, indices)]
            fired = torch.zeros_like(self.idle).index_add_(
                0, indices.flatten(), (values > 0).flatten().float()
            )
            least = values
        else:
            least = sae.choose(sae.drives(states))
            made = [sae.decode(least, n) for n in sae.prefixes]
            fired = (least > 0).float().sum(dim=0)
        errors = [(states - part).pow(2).sum() / total for part in made]
        loss = torch.stack(errors).mean()
        if self.training:
            dead = self._note(fired, least, len(states))
            if self.revive and dead.any():
                loss = loss + self.revive * self._revival(
                    states - made[-1].detach(), sae.drives(states), dead, total
                )
        return loss, errors[-1].detach()

    @torch.no_grad()
    def _note(self, fired: torch.Tensor, features: torch.Tensor, n_states: int) -> torch.Tensor:
        """Count for how many states each feature has been silent; return which are dead."""
        fired, n = (fired > 0).float(), torch.tensor(float(n_states), device=fired.device)
        least = torch.where(features > 0, features, torch.inf).min()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(fired, torch.distributed.ReduceOp.MAX)
            torch.distributed.all_reduce(n)
            torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        self.idle.copy_(torch.where(fired > 0, 0, self.idle + n))
        if self.sae.kind != "topk" and least.isfinite():
            old = self.sae.threshold
            old.copy_(torch.where(old > 0, _SLOW * old + (1 - _SLOW) * least, least))
        return self.idle > self.dead_after

    def _revival(
        self, left: torch.Tensor, drives: torch.Tensor, dead: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        """How badly dead features say what is left; fewer of them count less."""
        n_dead = int(dead.sum())
        wanted = max(left.shape[1] // 2, 1)
        said = keep_largest(torch.where(dead, drives, 0), min(wanted, n_dead)) @ self.sae.directions
        return min(n_dead / wanted, 1.0) * (said - left).pow(2).sum() / total


class Largest(torch.autograd.Function):
    """The k largest features of each state, and which they are; gradients are summed over these alone."""

    @staticmethod
    def forward(ctx, states, weight, bias, k):
        values, indices = F.relu(F.linear(states, weight, bias)).topk(k, dim=-1, sorted=False)
        ctx.save_for_backward(states, weight, indices, values)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    def backward(ctx, slope, _):
        states, weight, indices, values = ctx.saved_tensors
        slope, flat = torch.where(values > 0, slope, 0), indices.flatten()
        parts = (slope[..., None] * states[:, None]).flatten(0, 1)
        return (
            F.embedding_bag(indices, weight, mode="sum", per_sample_weights=slope),
            torch.zeros_like(weight).index_add_(0, flat, parts),
            torch.zeros_like(weight[:, 0]).index_add_(0, flat, slope.flatten()),
            None,
        )


class Rows(Dataset):
    """Which sequences there are; the collator has them."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        return i


class StateCollator:
    """Pad sequences and draw the genes whose states are read.

    Parameters
    ----------
    sequences
        Cells or prompts.
    pad_id
        Token of the padding.
    chance
        float32, vocabulary: how readily a token is drawn; 0 for marks and times.
    share
        Share of the genes of a batch that are read.
    stored
        Their states, if they need not be computed.
    """

    def __init__(
        self,
        sequences: Sequences,
        pad_id: int,
        chance: np.ndarray,
        share: float,
        stored: StoredStates | None = None,
    ) -> None:
        self.sequences, self.pad_id, self.chance, self.share = sequences, pad_id, chance, share
        self.stored = stored

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Batch some sequences."""
        tokens = pad(self.sequences, np.asarray(rows), self.pad_id)
        flat = tokens.numpy().ravel()
        chance = self.chance[flat]
        n_genes = int((chance > 0).sum())
        # Seeded by the batch itself, so that a run that resumes sees what it would have seen.
        rng = np.random.default_rng(zlib.crc32(flat.tobytes()))
        with np.errstate(divide="ignore"):
            # The smallest of exponential waiting times are a draw by weight, without replacement.
            waiting = rng.exponential(size=len(flat)) / chance
        n = max(round(self.share * n_genes), min(n_genes, 2))
        chosen = np.zeros(len(flat), dtype=bool)
        chosen[np.argpartition(waiting, n - 1)[:n]] = True
        chosen = torch.from_numpy(chosen.reshape(tokens.shape))
        if self.stored is not None:
            return {"chosen": chosen, "states": self.stored.at(np.asarray(rows), chosen)}
        return {"input_ids": tokens, "chosen": chosen}


def token_chances(sequences: Sequences, gene_ids: np.ndarray, n_tokens: int, flatten: float) -> np.ndarray:
    """How readily each token is drawn: at 0 as often as it comes, at 1 each gene as often as any other."""
    often = np.bincount(sequences.tokens, minlength=n_tokens).astype(np.float64)
    chance = np.zeros(n_tokens, dtype=np.float32)
    there = gene_ids[often[gene_ids] > 0]
    chance[there] = (often[there] / often[there].max()) ** -flatten
    return chance
