# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fig. 6F to K: what the experiments after a screen say
#
# The paper tested genes of its screen in cardiac cells: bulk RNA-seq after overexpression against GFP (PCA, differential
# expression by DESeq2's Wald test with
# Benjamini and Hochberg's correction, four samples a side), enrichment of gene sets, and measurements at the bench (Wilcoxon
# tests). This notebook draws these panels from your tables. It needs
# `pip install "maxtoki_toolkit[validation]"` (pydeseq2 and decoupler).
#
# **Without tables of your own, all that is shown here is simulated**, by the first cell: no sample of it was ever in a
# laboratory.

# %% tags=["parameters"]
counts: str = ""  # .csv of raw counts, genes x samples, genes in the first column; "" for simulated ones
samples: str = (
    ""  # .csv of samples (first column: name) with the condition and covariates; "" for simulated ones
)
gene_sets: str = ""  # .gmt, or .csv with the columns source and target; "" for simulated ones
condition_key: str = "condition"  # column of the samples' table
control: str = "GFP"  # its value for controls
covariates: list = []  # further columns of the design, e.g. ["batch"]
min_count: int = 10  # genes with fewer counts over all samples are left out
alpha: float = 0.05  # significance level, after correction
n_heatmap: int = 30  # genes in the heatmap
min_set: int = 5  # smallest gene set, among the genes that are tested
bench: str = ""  # .csv of measurements: panel, group, value; "" for simulated ones, "none" for no panels
bench_control: str = "GFP"  # the group that others are compared with
n_simulated: int = 400  # simulated genes
seed: int = 0  # seed of the simulation
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import itertools
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats
from sklearn.decomposition import PCA
from statsmodels.stats.multitest import multipletests

try:
    import decoupler
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats
except ImportError as error:
    raise ImportError(f'{error}. Install: pip install "maxtoki_toolkit[validation]".') from None

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import category_colors, clean

save = mt.reports.saver(output)


def simulate(folder):
    """Tables as a user would bring them: two overexpressed genes against GFP, four samples each, two sets that change."""
    rng = np.random.default_rng(seed)
    genes = np.array([f"gene{i}" for i in range(n_simulated)])
    groups = np.repeat(["GFP", "gene_A", "gene_B"], 4)
    names = [f"{group}_{i % 4 + 1}" for i, group in enumerate(groups)]
    fold = pd.DataFrame(0.0, genes, ["GFP", "gene_A", "gene_B"])
    fold.iloc[:20, 1] = fold.iloc[:20, 2] = 1.2
    fold.iloc[20:40, 1] = -1.2
    mean = (
        rng.lognormal(5, 1, n_simulated)[:, None]
        * 2 ** fold[groups].to_numpy()
        * rng.uniform(0.7, 1.4, len(groups))
    )
    drawn = rng.negative_binomial(10, 10 / (10 + mean))
    pd.DataFrame(drawn, genes, names).to_csv(folder / "counts.csv")
    pd.DataFrame({"condition": groups}, names).to_csv(folder / "samples.csv")
    sets = {"changes up": genes[:20], "changes down": genes[20:40]}
    sets |= {f"no change {i}": rng.choice(genes[40:], 20, replace=False) for i in range(6)}
    lines = ["\t".join([name, "simulated", *members]) for name, members in sets.items()]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")
    rows = [
        {
            "panel": panel,
            "group": group,
            "value": rng.normal(level + shift * (group == "gene_A"), 0.2 * level),
        }
        for panel, level, shift in (("time to peak (s)", 0.4, 0.15), ("decay (s)", 0.9, 0.0))
        for group in ("GFP", "gene_A", "gene_B")
        for _ in range(30)
    ]
    pd.DataFrame(rows).to_csv(folder / "bench.csv", index=False)


folder = Path(tempfile.mkdtemp())
simulated = not counts
if simulated != (not samples):
    raise ValueError("Give both counts and samples, or neither.")
if simulated:
    simulate(folder)
    counts, samples = folder / "counts.csv", folder / "samples.csv"
    gene_sets, bench = gene_sets or folder / "sets.gmt", bench or folder / "bench.csv"
label = "simulated" if simulated else ""

# %% [markdown]
# ## Samples

# %%
table, about = pd.read_csv(counts, index_col=0), pd.read_csv(samples, index_col=0)
about.index = about.index.astype(str)
if missing := sorted(set(about.index) ^ set(table.columns.astype(str))):
    raise ValueError(
        f"Counts and samples do not name the same samples: {missing[0]!r} is in one of them only ({len(missing)} differ)."
    )
if missing := [name for name in (condition_key, *covariates) if name not in about]:
    raise ValueError(f"The samples' table has no column {missing[0]!r}; it has {list(about.columns)}.")
if control not in set(about[condition_key].astype(str)):
    raise ValueError(
        f"No sample has {condition_key} {control!r}; there are {sorted(about[condition_key].astype(str).unique())}."
    )
values = table[about.index].to_numpy()
if (values < 0).any() or (values != np.round(values)).any():
    raise ValueError(
        "The counts are no whole numbers from 0 on. DESeq2 needs raw counts, neither normalised nor logarithms."
    )
table = table[about.index].loc[values.sum(axis=1) >= min_count].astype(int)
about[condition_key] = about[condition_key].astype(str)
others = [name for name in about[condition_key].unique() if name != control]
about[condition_key].value_counts().rename("samples").to_frame()

# %% [markdown]
# ## Panel F: do samples of a condition go together?
#
# Principal components of the logarithms of counts per million, genes centred.

# %%
logged = np.log2(table / table.sum() * 1e6 + 1)
pca = PCA(n_components=2).fit(logged.T)
place = pca.transform(logged.T)
figure, ax = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
names = [control, *others]
for name, color in zip(names, category_colors(len(names)), strict=True):
    mask = (about[condition_key] == name).to_numpy()
    ax.scatter(*place[mask].T, s=30, color=color, label=f"{name} ({mask.sum()})")
share = pca.explained_variance_ratio_
ax.set(xlabel=f"component 1 ({share[0]:.0%})", ylabel=f"component 2 ({share[1]:.0%})", title=label)
ax.legend(frameon=False, fontsize=8)
clean(ax)
save(figure, "fig6f_pca")

# %% [markdown]
# ## Panels G and K: which genes change?
#
# DESeq2 (pydeseq2): Wald test of each condition against the control, two-sided, corrected over the genes of each comparison
# (Benjamini and Hochberg).

# %% tags=["answer"]
design = "~" + " + ".join([*covariates, condition_key])
levels = about.assign(**{condition_key: pd.Categorical(about[condition_key], [control, *others])})
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of how dispersions were fitted
    dds = DeseqDataSet(counts=table.T, metadata=levels, design=design, quiet=True)
    dds.deseq2()
    parts = []
    for name in others:
        tested = DeseqStats(dds, contrast=[condition_key, name, control], alpha=alpha, quiet=True)
        tested.summary()
        parts.append(tested.results_df.rename_axis("gene").reset_index().assign(condition=name))
changes = pd.concat(parts, ignore_index=True)
called = changes[changes["padj"] < alpha]
summary = called.groupby("condition")["log2FoldChange"].agg(
    up=lambda f: (f > 0).sum(), down=lambda f: (f < 0).sum()
)
summary.reindex(others, fill_value=0).assign(tested=changes.groupby("condition")["padj"].count())

# %% tags=["answer"]
best = (
    changes.assign(size=changes["stat"].abs()).sort_values("size", ascending=False)["gene"].drop_duplicates()
)
shown = logged.loc[best.iloc[:n_heatmap]]
score = shown.sub(shown.mean(axis=1), axis=0).div(shown.std(axis=1), axis=0)
order = np.argsort(about[condition_key].map(names.index), kind="stable")
figure, ax = plt.subplots(figsize=(1.6 + 0.3 * len(about), 0.9 + 0.17 * len(score)), layout="constrained")
image = ax.imshow(score.iloc[:, order], cmap="PuOr_r", vmin=-2, vmax=2, aspect="auto")
ax.set_xticks(np.arange(len(about)), about.index[order], rotation=90, fontsize=7)
ax.set_yticks(np.arange(len(score)), score.index, fontsize=7)
ax.set_title(f"{len(score)} genes that change most{f' ({label})' if label else ''}", fontsize=9)
figure.colorbar(image, ax=ax, label="standard deviations", shrink=0.5)
save(figure, "fig6g_heatmap")

# %% [markdown]
# ## Panel H: which sets of genes?
#
# The paper used g:Profiler (hypergeometric test with its own g:SCS correction), which asks a server. Here a linear model of
# each gene's Wald statistic on membership (decoupler's `ulm`), which
# needs no cut-off; two-sided, corrected over sets and conditions (Benjamini and Hochberg). The background are the genes that
# were tested.


# %%
def read_sets(path):
    """Pairs of set and gene."""
    path = Path(path)
    if path.suffix == ".csv":
        return pd.read_csv(path)[["source", "target"]]
    rows = [line.split("\t") for line in path.read_text().splitlines() if line]
    return pd.DataFrame(
        [(row[0], gene) for row in rows for gene in row[2:] if gene], columns=["source", "target"]
    )


enriched = None
if gene_sets:
    net = read_sets(gene_sets).drop_duplicates()
    statistic = changes.pivot(index="condition", columns="gene", values="stat").dropna(axis=1)
    if not net["target"].isin(statistic.columns).any():
        raise ValueError(
            "The gene sets and the counts have no gene in common. Are both symbols, or both Ensembl ids?"
        )
    # decoupler's correction is over the sets of a condition; the one below over all.
    scores = decoupler.mt.ulm(data=statistic, net=net.assign(weight=1.0), tmin=min_set)[0]
    enriched = (
        scores.rename_axis("condition").reset_index().melt("condition", var_name="set", value_name="score")
    )
    degrees = statistic.shape[1] - 2
    enriched["p_value"] = 2 * stats.t.sf(enriched["score"].abs(), degrees)
    enriched["q_value"] = multipletests(enriched["p_value"], method="fdr_bh")[1]
    enriched = enriched.sort_values("p_value", ignore_index=True)
    top = enriched["set"].drop_duplicates().iloc[:15]
    wide = enriched.pivot(index="set", columns="condition", values="score").loc[top, others]
    q = enriched.pivot(index="set", columns="condition", values="q_value").loc[top, others]
    figure, ax = plt.subplots(figsize=(3.4 + 0.5 * len(others), 1.0 + 0.24 * len(wide)), layout="constrained")
    reach = np.abs(wide.to_numpy()).max()
    image = ax.imshow(wide, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
    for i, j in itertools.product(range(len(wide)), range(len(others))):
        if q.iloc[i, j] < alpha:
            ax.text(j, i, "*", ha="center", va="center", fontsize=11)
    ax.set_xticks(np.arange(len(others)), others, fontsize=8)
    ax.set_yticks(np.arange(len(wide)), wide.index, fontsize=8)
    ax.set_title(f"* q < {alpha}{f' ({label})' if label else ''}", fontsize=9)
    figure.colorbar(image, ax=ax, label="t of the set", shrink=0.7)
    save(figure, "fig6h_enrichment")

# %% [markdown]
# ## Panels D, I and J: measurements at the bench
#
# Each group against the control: Wilcoxon rank sum test, two-sided, corrected within a panel (Benjamini and Hochberg). If
# several measurements are of one dish or animal, they are no samples of their own: give one
# value (the mean) for each.

# %%
tests = None
if bench and str(bench) != "none":
    measured = pd.read_csv(bench)
    if missing := {"panel", "group", "value"} - set(measured):
        raise ValueError(f"The measurements lack the column {sorted(missing)[0]!r}.")
    rows = []
    panels = measured["panel"].unique()
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.2 * len(panels), 3.2), squeeze=False, layout="constrained"
    )
    for ax, panel in zip(axes[0], panels, strict=True):
        part = measured[measured["panel"] == panel]
        groups = [bench_control, *(g for g in part["group"].unique() if g != bench_control)]
        drawn = {group: part.loc[part["group"] == group, "value"].dropna().to_numpy() for group in groups}
        jitter = np.random.default_rng(0)
        for i, group in enumerate(groups):
            ax.bar(i, drawn[group].mean(), color="#DDDDDD", width=0.7)
            ax.scatter(i + jitter.uniform(-0.2, 0.2, len(drawn[group])), drawn[group], s=8, color="#0072B2")
            if i:
                p = stats.mannwhitneyu(drawn[group], drawn[bench_control]).pvalue
                rows.append(
                    {
                        "panel": panel,
                        "group": group,
                        "n": len(drawn[group]),
                        "n_control": len(drawn[bench_control]),
                        "p_value": p,
                    }
                )
        ax.set_xticks(range(len(groups)), groups, fontsize=8)
        ax.set_ylabel(panel)
        ax.set_title(label, fontsize=9)
        clean(ax)
    tests = pd.DataFrame(rows)
    tests["q_value"] = tests.groupby("panel")["p_value"].transform(
        lambda p: multipletests(p, method="fdr_bh")[1]
    )
    save(figure, "fig6_bench")
    print(tests.to_string(index=False))

# %%
if output:
    for name, part in {"changes": changes, "enrichment": enriched, "bench": tests}.items():
        if part is not None:
            part.to_csv(Path(output) / f"fig6_{name}.csv", index=False)

# %% [markdown]
# ## What would make this wrong
#
# **Four samples a side.** DESeq2 borrows strength between genes, not between samples: a batch that goes with the condition
# is the condition, to it. Put batches into `covariates`, and see panel F first.
#
# **Virus and dose.** Overexpression by a virus is compared with GFP by the same virus and dose. Other controls answer
# another question.
#
# **The gene itself.** The overexpressed gene is the first to be found, in every comparison. It says that the virus worked.
#
# **Wells as if they were dishes.** Hundreds of cells of one dish are one dish.
