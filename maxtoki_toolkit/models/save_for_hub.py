"""Models for others: a folder with a card, as the Hugging Face hub shows it."""

from __future__ import annotations

from pathlib import Path

import yaml

from .. import __version__
from .._outputs import new_output
from .load import BY, WEIGHTS, write_model
from .model import MaxTokiModel, require_model, require_whole

README = "README.md"


def save_for_hub(
    model: MaxTokiModel,
    folder: str | Path,
    *,
    title: str,
    license: str,
    trained_on: str,
    overwrite: bool = False,
) -> None:
    """Write a model as a folder to upload, with a card that says what it is and how it is read.

    Parameters
    ----------
    model
        The model.
    folder
        Folder to write. It must not exist, or be empty.
    title
        Title of the card.
    license
        Its licence, as the hub names it, such as "cc-by-4.0".
    trained_on
        What it was trained on and may be used for, in Markdown; without it nobody can judge a prediction.
    overwrite
        Replace a model that was written there. Anything else stays in any case.

    Returns
    -------
    `None`. The folder holds `README.md`, and what `mt.models.save_model` writes: `config.json` and
    `model.safetensors`, which transformers reads as they are, both dictionaries, `maxtoki.json`, and
    `time_head.safetensors` if it has a linear head.

    Raises
    ------
    ValueError
        If a text is empty, something else is in the folder, or weights are not finite.

    Notes
    -----
    Upload it with `hf upload OWNER/NAME FOLDER`. `mt.load_model("OWNER/NAME", revision=...)` then reads it,
    time head and all; the revision is the commit that the hub shows.

    Examples
    --------
    >>> import tempfile, maxtoki_toolkit as mt
    >>> folder = tempfile.mkdtemp() + "/clock"
    >>> model = mt.load_model("demo")
    >>> mt.models.save_for_hub(model, folder, title="A clock", license="cc-by-4.0", trained_on="Simulated cells.")
    >>> mt.load_model(folder).time_head.unit
    'months'
    """
    require_model(model)
    require_whole(model)
    texts = {"title": title, "license": license, "trained_on": trained_on}
    if empty := [name for name, text in texts.items() if not text.strip()]:
        raise ValueError(f"{empty[0]} is empty: a card without it is of no use to others.")
    with new_output(folder, by=BY, overwrite=overwrite) as temporary:
        write_model(model, temporary)
        (temporary / README).write_text(_card(model, Path(folder).name, temporary / WEIGHTS, **texts))


def _card(model: MaxTokiModel, name: str, weights: Path, *, title: str, license: str, trained_on: str) -> str:
    """Text of the card."""
    head, config, vocab = model.time_head, model.hf.config, model.vocab
    ages = model.is_temporal and head is not None and head.unit in ("months", "years")
    front = {
        "license": license,
        "library_name": "maxtoki_toolkit",
        "tags": ["biology", "single-cell", "maxtoki", *(["ageing clock"] if ages else [])],
    }
    lapses = f", lapses {vocab.time_values[0]} to {vocab.time_values[-1]}" if vocab.is_temporal else ""
    reads = f"{model.cell_length:,} tokens of a cell, {model.max_length:,} of a prompt"
    time = "none: it embeds and scores cells, and cannot tell time"
    if head is not None:
        time = f"{head.kind}, in {head.unit}, scale {head.scale:g}, trained with {head.loss}"
    facts = {
        "parameters": f"{model.hf.num_parameters():,}",
        "layers x heads": f"{config.num_hidden_layers} x {config.num_attention_heads}",
        "vocabulary": f"{len(vocab.genes):,} genes{lapses}",
        "reads": reads,
        "time head": time,
        "weights": f"{weights.stat().st_size / 1e6:.1f} MB",
        "written by": f"maxtoki_toolkit {__version__}",
    }
    table = "\n".join(f"| {what} | {fact} |" for what, fact in facts.items())
    use = (
        "import maxtoki_toolkit as mt\n\n"
        f'model = mt.load_model("OWNER/{name}", revision="...")  # the 40 digits of a commit\n'
        "mt.pp.rank_value_encode(adata, model)  # raw counts, human\n"
        "mt.tl.embed(adata, model)"
    )
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {title}\n\n{trained_on.strip()}\n\n| | |\n|---|---|\n{table}\n\n"
        f"```python\n{use}\n```\n"
    )
