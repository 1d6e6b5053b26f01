"""Run a training from a YAML file."""

from __future__ import annotations

from pathlib import Path

from .._doors import checked
from .._recipes import read_call
from ..models.load import load_model, vocabulary_of_settings
from ..models.model import MaxTokiModel
from .pretrain import pretrain
from .recipe import PretrainRecipe, TemporalRecipe
from .temporal import temporal

KINDS = {"pretrain": (checked(pretrain), PretrainRecipe), "temporal": (checked(temporal), TemporalRecipe)}


def train_from_yaml(kind: str, path: str | Path) -> MaxTokiModel:
    """Run `mt.train.pretrain` or `temporal` with the settings of a file.

    Parameters
    ----------
    kind
        "pretrain" or "temporal".
    path
        YAML with the function's parameters and the settings of its recipe by their names: `cells` (paths of
        encoded files), `output`, and for `pretrain` `vocab`, for `temporal` `model` (as in `mt.load_model`);
        `vocab` is {tokens: path, medians: path}.

    Returns
    -------
    The trained model.

    Raises
    ------
    ValueError
        If a setting is unknown or missing.
    """
    train, recipe = KINDS[kind]
    settings = read_call(path, train, recipe, ["vocab"])
    vocab = vocabulary_of_settings(path, settings.pop("vocab", None))
    if kind == "pretrain":
        settings["vocab"] = vocab
    else:
        settings["model"] = load_model(settings["model"], vocab=vocab, device="cpu")
    return train(**settings)
