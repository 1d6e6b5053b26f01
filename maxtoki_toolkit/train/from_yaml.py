"""Run a training from a YAML file."""

from __future__ import annotations

from pathlib import Path

from .._doors import checked
from .._recipes import read_call
from ..models.load import load_model, vocabulary_of_settings
from ..models.model import MaxTokiModel
from ..models.sae import SparseAutoencoder
from .pretrain import pretrain
from .recipe import PretrainRecipe, SparseRecipe, TemporalRecipe
from .sae import sae
from .temporal import temporal

KINDS = {
    "pretrain": (checked(pretrain), PretrainRecipe),
    "temporal": (checked(temporal), TemporalRecipe),
    "sae": (checked(sae), SparseRecipe),
}


def train_from_yaml(kind: str, path: str | Path) -> MaxTokiModel | SparseAutoencoder:
    """Run `mt.train.pretrain`, `temporal` or `sae` with the settings of a file.

    Parameters
    ----------
    kind
        "pretrain", "temporal" or "sae".
    path
        YAML with the function's parameters and the settings of its recipe by their names: `cells` (paths of
        encoded files), `output`, and for `pretrain` `vocab`, for the others `model` (as in `mt.load_model`);
        `vocab` is {tokens: path, medians: path}.

    Returns
    -------
    The trained model, or the autoencoder.

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
