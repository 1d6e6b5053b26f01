"""A simulated course with a branch, and a programme that decides beforehand which branch a clone takes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ._aging_atlas import ACTIVITY_SD, DONOR_SD, UMI_PER_GENE, _design

# Programmes of the simulated atlas (a factor and 25 targets each), and what they are here.
ROLES = {"driver": "CEBPB", "bystander": "FOXO3", "course": "MEF2A", "A": "RUNX1", "B": "KLF2"}
DAYS, BRANCH_DAY = 6, 3  # days of the course; the first one after the branch
# Log2: standard deviation among clones of the driver and the bystander, rise of the course, fold of a branch.
CLONE_SD, RISE, BRANCH_FOLD = 2.0, 2.0, 3.0
STEEPNESS = 4.0  # of the odds of branch A for each standard deviation of the driver


def branching_course(
    n_clones: int = 100,
    n_donors: int = 10,
    *,
    cells_per_day: int = 2,
    n_genes: int = 500,
    seed: int = 0,
    null: bool = False,
) -> AnnData:
    """Simulate clones that take one of two branches, which a programme of genes decides before.

    Cells of each clone are seen on days 0 to 5, as with barcodes of lineages. Before day 3 clones differ in
    two programmes of 25 genes and a factor each: the more active the **driver**, the likelier the clone takes
    branch A; the **bystander** is as active, and decides nothing. Both are off from day 3 on, when the
    programme of the branch is on. What is planted is invented; only the gene names are real.

    Parameters
    ----------
    n_clones
        Clones, dealt out among the donors.
    n_donors
        Donors.
    cells_per_day
        Cells of each clone on each day.
    n_genes
        Genes, at least 500.
    seed
        Draws donors, clones and all noise. The genes and the programmes are the same for each seed.
    null
        The driver decides nothing either: branches are drawn, both equally likely.

    Returns
    -------
    Cells with integer counts in `X` (CSR, float32); `var_names` Ensembl ids, `var["symbol"]`; `obs` with
    `donor_id`, `clone`, `day` and `branch`, the one that the clone takes, of its earlier cells as well; and
    `uns["truth"]`:

    `programmes`
        A row a gene: `role` ("driver", "bystander", "course", which rises from day to day in all cells, "A"
        or "B"), `tf` (the factor), `ensembl_id`, `symbol`, and `weight`, the log2 fold per log2 fold of the
        factor.
    `clones`
        `clone`, `donor_id`, `branch`, and the log2 activities `driver` and `bystander`.

    Raises
    ------
    ValueError
        If there are fewer clones than donors, or too few or many genes.

    Examples
    --------
    >>> import maxtoki_toolkit as mt
    >>> adata = mt.datasets.branching_course(20, 5, cells_per_day=1)
    >>> adata.n_obs, sorted(adata.obs["branch"].unique())
    (120, ['A', 'B'])
    """
    if not 1 <= n_donors <= n_clones:
        raise ValueError(
            f"n_donors must be from 1 to n_clones, so that every donor has a clone; got {n_donors} and {n_clones} clones."
        )
    if cells_per_day < 1:
        raise ValueError(f"cells_per_day must be at least 1, got {cells_per_day}.")
    design = _design(n_genes)
    rng = np.random.default_rng([seed, 71])
    donor = np.arange(n_clones) % n_donors
    own = rng.normal(0, DONOR_SD, (n_donors, n_genes))
    activity = rng.normal(0, 1, (n_clones, 3))
    # The null draws branches from an activity that no gene shows.
    takes_a = rng.random(n_clones) < 1 / (1 + np.exp(-STEEPNESS * activity[:, 2 if null else 0]))

    clone = np.repeat(np.arange(n_clones), DAYS * cells_per_day)
    day = np.tile(np.repeat(np.arange(DAYS), cells_per_day), n_clones)
    before = day < BRANCH_DAY
    level = {
        "driver": before * CLONE_SD * activity[clone, 0],
        "bystander": before * CLONE_SD * activity[clone, 1],
        "course": RISE * day / (DAYS - 1),
        "A": ~before * BRANCH_FOLD * takes_a[clone],
        "B": ~before * BRANCH_FOLD * ~takes_a[clone],
    }
    weight = _weights(design)
    # A gene answers alike in all types of the atlas, whose mean is the cell here.
    log_mean = design.log_mean.mean(axis=0) + own[donor[clone]]
    for role, values in level.items():
        values = values + rng.normal(0, ACTIVITY_SD / 2, len(clone))
        log_mean += values[:, None] * weight.loc[ROLES[role]].to_numpy()
    names = [f"C{i + 1:04d}" for i in range(n_clones)]
    donors = np.array([f"D{i + 1:02d}" for i in range(n_donors)], dtype=object)
    branch = np.where(takes_a, "A", "B").astype(object)
    obs = pd.DataFrame(
        {
            "donor_id": donors[donor[clone]],
            "clone": np.array(names, dtype=object)[clone],
            "day": day,
            "branch": branch[clone],
        },
        index=[f"{names[c]}_{i % (DAYS * cells_per_day):03d}" for i, c in enumerate(clone)],
    ).astype({"donor_id": "category", "clone": "category", "branch": "category"})
    clones = {"clone": names, "donor_id": donors[donor], "branch": branch}
    clones |= {"driver": CLONE_SD * activity[:, 0], "bystander": CLONE_SD * activity[:, 1]}
    return AnnData(
        _counts(log_mean, design.dispersion, rng),
        obs=obs,
        var=design.panel.set_index("ensembl_id")[["symbol"]].rename_axis(None),
        uns={"truth": {"programmes": _programmes(design, weight), "clones": pd.DataFrame(clones)}},
    )


def _weights(design) -> pd.DataFrame:
    """Factors x genes: what a gene does per log2 fold of the factor, 1 for the factor itself."""
    acting = np.maximum((design.weight != 0).sum(axis=0), 1)
    return pd.DataFrame(design.weight.sum(axis=0) / acting, index=design.drivers)


def _programmes(design, weight: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for role, tf in ROLES.items():
        genes = np.flatnonzero(weight.loc[tf])
        table = design.panel.iloc[genes][["ensembl_id", "symbol"]]
        parts.append(table.assign(role=role, tf=tf, weight=weight.loc[tf].to_numpy()[genes]))
    return pd.concat(parts, ignore_index=True)[["role", "tf", "ensembl_id", "symbol", "weight"]]


def _counts(log_mean: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Negative binomial counts, whose total does not depend on the day or the branch."""
    mean = np.exp2(log_mean)
    depth = UMI_PER_GENE * mean.shape[1] * np.exp(rng.normal(0, 0.3, len(mean)))
    mean *= (depth / mean.sum(axis=1))[:, None]
    mean *= rng.standard_gamma(np.broadcast_to(1 / dispersion, mean.shape)) * dispersion
    return sparse.csr_matrix(rng.poisson(mean).astype(np.float32))
