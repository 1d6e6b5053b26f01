"""Surface proteins and chromatin of simulated cells, whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ..pp.join_modalities import join_modalities
from ..stats.expression import log_normalize

SPLIT = "SPLIT1"  # the protein that alone tells two halves of a cell type apart
PROTEIN_DEPTH, PROTEIN_BACKGROUND = 2000, 1.0  # counts a cell, and of a protein that a cell lacks
PROTEIN_FOLD, FOLLOWS, NOISE = 3.0, 0.6, 0.5  # log2
PEAKS_A_GENE, PEAK_SLOPE, PEAK_MEAN = 2, 1.2, -1.5  # log odds of being open


def paired_modalities(
    adata: AnnData,
    *,
    split: str | None = None,
    n_proteins: int = 20,
    n_peaks: int | None = 400,
    seed: int = 0,
) -> AnnData:
    """Give cells of `mt.datasets.aging_atlas` surface proteins and peaks that follow their genes, with noise.

    Parameters
    ----------
    adata
        Cells of the atlas with counts and `uns["truth"]`.
    split
        Cell type of which one half has a protein that no gene tells of; by default the most frequent.
    n_proteins, n_peaks
        Proteins, of markers of the cell types in turn; peaks, two a gene, of the genes that vary most (`None`
        for no peaks).
    seed
        Seed.

    Returns
    -------
    Cells x features as `mt.pp.join_modalities` gives them, with `.obs["subtype"]` (the cell type, its split
    half with a "+") and in `.uns["truth"]`

    `proteins`
        `protein`, `gene` (Ensembl id, "" for the one that splits), `cell_type` that has it.
    `peaks`
        `peak` and its `gene`, with whose expression it opens.

    Raises
    ------
    ValueError
        If these are no cells of the atlas, or too few genes for the peaks.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> joint = mt.datasets.paired_modalities(mt.datasets.aging_atlas(100, 10))
    >>> joint.var["feature_types"].value_counts().tolist()
    [2000, 400, 21]
    """
    truth = adata.uns.get("truth", {})
    if "markers" not in truth:
        raise ValueError(
            "These are no cells of mt.datasets.aging_atlas: there is no .uns['truth'] with markers."
        )
    rng = np.random.default_rng([seed, 21])
    log = log_normalize(sp.csr_matrix(adata.X), np.float64).tocsc()
    cell_type = adata.obs["cell_type"].astype(str).to_numpy()
    split = split or pd.Series(cell_type).value_counts().index[0]
    subtype = np.where((cell_type == split) & (rng.random(adata.n_obs) < 0.5), f"{split}+", cell_type)

    markers = truth["markers"]
    markers = markers[markers["ensembl_id"].isin(adata.var_names)]
    turn = markers.groupby("cell_type", sort=False).cumcount()
    markers = markers.iloc[np.argsort(turn.to_numpy(), kind="stable")].drop_duplicates("ensembl_id")
    markers = markers.head(n_proteins)
    own = standardised(log[:, adata.var_names.get_indexer(markers["ensembl_id"])])
    has = cell_type[:, None] == markers["cell_type"].to_numpy()
    has = np.column_stack([has, subtype == f"{split}+"])
    level = PROTEIN_FOLD * has + np.column_stack([FOLLOWS * own, np.zeros(adata.n_obs)])
    level = np.exp2(level + rng.normal(0, NOISE, level.shape)) * PROTEIN_BACKGROUND
    depth = PROTEIN_DEPTH * np.exp(rng.normal(0, 0.3, adata.n_obs))
    proteins = rng.poisson(level * (depth / level.sum(axis=1))[:, None])
    names = [*markers["symbol"], SPLIT]

    square, mean = (np.asarray(m.mean(axis=0)).ravel() for m in (log.power(2), log))
    genes = np.argsort(mean**2 - square, kind="stable")
    n_peaks = n_peaks or 0
    genes = genes[: -(-n_peaks // PEAKS_A_GENE)]
    if len(genes) * PEAKS_A_GENE < n_peaks:
        raise ValueError(f"There are {adata.n_vars} genes, too few for {n_peaks} peaks.")
    of = np.repeat(genes, PEAKS_A_GENE)[:n_peaks]
    odds = PEAK_MEAN + PEAK_SLOPE * standardised(log[:, of]) + rng.normal(0, 0.5, n_peaks)
    peaks = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    peak_names = [f"chr{1 + i % 22}:{10_000 * (i + 1)}-{10_000 * (i + 1) + 500}" for i in range(n_peaks)]

    joint = join_modalities(
        adata,
        proteins=pd.DataFrame(proteins, index=adata.obs_names, columns=names),
        peaks=pd.DataFrame(peaks, index=adata.obs_names, columns=peak_names) if n_peaks else None,
    )
    joint.obs["subtype"] = pd.Categorical(subtype)
    joint.uns["truth"] = {
        **truth,
        "proteins": pd.DataFrame(
            {
                "protein": names,
                "gene": [*markers["ensembl_id"], ""],
                "cell_type": [*markers["cell_type"], f"{split}+"],
            }
        ),
        "peaks": pd.DataFrame({"peak": peak_names, "gene": adata.var_names.to_numpy()[of]}),
    }
    return joint


def standardised(values: sp.csc_matrix) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1; 0 for those that do not vary."""
    values = values.toarray()
    sd = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(sd > 0, sd, 1)
