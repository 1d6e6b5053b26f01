"""What figures of dictionaries (autoencoders and their controls) have in common."""

from __future__ import annotations

from collections.abc import Sequence

from ._style import BASELINE, MODEL, NULL

_COLORS = {
    "features": MODEL,
    "sae": MODEL,
    "PCA": BASELINE,
    "random": NULL,
    "genes": "#009E73",
    "subspace": "#CC79A7",
}
_OTHERS = ("#56B4E9", "#D55E00", "#000000")
_MARKERS = {"features": "o", "sae": "o", "PCA": "s", "random": "X", "genes": "D", "subspace": "v"}
_LABELS = {
    "features": "autoencoder",
    "sae": "autoencoder",
    "PCA": "principal components",
    "random": "random directions",
    "genes": "single genes",
    "subspace": "k first components",
}


def dictionary_styles(names: Sequence[str], key: str = "features") -> dict[str, tuple[str, str, str]]:
    """Label, colour and marker of each dictionary, by its key in a table."""
    styles, n_others = {}, 0
    for name in names:
        plain = {key: "features", f"{key}_pca": "PCA", f"{key}_random": "random"}.get(name, name)
        if plain in _COLORS:
            styles[name] = (_LABELS[plain], _COLORS[plain], _MARKERS[plain])
        else:
            styles[name] = (plain, _OTHERS[n_others % len(_OTHERS)], "^<>"[n_others % 3])
            n_others += 1
    return styles
