"""What one head looks at along one prompt."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.figure import Figure

from .. import _keys
from ..get import prompt_attention as get_tokens
from ._heads import segment_color, segment_label
from ._style import clean, drawing


@drawing
def prompt_attention(
    adata: AnnData,
    *,
    layer: int,
    head: int,
    example: int = 0,
    n_labels: int = 5,
    key: str = _keys.PROMPT_ATTENTION,
) -> Figure:
    """Draw what each token of one prompt (or cell) receives from one head.

    Parameters
    ----------
    {adata}
    layer, head
        Which head, both counted from 0.
    example
        Which of the sequences that were kept.
    n_labels
        Tokens to name: those that receive most.
    key
        Key in `.uns`: "prompt_attention" for prompts, "attention" for cells.

    Returns
    -------
    The figure: a line a token, coloured by its part. Above, the mean attention of all tokens that see it, of
    which the first sees itself alone; below, that of the last token, with what a head that attends to all
    alike would give (dotted).

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", n_prompts=6, donor_key="donor_id")
    >>> mt.tl.attention(adata, model, key="prompts")
    >>> len(mt.pl.prompt_attention(adata, layer=1, head=2).axes)
    2
    """
    import matplotlib.pyplot as plt

    tokens = get_tokens(adata, layer=layer, head=head, example=example, key=key)
    segments = list(dict.fromkeys(tokens["segment"]))
    segments = [s for s in segments if s != "special"] + [s for s in segments if s == "special"]
    position = tokens["position"].to_numpy()
    figure, axes = plt.subplots(2, 1, figsize=(8.5, 4.6), sharex=True, layout="constrained")
    last = tokens["token"].iloc[-1]
    for ax, column, label in [
        (axes[0], "mean_received", "received from all tokens\nthat see it (%)"),
        (axes[1], "last", f"received from\n{last} (%)"),
    ]:
        value = 100 * tokens[column].to_numpy()
        for segment in segments:
            mine = (tokens["segment"] == segment).to_numpy()
            color = segment_color(segment)
            ax.vlines(position[mine], 0, value[mine], color=color, lw=1.1)
            few = segment in ("first", "special", "lapses")
            ax.scatter(
                position[mine],
                value[mine],
                s=14 if few else 3,
                color=color,
                label=segment_label(segment),
                zorder=3,
            )
        # The first token, where heads rest, and the last few, which hardly any token sees, would hide the
        # others.
        shown = value[1:-3] if column == "mean_received" else value[1:]
        reach = 1.25 * max(float(shown.max(initial=0)), 1e-6)
        ax.set_ylim(0, reach)
        if value[0] > reach:
            ax.annotate(
                f"{value[0]:.0f}% on {tokens['token'].iloc[0]}",
                (position[0], reach),
                xytext=(6, -3),
                textcoords="offset points",
                fontsize=7.5,
                va="top",
            )
        _name(ax, tokens, value, reach, n_labels)
        ax.set_ylabel(label, fontsize=9)
        ax.tick_params(labelsize=8)
        clean(ax)
    axes[1].axhline(100 / len(tokens), color="0.4", lw=1, ls=":")
    axes[1].set_xlabel("position in the sequence (tokens)", fontsize=9)
    axes[1].set_xlim(-0.01 * len(tokens), 1.01 * len(tokens))
    axes[0].set_title(f"layer {layer}, head {head}", fontsize=10, loc="left")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        frameon=False,
        fontsize=8,
        loc="outside right center",
        markerscale=1.5,
    )
    plt.close(figure)  # or a notebook would show it twice
    return figure


def _name(ax, tokens, value: np.ndarray, reach: float, n: int) -> None:
    """Names of the tokens that receive most, with room between them."""
    placed: list[float] = []
    room = len(tokens) / 14
    # The first token has a place of its own in the legend; small ones would be named on the axis.
    nameable = (value <= reach) & (value > 0.12 * reach) & (tokens["segment"] != "first").to_numpy()
    for row in np.argsort(-np.where(nameable, value, -1), kind="stable"):
        if len(placed) == n or not nameable[row]:
            return
        if all(abs(row - other) > room for other in placed):
            ax.annotate(
                tokens["symbol"].iloc[row],
                (tokens["position"].iloc[row], value[row]),
                xytext=(0, 3),
                textcoords="offset points",
                ha="left" if row < room / 2 else "center",
                fontsize=7,
            )
            placed.append(row)
