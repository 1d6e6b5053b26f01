"""Heads that name cells, on a model whose projections are adapted to the task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from .._doors import checked
from .._names import closest
from .._outputs import new_output
from ._weights import require_files, require_same_weights, write_weights
from .embedding import embed_sequences
from .model import MaxTokiModel
from .sequences import Sequences

WEIGHTS, CARD = "classifier.safetensors", "classifier.json"
BY = "mt.train.classify"
# What is kept of each column: where labels lie, and what held-out cells say of confidence and distance.
_ARRAYS = ("means", "within", "overall", "confidence", "distance")


@dataclass(frozen=True, eq=False)
class CellClassifier:
    """Names cells of one model; `mt.train.classify` makes it, `mt.tl.annotate(classifier=...)` reads it.

    Attributes
    ----------
    labels
        Of each column, the names of its labels.
    heads
        Of each column, weight (labels x hidden size) and bias.
    center, spread
        By what the mean state of a cell is standardised before the heads read it.
    adapters
        Of each adapted projection (by its name in the decoder), the two factors of what is added to it.
    arrays
        Of each column: where its labels lie among the states, and confidence and distance of held-out cells.
    tables
        How well held-out cells were named.
    card
        Model, recipe, donors, temperatures and thresholds.
    name
        Its folder, or "" before it was saved.
    """

    labels: dict[str, np.ndarray]
    heads: dict[str, tuple[torch.Tensor, torch.Tensor]]
    center: torch.Tensor
    spread: torch.Tensor
    adapters: dict[str, tuple[torch.Tensor, torch.Tensor]]
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def pick(self, columns: str | Sequence[str] | None) -> list[str]:
        """Its columns, or those of them that are asked for."""
        if columns is None:
            return list(self.labels)
        columns = [columns] if isinstance(columns, str) else list(columns)
        for column in columns:
            if column not in self.labels:
                raise ValueError(
                    f"The classifier was not trained on {column!r}.{closest(column, self.labels)} It names {', '.join(self.labels)}."
                )
        return columns

    def __repr__(self) -> str:
        heads = ", ".join(f"{column}: {len(labels)} labels" for column, labels in self.labels.items())
        return f"CellClassifier({heads}; {len(self.adapters)} adapted projections)"


class Read(NamedTuple):
    """What a classifier reads of cells."""

    states: np.ndarray
    """float32, cells x hidden size: mean state of the genes, in the adapted model."""
    logits: dict[str, np.ndarray]
    """float, cells x labels, of each column."""


def classify_sequences(classifier: CellClassifier, model: MaxTokiModel, sequences: Sequences) -> Read:
    """Logits of cells; the model is as it was afterwards."""
    with adapted(model, classifier):
        states = embed_sequences(model, sequences).cells
    standard = (torch.from_numpy(states) - classifier.center.cpu()) / classifier.spread.cpu()
    logits = {
        column: F.linear(standard, weight.cpu(), bias.cpu()).double().numpy()
        for column, (weight, bias) in classifier.heads.items()
    }
    return Read(states, logits)


@contextmanager
def adapted(model: MaxTokiModel, classifier: CellClassifier) -> Iterator[None]:
    """Within this, the model's projections have what was learned added to them."""
    decoder = model.hf.get_decoder()

    def adding(inner: torch.Tensor, outer: torch.Tensor):
        inner, outer = (part.to(model.device, model.hf.dtype) for part in (inner, outer))
        return lambda _, inputs, output: output + F.linear(F.linear(inputs[0], inner), outer)

    hooks = [
        decoder.get_submodule(name).register_forward_hook(adding(*factors))
        for name, factors in classifier.adapters.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_classifier(classifier: CellClassifier, model: MaxTokiModel) -> None:
    """Raise if the classifier is of another model."""
    if classifier.card["model_sha256"] != model.identity:
        raise ValueError(
            f"This classifier was trained on another model ({classifier.card.get('model', 'unknown')!r}, sha256 "
            f"{classifier.card['model_sha256'][:12]}...; this one is {model.name!r}, {model.identity[:12]}...): what it "
            "calls would mean nothing. Load that model, or train a classifier on this one (mt.train.classify)."
        )


def save_classifier(classifier: CellClassifier, folder: str | Path) -> None:
    """Write a classifier as one folder that `mt.load_classifier` reads; it appears when it is complete."""
    tensors = {"center": classifier.center, "spread": classifier.spread}
    for name, factors in classifier.adapters.items():
        tensors |= {f"adapter.{name}.{i}": part for i, part in enumerate(factors)}
    for i, column in enumerate(classifier.labels):
        tensors |= {f"head.{i}.{j}": part for j, part in enumerate(classifier.heads[column])}
        tensors |= {
            f"column.{i}.{key}": torch.from_numpy(part) for key, part in classifier.arrays[column].items()
        }
    tables = {
        name: {
            "dtypes": {c: str(kind) for c, kind in table.dtypes.items()},
            **json.loads(table.to_json(orient="split", double_precision=15, index=False)),
        }
        for name, table in classifier.tables.items()
    }
    with new_output(folder, by=BY) as temporary:
        content = {
            "labels": {column: labels.tolist() for column, labels in classifier.labels.items()},
            "adapted": list(classifier.adapters),
            "card": classifier.card,
            "tables": tables,
            "sha256": write_weights(temporary / WEIGHTS, tensors),
        }
        (temporary / CARD).write_text(json.dumps(content, indent=1) + "\n")


@checked
def load_classifier(source: str | Path, *, device: str = "cpu") -> CellClassifier:
    """Load a classifier, strictly.

    Parameters
    ----------
    source
        The folder `classifier` in the output of `mt.train.classify`, or that output.
    device
        A torch device.

    Returns
    -------
    A `mt.models.CellClassifier`, for `mt.tl.annotate(adata, model, classifier=...)`.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is corrupt or not the one that was saved.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> model = mt.load_model("demo")
    >>> adata = mt.datasets.load("heart_nuclei")[:120].copy()
    >>> mt.pp.rank_value_encode(adata, model)
    >>> folder = tempfile.mkdtemp()
    >>> recipe = mt.train.ClassifierRecipe.of(max_steps=2, batch_size=8)
    >>> _ = mt.train.classify(adata, model, folder, groupby="cell_type", recipe=recipe)
    >>> list(mt.load_classifier(folder).labels)
    ['cell_type']
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(source)
    if (folder / "classifier" / CARD).is_file():
        folder /= "classifier"
    require_files(folder, (CARD, WEIGHTS), by="mt.train.classify")
    try:
        content = json.loads((folder / CARD).read_text(encoding="utf-8"))
        labels = {column: np.array(names, dtype=str) for column, names in content["labels"].items()}
        tables = {name: _table(part) for name, part in content["tables"].items()}
        found, card, names = content["sha256"], dict(content["card"]), list(content["adapted"])
        card["model_sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / CARD} does not describe a classifier ({error}). Restore the folder as it was saved."
        ) from None
    require_same_weights(folder / WEIGHTS, found, CARD)
    try:
        weights = load_file(folder / WEIGHTS, device=device)
        parts = {
            "heads": {c: tuple(weights[f"head.{i}.{j}"] for j in (0, 1)) for i, c in enumerate(labels)},
            "adapters": {name: tuple(weights[f"adapter.{name}.{i}"] for i in (0, 1)) for name in names},
            "arrays": {
                c: {key: weights[f"column.{i}.{key}"].cpu().numpy() for key in _ARRAYS}
                for i, c in enumerate(labels)
            },
            "center": weights["center"],
            "spread": weights["spread"],
        }
    except (KeyError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} lacks {error}. Restore the folder as it was saved.") from None
    card["classifier_sha256"] = found
    return CellClassifier(labels, tables=tables, card=card, name=str(folder), **parts)


def _table(part: dict) -> pd.DataFrame:
    """A table with the types that it had."""
    return pd.DataFrame(part["data"], columns=part["columns"]).astype(part["dtypes"])
