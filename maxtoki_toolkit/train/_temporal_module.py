"""Model and time head as one module, and the loss of both tasks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..models.time_head import TimeHead
from ..models.vocabulary import Vocabulary
from .corpus import IGNORED

_SMALL = 0.3  # errors, in units of the loss's scale, up to which they are squared


class TemporalModule(nn.Module):
    """What is trained in stage 2.

    Parameters
    ----------
    hf, head, vocab
        Model, time head, temporal vocabulary.
    loss_scale
        Errors of the lapse are divided by it before they are squared.
    penalty
        Weight of the probability that falls on tokens that are no lapse.
    weights
        Weights of the tasks, (timelapse, cell); each task's loss is its mean.
    clock
        Weight of the error of each cell's own time, read at its `<eos>` by a linear layer that serves the
        training alone.
    running
        Weight of the error of the clock at every gene, and of the lapse at every gene of a query.
    """

    def __init__(
        self,
        hf: nn.Module,
        head: TimeHead,
        vocab: Vocabulary,
        *,
        loss_scale: float,
        penalty: float,
        weights: tuple[float, float],
        clock: float = 0.0,
        running: float = 0.0,
    ) -> None:
        super().__init__()
        self.hf, self.head, self.vocab = hf, head, vocab
        self.loss_scale, self.penalty, self.weights = loss_scale, penalty, weights
        self.clock_weight, self.running_weight = clock, running
        self.clock = nn.Linear(hf.config.hidden_size, 1) if clock or running else None
        if self.clock is not None:
            nn.init.zeros_(self.clock.weight)
            nn.init.zeros_(self.clock.bias)

    @property
    def _keys_to_ignore_on_save(self) -> list[str] | None:
        """What a checkpoint lacks; the Trainer asks by this name. A tied output layer is the embedding."""
        tied = self.hf.get_output_embeddings().weight is self.hf.get_input_embeddings().weight
        return ["hf.lm_head.weight"] if tied else None

    def tie_weights(self) -> None:
        """Tie what a checkpoint has once."""
        self.hf.tie_weights()

    def forward(
        self,
        input_ids: torch.Tensor,
        eoq: torch.Tensor,
        labels: torch.Tensor,
        lapse: torch.Tensor,
        lapse_token: torch.Tensor,
        age: torch.Tensor | None = None,
        replay_ids: torch.Tensor | None = None,
        replay_labels: torch.Tensor | None = None,
        running: torch.Tensor | None = None,
        running_weight: torch.Tensor | None = None,
        running_from: torch.Tensor | None = None,
        in_query: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Loss of a batch (see `PromptCollator`), its parts, and the predicted lapses (NaN where none was asked)."""
        lm_head = self.hf.get_output_embeddings()
        states = self.hf.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        asked = ~lapse.isnan()
        at_eoq = states[torch.arange(len(eoq), device=eoq.device), eoq][asked]
        reading = self.head(at_eoq, lm_head, self.vocab)
        error = reading.lapse - lapse[asked]
        if self.head.loss == "ce":
            per_prompt = F.cross_entropy(lm_head(at_eoq).float(), lapse_token[asked], reduction="none")
        else:
            per_prompt = (error / self.loss_scale) ** 2
            if self.head.kind == "expectation":
                per_prompt = per_prompt + self.penalty * reading.p_non_numeric
        scored = labels != IGNORED
        asked_for, answers = states[scored], labels[scored]
        if replay_ids is not None:
            again = self.hf.get_decoder()(input_ids=replay_ids, use_cache=False).last_hidden_state[:, :-1]
            scored = replay_labels != IGNORED
            asked_for = torch.cat([asked_for, again[scored]])
            answers = torch.cat([answers, replay_labels[scored]])
        per_gene = F.cross_entropy(lm_head(asked_for).float(), answers, reduction="none")

        time_loss, cell_loss = _global_mean(per_prompt), _global_mean(per_gene)
        predicted = torch.full_like(lapse, torch.nan)
        predicted[asked] = reading.lapse.detach().to(lapse.dtype)
        total = self.weights[0] * time_loss + self.weights[1] * cell_loss
        if self.clock is not None and age is not None:
            read = ~age.isnan()
            total = total + self.clock_weight * _global_mean(
                (self.clock(states[read]).float().squeeze(-1) - age[read] / self.loss_scale) ** 2
            )
        if running is not None:
            total = total + self.running_weight * self._running(
                states, running, running_weight, running_from, in_query, lm_head
            )
        return {
            "loss": total,
            "predicted": predicted,
            "cell_loss": cell_loss.detach().expand(len(eoq)),
        }

    def _running(self, states, running, weight, running_from, in_query, lm_head) -> torch.Tensor:
        """Error of the clock at every gene, and of the lapse at those of queries."""
        age = running / self.loss_scale
        loss = _weighted(self.clock(states).float().squeeze(-1), age, weight)
        lapse = age - running_from[:, None] / self.loss_scale
        if self.head.kind == "linear":  # also without a query here: other processes wait for this one
            reading = self.head(states[in_query], lm_head, self.vocab).lapse / self.loss_scale
            loss = loss + _weighted(reading, lapse[in_query], weight[in_query])
        return loss


def _weighted(predicted: torch.Tensor, true: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean error, quadratic for small ones and linear for large ones, over all processes."""
    error = F.smooth_l1_loss(predicted, true, reduction="none", beta=_SMALL)
    mean = _over_all(weight.sum()) / _over_all(_size(weight)).clamp(min=1)
    return _global_mean(error * weight) / mean.clamp(min=1e-6)


def _global_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over all processes, as far as gradients go: they are averaged over processes afterwards.

    0 where there is nothing, with a gradient of 0.
    """
    processes = torch.distributed.get_world_size() if _is_shared() else 1
    return values.sum() * processes / _over_all(_size(values)).clamp(min=1)


def _size(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor(float(values.numel()), device=values.device)


def _over_all(value: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, without a gradient."""
    value = value.detach().clone()
    if _is_shared():
        torch.distributed.all_reduce(value)
    return value


def _is_shared() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
