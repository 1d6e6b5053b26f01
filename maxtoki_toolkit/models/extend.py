"""Give a stage-1 model new tokens: time, with room for several cells, or proteins and peaks."""

from __future__ import annotations

import copy

import numpy as np
import torch

from .model import MaxTokiModel
from .vocabulary import Vocabulary

ROPE_SCALINGS = ("llama3", "dynamic", "linear", "none")
TEMPORAL_LENGTH = 16_384  # tokens, unless given
_WAVES = 16  # cosines that make up the new time embeddings


def extend_model(
    model: MaxTokiModel,
    vocab: Vocabulary,
    *,
    max_length: int | None = None,
    rope: str = "llama3",
    rope_factor: float | None = None,
    seed: int = 0,
) -> MaxTokiModel:
    """Give a model time tokens and a longer reach, or features of other kinds. It still has to be trained on them.

    Parameters
    ----------
    model
        A model without time tokens; it is left as it is.
    vocab
        Its vocabulary with time tokens, `model.vocab.with_times(lowest, highest)`, or with proteins or peaks,
        `model.vocab.with_modalities(...)`.
    max_length
        Tokens that the new model can read: by default 16,384 with time tokens, and as many as before without.
    rope
        How positions are stretched when `max_length` is more than the model could read: "llama3" or "linear"
        (names of transformers; the factor is the ratio of the lengths, times that of the model if it is
        stretched already), or "none": positions beyond those it knows are simply new. "dynamic", of the
        authors' fine-tuning code, is the same as "none" up to `max_length`: transformers stretches beyond it
        only.
    rope_factor
        Stretch by this instead of by the ratio of the lengths, as the original's `--rope-scaling-factor`; 1
        leaves positions as they are. It takes the place of the model's own factor.
    seed
        Seed of the new embeddings.

    Returns
    -------
    The extended model, with `cell_length` set to what it could read before.

    Raises
    ------
    ValueError
        If the vocabulary is not the model's own with time tokens added, `max_length` is less than the model
        reads, or its positions are stretched in another way already.

    Notes
    -----
    Embeddings of lapses are smooth in the lapse (sums of a few slow cosines with random directions, as long
    as the gene embeddings are), so what is learned of one lapse holds for its neighbours, and lapses that no
    training prompt has are not left random. In the original they are drawn independently.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> specials = ["<pad>", "<mask>", "<bos>", "<eos>", "ENSG00000000003"]
    >>> vocab = mt.models.Vocabulary({t: i for i, t in enumerate(specials)}, {"ENSG00000000003": 1.0})
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...              max_position_embeddings=64)
    >>> model = mt.models.build_model(shape, vocab)
    >>> longer = mt.models.extend_model(model, vocab.with_times(-12, 12), max_length=256)
    >>> longer.max_length, longer.cell_length, longer.is_temporal
    (256, 64, False)
    """
    from transformers import LlamaForCausalLM

    require_rope(rope)
    old = model.vocab.size
    same = all(vocab.tokens.get(token) == number for token, number in model.vocab.tokens.items())
    new_times = vocab.is_temporal and not model.vocab.is_temporal
    if (
        vocab.size == old
        or not same
        or (vocab.time_ids.min() < old if new_times else len(vocab.time_ids) != len(model.vocab.time_ids))
    ):
        raise ValueError(
            "The vocabulary must be the model's own with time tokens added, model.vocab.with_times(lowest, highest), or with "
            "proteins or peaks, model.vocab.with_modalities(...)."
        )
    if max_length is None:
        max_length = TEMPORAL_LENGTH if new_times else model.max_length
    if max_length < model.max_length:
        raise ValueError(f"The model reads {model.max_length} tokens already; max_length is {max_length}.")

    config = copy.deepcopy(model.hf.config)
    config.vocab_size = vocab.size
    if rope_factor is not None and (rope == "none" or rope_factor < 1):
        raise ValueError(
            f"rope_factor is 1 or more, and is for a way of stretching; got {rope_factor} with rope={rope!r}."
        )
    factor = max_length / model.max_length
    if (factor > 1 or rope_factor is not None) and rope != "none":
        known = config.rope_parameters
        scaling = {"rope_type": rope, "original_max_position_embeddings": model.max_length}
        if rope == "llama3":
            scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        if (before := known.get("factor", 1.0)) != 1:
            if known["rope_type"] != rope:
                raise ValueError(
                    f"The model's positions are stretched already: pass rope={known['rope_type']!r} to stretch them "
                    'further, or "none".'
                )
            scaling |= known
        factor = before * factor if rope_factor is None else float(rope_factor)
        config.rope_parameters = {"rope_theta": known["rope_theta"], **scaling, "factor": factor}
    config.max_position_embeddings = max_length
    with torch.random.fork_rng(devices=[]):
        hf = LlamaForCausalLM(config)

    weights = model.hf.state_dict()
    rng = np.random.default_rng(seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        genes = weights[name]
        if name == "lm_head.weight" and config.tie_word_embeddings:
            weights[name] = weights["model.embed_tokens.weight"]
            continue
        # A separate output layer may begin with logits of about 1; an embedding is as long as those of genes.
        length = genes.float().std().item() if name.startswith("model") else genes.shape[1] ** -0.5
        new = torch.from_numpy(_new_rows(vocab, old, length, genes.shape[1], rng))
        weights[name] = torch.cat([genes, new.to(genes)])
    hf.load_state_dict(weights)
    return MaxTokiModel(
        hf.to(model.device, model.hf.dtype).eval(),
        vocab,
        name=model.name,
        cell_length=model.cell_length if vocab.is_temporal else max_length,
        time_head=model.time_head,
    )


def _new_rows(vocab: Vocabulary, old: int, scale: float, width: int, rng: np.random.Generator) -> np.ndarray:
    """Embeddings of the tokens from `old` on: smooth over the lapses, random for all others."""
    rows = rng.normal(size=(vocab.size - old, width))
    if not (vocab.time_ids >= old).any():
        return (rows * scale).astype(np.float32)
    values = vocab.time_values.astype(float)
    place = (values - values[0]) / max(values[-1] - values[0], 1)
    wave = np.arange(1, _WAVES + 1)
    smooth = (np.cos(np.pi * wave * place[:, None]) / wave) @ rng.normal(size=(_WAVES, width))
    rows[vocab.time_ids - old] = smooth / smooth.std()
    return (rows * scale).astype(np.float32)


def require_rope(rope: str) -> None:
    """Raise if there is no such way of stretching positions."""
    if rope not in ROPE_SCALINGS:
        raise ValueError(f"There is no RoPE scaling {rope!r}; choose from {', '.join(ROPE_SCALINGS)}.")
