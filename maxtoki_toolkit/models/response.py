"""A transformer over sets of cells: from controls to treated cells, in an embedding, decoded to expression."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .._doors import checked
from .._outputs import new_output
from ._weights import require_files, require_same_weights, write_weights
from .model import require_finite

BY, WEIGHTS, CARD = "mt.models.save_response", "response.safetensors", "response.json"


class ResponseModel(nn.Module):
    """Moves the embeddings of control cells to where treated cells would be, reading them as a set.

    It begins as the mean shift of each perturbation, and learns how a set departs from it.

    Parameters
    ----------
    card
        What it is: `perturbations`, `genes`, `use_rep`, `n_dims`, `n_described` (columns that describe a
        perturbation), `hidden_size`, `n_layers` and `n_heads`.

    Attributes
    ----------
    described
        Perturbations x descriptors.
    shift
        Perturbations x dimensions: mean shift of the embedding, in units of `scale`.
    center, scale
        Of the embedding.
    decoder, bias
        Dimensions x genes, and perturbations x genes: from a shift of the embedding to one of the expression.

    Examples
    --------
    >>> import maxtoki_toolkit as mt, numpy as np
    >>> card = {"perturbations": ["a"], "genes": ["g1", "g2"], "use_rep": "X", "n_dims": 3, "n_described": 1}
    >>> model = mt.models.ResponseModel(card | {"hidden_size": 8, "n_layers": 1, "n_heads": 2})
    >>> model.predict(np.zeros((5, 3), np.float32), "a").tolist()
    [0.0, 0.0]
    """

    def __init__(self, card: Mapping[str, Any]) -> None:
        super().__init__()
        self.card = dict(card)
        n, d, g = len(card["perturbations"]), card["n_dims"], len(card["genes"])
        hidden = card["hidden_size"]
        self.read = nn.Linear(d, hidden)
        self.name = nn.Linear(card["n_described"], hidden, bias=False)
        layer = nn.TransformerEncoderLayer(
            hidden, card["n_heads"], 2 * hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, card["n_layers"], enable_nested_tensor=False)
        self.write = nn.Linear(hidden, d)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)
        shapes = {
            "described": (n, card["n_described"]),
            "shift": (n, d),
            "center": (d,),
            "scale": (1,),
            "decoder": (d, g),
            "bias": (n, g),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.ones(shape) if name == "scale" else torch.zeros(shape))

    def forward(self, cells: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Treated cells of sets of controls, sets x cells x dimensions, in units of `scale` about `center`."""
        states = self.read(cells) + self.name(self.described[which])[:, None]
        return cells + self.shift[which][:, None] + self.write(self.blocks(states))

    @torch.no_grad()
    def predict(
        self, controls: np.ndarray, perturbation: str, *, n_sets: int = 16, seed: int = 0
    ) -> np.ndarray:
        """Predicted change of the mean expression of a population.

        Parameters
        ----------
        controls
            Cells x dimensions: the embedding of control cells.
        perturbation
            One of `card["perturbations"]`.
        n_sets
            Sets of cells that are drawn, and whose predictions are averaged.
        seed
            Of the draws.

        Returns
        -------
        float32, genes: change of the log-normalised expression.

        Raises
        ------
        KeyError
            If the perturbation is not known.
        """
        known = self.card["perturbations"]
        if perturbation not in known:
            raise KeyError(f"The model does not know {perturbation!r}. It knows {', '.join(known[:8])}.")
        p, rng = known.index(perturbation), np.random.default_rng(seed)
        size = min(self.card.get("set_size", 64), len(controls))
        rows = np.stack([rng.permutation(len(controls))[:size] for _ in range(n_sets)])
        cells = torch.as_tensor(np.asarray(controls, dtype=np.float32)[rows], device=self.center.device)
        cells = (cells - self.center) / self.scale
        moved = (self(cells, torch.full((n_sets,), p, device=cells.device)) - cells).mean(dim=(0, 1))
        return (moved * self.scale @ self.decoder + self.bias[p]).cpu().numpy()


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Energy distance of sets of points (Székely and Rizzo, 2013), one a pair of sets; without bias, so that it may fall below 0."""

    def within(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        return _distance(x, x).sum(dim=(1, 2)) / (n * (n - 1))

    return 2 * _distance(a, b).mean(dim=(1, 2)) - within(a) - within(b)


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # The square root has no gradient at 0, where a point meets itself.
    square = (a.pow(2).sum(-1)[:, :, None] + b.pow(2).sum(-1)[:, None] - 2 * a @ b.transpose(1, 2)).clamp(
        min=0
    )
    far = square > 1e-6
    return torch.where(far, square.where(far, torch.ones_like(square)).sqrt(), torch.zeros_like(square))


def save_response(model: ResponseModel, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a model of responses as one folder (safetensors and JSON) that `mt.models.load_response` reads.

    Parameters
    ----------
    model
        The model.
    folder
        Folder to write. It must not exist, or be empty.
    overwrite
        Replace a model that this function has written there.

    Raises
    ------
    ValueError
        If something is in the folder that is not to be replaced, or weights are not finite.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> card = {"perturbations": ["a"], "genes": ["g1", "g2"], "use_rep": "X", "n_dims": 3, "n_described": 1}
    >>> model = mt.models.ResponseModel(card | {"hidden_size": 8, "n_layers": 1, "n_heads": 2})
    >>> folder = tempfile.mkdtemp() + "/response"
    >>> mt.models.save_response(model, folder)
    >>> mt.models.load_response(folder).card["genes"]
    ['g1', 'g2']
    """
    require_finite(model, "The model")
    with new_output(folder, by=BY, overwrite=overwrite) as temporary:
        card = {**model.card, "sha256": write_weights(temporary / WEIGHTS, model.state_dict())}
        (temporary / CARD).write_text(json.dumps(card, indent=2) + "\n")


@checked
def load_response(source: str | Path, *, device: str = "cpu") -> ResponseModel:
    """Load a model of responses, strictly.

    Parameters
    ----------
    source
        Folder that `mt.train.response` (`output / "response"`) or `mt.models.save_response` wrote.
    device
        A torch device.

    Returns
    -------
    The model.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is corrupt, or weights are missing, left over or of another shape.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> card = {"perturbations": ["a"], "genes": ["g1", "g2"], "use_rep": "X", "n_dims": 3, "n_described": 1}
    >>> model = mt.models.ResponseModel(card | {"hidden_size": 8, "n_layers": 1, "n_heads": 2})
    >>> folder = tempfile.mkdtemp() + "/response"
    >>> mt.models.save_response(model, folder)
    >>> mt.models.load_response(folder).card["perturbations"]
    ['a']
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(source)
    require_files(folder, (WEIGHTS, CARD), by="mt.train.response")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        require_same_weights(folder / WEIGHTS, card["sha256"], CARD)
        model = ResponseModel(card)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} does not hold a model of responses that can be read ({error}). Restore the folder as it was saved."
        ) from None
    require_finite(model, f"The model in {folder}")
    return model.to(device).eval().requires_grad_(requires_grad=False)


def described_names(perturbations: Sequence[str]) -> np.ndarray:
    """Descriptors of perturbations that have none: each its own."""
    return np.eye(len(perturbations), dtype=np.float32)
