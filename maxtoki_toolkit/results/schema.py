"""What functions store in `.uns`: for every key, who writes it and the tables that it holds.

The first table of a result is the one that is read when none is named. The columns are in the docstring of
the function, section Returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from .. import _keys


class Result(NamedTuple):
    """What is stored under a key."""

    call: str
    """How to make it, as errors say it."""
    tables: Mapping[str, str] = MappingProxyType({})
    """Of each table, what its rows are."""
    units: Mapping[str, str] = MappingProxyType({})
    """Units of tables whose values have another one than `params["unit"]`; "" for none."""

    @property
    def function(self) -> str:
        """Name of the function that writes it, such as "tl.embed"."""
        return self.call.partition("(")[0].removeprefix("mt.")


_ATTENTION = {
    "sequences": "cells or prompts that were read",
    "units": "groups and donors (or blocks of cells)",
    "genes": "genes among the tokens",
    "tokens": "tokens of the examples (with n_examples)",
}
_SHARE = "share, 0 to 1"

SCHEMA: dict[str, Result] = {
    _keys.MAP_GENES: Result("mt.pp.map_genes(adata)", {"report": "gene-mapping report"}, {"report": ""}),
    _keys.MAP_ORTHOLOGS: Result(
        "mt.pp.map_orthologs(adata)",
        {"report": "genes by kind", "ambiguous": "pairs of genes that are not one to one"},
        {"report": "", "ambiguous": ""},
    ),
    _keys.HARMONIZED: Result("mt.pp.harmonize_cell_types(adata)", {"labels": "labels"}, {"labels": ""}),
    _keys.PARSE_AGE: Result("mt.pp.parse_age(adata, key)", {"terms": "texts of the column"}),
    _keys.ENCODING: Result("mt.pp.rank_value_encode(adata, model)"),
    _keys.HOLD_OUT: Result("mt.pp.hold_out(adata, donor_key=...)"),
    _keys.HOLDOUT_INTERVALS: Result(
        "mt.pp.holdout_intervals(adata, time_key=...)",
        {"intervals": "intervals, by group", "genes": "genes that turn over there"},
        {"intervals": "", "genes": "share of the cell's ranks per unit of time"},
    ),
    _keys.PROMPTS: Result("mt.pp.sample_prompts(adata, ...)", {"prompts": "prompts"}, {"prompts": ""}),
    _keys.MATCHED: Result(
        "mt.pp.match_queries(adata, queries)", {"prompts": "prompts with other query cells"}, {"prompts": ""}
    ),
    _keys.MATCHED_AGES: Result(
        "mt.pp.match_ages(adata, ...)",
        {"donors": "donors of each condition, and controls", "balance": "conditions"},
        {"donors": "", "balance": ""},
    ),
    _keys.SIMULATED: Result("mt.pp.simulate_doublets(adata)"),
    _keys.EMBED: Result("mt.tl.embed(adata, model)"),
    _keys.LOG_LIKELIHOOD: Result("mt.tl.log_likelihood(adata, model)"),
    _keys.GENERATE: Result("mt.tl.generate(adata, model)"),
    _keys.PURITY: Result(
        "mt.tl.neighbor_purity(adata, model, groupby=...)", {"scores": "embeddings"}, {"scores": _SHARE}
    ),
    _keys.EMBED_GENES: Result(
        "mt.tl.embed_genes(adata, model)", {"groups": "groups of cells (with groupby=...)"}, {"groups": ""}
    ),
    _keys.GENE_NEIGHBORS: Result(
        "mt.tl.gene_neighbors(adata, genes=...)",
        {
            "neighbors": "genes and their nearest neighbours",
            "gene_sets": "genes and gene sets (with gene_sets=...)",
        },
        {"neighbors": "cosine", "gene_sets": ""},
    ),
    _keys.GENE_TASK: Result(
        "mt.tl.gene_task(adata, model, labels=...)",
        {"scores": "sets of genes and predictors", "genes": "sets and genes, with what is predicted of them"},
        {"scores": _SHARE, "genes": ""},
    ),
    _keys.NOMINATE_TARGETS: Result(
        "mt.tl.nominate_targets(adata, model, dependency=..., groupby=...)",
        {
            "scores": "predictors",
            "groups": "predictors and groups",
            "targets": "groups and genes that are nominated",
        },
        {"scores": _SHARE, "groups": _SHARE, "targets": ""},
    ),
    _keys.ANNOTATE: Result(
        "mt.tl.annotate(adata, model, reference=...)",
        {
            "scores": "columns and predictors",
            "labels": "columns and labels",
            "confusion": "columns, true and called labels",
            "calibration": "columns and bins of probability",
        },
        {"scores": "", "labels": _SHARE, "confusion": "", "calibration": _SHARE},
    ),
    _keys.TIMELAPSE: Result(
        "mt.tl.predict_timelapse(adata, model)",
        {"prompts": "prompts with their predicted lapse", "scores": "predictors and groups"},
    ),
    _keys.BASELINES: Result(
        "mt.tl.timelapse_baselines(adata, model)",
        {
            "scores": "predictors and groups",
            "prompts": "prompts with the lapses that each baseline predicts",
            "clocks": "fitted ridge regressions",
        },
    ),
    _keys.PREDICT_AGE: Result(
        "mt.tl.predict_age(adata, model, ...)",
        {"donors": "donors and groups of cells", "groups": "groups of cells, with their calibration"},
    ),
    _keys.ABLATION: Result(
        "mt.tl.ablate_prompt(adata, model)",
        {"effects": "ablations", "prompts": "prompts with their lapse under each ablation"},
    ),
    _keys.AGE_ACCELERATION: Result(
        "mt.tl.age_acceleration(adata, model, ...)",
        {
            "effects": "predictors, conditions and groups",
            "donors": "predictors, conditions, groups and donors",
            "matching": "donors of each condition, and controls",
            "balance": "conditions",
        },
    ),
    _keys.DOUBLETS: Result(
        "mt.tl.doublets(adata, model)",
        {
            "cells": "cells, simulated doublets and queries",
            "scores": "sets of doublets and detectors",
            "singlets": "populations",
        },
        dict.fromkeys(("cells", "scores", "singlets"), _SHARE),
    ),
    _keys.CONCORDANCE: Result(
        "mt.tl.annotation_concordance(adata, model, ...)",
        {"scores": "kinds of cells", "types": "kinds of cells and types", "cells": "generated cells"},
        dict.fromkeys(("scores", "types", "cells"), _SHARE),
    ),
    _keys.TRAIN_ON_GENERATED: Result(
        "mt.tl.train_on_generated(adata, model, ...)",
        {"scores": "trainings", "donors": "trainings and tested donors"},
        dict.fromkeys(("scores", "donors"), _SHARE),
    ),
    _keys.EVALUATE_GENERATED: Result(
        "mt.tl.evaluate_generated(adata, model, ...)", {"summary": "measures of the audits"}
    ),
    _keys.GENERATED_AGES: Result(
        "mt.tl.generated_ages(adata, model, ...)",
        {"scores": "kinds of cells and groups", "cells": "generated cells", "clocks": "fitted clocks"},
    ),
    _keys.DIFFERENTIAL_RANK: Result(
        "mt.tl.differential_rank(adata, model, generated=..., time_key=..., intervals=...)",
        {"genes": "genes and groups", "scores": "predictors and groups", "cells": "cells that were compared"},
    ),
    _keys.DIVERSITY: Result(
        "mt.tl.generation_diversity(adata, model, generated=...)", {"scores": "groups and kinds of cells"}
    ),
    _keys.ATTENTION: Result("mt.tl.attention(adata, model)", _ATTENTION),
    _keys.PROMPT_ATTENTION: Result("mt.tl.attention(adata, model, key='prompts')", _ATTENTION),
    _keys.HEAD_ENRICHMENT: Result(
        "mt.tl.head_enrichment(adata)",
        {
            "heads": "attention heads",
            "genes": "genes, with set and stratum",
            "balance": "covariates of the matching",
        },
        {"genes": "", "balance": "standard deviations"},
    ),
    _keys.HEAD_SEGMENTS: Result(
        "mt.tl.head_segments(adata)", {"heads": "attention heads and parts of the prompt"}
    ),
    _keys.HEAD_PROFILES: Result(
        "mt.tl.head_profiles(adata)",
        {"profiles": "attention heads and groups", "heads": "attention heads"},
        {"heads": "share of the variance"},
    ),
    _keys.HEAD_SIMILARITY: Result(
        "mt.tl.head_similarity(adata)",
        {
            "heads": "attention heads, with their order and reliability",
            "similarity": "heads x heads, without position",
            "raw": "heads x heads, with position",
            "replicated": "heads x heads, across halves of the donors",
        },
    ),
    _keys.GENE_NETWORK: Result(
        "mt.tl.gene_network(adata, model)",
        {
            "edges": "edges, by group",
            "scores": "groups and predictors (with regulons=...)",
            "groups": "groups of cells",
            "genes": "genes of the network",
        },
        {"scores": "AUROC", "groups": "", "genes": ""},
    ),
    _keys.GENE_EFFECTS: Result(
        "mt.tl.gene_effects(adata, model)",
        {
            "edges": "edges, by group",
            "scores": "groups and predictors (with regulons=...)",
            "signs": "groups and predictors (with regulons=...)",
            "groups": "groups of cells",
            "genes": "genes of the network",
        },
        {"scores": "AUROC", "signs": "share", "groups": "", "genes": ""},
    ),
    _keys.TRANSLATE: Result(
        "mt.tl.translate(adata, model)",
        {"scores": "methods", "features": "features of the kind that was read"},
    ),
    _keys.ABLATE_HEADS: Result(
        "mt.tl.ablate_heads(adata, model)", {"effects": "heads, sets of heads, or steps"}
    ),
    _keys.PATCH: Result(
        "mt.tl.patch(adata, model, corrupted=...)",
        {"effects": "layers (or heads) and segments of the prompt"},
    ),
    _keys.ATTRIBUTE: Result(
        "mt.tl.attribute(adata, model)",
        {
            "genes": "genes and parts of the prompt",
            "segments": "segments of the prompt",
            "prompts": "prompts with the sum over each segment",
            "features": "features (with sae=...)",
        },
    ),
    _keys.PERTURBATION: Result(
        "mt.tl.perturb(adata, model, genes=...)",
        {"effects": "prompts (or cells) and edits", "genes": "edited genes and sets"},
    ),
    _keys.PERTURBATION_STATS: Result(
        "mt.tl.perturbation_stats(adata)",
        {"effects": "genes, groups and k", "controls": "groups, k and kinds of genes"},
    ),
    _keys.AGE_SLOPE: Result(
        "mt.tl.expression_age_slope(adata)",
        {"slopes": "genes and groups", "samples": "groups, donors and times"},
        {"samples": ""},
    ),
    _keys.PERTURBATION_CONCORDANCE: Result(
        "mt.tl.perturbation_concordance(adata)",
        {"concordance": "groups and sets of genes", "genes": "genes and groups"},
    ),
    _keys.KNOWN_GENES: Result(
        "mt.tl.known_gene_concordance(adata, known=...)",
        {"concordance": "groups", "genes": "genes and groups"},
        {"concordance": _SHARE},
    ),
    _keys.GENE_SETS: Result(
        "mt.tl.search_gene_sets(adata, model, ...)",
        {
            "effects": "gene sets",
            "genes": "candidates",
            "trace": 'steps of the chains (method="metropolis")',
        },
    ),
    _keys.STEER: Result(
        "mt.tl.steer_cells(adata, model, ...)",
        {
            "effects": "measures and states",
            "genes": "genes of the steered cells",
            "cells": "steered cells",
            "trace": "steps of the chains",
        },
    ),
    _keys.FEATURES: Result(
        "mt.tl.features(adata, model, sae)",
        {"features": "features", "genes": "features and their top genes"},
        {"features": "", "genes": ""},
    ),
    _keys.FEATURE_FAMILIES: Result(
        "mt.tl.feature_families(adata, model, sae)",
        {
            "families": "families, by group",
            "features": "features, by group",
            "edges": "pairs of features that are active together, by group",
            "tree": "joints of the tree of families, by group",
            "agreement": "pairs of groups (with groupby=...)",
        },
        {"families": "", "features": "", "edges": "phi", "tree": "1 - phi", "agreement": ""},
    ),
    _keys.FEATURE_SUMMARY: Result(
        "mt.tl.feature_summary(adata)",
        {
            "features": "features",
            "associations": "features and labels or times",
            "gene_sets": "features and gene sets (with gene_sets=...)",
            "dictionaries": "dictionaries and columns",
            "best": "dictionaries and labels or times",
        },
        {"features": "", "dictionaries": ""},
    ),
    _keys.LABEL_FEATURES: Result(
        "mt.tl.label_features(adata)", {"labels": "features"}, {"labels": "Spearman correlation"}
    ),
    _keys.EVALUATE_SAE: Result(
        "mt.tl.evaluate_sae(adata, model, sae)", {"measures": "measures and dictionaries"}, {"measures": ""}
    ),
    _keys.FEATURE_EFFECTS: Result(
        "mt.tl.feature_effects(adata, model, sae)",
        {
            "effects": "features and doses",
            "gradients": "features",
        },
    ),
    _keys.FEATURE_GENES: Result(
        "mt.tl.feature_genes(adata, model, sae, features=...)",
        {"genes": "features and the genes that they make more or less likely"},
    ),
    _keys.FEATURE_NETWORK: Result(
        "mt.tl.feature_network(adata, model, sae, later=...)",
        {
            "edges": "edges",
            "null_edges": "edges of random directions",
            "sources": "features that were scaled",
            "targets": "features that were read",
        },
    ),
    _keys.FEATURE_MEDIATORS: Result(
        "mt.tl.feature_mediators(adata, model, sae, genes=...)", {"effects": "features and sets of features"}
    ),
    _keys.SPECTRAL_ENTROPY: Result(
        "mt.tl.spectral_entropy(adata, model, sae, later=...)", {"bins": "bins of the course"}
    ),
    _keys.SEARCH_FEATURES: Result(
        "mt.tl.search_features(adata, model, sae, target=...)",
        {"effects": "gene sets", "genes": "candidates"},
    ),
    _keys.DRIVER_FEATURES: Result(
        "mt.tl.driver_features(adata)", {"features": "features that were scaled"}, {"features": ""}
    ),
    _keys.PERTURBATION_METRICS: Result(
        "mt.tl.perturbation_metrics(adata, ...)",
        {"scores": "perturbations, methods and scores"},
        {"scores": ""},
    ),
    _keys.NEIGHBORHOODS: Result(
        "mt.tl.neighborhood_enrichment(adata)",
        {"pairs": "columns of labels and pairs of them", "units": "the same, by donor (or image)"},
    ),
    _keys.VARIOGRAM: Result(
        "mt.tl.variogram(adata, keys=...)",
        {"bins": "values and bins of distance", "ranges": "values"},
        {"bins": "", "ranges": ""},
    ),
    _keys.SPATIAL_FEATURES: Result(
        "mt.tl.spatial_features(adata, keys=...)",
        {"features": "features, genes and columns", "units": "the same, by donor (or image)"},
    ),
    _keys.SEPARABILITY: Result(
        "mt.tl.separability(adata, condition_key=..., control=...)",
        {"scores": "groups, conditions and embeddings"},
    ),
    _keys.PREDICT_RESPONSE: Result(
        "mt.tl.predict_response(adata, groupby=...)",
        {
            "summary": "methods and scores",
            "scores": "populations left out, methods and scores",
            "populations": "populations left out",
        },
        {"summary": "", "scores": "", "populations": ""},
    ),
    _keys.FLAG_PLATES: Result(
        "mt.tl.flag_plates(adata, plate_key=..., well_key=...)",
        {"plates": "plates", "tests": "plates and tests", "wells": "wells"},
        {"plates": "", "wells": ""},
    ),
}


def result_of(key: str, params: Mapping | None = None) -> Result:
    """What is stored under a key: by the name of the function that wrote it, else by that of the key."""
    if params and (function := params.get("function")):
        if key in SCHEMA and SCHEMA[key].function == function:
            return SCHEMA[key]
        found = [result for result in SCHEMA.values() if result.function == function]
        return found[0] if found else Result("")
    return SCHEMA.get(key, Result(""))
