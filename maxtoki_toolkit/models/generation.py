"""Generate cells: one token at a time for many cells at once, each by its own random numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .._progress import hidden, progress
from .cache import Prefix
from .engine import Batch, is_out_of_memory, last_states, run, tokens_at_once
from .masked import attending_by, one_by_one
from .model import MaxTokiModel
from .prefix import prefix_forest
from .sequences import Sequences

# Tokens whose keys and values are held at once.
HELD_TOKENS = {"cpu": 1 << 14, "mps": 1 << 15, "cuda": 1 << 17}
# Keys and values are given room for so many tokens at a time.
_GROWTH = 128


class Generated(NamedTuple):
    """Cells that a model wrote, `n_samples` for each prompt in turn."""

    sequences: Sequences
    """`<bos>` genes, and `<eos>` where the model ended the cell."""
    log_likelihood: np.ndarray
    """float64: sum over the generated tokens of their log-probability among those allowed, at temperature 1."""
    finished: np.ndarray
    """bool: whether the model ended the cell; otherwise it ran out of room."""


def generate_cells(
    model: MaxTokiModel,
    prompts: Sequences,
    *,
    keys: np.ndarray | None = None,
    n_samples: int = 1,
    max_genes: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    max_tokens: int | None = None,
) -> Generated:
    """Go on with prompts until each has become a whole cell.

    Only what a cell can hold is ever drawn: genes, none twice, and `<eos>` after at least one of them.

    Parameters
    ----------
    model
        Model.
    prompts
        Tokens to go on from. The last cell of each must be open: `<bos>`, and perhaps its first genes.
    keys
        int64, prompts x samples: seeds of the cells (`chain_keys`); by default of the numbers of their
        prompts.
    n_samples
        Cells for each prompt.
    max_genes
        Genes after which a cell is ended, by default as many as the model reads of a cell.
    temperature
        1 samples from the model's distribution, less is more like its favourite, 0 is its favourite.
    top_k, top_p
        Sample from the k likeliest tokens (0 for all), or from the likeliest that together have this
        probability.
    seed
        The random numbers of a cell depend on this, on its prompt and on its number, and on nothing else.
    max_tokens
        Tokens whose keys and values are held at once; halved when memory runs out.
    """
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or n_samples < 1:
        raise ValueError(
            "temperature must be at least 0, top_p in (0, 1], top_k at least 0 and n_samples at least 1; got "
            f"{temperature}, {top_p}, {top_k}, {n_samples}."
        )
    max_tokens = tokens_at_once(model, max_tokens, HELD_TOKENS)
    start, given = _open_cells(prompts, model)
    room = np.minimum(model.cell_length - 2, model.max_length - start - 2)
    limit = room if max_genes is None else np.minimum(room, max_genes)
    if (full := limit <= given).any():
        worst = np.flatnonzero(full)[0]
        raise ValueError(
            f"{full.sum()} of {len(full)} prompts leave no room for a gene (the first has {prompts.lengths[worst]} of "
            f"{model.max_length} tokens, and a cell {model.cell_length}). Use fewer context cells or given genes (n_given)."
        )
    request = np.repeat(np.arange(len(given)), n_samples)
    keys = prompt_keys(seed, np.arange(len(given)), n_samples) if keys is None else keys
    key = torch.from_numpy(keys.ravel())
    cells: list[np.ndarray | None] = [None] * len(request)
    likelihood = np.zeros(len(request))
    # Long ones first: a width too large for the memory shows at once.
    order = np.argsort(-(start + limit)[request], kind="stable")
    width = max_tokens // int((start + limit + 2).max(initial=1))
    width = min(max(width, 1), max(len(request), 1))
    with progress(total=len(request), desc="Generating", unit="cell") as bar:
        while len(waiting := order[[cells[row] is None for row in order]]):
            slots = _Slots(model, width, temperature=temperature, top_k=top_k, top_p=top_p)
            try:
                with attending_by(model, one_by_one):
                    while len(waiting) or slots.n_busy:
                        # Prompts are read several at a time, once an eighth of the slots is free.
                        if len(waiting) and width - slots.n_busy >= max(width // 8, 1):
                            rows, waiting = np.split(waiting, [width - slots.n_busy])
                            slots.fill(rows, prompts, request[rows], given, limit, key[rows], max_tokens)
                        elif not len(waiting) and 2 * slots.n_busy <= slots.width:
                            slots.close_gaps()
                        for row, tokens, total in slots.step():
                            cells[row], likelihood[row] = tokens, total
                            bar.update()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if width == 1 or not is_out_of_memory(error):
                    raise
                # What was begun is begun again, and comes out the same.
                width, max_tokens = width // 2, max(max_tokens // 2, 1)
                del slots
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()
    finished = np.array([cell[-1] == model.vocab["<eos>"] for cell in cells], dtype=bool)
    return Generated(Sequences.of(cells), likelihood, finished)


def prompt_keys(seed: int, numbers: np.ndarray, n_samples: int) -> np.ndarray:
    """Seeds of the cells of prompts with these numbers: int64, prompts x samples."""
    of_prompt = scrambled(scrambled(torch.tensor([seed])) + torch.from_numpy(np.asarray(numbers, np.int64)))
    return scrambled(of_prompt[:, None] + torch.arange(n_samples)).numpy()


def tokens_in(model: MaxTokiModel, gigabytes: float) -> int:
    """Tokens whose keys and values take this memory (10^9 bytes each)."""
    config = model.hf.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * head * model.hf.dtype.itemsize
    return max(int(gigabytes * 1e9 / each), 1)


def _open_cells(prompts: Sequences, model: MaxTokiModel) -> tuple[np.ndarray, np.ndarray]:
    """Where the last cell of each prompt begins, and how many genes it has."""
    is_bos = prompts.tokens == model.vocab["<bos>"]
    place = np.where(is_bos, np.arange(len(prompts.tokens)), -1)
    begun = np.maximum.reduceat(place, prompts.indptr[:-1]) if len(prompts) else place
    ends = prompts.tokens[prompts.indptr[1:] - 1]
    genes = np.zeros(model.vocab.size, dtype=bool)
    genes[model.vocab.gene_ids] = True
    if (bad := (begun < 0) | ~(genes[ends] | (ends == model.vocab["<bos>"]))).any():
        raise ValueError(f"{bad.sum()} of {len(bad)} prompts do not end in an open cell, <bos> and genes.")
    return begun - prompts.indptr[:-1], prompts.indptr[1:] - begun - 1


class _Slots:
    """Cells being written side by side, with the keys and values of all that they attend to.

    A slot is free once its cell is done. It stands in for a transformers cache.
    """

    is_compileable = False

    def __init__(self, model: MaxTokiModel, width: int, *, temperature: float, top_k: int, top_p: float):
        self.model, self.width = model, width
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        device, vocab = model.device, model.vocab
        self.row = np.full(width, -1)
        self.begin: list[np.ndarray] = [np.zeros(0, np.int32)] * width
        self.genes = torch.zeros(vocab.size, dtype=torch.bool, device=device)
        self.genes[torch.from_numpy(vocab.gene_ids)] = True
        self.allowed = self.genes.repeat(width, 1)
        self.states = torch.zeros(width, model.hf.config.hidden_size, dtype=model.hf.dtype, device=device)
        self.key, self.total = torch.zeros(2, width, dtype=torch.int64, device=device)
        self.total = self.total.double() if device.type != "mps" else self.total.float()
        # Tokens in all, tokens written, and how many may be.
        self.position, self.n_written, self.limit = torch.zeros(3, width, dtype=torch.int64, device=device)
        self.written = torch.zeros(width, model.cell_length, dtype=torch.int64, device=device)
        self.cache = [[torch.zeros(0), torch.zeros(0)] for _ in range(model.hf.config.num_hidden_layers)]
        self.room = 0

    @property
    def n_busy(self) -> int:
        """Cells being written."""
        return int((self.row >= 0).sum())

    @torch.inference_mode()
    def fill(self, rows, prompts, prompt, given, limit, key, max_tokens) -> None:
        """Read the prompts of some cells, and start to write them in free slots."""
        device = self.model.device
        read, which = np.unique(prompt, return_inverse=True)
        part = prompts.take(read)
        at = np.flatnonzero(self.row < 0)[: len(rows)]
        self._make_room(int(part.lengths.max()) + _GROWTH)

        def compute(batch: Batch):
            states = self.model.hf.model(**batch.inputs).last_hidden_state
            return last_states(states, batch), batch.inputs["past_key_values"].kept

        settings = {"forest": prefix_forest(part), "keep": part.lengths, "max_tokens": max_tokens}
        with hidden():
            for found, (states, kept) in run(self.model, part, compute, **settings):
                for i, j in enumerate(found):
                    slots = torch.from_numpy(at[which == j]).to(device)
                    self.states[slots] = states[i]
                    self._put(slots, kept[i])
        slots = torch.from_numpy(at).to(device)
        self.row[at] = rows
        self.key[slots] = key.to(device)
        self.total[slots] = 0
        self.n_written[slots] = 0
        self.position[slots] = torch.from_numpy(part.lengths[which]).to(device)
        self.limit[slots] = torch.from_numpy((limit - given)[prompt]).to(device)
        self.allowed[slots] = self.genes
        for slot, p in zip(at, prompt, strict=True):
            # The open cell: `<bos>` and the genes that are given, which may not come again.
            self.begin[slot] = prompts.tokens[prompts.indptr[p + 1] - given[p] - 1 : prompts.indptr[p + 1]]
            self.allowed[slot, torch.from_numpy(self.begin[slot].astype(np.int64)).to(device)] = False
            self.allowed[slot, self.model.vocab["<eos>"]] = bool(given[p])

    @torch.inference_mode()
    def step(self) -> list[tuple[int, np.ndarray, float]]:
        """Write one more token of each cell; return the rows, tokens and log-likelihoods of those that are done."""
        logits = self.model.hf.lm_head(self.states).float().masked_fill(~self.allowed, -torch.inf)
        token = self._draw(logits)
        at = torch.arange(self.width, device=token.device)
        self.total += (logits[at, token] - logits.logsumexp(dim=1)).to(self.total.dtype)
        self.written[at, self.n_written.clamp(max=self.written.shape[1] - 1)] = token
        self.n_written += 1
        self.allowed[at, token] = False
        eos = self.model.vocab["<eos>"]
        self.allowed[:, eos] = True
        busy = torch.from_numpy(self.row >= 0).to(token.device)
        ended = (busy & ((token == eos) | (self.n_written >= self.limit))).cpu().numpy()
        done = []
        if ended.any():
            places = np.flatnonzero(ended)
            counts = self.n_written[places].tolist()
            written, totals = self.written[places].cpu().numpy(), self.total[places].tolist()
            for slot, n, tokens, total in zip(places, counts, written, totals, strict=True):
                done.append((int(self.row[slot]), np.concatenate([self.begin[slot], tokens[:n]]), total))
            self.row[places] = -1
        if (self.row >= 0).any():
            self._forward(token)
        return done

    def _forward(self, token: torch.Tensor) -> None:
        """Read what was written."""
        # What a free slot does has no effect; it stays where it is.
        longest = int(self.position[torch.from_numpy(np.flatnonzero(self.row >= 0))].max()) + 1
        self._make_room(longest)
        self.length = longest
        position = self.position.clamp(max=longest - 1)
        self.writing = position
        mask = torch.arange(longest, device=token.device) <= position[:, None]
        self.states = self.model.hf.model(
            input_ids=token[:, None],
            position_ids=position[:, None],
            attention_mask=mask[:, None, None],
            past_key_values=self,
            use_cache=False,
        ).last_hidden_state[:, 0]
        self.position += 1

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_, **__):
        """Write the keys and values of the new tokens in their places; return all."""
        at = torch.arange(self.width, device=key.device)
        for kind, new in enumerate((key, value)):
            self.cache[layer_idx][kind][at, :, self.writing] = new[:, :, 0]
        return tuple(part[:, :, : self.length] for part in self.cache[layer_idx])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the new ones."""
        return self.length - 1

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """A token for each slot, by its own random numbers."""
        if self.temperature == 0:
            return logits.argmax(dim=1)
        scaled = logits / self.temperature
        if 0 < self.top_k < scaled.shape[1]:
            scaled = scaled.masked_fill(scaled < scaled.topk(self.top_k, dim=1).values[:, -1:], -torch.inf)
        if self.top_p < 1:
            value, place = scaled.sort(dim=1, descending=True, stable=True)
            before = value.softmax(dim=1).cumsum(dim=1).roll(1, dims=1)
            before[:, 0] = 0
            value = value.masked_fill(before >= self.top_p, -torch.inf)
            scaled = torch.empty_like(scaled).scatter_(1, place, value)
        # The first of exponential waiting times with these rates is a draw from the softmax.
        number = scrambled(
            scrambled(self.key + self.n_written)[:, None]
            + torch.arange(scaled.shape[1], device=scaled.device)
        )
        uniform = (((number >> 40) & 0xFFFFFF).float() + 0.5) / (1 << 24)
        return (scaled - (-torch.log1p(-uniform)).log()).argmax(dim=1)

    def _make_room(self, length: int) -> None:
        """Room for the keys and values of so many tokens."""
        if length <= self.room:
            return
        self.room = min(-(-length // _GROWTH) * _GROWTH, self.model.max_length)
        config = self.model.hf.config
        for layer in self.cache:
            for kind, old in enumerate(layer):
                new = self.states.new_zeros(
                    self.width, config.num_key_value_heads, self.room, config.head_dim
                )
                if old.numel():
                    new[:, :, : old.shape[2]] = old
                layer[kind] = new

    def _put(self, slots: torch.Tensor, prefix: Prefix) -> None:
        for layer, *parts in zip(self.cache, prefix.keys, prefix.values, strict=True):
            for kind, part in enumerate(parts):
                layer[kind][slots, :, : part.shape[1]] = part

    def close_gaps(self) -> None:
        """Let go of the free slots."""
        busy = np.flatnonzero(self.row >= 0)
        self.row, self.begin, self.width = self.row[busy], [self.begin[slot] for slot in busy], len(busy)
        at = torch.from_numpy(busy).to(self.model.device)
        for name in ("allowed", "states", "key", "total", "position", "n_written", "limit", "written"):
            setattr(self, name, getattr(self, name)[at])
        for layer in self.cache:
            layer[:] = [part[at] for part in layer]


def scrambled(number: torch.Tensor) -> torch.Tensor:
    """Scramble 64-bit numbers (the finalizer of SplitMix64; Steele et al., OOPSLA 2014), on any device alike."""
    number = number + _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = (number ^ _shifted(number, shift)) * _signed(factor)
    return number ^ _shifted(number, 31)


def _shifted(number: torch.Tensor, by: int) -> torch.Tensor:
    # torch has signed integers only, and shifts the sign along.
    return (number >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
