"""Run a training from a YAML file."""

from __future__ import annotations

import inspect
from pathlib import Path

from .._doors import checked
from .._files import read_yaml
from ..models.load import load_model
from ..models.model import MaxTokiModel
from ..models.vocabulary import Vocabulary
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
        YAML with the function's parameters and the settings of its recipe by their names: `cells` (paths of encoded files),
        `output`, and for `pretrain` `vocab`, for `temporal` `model` (as in `mt.load_model`); `vocab` is {tokens: path, medians:
        path}.

    Returns
    -------
    The trained model.

    Raises
    ------
    ValueError
        If a setting is unknown or missing.
    """
    train, recipe = KINDS[kind]
    settings = read_yaml(path)
    parameters = dict(inspect.signature(train).parameters)
    del parameters["recipe"]
    known = {*parameters, *recipe.names(), "vocab"}
    if unknown := sorted(set(settings) - known):
        raise ValueError(
            f"{path} has unknown settings: {', '.join(unknown)}. Those of {kind} are {', '.join(sorted(known))}."
        )
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    made, settings = recipe.split(settings)
    if (files := settings.pop("vocab", None)) is not None:
        if not isinstance(files, dict) or set(files) != {"tokens", "medians"}:
            raise ValueError(f"vocab in {path} must give two files: {{tokens: path, medians: path}}.")
        files = Vocabulary.from_json(files["tokens"], gene_medians=files["medians"])
    if kind == "pretrain":
        settings["vocab"] = files
    else:
        settings["model"] = load_model(settings["model"], vocab=files, device="cpu")
    return train(**settings, recipe=made)
