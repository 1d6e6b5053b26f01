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
# # "Through a Glass Darkly": drivers on a course
#
# A. Green's essay (Markov Bio, 2024) follows cells along a course, looks for the *driver features* at each stage, and turns them up or down to send cells
# elsewhere. Whether that works can only be seen where the answer is known. Here clones are simulated that take one of two branches. A programme of genes, the **driver**,
# decides which one before the branch and is off afterwards; a second one, the **bystander**, varies as much and decides nothing.
#
# A small model is trained to write a cell of the last day from one before the branch. Then: do driver features of the cells before the branch, turned up or down,
# change the branch that the model's cells take, and more than other features as long do?
#
# The last part follows real myoblasts along their differentiation, with the demo model.

# %% tags=["parameters"]
n_clones: int = 400  # simulated clones to train on
n_tested: int = 60  # other clones, whose branch is turned
n_donors: int = 12  # donors of either
max_steps: int = 600  # of the model's training
sae_steps: int = 150  # of the training of both autoencoders
width: int = 128  # features of an autoencoder
k: int = 16  # features a gene
n_drivers: int = 20  # driver features that are turned together
up: float = 3.0  # what a feature is multiplied with; 0 turns it down
n_cells: int = 40  # cells whose network is computed
alpha: float = 0.05  # edges up to this q value are kept
n_prompts: int = 60  # cells that are written from each set of features
n_first: int = 10  # first genes of a cell that say which branch it takes
n_myoblasts: int = 45  # myoblasts whose networks are computed
n_permutations: int = 99  # courses with their times exchanged
seed: int = 0  # seed of all that is drawn
output: str = ""  # folder for figures (PNG, PDF) and tables (CSV); "" for none

# %%
import copy
import tempfile
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import stats

import maxtoki_toolkit as mt
from maxtoki_toolkit.pl._style import BASELINE, MODEL, NULL, clean

mt.settings.progress = False
warnings.simplefilter("ignore")  # of small cells and short trainings, here
save = mt.reports.saver(output)


# %% [markdown]
# ## A course with a branch

# %%
BEFORE, LAST = 3, 5  # first day after the branch, last day


def simulate(n, seed, vocab=None):
    """Encoded cells of a course, with prompts that ask for a cell of the last day after one before the branch."""
    adata = mt.datasets.branching_course(n, n_donors, seed=seed)
    mt.pp.map_genes(adata, vocab)
    mt.pp.rank_value_encode(adata, vocab or mt.models.Vocabulary.from_anndata(adata))
    day = adata.obs["day"].to_numpy()
    mt.pp.sample_prompts(
        adata,
        time_key="day",
        groupby="clone",
        task="cell",
        n_prompts=n_prompts,
        context_size=1,
        contexts=day < BEFORE,
        queries=day == LAST,
        donor_key="donor_id",
        sampling=mt.pp.PromptSampling(forward=True, zero_lapse="never"),
        rng=seed,
    )
    return adata


course = simulate(n_clones, seed + 1)
vocab = mt.models.Vocabulary.from_anndata(course)
shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
start = mt.models.build_model({**shape, "max_position_embeddings": 100, "initializer_range": 0.05}, vocab)
how = {
    "timelapse": 0.0,
    "curriculum": 0.0,
    "clock": 0.0,
    "context_size": (1, 1),
    "forward": True,
    "zero_lapse": "never",
}
recipe = mt.train.TemporalRecipe.of(
    max_steps=max_steps,
    batch_size=16,
    learning_rate=3e-3,
    warmup=0.05,
    hold=0.5,
    floor=0.05,
    max_length=512,
    balance=0.0,
    eval_every=10_000,
    seed=seed,
    **how,
)
columns = {"time_key": "day", "time_unit": "days", "groupby": "clone", "donor_key": "donor_id"}
model = mt.train.temporal(course, start, tempfile.mkdtemp(), recipe=recipe, **columns)

tested = simulate(n_tested, seed + 2, model)
programmes = tested.uns["truth"]["programmes"]
turned_on = {
    branch: tested.var_names.isin(programmes.query("role == @branch and weight > 0")["ensembl_id"])
    for branch in "AB"
}


def branch_of(cells):
    """Of each written cell, first genes of branch A less those of B."""
    there = cells.layers["rank"].toarray() > 0
    genes = {branch: cells.var_names.isin(tested.var_names[mask]) for branch, mask in turned_on.items()}
    return there[:, genes["A"]].sum(axis=1) - there[:, genes["B"]].sum(axis=1)


def takes_a():
    """Whether cells that the model writes take branch A: 1 or 0, one half where they cannot be told."""
    written = mt.tl.generate(tested, model, max_genes=n_first, rng=seed)
    return (np.sign(branch_of(written)) + 1) / 2


table = mt.get.table(tested, "prompts")
truth = (tested.obs["branch"].astype(str)[table["query"]] == "A").to_numpy()
donors = table["donor"].to_numpy()
free = takes_a()
print(
    f"{len(table)} cells of {len(np.unique(donors))} donors, written from clones that the model does not know: {(free == truth).mean():.0%} take the branch of "
    f"their clone (always the commoner one: {max(truth.mean(), 1 - truth.mean()):.0%})."
)

# %% [markdown]
# ## Drivers before the branch
#
# Autoencoders of the first two blocks, the network from one to the other in cells before the branch, and PageRank on its reversed edges. Each of the top drivers is matched to the
# other feature whose length is nearest: what it adds to a cell's states is as long.

# %%
settings = mt.train.SparseRecipe.of(
    max_steps=sae_steps, batch_size=16, read=1.0, seed=seed, eval_every=10_000, save_every=10_000
)
early_sae, later_sae = (
    mt.train.sae(
        course, model, tempfile.mkdtemp(), block=block, width=width, k=k, key="prompts", recipe=settings
    )
    for block in (0, 1)
)
before = tested[tested.obs["day"] < BEFORE].copy()
mt.tl.feature_network(
    before,
    model,
    early_sae,
    later=later_sae,
    n_features=width,
    n_cells=n_cells,
    alpha=alpha,
    donor_key="donor_id",
    rng=seed,
)
mt.tl.driver_features(before)
drivers = mt.get.table(before, "driver_features")
norm = mt.get.table(before, "feature_network", "sources").set_index("feature")["norm"]
order = drivers["feature"][drivers["feature"].map(norm) > 0].to_numpy()
top, others = order[:n_drivers], list(order[n_drivers:])
matched = []
for feature in top:
    matched.append(min(others, key=lambda other: abs(np.log(norm[other] / norm[feature]))))
    others.remove(matched[-1])
save(drivers, "driver_features")
print(
    f"Length of the top drivers {norm[top].mean():.2f}, of the features matched to them {norm[matched].mean():.2f}. "
    f"q < 0.05 against {drivers.attrs['n_null']} random directions: {(drivers['q_value'] < 0.05).sum()} of {len(drivers)} features."
)

# %% [markdown]
# ## Are they features of the driver programme?
#
# The activity of the programme in each clone is on record. Spearman correlation of each feature with it, over the cells before the branch, beside that with the bystander's (mean size). The features that follow the driver
# programme most are a further set, as a yardstick: nobody has them where the answer is not known.

# %% tags=["answer"]
mt.tl.features(before, model, early_sae, pool="mean", controls=False, donor_key="donor_id")
clones = before.uns["truth"]["clones"].set_index("clone").loc[before.obs["clone"].astype(str)]
active = pd.DataFrame(before.obsm["features"].toarray())
rho = pd.DataFrame(
    {
        role: active.corrwith(pd.Series(clones[role].to_numpy()), method="spearman").abs()
        for role in ("driver", "bystander")
    }
)
like_driver = rho["driver"].nlargest(n_drivers).index.to_numpy()
known = {"top drivers": top, "matched features": matched, "most like the driver": like_driver, "all": order}
pd.DataFrame({name: rho.loc[features].mean() for name, features in known.items()}).round(2)

# %% [markdown]
# ## Which way does each go?
#
# Each feature is turned up and down in the cells before the branch of the clones that were trained on, and the odds are read that the first gene of the next cell is one of branch A rather than of B.
# Dots: features, at the change from down to up. Grey: the top drivers with random directions in place of their own, as long.

# %% tags=["answer"]
tokens = {
    branch: torch.tensor([model.vocab[gene] for gene in tested.var_names[mask] if gene in model.vocab.tokens])
    for branch, mask in turned_on.items()
}


def odds_of_a(logits):
    """Log odds of a first gene of branch A."""
    return logits[:, tokens["A"]].logsumexp(dim=1) - logits[:, tokens["B"]].logsumexp(dim=1)


elsewhere = copy.deepcopy(early_sae)
with torch.no_grad():
    elsewhere.W_dec.copy_(torch.randn(elsewhere.W_dec.shape, generator=torch.Generator().manual_seed(seed)))
sets = {
    "top drivers": (early_sae, top),
    "matched features": (early_sae, np.array(matched)),
    "random directions": (elsewhere, top),
    "most like the driver": (early_sae, like_driver),
}
change = {}
for name, (sae, features) in sets.items():
    mt.tl.feature_effects(
        course,
        model,
        sae,
        features=list(map(int, features)),
        doses=[0.0, up],
        readout=odds_of_a,
        where="context",
        n_prompts=n_prompts,
        rng=seed,
        key_added=name,
    )
    effects = mt.get.table(course, name, "effects").pivot(index="feature", columns="dose", values="effect")
    change[name] = (effects[up] - effects[0.0]).loc[features]
figure, ax = plt.subplots(figsize=(4.8, 2.8), layout="constrained")
for i, (name, values) in enumerate(change.items()):
    jitter = np.random.default_rng(i).uniform(-0.2, 0.2, len(values))
    ax.scatter(values, i + jitter, s=14, color=NULL if "random" in name else MODEL, alpha=0.8, lw=0)
ax.axvline(0, color="black", lw=0.8)
ax.set_yticks(range(len(change)), change)
ax.invert_yaxis()
ax.set_xlabel("change of the log odds of branch A, from down to up (nats)", fontsize=9)
clean(ax)
save(figure, "each_feature")

# %% tags=["answer"]
for name, values in change.items():
    print(f"{name}: mean |change| {values.abs().mean():.3f}, largest {values.abs().max():.3f}")

# %% [markdown]
# ## The branch that is taken
#
# Now all features of a set are turned at once, each the way that leads to A, and then each the way that leads to B, while the model writes cells of the *other* clones. Points: share of
# the cells that take branch A, with 95% intervals over donors.

# %% tags=["answer"]
rows = []
for name, (sae, features) in sets.items():
    way = np.sign(change[name])
    for towards, label in ((1, "A"), (-1, "B")):
        factors = {int(feature): up if way[feature] == towards else 0.0 for feature in features}
        with mt.models.edited_features(model, sae, factors):
            rows.append(pd.DataFrame({"set": name, "towards": label, "donor": donors, "takes_a": takes_a()}))
rows.append(pd.DataFrame({"set": "nothing", "towards": "", "donor": donors, "takes_a": free}))
taken = pd.concat(rows, ignore_index=True)
save(taken, "branch_taken")
each = taken.groupby(["set", "towards", "donor"])["takes_a"].mean().reset_index()
summary = each.groupby(["set", "towards"])["takes_a"].agg(["mean", "sem", "size"])
summary["reach"] = stats.t.ppf(0.975, summary["size"] - 1) * summary["sem"]
figure, ax = plt.subplots(figsize=(4.8, 3.0), layout="constrained")
for i, name in enumerate(sets):
    for offset, label, color in ((-0.13, "A", MODEL), (0.13, "B", BASELINE)):
        row = summary.loc[(name, label)]
        ax.errorbar(row["mean"], i + offset, xerr=row["reach"], fmt="o", color=color, ms=5, lw=1.2)
ax.axvline(free.mean(), color=NULL, lw=1, ls="--")
ax.set_yticks(range(len(sets)), sets)
ax.invert_yaxis()
ax.set(xlim=(-0.03, 1.03))
ax.set_xlabel("share of written cells that take branch A (dashed: nothing turned)", fontsize=9)
for color, label in ((MODEL, "turned towards A"), (BASELINE, "turned towards B")):
    ax.plot([], [], "o", color=color, label=label)
ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
clean(ax)
save(figure, "branch_taken")

# %% tags=["answer"]
moved = each.pivot(index=["set", "donor"], columns="towards", values="takes_a").drop(index="nothing")
moved = (moved["A"] - moved["B"]).unstack("set")
for other in ("matched features", "random directions"):
    lead = moved["top drivers"] - moved[other]
    print(
        f"Share of cells that change branch, from B to A: top drivers {moved['top drivers'].mean():.0%}, {other} {moved[other].mean():.0%}; difference over "
        f"{len(lead)} donors {lead.mean():.2f}, p = {stats.ttest_1samp(lead, 0).pvalue:.2g} (t test)."
    )

# %% [markdown]
# Twenty long vectors whose way was learned send many cells to either branch, whatever they mean. And where the driver decides nothing
# (`branching_course(null=True)`), the top drivers move the odds of the branches by as much beyond the matched features as here, while the features that follow the driver
# programme move them less (`benchmarks/README.md`, "A course with a branch"). **That drivers by PageRank turn a branch does not show that they decide it.**

# %% [markdown]
# ## Real myoblasts
#
# Networks of the demo model's features in 200 human myoblasts (Trapnell et al. 2014), from the first block to the third, along pseudotime. The entropy of the singular values says how many combinations of
# features carry the effects of a stage. Cells are the unit, since no donors are known, and each hour was captured on chips of its own: this tells of these cells alone.

# %% tags=["answer"]
myoblasts = mt.datasets.load("myoblast_timecourse")
demo = mt.load_model("demo")
mt.pp.map_genes(myoblasts, demo)
mt.pp.rank_value_encode(myoblasts, demo, force=True)
mt.tl.spectral_entropy(
    myoblasts,
    demo,
    mt.load_sae("demo-early"),
    later=mt.load_sae("demo"),
    time_key="Pseudotime",
    n_bins=3,
    n_features=10,
    n_cells=n_myoblasts,
    n_permutations=n_permutations,
    rng=seed,
)
ax = mt.pl.spectral_entropy(myoblasts)
save(ax.figure, "myoblasts")
bins = mt.get.table(myoblasts, "spectral_entropy")
save(bins, "spectral_entropy")
print(
    f"Entropy from {bins['entropy'].iloc[0]:.2f} in the first stage to {bins['entropy'].iloc[-1]:.2f} in the last; course against exchanged times: "
    f"p = {bins.attrs['p_value']:.2g} ({n_permutations} permutations)."
)

# %% [markdown]
# ## What would make this wrong
#
# **One model, one course.** Other seeds give other features. `benchmarks/sae.py branch` has more of them, and a course whose driver decides nothing.
#
# **Longer vectors.** PageRank goes with the length of what a feature adds. Matched features and random directions are as long.
#
# **Way learned, effect read.** Which way a feature goes is learned in clones of the training, what it does is read in others. Read in the same clones, any set would look good.
#
# **The model's cells.** A branch that turned in the model says what the model has learned of the course, and nothing of a cell at the bench.
