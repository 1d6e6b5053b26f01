"""Read lapses from prompts."""

from __future__ import annotations

import numpy as np

from .costs import Work, reading
from .engine import Batch, last_states, run
from .model import MaxTokiModel, require_model
from .prefix import prefix_forest
from .sequences import Sequences


def require_temporal(model: MaxTokiModel) -> None:
    """Raise if no time can be read from a model."""
    require_model(model)
    if not model.is_temporal:
        lacks = (
            "temporal (stage 2) training" if model.vocab.is_temporal else "time tokens and temporal training"
        )
        raise ValueError(
            f"{model.name!r} cannot tell time: it lacks {lacks}, and what would be read from it is noise. The published "
            'weights are all of this kind. Train it on your cells (mt.train.temporal), or use mt.load_model("demo").'
        )


def read_lapses(
    model: MaxTokiModel, prompts: Sequences, *, max_tokens: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted lapse, and the probability of tokens that are no lapse, for prompts that end with `<eoq>`."""
    require_temporal(model)
    lapse = np.empty(len(prompts), dtype=np.float32)
    p_non_numeric = np.empty_like(lapse)

    def compute(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        states = model.hf.model(**batch.inputs).last_hidden_state
        reading = model.time_head(last_states(states, batch), model.hf.lm_head, model.vocab)
        return reading.lapse.cpu().numpy(), reading.p_non_numeric.cpu().numpy()

    forest = prefix_forest(prompts)
    for rows, (predicted, p) in run(
        model, prompts, compute, forest=forest, max_tokens=max_tokens, desc="Reading time"
    ):
        lapse[rows], p_non_numeric[rows] = predicted, p
    return lapse, p_non_numeric


def work_of_lapses(model: MaxTokiModel, prompts: Sequences) -> Work:
    """What `read_lapses` has to do."""
    scored = int(model.time_head.kind == "expectation")
    return reading(prompts.lengths, prefix_forest(prompts).shared, scored=scored)
