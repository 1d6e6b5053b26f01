"""Run a training from a YAML file."""

from __future__ import annotations

import inspect
from pathlib import Path

from .._doors import checked
from .._files import read_yaml
from ..models.load import load_model
from ..models.model import MaxTokiModel
from ..models.vocabulary import Vocabulary
from .lora import lora
from .pretrain import pretrain
from .temporal import temporal

KINDS = {
    name: checked(function)
    for name, function in [("pretrain", pretrain), ("temporal", temporal), ("lora", lora)]
}


def train_from_yaml(kind: str, path: str | Path) -> MaxTokiModel:
    """Run `mt.train.pretrain`, `temporal` or `lora` with the settings of a file.

    Parameters
    ----------
    kind
        "pretrain", "temporal" or "lora".
    path
        YAML with the function's parameters: `cells` (paths of encoded files), `output`, and for `pretrain` `vocab`,
        for the others `model` (as in `mt.load_model`); `vocab` is {tokens: path, medians: path}.

    Returns
    -------
    The trained model.

    Raises
    ------
    ValueError
        If a parameter is unknown or missing.
    """
    settings = read_yaml(path)
    parameters = dict(inspect.signature(KINDS[kind]).parameters)
    if parameters.pop("settings", None):
        parameters = dict(inspect.signature(temporal).parameters) | parameters
        parameters.pop("adapter")
    known = {*parameters, "vocab"}
    if unknown := sorted(set(settings) - known):
        raise ValueError(
            f"{path} has unknown settings: {', '.join(unknown)}. Those of {kind} are {', '.join(sorted(known))}."
        )
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")
    if (files := settings.pop("vocab", None)) is not None:
        if not isinstance(files, dict) or set(files) != {"tokens", "medians"}:
            raise ValueError(f"vocab in {path} must give two files: {{tokens: path, medians: path}}.")
        files = Vocabulary.from_json(files["tokens"], gene_medians=files["medians"])
    if kind == "pretrain":
        settings["vocab"] = files
    else:
        settings["model"] = load_model(settings["model"], vocab=files, device="cpu")
    return KINDS[kind](**settings)
