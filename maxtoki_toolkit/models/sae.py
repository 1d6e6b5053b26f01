"""Sparse autoencoders: a model's state as a sum of a few directions out of many, its features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .._doors import checked
from .._names import closest
from .._outputs import new_output
from .._reference import resource
from ._weights import require_same_weights, write_weights
from .hooks import Site
from .model import MaxTokiModel, require_finite

KINDS = ("topk", "batchtopk", "matryoshka")
SITES = ("output", "attention", "mlp")
CONFIG, WEIGHTS, CARD = "cfg.json", "sae.safetensors", "sae.json"
BY = "mt.models.save_sae"
SHIPPED = {"demo": "demo_sae", "demo-early": "demo_sae_early"}


class SparseAutoencoder(nn.Module):
    """Features of the states at one place of a model.

    Parameters
    ----------
    size
        Of the states.
    width
        Number of features.
    k
        Features a token, on average where they are chosen over a batch.
    kind
        "topk": the k largest of each token (Gao et al. 2024). "batchtopk": the k largest a token on average
        over a batch, and once trained those above a threshold (Bussmann et al. 2024). "matryoshka": the
        same, where also the first features alone have to say what they can (Bussmann et al. 2025), so that
        the first are broad and the last are narrow.
    card
        What it was trained on: `block`, `site`, `model_sha256` and so on.

    Examples
    --------
    >>> import torch, maxtoki_toolkit as mt
    >>> sae = mt.models.SparseAutoencoder(8, 32, 4)
    >>> features = sae.encode(torch.randn(5, 8))
    >>> features.shape, int((features > 0).sum(dim=1).max()) <= 4
    (torch.Size([5, 32]), True)
    """

    def __init__(
        self, size: int, width: int, k: int, kind: str = "topk", *, card: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"There is no kind {kind!r} of autoencoder; choose from {', '.join(KINDS)}.")
        if not 1 <= k <= width:
            raise ValueError(f"k must be 1..{width}, the number of features, got {k}.")
        self.k, self.kind, self.card = k, kind, dict(card or {})
        self.encoder = nn.Linear(size, width)
        self.W_dec = nn.Parameter(F.normalize(torch.randn(width, size), dim=1))
        self.b_dec = nn.Parameter(torch.zeros(size))
        self.register_buffer("threshold", torch.zeros(()))
        with torch.no_grad():
            # A feature begins by reading what it writes.
            self.encoder.weight.copy_(self.W_dec)
            self.encoder.bias.zero_()

    @property
    def width(self) -> int:
        """Number of features."""
        return self.encoder.out_features

    @property
    def site(self) -> Site:
        """The place in the model whose states it reads."""
        return Site(self.card["block"], self.card["site"])

    @property
    def directions(self) -> torch.Tensor:
        """What a feature adds to the state, features x size, of length 1."""
        return F.normalize(self.W_dec, dim=1)

    def drives(self, states: torch.Tensor) -> torch.Tensor:
        """What every feature would be if none were left out; at least 0."""
        return F.relu(self.encoder(states - self.b_dec))

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """Features of states, ... x width, most of them 0."""
        return self.choose(self.drives(states.to(self.b_dec.dtype)))

    def choose(self, drives: torch.Tensor) -> torch.Tensor:
        """Keep the features that count."""
        if self.kind == "topk":
            return keep_largest(drives, self.k)
        if not self.training:
            return torch.where(drives > self.threshold, drives, 0)
        flat = drives.flatten()
        n = min(self.k * (len(flat) // self.width), len(flat))
        least = flat.detach().kthvalue(len(flat) - n + 1).values
        return torch.where(drives >= least, drives, 0)

    def decode(self, features: torch.Tensor, first: int | None = None) -> torch.Tensor:
        """States of features; of the `first` alone, if given."""
        return features[..., :first] @ self.directions[:first] + self.b_dec

    def gather(self, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """States of a few features each, rows x features of a row: as `decode`, without what is 0."""
        return F.embedding_bag(indices, self.directions, per_sample_weights=values, mode="sum") + self.b_dec

    @property
    def prefixes(self) -> list[int]:
        """How many first features have to say what they can by themselves; all of them last."""
        if self.kind != "matryoshka":
            return [self.width]
        return sorted({max(self.width // part, 1) for part in (16, 8, 4, 2, 1)})

    @property
    def params(self) -> dict[str, Any]:
        """What results record of it."""
        fields = {"width": self.width, "k": self.k, "kind": self.kind, "sha256": self.card.get("sha256", "")}
        place = {name: self.card[name] for name in ("block", "site") if name in self.card}
        return {"sae": fields | place}

    def __repr__(self) -> str:
        where = (
            f"{self.card['site']} of block {self.card['block']}" if "block" in self.card else "no model yet"
        )
        return f"SparseAutoencoder({self.width} features, {self.k} a token, {self.kind}, {where})"


def keep_largest(drives: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, 0 elsewhere."""
    values, indices = drives.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(drives).scatter(-1, indices, values)


def require_site(model: MaxTokiModel, block: int | None, site: str) -> Site:
    """A place to read states from, by default the middle block; or raise if there is none."""
    n = len(model.hf.model.layers)
    block = n // 2 if block is None else block
    if not 0 <= block < n:
        raise ValueError(f"There is no block {block}; this model has 0..{n - 1}.")
    if site not in SITES:
        raise ValueError(f"There is no site {site!r}; choose from {', '.join(SITES)}.")
    return Site(block, site)


def require_sae(sae: object, model: MaxTokiModel) -> None:
    """Raise if this is no autoencoder, or one of another model."""
    if not isinstance(sae, SparseAutoencoder):
        raise TypeError(f"Expected an autoencoder (mt.load_sae), got {type(sae).__name__}.")
    if "model_sha256" not in sae.card:
        raise ValueError(
            "This autoencoder was not trained on a model. Train one: mt.train.sae(cells, model, folder)."
        )
    if sae.card["model_sha256"] != model.identity:
        raise ValueError(
            f"This autoencoder was trained on the states of another model ({sae.card.get('model', 'unknown')!r}, sha256 "
            f"{sae.card['model_sha256'][:12]}...; this one is {model.name!r}, {model.identity[:12]}...): its features "
            "mean nothing here. Train one on this model: mt.train.sae(cells, model, folder)."
        )
    require_finite(sae, "The autoencoder")


def save_sae(sae: SparseAutoencoder, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write an autoencoder as one folder that `mt.load_sae` reads.

    `cfg.json` and `sae.safetensors` are as EleutherAI's sparsify has them, which reads the folder as well;
    what it does not know (site, model, threshold) is in `sae.json`.

    Parameters
    ----------
    sae
        The autoencoder.
    folder
        Folder to write. It must not exist, or be empty.
    overwrite
        Replace an autoencoder that this function has written there.

    Raises
    ------
    ValueError
        If something is in the folder that is not to be replaced, or weights are not finite.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> folder = tempfile.mkdtemp() + "/sae"
    >>> mt.models.save_sae(mt.models.SparseAutoencoder(8, 32, 4), folder)
    >>> mt.load_sae(folder).width
    32
    """
    require_finite(sae, "The autoencoder")
    tensors = {
        "encoder.weight": sae.encoder.weight,
        "encoder.bias": sae.encoder.bias,
        "W_dec": sae.directions,
        "b_dec": sae.b_dec,
    }
    with new_output(folder, by=BY, overwrite=overwrite) as temporary:
        checksum = write_weights(temporary / WEIGHTS, {name: t.float() for name, t in tensors.items()})
        shape = {"d_in": sae.encoder.in_features, "num_latents": sae.width, "k": sae.k}
        fixed = {
            "activation": "topk",
            "normalize_decoder": True,
            "transcode": False,
            "skip_connection": False,
        }
        _write(temporary / CONFIG, shape | fixed | {"expansion_factor": 0, "multi_topk": False})
        about = {"kind": sae.kind, "threshold": float(sae.threshold), "sha256": checksum}
        _write(temporary / CARD, {**sae.card, **about})


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n")


@checked
def load_sae(source: str | Path, *, device: str = "cpu") -> SparseAutoencoder:
    """Load an autoencoder, strictly.

    Parameters
    ----------
    source
        "demo" or "demo-early", those that ship with the demo model, of its third and first block; or a folder
        that `mt.train.sae` (`output / "sae"`) or `mt.models.save_sae` wrote.
    device
        A torch device.

    Returns
    -------
    A `SparseAutoencoder`.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is corrupt, or weights are missing, left over or of another shape.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> folder = tempfile.mkdtemp() + "/sae"
    >>> mt.models.save_sae(mt.models.SparseAutoencoder(8, 32, 4), folder)
    >>> mt.load_sae(folder)
    SparseAutoencoder(32 features, 4 a token, topk, no model yet)
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = SHIPPED.get(str(source))
    folder = Path(source) if name is None else resource(name)
    for name in (CONFIG, WEIGHTS, CARD):
        if not (folder / name).is_file():
            inside = f" Did you mean {str(folder / 'sae')!r}?" if (folder / "sae" / CONFIG).is_file() else ""
            raise FileNotFoundError(
                f"Did not find {folder / name}: {str(source)!r} is neither {', '.join(map(repr, SHIPPED))} nor a folder with an "
                f"autoencoder (mt.train.sae writes it to `output / 'sae'`).{inside or closest(source, SHIPPED)}"
            )
    try:
        config, card = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (CONFIG, CARD))
        shape = [int(config[name]) for name in ("d_in", "num_latents", "k")]
        kind, threshold = str(card.pop("kind")), float(card.pop("threshold"))
        weights = load_file(folder / WEIGHTS, device=device)
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} does not hold an autoencoder that can be read ({error}). Restore the folder as it was saved."
        ) from None
    require_same_weights(folder / WEIGHTS, card.get("sha256"), CARD)
    sae = SparseAutoencoder(*shape, kind, card=card).to(device)
    problems = {
        name: (tuple(weights[name].shape) if name in weights else None, tuple(tensor.shape))
        for name, tensor in sae.named_parameters()
        if name not in weights or weights[name].shape != tensor.shape
    }
    if problems or set(weights) != {name for name, _ in sae.named_parameters()}:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: {problems or sorted(weights)}. Nothing was loaded."
        )
    sae.load_state_dict(weights | {"threshold": torch.tensor(threshold)})
    require_finite(sae, f"The autoencoder in {folder}")
    return sae.eval().requires_grad_(requires_grad=False)
