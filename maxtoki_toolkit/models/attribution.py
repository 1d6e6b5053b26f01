"""What each input token adds to a reading: integrated gradients (Sundararajan et al., 2017), by captum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .._progress import progress
from .engine import Batch, run, tokens_at_once
from .feature_edits import flow, go_on, state_gradient
from .model import MaxTokiModel
from .readout import Readout
from .sae import SparseAutoencoder
from .sae_controls import gene_mask
from .sequences import Sequences

BASELINES = ("mean", "mask", "pad")


class Attributions(NamedTuple):
    """Attributions, and what they should add up to; float64."""

    tokens: np.ndarray
    """Tokens: what each adds to the reading of its sequence."""
    value: np.ndarray
    """Sequences: the reading."""
    baseline: np.ndarray
    """Sequences: the reading of the baseline input."""


def require_captum() -> None:
    """Raise if captum is not installed."""
    try:
        import captum  # noqa: F401
    except ImportError:
        raise ImportError(
            'Integrated gradients need captum, of the extra "interp": pip install -c constraints.txt -e ".[interp]".'
        ) from None


def baseline_embeddings(model: MaxTokiModel, tokens: torch.Tensor, baseline: str) -> torch.Tensor:
    """Embeddings of tokens that say nothing of a cell or a time: marks stay, genes and lapses are replaced."""
    table, vocab = model.hf.get_input_embeddings().weight.detach(), model.vocab
    found = table[tokens]
    for ids in (vocab.gene_ids, vocab.time_ids):
        if not len(ids):
            continue
        ids = torch.from_numpy(ids).to(tokens.device)
        neutral = (
            table[ids].float().mean(dim=0).to(table.dtype)
            if baseline == "mean"
            else table[vocab[f"<{baseline}>"]]
        )
        found[torch.isin(tokens, ids)] = neutral
    return found


def integrated_gradients(
    model: MaxTokiModel,
    sequences: Sequences,
    read: Readout,
    *,
    baseline: str = "mean",
    n_steps: int = 32,
    max_tokens: int | None = None,
) -> Attributions:
    """Attribute a reading to the tokens of each sequence.

    Parameters
    ----------
    model
        Model.
    sequences
        What is read.
    read
        The reading.
    baseline
        Embedding that stands for nothing: "mean" of all genes (of all lapses, for a lapse), that of "mask" or
        of "pad".
    n_steps
        Points of the Gauss-Legendre rule between baseline and input.
    max_tokens
        Tokens a batch.
    """
    require_captum()
    from captum.attr import IntegratedGradients

    if baseline not in BASELINES:
        raise ValueError(f"There is no baseline {baseline!r}; choose from {', '.join(BASELINES)}.")
    max_tokens = tokens_at_once(model, max_tokens)
    found = Attributions(np.zeros(len(sequences.tokens)), *np.zeros((2, len(sequences))))
    for row in progress(range(len(sequences)), desc="Attributing", unit="prompt"):
        where = slice(*sequences.indptr[row : row + 2])
        tokens = torch.from_numpy(sequences.tokens[where].astype(np.int64)).to(model.device)

        def forward(embeddings: torch.Tensor, row: int = row, tokens: torch.Tensor = tokens) -> torch.Tensor:
            n, length, _ = embeddings.shape
            rows, lengths = np.full(n, row), torch.full((n,), length, device=model.device)
            batch = Batch(rows, tokens.expand(n, -1), torch.zeros_like(lengths), lengths, {})
            return read(model.hf.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state, batch)

        embeddings = model.hf.get_input_embeddings()(tokens).detach()
        neutral = baseline_embeddings(model, tokens, baseline)
        parts = IntegratedGradients(forward).attribute(
            embeddings[None],
            neutral[None],
            n_steps=n_steps,
            method="gausslegendre",
            internal_batch_size=max(max_tokens // len(tokens), 1),
        )
        found.tokens[where] = parts[0].double().sum(dim=1).cpu().numpy()
        with torch.inference_mode():
            ends = forward(torch.stack([embeddings, neutral]))
        found.value[row], found.baseline[row] = ends.double().cpu().numpy()
    return found


def integrated_feature_gradients(
    model: MaxTokiModel,
    sae: SparseAutoencoder,
    sequences: Sequences,
    read: Readout,
    *,
    n_steps: int = 32,
    max_tokens: int | None = None,
) -> tuple[Attributions, np.ndarray]:
    """Attribute a reading to the features at one place, along the path from all features off to as they are.

    What the autoencoder leaves unexplained stays on the whole path.

    Parameters
    ----------
    model, sae, sequences, read
        What is read, and how.
    n_steps
        Points of the Gauss-Legendre rule.
    max_tokens
        Padded tokens a batch.

    Returns
    -------
    Attributions, whose `tokens` are sequences x features; and the same by the gradient at the end alone
    (gradient times input).
    """
    is_gene, n = gene_mask(model), len(sequences)
    points, weights = np.polynomial.legendre.leggauss(n_steps)
    points, weights = (points + 1) / 2, weights / 2
    found = Attributions(np.zeros((n, sae.width)), *np.zeros((2, n)))
    at_end = np.zeros((n, sae.width))

    def compute(batch: Batch) -> tuple[torch.Tensor, ...]:
        known = flow(model, sae, batch, is_gene)
        added = (known.active @ sae.directions).to(known.states.dtype)
        off = known.states - added
        value = read(known.final, batch).double()
        baseline = read(go_on(model, sae.site, known.stream, off), batch).double()

        def slope(share: float) -> torch.Tensor:
            return state_gradient(model, sae.site, known.stream, off + share * added, batch, read)

        mean = sum(float(w) * slope(float(p)) for p, w in zip(points, weights, strict=True))
        parts = [
            (known.active * (part @ sae.directions.T)).sum(dim=1).double() for part in (mean, slope(1.0))
        ]
        return tuple(part.cpu() for part in (parts[0], value, baseline, parts[1]))

    for rows, parts in run(model, sequences, compute, max_tokens=max_tokens, desc="Attributing"):
        for field, part in zip((*found, at_end), parts, strict=True):
            field[rows] = part.numpy()
    return found, at_end


def feature_readout(model: MaxTokiModel, sae: SparseAutoencoder, feature: int, seen: dict) -> Readout:
    """Mean activation of a feature over the genes of a sequence; `seen` is what `captured` keeps of the site."""
    is_gene = gene_mask(model)

    def read(states: torch.Tensor, batch: Batch) -> torch.Tensor:
        there = is_gene[batch.tokens]
        active = sae.encode(seen[sae.site].float())[..., feature] * there
        return active.sum(dim=1) / there.sum(dim=1).clamp(min=1)

    return read
