"""How a report was made, as a paragraph for a paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._provenance import as_text

_WORKS = {
    "maxtoki": "MaxToki: a temporal foundation model for single cells (2026), doi:10.64898/2026.03.30.715396",
    "rank": "Theodoris et al., Nature 618:616 (2023), doi:10.1038/s41586-023-06139-9",
    "anndata": "Virshup et al., J Open Source Softw 9:4371 (2024), doi:10.21105/joss.04371",
    "scanpy": "Wolf et al., Genome Biol 19:15 (2018), doi:10.1186/s13059-017-1382-0",
    "fdr": "Benjamini and Hochberg, J R Stat Soc B 57:289 (1995), doi:10.1111/j.2517-6161.1995.tb02031.x",
    "scrublet": "Wolock et al., Cell Syst 8:281 (2019), doi:10.1016/j.cels.2018.11.005",
    "deseq2": "Love et al., Genome Biol 15:550 (2014), doi:10.1186/s13059-014-0550-8",
    "pydeseq2": "Muzellec et al., Bioinformatics 39:btad547 (2023), doi:10.1093/bioinformatics/btad547",
    "decoupler": "Badia-i-Mompel et al., Bioinform Adv 2:vbac016 (2022), doi:10.1093/bioadv/vbac016",
    "tfs": "Lambert et al., Cell 172:650 (2018), doi:10.1016/j.cell.2018.01.029",
    "rhat": "Vehtari et al., Bayesian Anal 16:667 (2021), doi:10.1214/20-BA1221",
    "scaling": "Kaplan et al., arXiv:2001.08361 (2020)",
    "glass": "Green, Through a Glass Darkly, Markov Bio (2024)",
    "topk": "Gao et al., arXiv:2406.04093 (2024)",
    "tahoe": "Tahoe-x1 (2025), doi:10.1101/2025.10.23.683759",
    "moran": "Moran, Biometrika 37:17 (1950), doi:10.1093/biomet/37.1-2.17",
    "scikit": "Pedregosa et al., J Mach Learn Res 12:2825 (2011)",
    "lora": "Hu et al., arXiv:2106.09685 (2021)",
    "temperature": "Guo et al., ICML (2017), arXiv:1706.04599",
    "conformal": "Angelopoulos et al., Conformal risk control, ICLR (2024), arXiv:2208.02814",
    "state": "Adduri et al., State, bioRxiv (2025), doi:10.1101/2025.06.26.661135",
}
_PROMPTS = (
    "Prompts held {context_size} context cells with the time between them and a query cell of another donor; cells of a "
    "prompt agreed in {groupby}. "
)
# What was done, with the values of parameters in braces, and the works that it rests on.
_DONE = {
    "cellxpert_annotation": (
        "A share of {held_out} of the donors ({donor_key}) was set apart. Cells of the others taught labels ({groupby}) by logistic regression on the embedding, by "
        "{n_neighbors} nearest neighbours, and by fine-tuning (LoRA, {max_steps} steps at a learning rate of {learning_rate}, class-weighted cross entropy smoothed over neighbours in the "
        "Cell Ontology), and were scored in folds of donors beside logistic regression on principal components, the commonest label and permuted calls. "
        "Probabilities were calibrated by temperature on held-out cells, and cells rarer than 5% of these were called unknown; labels in doubt were backed off to terms "
        "that hold the true label of 95% of held-out cells.",
        ["lora", "temperature", "conformal", "scikit", "fdr"],
    ),
    "cellxpert_mcmc_steering": (
        "Cells were led to a target state by Metropolis-Hastings over blocks of {block_size} genes of their rank order "
        "({n_steps} steps, {n_chains} chains a cell); convergence was judged by R-hat, and differences from the edit alone were "
        "tested over donors.",
        ["rhat"],
    ),
    "cellxpert_modalities": (
        "A share of {held_out} of the donors ({donor_key}) was set apart. Features of each kind were ranked by their own medians and joined as one list, and a model was trained on the "
        "other cells to read each next feature ({max_steps} steps of {batch_size} cells; each kind left out with probability {modality_dropout}, in random order). Features of kind {target} "
        "were read from the others as log-probabilities and compared with ridge regression and with exchanged cells ({n_permutations}); intervals are jackknifed over donors, or blocks "
        "of cells. Labels ({groupby}) of held-out cells were carried over by {n_neighbors} nearest neighbours in the embedding of each kind and of all, beside principal components.",
        ["scikit"],
    ),
    "cellxpert_spatial": (
        "Neighbours ({n_neighbors} nearest, or within {radius} {distance_unit} where that is not 0) were counted by true and by predicted types, which a "
        "logistic regression on the embedding gave to cells of donors or images that it was not fitted to, and compared with their expected number; "
        "variograms and Moran's I were computed of classes, embedding, {keys} and genes, without and with a correction for cell density and library "
        "size. Labels and values were exchanged within images ({n_permutations} permutations), and intervals are over donors, or images.",
        ["moran", "scikit", "fdr"],
    ),
    "cost_of_experiments": (
        "Operations of a screen of {n_genes} genes in {n_cells} cells each were counted from the shapes of the models and the lengths of "
        "cells, with what prompts share counted once, and priced at {hourly_price} dollars an hour of {gpu} and an assumed {utilisation} "
        "of its peak, beside {wet_price} dollars for a cell at the bench.",
        ["glass", "tahoe"],
    ),
    "doublet_detector_training": (
        "Doublets were simulated from pairs of cells of one donor, and a detector was trained and scored in folds of donors, beside "
        "scrublet.",
        ["scrublet"],
    ),
    "essay_drivers_on_a_course": (
        "A small model was trained on {n_clones} simulated clones, of which a programme of genes decides beforehand which of two branches they take; "
        "the {n_drivers} features with the highest PageRank on the reversed network of features were turned up (times {up}) or down in cells before the branch, "
        "beside features and random directions of the same length, and the branch of the cells that the model then writes was counted, with donors as the unit.",
        ["glass"],
    ),
    "essay_dashboard": (
        "Features of a sparse autoencoder were read in {n_cells} cells at most, pooled by their largest activation, and shown with the AUROC of labels ({groupby}) "
        "and the genes at which they are active; labels were tested over donors ({donor_key}), or cells, beside random directions and single genes.",
        ["glass", "fdr"],
    ),
    "essay_families": (
        "Features of a sparse autoencoder were grouped ({method}) by their co-activation at genes and in cells beyond that of their "
        "strata, with support from {n_bootstrap} bootstrap samples beside independent features; agreement of groups was tested by permutation.",
        ["glass", "fdr"],
    ),
    "essay_feature_network": (
        "Features of an autoencoder of an earlier block were scaled by {step} up and down and those of a later block were read; edges were tested "
        "over donors or blocks of cells and compared with random directions of the same length, and features were ranked by PageRank (damping "
        "{damping}) on the reversed edges.",
        ["glass", "fdr"],
    ),
    "essay_sae": (
        "A sparse autoencoder of the output of block {block} ({width} features, {k} a gene) was trained for {max_steps} steps where none was given, with donors "
        "or cells held out, and compared with principal components and random directions; features were compared with labels ({groupby}) with the donor as "
        "the unit where donors were known, and labels were scored in the other half of the donors or cells.",
        ["topk", "glass", "fdr"],
    ),
    "essay_steering": (
        _PROMPTS
        + "Features of a sparse autoencoder were multiplied by {doses} in the prompts ({where}) and the lapse was read again, with intervals over "
        "donors and random directions of the same length as the null. Genes ({genes}) were edited ({mode}), and features were put back to find those that "
        "carry the effect.",
        ["glass", "fdr"],
    ),
    "fig1_scaling_law": (
        "Models of widths {hidden_sizes} were trained for {max_steps} steps each with a fifth of the donors held out; a power law with a "
        "floor was fitted to the held-out loss against the number of parameters, with intervals from resampling donors.",
        ["scaling"],
    ),
    "fig1_timelapse": (
        _PROMPTS
        + "Predicted lapses were scored over held-out donors beside the most common lapse, SGD and ridge regression, which were "
        "fitted to prompts of training donors; the null permutes the times of query donors.",
        [],
    ),
    "fig2_generated_cells": (
        _PROMPTS
        + "{n_samples} cells were generated after each prompt at temperature {temperature} and judged by a doublet detector, by "
        "classifiers and by clocks of true cells of other donors.",
        [],
    ),
    "fig3_inflection_intervals": (
        "The interval of {time_key} in which most genes turn was held out, a model was trained for {max_steps} steps on the other "
        "times, and the rank changes of generated cells were compared with those of true cells of the interval.",
        ["fdr"],
    ),
    "fig4_attention_heads": (
        "Attention of each head to gene sets was compared with that to genes alike in rank, detection and expression "
        "({n_permutations} permutations), beyond what the position of a token explains.",
        ["fdr", "tfs"],
    ),
    "fig4_head_ablation": (
        _PROMPTS
        + "The output of each attention head was replaced by its {how} over prompts, and the change of the mean absolute "
        "error was tested over donors by leaving each out in turn.",
        ["fdr"],
    ),
    "fig1_corpus_and_prompts": (
        "Donors ({donor_key}) were counted by age and sex and cells by type; a share of {held_out} of the donors was held out, spread over "
        "the ages, and prompts of {context_size} context cells of one type were drawn at random.",
        [],
    ),
    "fig4a_prompt_ablation": (
        _PROMPTS
        + "Parts of each prompt were shuffled, masked, replaced or left out, and the change of the mean absolute error was "
        "tested over donors by leaving each out in turn.",
        ["fdr"],
    ),
    "fig5_age_acceleration": (
        "Donors of each condition ({condition_key}) were matched to controls ({control}) within {tolerance} {time_unit} of age and by {match_by}. "
        "After contexts of {context_size} cells of controls, the model read the ages of query cells of cases and controls; the difference, over the slope "
        "with which age is read in controls, was estimated by a mixed model with donors as random intercepts, with Fieller's intervals and "
        "p values from permuting donors, beside ridge clocks.",
        ["fdr"],
    ),
    "fig6_perturbation_screen": (
        _PROMPTS
        + "Genes of the query cells were edited ({mode}) and the lapse was read again; effects over donors were compared with "
        "those of genes of like rank, detection and expression.",
        ["fdr"],
    ),
    "fig6_validation_panels": (
        "Genes were tested with PyDESeq2 (Wald test, control {control}), gene sets with decoupler, and measurements at the bench with "
        "two-sided tests against {bench_control}; p values were corrected at a level of {alpha}.",
        ["deseq2", "pydeseq2", "decoupler", "fdr"],
    ),
    "clock_report": (
        "A model was trained on prompts of cells of known time, with donors, times and groups held out as the card says. Lapses of "
        "held-out prompts were scored with the donor as the unit, beside ridge regression on expression and on embeddings, SGD "
        "and the most common lapse; intervals are jackknife intervals over donors.",
        [],
    ),
    "tahoe_essentiality": (
        "Embeddings of genes in {n_cells} cells a line were given to a logistic regression that tells genes on which many lines depend (a share above "
        "the second of {shares}) from those on which few do (below the first), in folds over families of genes, and to one that tells on which genes a "
        "line left out depends, among genes on which {min_share} to {max_share} of the others do; beside expression, detection, principal components, "
        "a model of random weights and shuffled labels ({n_permutations}).",
        ["tahoe", "scikit", "fdr"],
    ),
    "tahoe_hallmarks": (
        "Embeddings of genes (read {context}, {n_cells} cells) were given to a logistic regression for each of the sets {gene_sets}, in {n_folds} folds "
        "over families of genes, beside expression, detection, principal components, a model of random weights and shuffled labels ({n_permutations}).",
        ["tahoe", "scikit", "fdr"],
    ),
    "tahoe_response": (
        "Treated cells were left out by {held_out} ({groupby}) and predicted from one half of the controls ({control}) in the ways of mt.tl.predict_response, a set transformer "
        "({max_steps} steps, sets of {set_size} cells) among them, and compared with the change from the other half of the controls; beside no change, the mean of treated cells and the "
        "mean change, the other half of the treated cells as the ceiling, and exchanged labels. Ways were compared with the mean change by paired t tests over contexts.",
        ["state", "tahoe", "fdr"],
    ),
    "tahoe_separability": (
        "Plates were tested for treatments without effect (overlap above {max_overlap}), for differences of the border and for replicates that disagree, and flagged ones were left out. The share of "
        "treated cells among the {n_neighbors} nearest neighbours in the other half of the cells was scored by its area under the curve for each treatment and group ({groupby}), beside "
        "principal components and depth, with {n_permutations} exchanges of labels.",
        ["tahoe", "scikit", "fdr"],
    ),
    "train_stage1_pretraining": (
        "A model was trained from random weights for {max_steps} steps to predict each next gene, with donors held out, and its "
        "embedding was scored by the purity of neighbourhoods.",
        [],
    ),
    "train_stage2_temporal": (
        "A model was trained for {max_steps} steps (LoRA rank {lora_rank}; rank 0 trains all weights) on prompts of cells of known {time_key} and scored on held-out cells or "
        "donors beside the most common lapse and ridge regression.",
        ["lora"],
    ),
}


def methods(record: Mapping[str, Any]) -> str:
    """Return the paragraph in Markdown, with what it cites; "" for notebooks that are not the project's."""
    if record["notebook"] not in _DONE:
        return ""
    text, works = _DONE[record["notebook"]]
    values = {key: _words(value) for key, value in record["parameters"].items()}
    versions, files = record["versions"], record["files"]
    cells = f"Cells of {as_text(files['path']['name'])}" if "path" in files else "Simulated or shipped cells"
    encoded = "path" in record["parameters"]
    sentences = [
        f"{cells} were encoded by the rank of their genes [1, 2] with maxtoki_toolkit {versions['maxtoki_toolkit']}"
        if encoded
        else f"Measurements were analysed with maxtoki_toolkit {versions['maxtoki_toolkit']} [1]",
        f" (Python {versions['python']}, PyTorch {versions['torch']}, "
        + (
            f"anndata {versions['anndata']} [3], scanpy {versions['scanpy']} [4]). "
            if encoded
            else f"anndata {versions['anndata']}, scanpy {versions['scanpy']}). "
        ),
    ]
    if "model" in files:
        sentences.append(
            f"The model was {as_text(files['model']['name'])} (SHA-256 {files['model']['sha256'][:12]}). "
        )
    cited = [*("maxtoki", "rank", "anndata", "scanpy")[: 4 if encoded else 1], *works]
    numbers = ", ".join(str(number) for number in range(len(cited) - len(works) + 1, len(cited) + 1))
    sentences.append(text.format(**values) + (f" Methods: [{numbers}]." if works else ""))
    if record["seed"] is not None:
        sentences.append(f" Seed {as_text(record['seed'])}.")
    listed = "\n".join(f"{number}. {_WORKS[work]}" for number, work in enumerate(cited, start=1))
    return f"## Methods, for a paper\n\n{''.join(sentences)}\n\n{listed}"


def _words(value: Any) -> str:
    if isinstance(value, list):
        return (
            " to ".join(dict.fromkeys(map(str, value)))
            if all(isinstance(v, int) for v in value) and len(value) == 2
            else (as_text(", ".join(map(str, value))) or "nothing")
        )
    return as_text(value) if value != "" else "none"
