"""Read and change what flows through a model: torch forward hooks that are gone when their block of code ends.

Edits see the tokens of the pass they are made in. Where sequences share a prefix (`models/prefix.py`), that
is only what comes after it, and what is kept of the prefix has the edit of the sequence it was computed for.
So an edit that depends on the sequence or the position belongs in a run without a forest:
`run(model, sequences, compute)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils.hooks import RemovableHandle

from .model import MaxTokiModel

PARTS = ("input", "head", "attention", "mlp", "output")

Edit = Callable[[torch.Tensor], torch.Tensor]


class Site(NamedTuple):
    """A place in a model."""

    layer: int
    """Block, from 0."""
    part: str
    """"input" or "output": the residual stream before or after the block; "attention", "mlp": what each adds to it; "head":
    what heads hand to the output projection."""
    head: int | None = None
    """For "head": which one; `None` for all, side by side."""


@contextmanager
def edited(model: MaxTokiModel, edits: Iterable[tuple[Site, Edit]]) -> Iterator[None]:
    """Change what flows through a model, while this context lasts.

    Parameters
    ----------
    model
        Model.
    edits
        Where, and a function from what is there (batch x tokens x size) to what shall be there, of the same
        shape. It must not change its argument. Of several at one place, each sees what the one before has
        made; contexts within contexts likewise.
    """
    handles = []
    try:
        for site, edit in edits:
            handles.append(_attach(model, site, edit))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def captured(model: MaxTokiModel, sites: Iterable[Site]) -> Iterator[dict[Site, torch.Tensor]]:
    """Keep what flows through some places of a model, while this context lasts: the latest pass counts."""
    found: dict[Site, torch.Tensor] = {}

    def keep(site: Site) -> Edit:
        def edit(states: torch.Tensor) -> torch.Tensor:
            found[site] = states
            return states

        return edit

    with edited(model, [(site, keep(site)) for site in sites]):
        yield found


class _Reached(Exception):
    """Stops a forward pass at the place that was wanted."""


def reach(model: MaxTokiModel, site: Site, forward: Callable[[], object]) -> torch.Tensor:
    """What flows through a place in a forward pass, batch x tokens x size; nothing beyond it is computed."""
    found = []

    def stop(states: torch.Tensor) -> torch.Tensor:
        found.append(states)
        raise _Reached

    with edited(model, [(site, stop)]):
        try:
            forward()
        except _Reached:
            return found[0]
    raise RuntimeError(f"The forward pass did not reach {site}.")


def states_at(model: MaxTokiModel, inputs: dict, site: Site) -> torch.Tensor:
    """What flows through a place, for these inputs."""
    return reach(model, site, lambda: model.hf.model(**inputs))


def resume(model: MaxTokiModel, layer: int, states: torch.Tensor) -> torch.Tensor:
    """Last states, after the final norm, of a pass over whole sequences that goes on from the input of a block.

    What comes before a block does not depend on what is edited in it and after it, and need not be computed
    again.
    """
    decoder = model.hf.model
    blocks = decoder.layers
    decoder.layers = blocks[layer:]
    try:
        return decoder(inputs_embeds=states, use_cache=False).last_hidden_state
    finally:
        decoder.layers = blocks


def n_layers(model: MaxTokiModel) -> int:
    """Blocks of a model."""
    return len(model.hf.model.layers)


def n_heads(model: MaxTokiModel) -> int:
    """Heads of each block, those that share keys and values counted one by one."""
    return model.hf.config.num_attention_heads


def head_slice(model: MaxTokiModel, head: int) -> slice:
    """Where a head's states are among those of all heads."""
    # Heads need not share the hidden size out among them: the 1B model has 16 of 144 in 2,304, others more or
    # less.
    size = model.hf.model.layers[0].self_attn.o_proj.in_features // n_heads(model)
    return slice(head * size, (head + 1) * size)


def _attach(model: MaxTokiModel, site: Site, edit: Edit) -> RemovableHandle:
    if site.part not in PARTS:
        raise ValueError(f"There is no part {site.part!r} of a layer; choose from {', '.join(PARTS)}.")
    if not 0 <= site.layer < n_layers(model):
        raise ValueError(f"There is no layer {site.layer}; this model has 0..{n_layers(model) - 1}.")
    if site.head is not None and (site.part != "head" or not 0 <= site.head < n_heads(model)):
        raise ValueError(
            f"There is no head {site.head} of {site.part!r}; this model has heads 0..{n_heads(model) - 1}."
        )
    block = model.hf.model.layers[site.layer]
    where = slice(None) if site.head is None else head_slice(model, site.head)

    def changed(states: torch.Tensor) -> torch.Tensor:
        old = states[..., where]
        new = edit(old)
        if new is old:
            return states
        if not isinstance(new, torch.Tensor) or new.shape != old.shape:
            found = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
            raise ValueError(
                f"The edit at {site} must return a tensor of shape {tuple(old.shape)}, got {found}."
            )
        if site.head is None:
            return new
        # A copy: the states belong to the model.
        states = states.clone()
        states[..., where] = new
        return states

    if site.part in ("input", "head"):
        module = block if site.part == "input" else block.self_attn.o_proj
        return module.register_forward_pre_hook(lambda _, args: (changed(args[0]), *args[1:]))
    module = {"attention": block.self_attn.o_proj, "mlp": block.mlp, "output": block}[site.part]
    return module.register_forward_hook(lambda _, __, out: changed(out))
