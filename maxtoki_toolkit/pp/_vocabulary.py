"""Accept a model wherever its vocabulary will do."""

from __future__ import annotations

from ..models.vocabulary import Vocabulary


def as_vocabulary(model) -> Vocabulary:
    """Return the vocabulary of a model, or the vocabulary itself."""
    vocab = getattr(model, "vocab", model)
    if not isinstance(vocab, Vocabulary):
        raise TypeError(
            f"Expected a model (mt.load_model) or an mt.models.Vocabulary, got {type(model).__name__}."
        )
    return vocab
