"""The simulated course with a branch: the driver decides beforehand, the bystander never, and features say so."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import maxtoki_toolkit as mt

CONSTANT, SIZE = 300.0, 8
DRIVER, BYSTANDER, FATE, READ = 1, 2, 3, 4  # dimensions of the states


@pytest.fixture(scope="module")
def course():
    return mt.datasets.branching_course(80, 10, cells_per_day=1)


def activity(adata, role):
    """Mean log counts of the genes that a programme turns on, less those that it turns off."""
    genes = adata.uns["truth"]["programmes"].query("role == @role").set_index("ensembl_id")["weight"]
    counts = adata[:, genes.index].X.toarray()
    depth = np.asarray(adata.X.sum(axis=1)).ravel()
    return np.log1p(1e3 * counts / depth[:, None]) @ np.sign(genes.to_numpy())


def test_the_driver_decides_and_the_bystander_does_not(course):
    takes_a = (course.obs["branch"] == "A").to_numpy()
    early = (course.obs["day"] < 3).to_numpy()

    def tells(role, rows):
        return roc_auc_score(takes_a[rows], activity(course, role)[rows])

    assert tells("driver", early) > 0.85
    assert abs(tells("bystander", early) - 0.5) < 0.15
    assert tells("A", ~early) > 0.95
    assert tells("B", ~early) < 0.05
    for role, rows in (("driver", ~early), ("A", early), ("B", early), ("course", early)):
        assert abs(tells(role, rows) - 0.5) < 0.1
    assert spearmanr(activity(course, "course"), course.obs["day"]).statistic > 0.5
    # Both programmes differ between clones as much.
    clones = course.uns["truth"]["clones"].set_index("clone").loc[course.obs["clone"].astype(str)[early]]
    for role in ("driver", "bystander"):
        assert spearmanr(activity(course, role)[early], clones[role]).statistic > 0.7


def test_the_null_and_seeds(course):
    null = mt.datasets.branching_course(200, 10, cells_per_day=1, seed=1, null=True)
    early = (null.obs["day"] < 3).to_numpy()
    assert (
        abs(roc_auc_score((null.obs["branch"] == "A")[early], activity(null, "driver")[early]) - 0.5) < 0.15
    )
    other = mt.datasets.branching_course(80, 10, cells_per_day=1, seed=1)
    again = mt.datasets.branching_course(80, 10, cells_per_day=1)
    assert (again.X != course.X).nnz == 0
    assert (other.X != course.X).nnz > 0
    for key in ("role", "ensembl_id", "weight"):
        assert (other.uns["truth"]["programmes"][key] == course.uns["truth"]["programmes"][key]).all()
    assert course.obs.groupby("clone", observed=True)[["donor_id", "branch"]].nunique().eq(1).all(axis=None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_clones": 5, "n_donors": 6}, "n_donors must be from 1 to n_clones.* got 6 and 5 clones"),
        ({"cells_per_day": 0}, "cells_per_day must be at least 1"),
        ({"n_genes": 100}, "n_genes must be from 500"),
    ],
)
def test_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        mt.datasets.branching_course(**settings)


def coder(model, block, dimensions):
    """An autoencoder whose features are some dimensions of the states."""
    card = {"block": block, "site": "output", "model": model.name, "model_sha256": model.identity}
    sae = mt.models.SparseAutoencoder(SIZE, len(dimensions), len(dimensions), card=card)
    with torch.no_grad():
        for weight in (sae.encoder.weight, sae.W_dec):
            weight.zero_()
            weight[torch.arange(len(dimensions)), torch.tensor(dimensions)] = 1.0
        sae.b_dec[0] = CONSTANT
    return sae.eval().requires_grad_(requires_grad=False)


def circuit(course):
    """A model whose second block makes a fate of the driver's genes; the third hands its mean to the odds of the branches."""
    vocab = mt.models.Vocabulary.from_anndata(course)
    shape = {"hidden_size": SIZE, "head_dim": SIZE, "intermediate_size": 1, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": False}
    model = mt.models.build_model(shape, vocab)
    genes = {
        role: part[part["ensembl_id"].isin(list(vocab.tokens))]
        for role, part in course.uns["truth"]["programmes"].query("weight > 0").groupby("role")
    }
    ids = {role: [vocab[gene] for gene in part["ensembl_id"]] for role, part in genes.items()}
    rms = CONSTANT / np.sqrt(SIZE)
    with torch.no_grad():
        for name, weight in model.hf.named_parameters():
            weight.fill_(rms if "norm" in name else 0.0)
        table, head, blocks = (
            model.hf.model.embed_tokens.weight,
            model.hf.lm_head.weight,
            model.hf.model.layers,
        )
        table[:, 0] = CONSTANT
        for role, dimension in (("driver", DRIVER), ("bystander", BYSTANDER)):
            table[ids[role], dimension] = torch.tensor(genes[role]["weight"].to_numpy()).float()
        # The gate is open: it reads the constant.
        blocks[1].mlp.gate_proj.weight[0, 0] = 10 / CONSTANT
        blocks[1].mlp.up_proj.weight[0, DRIVER] = 1.0
        blocks[1].mlp.down_proj.weight[FATE, 0] = 0.1
        blocks[2].self_attn.v_proj.weight[0, FATE] = 1.0
        blocks[2].self_attn.o_proj.weight[READ, 0] = 1.0
        head[ids["A"], READ], head[ids["B"], READ] = 1.0, -1.0

    def odds(logits):
        return logits[:, ids["A"]].logsumexp(dim=1) - logits[:, ids["B"]].logsumexp(dim=1)

    return model, odds


def test_the_top_driver_moves_the_branch_and_a_matched_feature_does_not(course):
    course = course.copy()
    mt.pp.map_genes(course)
    model, odds = circuit(course)
    mt.pp.rank_value_encode(course, model)
    early = course[course.obs["day"] == 2].copy()
    sae, later = coder(model, 0, [BYSTANDER, DRIVER]), coder(model, 1, [BYSTANDER, DRIVER, FATE])
    mt.tl.feature_network(early, model, sae, later=later, features=[0, 1], donor_key="donor_id")
    mt.tl.driver_features(early)
    drivers = mt.get.table(early, "driver_features")["feature"].tolist()
    assert drivers == [1, 0]
    settings = {"features": [0, 1], "doses": [0.0, 3.0], "readout": odds, "n_prompts": None}
    mt.tl.feature_effects(early, model, sae, donor_key="donor_id", **settings)
    effects = mt.get.table(early, "feature_effects").pivot(index="feature", columns="dose")
    norm = effects["norm"][0.0]
    assert 0.5 < norm[0] / norm[1] < 2  # the bystander writes as much
    assert effects["effect_high"].loc[1, 0.0] < 0 < effects["effect_low"].loc[1, 3.0]
    assert effects["effect"].loc[0].abs().max() < 0.05 * effects["effect"].loc[1].abs().min()
