"""Cells that a model writes: at a time after others, or from the first genes of a cell."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys
from ..models.generation import generate_cells, prompt_keys
from ..models.model import MaxTokiModel
from ..models.prompts import write_prompts
from ..models.sampling import chain_keys
from ..models.sequences import Sequences, cell_ranks
from ..models.timelapse import require_temporal
from ..pp.sample_prompts import read_prompts
from ..results.store import read_result, write_result
from ._cells import get_sequences
from ._time_unit import check_prompts


def generate(
    adata: AnnData,
    model: MaxTokiModel,
    *,
    key: str | None = None,
    lapse: int | None = None,
    n_given: int | None = None,
    n_samples: int = 1,
    max_genes: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    rng: int = 0,
) -> AnnData:
    """Generate cells.

    A temporal model writes the cell that follows the context cells of a prompt after a lapse. Any model, the
    published ones too, goes on with a cell from its first genes (`n_given`).

    Parameters
    ----------
    adata
        Rank-encoded cells with prompts: `mt.pp.sample_prompts(adata, task="cell", ...)`.
    model
        Model.
    key
        Key in `.uns` of the prompts, by default "prompts".
    lapse
        Ask for the cells after this lapse since the last context cell, instead of after the lapses of the
        prompts.
    n_given
        Use no prompts, but go on with each cell of `adata` from so many of its highest ranked genes; 0 for
        cells from nothing.
    n_samples
        Cells for each prompt.
    max_genes
        Genes after which a cell is ended, by default as many as the model reads of a cell.
    temperature
        1 samples from the model's distribution, less is more like its favourite, 0 is its favourite.
    top_k, top_p
        Sample from the k likeliest genes (0 for all), or from the likeliest that together have this
        probability.
    rng
        Seed. A cell's random numbers depend on it, on the number of its prompt (or the name of the cell that
        is gone on with) and on its number among the samples, and not on what else is generated with it.

    Returns
    -------
    AnnData with one row a generated cell and the model's genes, without counts:

    `.layers["rank"]`
        Ranks from 1, as of `mt.pp.rank_value_encode`; `mt.tl.embed` reads them.
    `.obs["prompt"]`, `.obs["sample"]`
        Number of the prompt (or name of the cell that was gone on with), and of the sample.
    `.obs["log_likelihood"]`, `.obs["log_likelihood_per_token"]`
        Log-probability of what was generated under the model, among the genes that were still allowed, in
        nats.
    `.obs["finished"]`
        Whether the model ended the cell, rather than running out of room.
    `.obs["n_genes_ranked"]`, `.obs["n_genes_given"]`
        Genes of the cell, and how many of them were given.
    `.obs["lapse"]`, `.obs["group"]`, `.obs["donor"]`, ...
        What the prompt says.

    Raises
    ------
    KeyError
        If there are no prompts, or their cells are not there.
    ValueError
        If the model has no temporal training and `n_given` is not set, the prompts ask for lapses, a lapse
        has no token, or no room is left for a cell.

    Notes
    -----
    Of each cell's tokens the first is `<bos>`, the others are genes, none twice, and the model decides when
    it ends. All cells are written side by side, with the keys and values of what they have in common computed
    once.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.aging_atlas(300, 10)
    >>> model = mt.load_model("demo")
    >>> mt.pp.map_genes(adata, model)
    >>> mt.pp.rank_value_encode(adata, model)
    >>> mt.pp.sample_prompts(adata, time_key="age_months", groupby="cell_type", task="cell", n_prompts=2)
    >>> cells = mt.tl.generate(adata, model, lapse=120, n_samples=2, max_genes=20)
    >>> cells.shape[0], int(cells.layers["rank"].max())
    (4, 20)
    """
    cells = get_sequences(adata, model)
    if n_given is None:
        prompts, about, params = _temporal_prompts(adata, model, cells, key, lapse)
    else:
        prompts, about = _given_genes(adata, model, cells, n_given), pd.DataFrame(index=adata.obs_names)
        params = {"n_given": n_given}
    # Prompts are known by their numbers; the numbers of cells are their places in a file.
    keys = prompt_keys(rng, np.arange(len(about)), n_samples)
    if n_given is not None:
        keys = chain_keys(rng, adata.obs_names, n_samples)
    sampling = {"max_genes": max_genes, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    n_open = prompts.lengths - 1 if n_given is not None else np.zeros(len(about), dtype=np.int64)
    return written_cells(model, prompts, about, n_open, keys, {**params, "seed": rng}, **sampling)


def written_cells(
    model: MaxTokiModel,
    prompts: Sequences,
    about: pd.DataFrame,
    n_open: np.ndarray,
    keys: np.ndarray,
    params: dict,
    **sampling,
) -> AnnData:
    """The cells that follow prompts, as `generate` returns them.

    Parameters
    ----------
    model
        Model.
    prompts
        Tokens to go on from, the last cell of each open.
    about
        What is known of each prompt, with its number or the name of its cell as index.
    n_open
        Genes that the open cell of each prompt has.
    keys
        Seeds of the cells, prompts x samples.
    params
        Where the prompts come from, and the seed.
    sampling
        As in `mt.models.generate_cells`.
    """
    n_samples = keys.shape[1]
    found = generate_cells(model, prompts, keys=keys, n_samples=n_samples, **sampling)
    which = np.repeat(np.arange(len(about)), n_samples)
    obs = about.iloc[which].reset_index(drop=True)
    obs.insert(0, "prompt", about.index.to_numpy()[which])
    obs.insert(1, "sample", np.tile(np.arange(n_samples), len(about)))
    obs.index = [f"{prompt}_{sample}" for prompt, sample in zip(obs["prompt"], obs["sample"], strict=True)]
    ranks = cell_ranks(found.sequences, model.vocab)
    n_open = n_open[which]
    obs["log_likelihood"] = found.log_likelihood
    # Every cell has at least one token that was drawn, if only `<eos>`.
    obs["log_likelihood_per_token"] = found.log_likelihood / (found.sequences.lengths - 1 - n_open)
    obs["finished"] = found.finished
    obs[_keys.N_RANKED], obs["n_genes_given"] = np.diff(ranks.indptr).astype(np.int32), n_open
    var = pd.DataFrame(
        {_keys.ENSEMBL_ID: model.vocab.genes, _keys.TOKEN_ID: model.vocab.gene_ids}, index=model.vocab.genes
    )
    generated = AnnData(obs=obs, var=var.astype({_keys.TOKEN_ID: np.int32}), layers={_keys.RANK: ranks})
    params = {
        **params,
        "n_samples": n_samples,
        "max_genes": sampling["max_genes"] or model.cell_length - 2,
        "temperature": float(sampling["temperature"]),
        "top_k": sampling["top_k"],
        "top_p": float(sampling["top_p"]),
    }
    write_result(
        generated,
        _keys.ENCODING,
        {"genes_sha256": model.vocab.genes_sha256, "layer": "generated", "force": False},
    )
    write_result(generated, _keys.GENERATE, {**model.params, **params})
    return generated


def _temporal_prompts(
    adata: AnnData, model: MaxTokiModel, cells: Sequences, key: str | None, lapse: int | None
) -> tuple[Sequences, pd.DataFrame, dict]:
    """Prompts up to the open cell, what they are about, and where they come from."""
    require_temporal(model)
    stored = read_result(adata, key or _keys.PROMPTS, 'mt.pp.sample_prompts(adata, task="cell", ...)')
    params, table = stored["params"], stored["prompts"]
    if params["task"] != "cell":
        raise ValueError('These prompts ask for lapses. Draw others: mt.pp.sample_prompts(..., task="cell").')
    prompts = read_prompts(table, adata, adata, task="cell")
    if lapse is not None:
        prompts = prompts._replace(lapse=np.full_like(prompts.lapse, lapse))
    written = write_prompts(
        prompts, cells, model.vocab, max_length=model.max_length - 1, answer=False
    ).sequences
    about = table[[name for name in ("lapse", "group", "donor") if name in table]].copy()
    about["lapse"] = prompts.lapse
    about.index = [str(i) for i in range(len(about))]
    opened = np.insert(written.tokens, written.indptr[1:], model.vocab["<bos>"]).astype(np.int32)
    return (
        Sequences(opened, written.indptr + np.arange(len(written.indptr))),
        about,
        {
            "prompts": key or _keys.PROMPTS,
            "time_key": params["time_key"],
            "time_read_as": check_prompts(params, table, model.time_head.unit),
            "unit": model.time_head.unit,
        },
    )


def _given_genes(adata: AnnData, model: MaxTokiModel, cells: Sequences, n_given: int) -> Sequences:
    """`<bos>` and the highest ranked genes of each cell."""
    if n_given < 0:
        raise ValueError(f"n_given must be at least 0, got {n_given}.")
    n = np.minimum(n_given, cells.lengths - 2) + 1
    return cells.take(np.arange(len(cells)), n)
