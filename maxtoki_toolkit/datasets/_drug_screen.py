"""A simulated drug screen on plates whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from ._aging_atlas import DESIGN_SEED, UMI_PER_GENE, _design

CONTROL = "DMSO"
SHAPES = {24: (4, 6), 96: (8, 12), 384: (16, 24)}  # wells: rows, columns
N_TARGETS = 50  # genes that a drug moves
N_PROGRAMME = 60  # genes that tell the two kinds of lines apart
CONTROL_SHARE = 1 / 6  # of the wells
# Standard deviations on the log2 scale.
LINE_SD, PLATE_SD, WELL_SD = 0.5, 0.08, 0.06
EDGE_DEPTH, EDGE_FOLD, N_STRESS = 0.6, 1.0, 30


def drug_screen(
    n_lines: int = 4,
    n_drugs: int = 10,
    *,
    n_plates: int = 4,
    n_wells: int = 96,
    cells_per_well: int = 6,
    n_genes: int = 500,
    effect: float = 1.5,
    interaction: float = 0.0,
    failed_plates: Sequence[int] = (),
    edge_plates: Sequence[int] = (),
    seed: int = 0,
) -> ad.AnnData:
    """Simulate single-cell counts of cell lines treated with drugs in wells of plates.

    A plate holds one line; a sixth of its wells are controls, the others hold the drugs, all as often as
    there is room, at places that are drawn for each plate. Lines are of two kinds, "A" and "B", which differ
    in a programme of 60 genes. What is planted is invented; only the gene names are real.

    Parameters
    ----------
    n_lines, n_drugs
        Cell lines and drugs.
    n_plates
        Plates; they go round the lines.
    n_wells
        Wells a plate: 24, 96 or 384.
    cells_per_well
        Mean number of cells in a well.
    n_genes
        Genes, at least 500.
    effect
        Mean size of a drug's log2 fold on the 50 genes that it moves; 0 plants no effect.
    interaction
        Share of a drug's effect that lines of kind B have on 50 other genes instead; at 0 all lines answer
        alike.
    failed_plates
        Plates, from 0, whose drugs did nothing.
    edge_plates
        Plates whose wells at the border have less depth and a programme of stress.
    seed
        Draws lines, cells and all noise. The genes and the effects of the drugs are the same for each seed.

    Returns
    -------
    Cells with integer counts in `X` (CSR, float32); `var_names` Ensembl ids, `var["symbol"]`; `obs` with
    `line`, `kind`, `drug` ("DMSO" for controls), `plate` and `well` ("A01"); and `uns["truth"]`:

    `effects`
        A row a drug, kind of line and gene that it moves, with its `log2_fold`.
    `plates`
        `plate`, `line`, `failed`, `edge`.

    Raises
    ------
    ValueError
        If there is no room for the drugs, or a plate that is to fail is not there.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.drug_screen(2, 4, n_plates=2, n_wells=24)
    >>> sorted(adata.obs["drug"].unique())
    ['DMSO', 'drug1', 'drug2', 'drug3', 'drug4']
    """
    if n_wells not in SHAPES:
        raise ValueError(f"n_wells must be one of {', '.join(map(str, SHAPES))}, got {n_wells}.")
    n_control = max(round(CONTROL_SHARE * n_wells), 2)
    if n_drugs > n_wells - n_control:
        raise ValueError(f"{n_drugs} drugs do not go into {n_wells - n_control} wells. Take larger plates.")
    if n_plates < n_lines:
        raise ValueError(f"{n_plates} plates are too few for {n_lines} lines: a plate holds one line.")
    if beyond := [i for i in (*failed_plates, *edge_plates) if not 0 <= i < n_plates]:
        raise ValueError(f"There is no plate {beyond[0]}; there are 0..{n_plates - 1}.")
    design = _design(n_genes)
    fixed = np.random.default_rng([DESIGN_SEED, n_genes])
    base = design.log_mean.mean(axis=0)
    # Effects stand in genes that counts can show, and not in the few that would move all proportions.
    able = fixed.permutation(
        np.flatnonzero((base > np.quantile(base, 0.4)) & (base < np.quantile(base, 0.97)))
    )
    stress, able = able[:N_STRESS], able[N_STRESS:]
    programme = np.zeros((2, n_genes))
    programme[1, able[:N_PROGRAMME]] = fixed.choice([-2.0, 2.0], N_PROGRAMME)
    folds = _effects(np.random.default_rng([DESIGN_SEED, 1]), n_drugs, n_genes, able[N_PROGRAMME:], effect)
    folds = np.stack([folds[:, 0], (1 - interaction) * folds[:, 0] + interaction * folds[:, 1]])

    first, *streams = np.random.SeedSequence(seed).spawn(1 + n_plates)
    lines = np.random.default_rng(first).normal(0, LINE_SD, (n_lines, n_genes))
    parts, frames = [], []
    for number, stream in enumerate(streams):
        rng, line = np.random.default_rng(stream), number % n_lines
        kind = line % 2
        drug, edge = _layout(n_wells, n_control, n_drugs, rng)
        mean = np.tile(base + lines[line] + programme[kind] + rng.normal(0, PLATE_SD, n_genes), (n_wells, 1))
        mean += rng.normal(0, WELL_SD, mean.shape)
        if number not in failed_plates:
            mean[drug >= 0] += folds[kind][drug[drug >= 0]]
        depth = UMI_PER_GENE * n_genes * np.exp(rng.normal(0, 0.1, n_wells))
        if number in edge_plates:
            depth[edge] *= EDGE_DEPTH
            mean[np.ix_(edge, stress)] += EDGE_FOLD
        well = np.repeat(np.arange(n_wells), 1 + rng.poisson(max(cells_per_well - 1, 0), n_wells))
        parts.append(sparse.csr_matrix(_count(mean, depth, well, design.dispersion, rng)))
        frames.append(_frame(number, line, kind, drug[well], well, n_wells))
    obs = pd.concat(frames)
    names, var = [f"drug{i + 1}" for i in range(n_drugs)], design.panel.set_index("ensembl_id")[["symbol"]]
    k, d, g = np.nonzero(folds)
    truth = {
        "effects": pd.DataFrame(
            {
                "drug": np.array(names, dtype=object)[d],
                "kind": np.array(["A", "B"], dtype=object)[k],
                "ensembl_id": var.index.to_numpy(dtype=object)[g],
                "log2_fold": folds[k, d, g],
            }
        ),
        "plates": pd.DataFrame(
            {
                "plate": [f"P{i + 1:02d}" for i in range(n_plates)],
                "line": [f"line{i % n_lines + 1}" for i in range(n_plates)],
                "failed": [i in failed_plates for i in range(n_plates)],
                "edge": [i in edge_plates for i in range(n_plates)],
            }
        ),
    }
    return ad.AnnData(
        sparse.vstack(parts, format="csr"), obs=obs, var=var.rename_axis(None), uns={"truth": truth}
    )


def _effects(rng, n_drugs: int, n_genes: int, able: np.ndarray, effect: float) -> np.ndarray:
    """Log2 folds, drugs x 2 x genes: what lines of kind A show, and what lines of kind B may show instead."""
    folds = np.zeros((n_drugs, 2, n_genes))
    for d in range(n_drugs):
        genes = rng.permutation(able)[: 2 * N_TARGETS].reshape(2, N_TARGETS)
        for kind in range(2):
            size = rng.uniform(0.6, 1.4, N_TARGETS) * rng.choice([-1, 1], N_TARGETS)
            folds[d, kind, genes[kind]] = effect * size
    return folds


def _layout(n_wells: int, n_control: int, n_drugs: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Drug of each well, -1 for controls; and which wells are at the border."""
    n_rows, n_columns = SHAPES[n_wells]
    drug = np.concatenate([np.full(n_control, -1), np.arange(n_wells - n_control) % n_drugs])
    row, column = np.divmod(np.arange(n_wells), n_columns)
    edge = (row == 0) | (row == n_rows - 1) | (column == 0) | (column == n_columns - 1)
    return rng.permutation(drug), edge


def _count(mean, depth, well, dispersion, rng) -> np.ndarray:
    """Negative binomial counts of the cells of a plate."""
    rate = np.exp2(mean)
    rate *= (depth / rate.sum(axis=1))[:, None]
    rate = rate[well] * np.exp(rng.normal(0, 0.3, len(well)))[:, None]
    rate *= rng.standard_gamma(np.broadcast_to(1 / dispersion, rate.shape)) * dispersion
    return rng.poisson(rate).astype(np.float32)


def _frame(number, line, kind, drug, well, n_wells) -> pd.DataFrame:
    row, column = np.divmod(well, SHAPES[n_wells][1])
    plate = f"P{number + 1:02d}"
    names = [f"{chr(65 + r)}{c + 1:02d}" for r, c in zip(row, column, strict=True)]
    obs = pd.DataFrame(
        {
            "line": f"line{line + 1}",
            "kind": "AB"[kind],
            "drug": np.where(drug < 0, CONTROL, [f"drug{d + 1}" for d in drug]),
            "plate": plate,
            "well": names,
        },
        index=[f"{plate}_{i:05d}" for i in range(len(well))],
    )
    return obs.astype("category")
