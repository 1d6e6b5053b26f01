"""The tables of docs/results.md, docs/architecture.md and the README of this folder, from `results/`.

python benchmarks/tables.py     # writes them there, between their marks
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
FILES = (
    *(ROOT / "docs" / name for name in ("results.md", "architecture.md")),
    Path(__file__).parent / "README.md",
)
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

EMBEDDINGS = {
    "MaxToki": "demo model",
    "untrained": "same shape, untrained",
    "PCA": "PCA, 2,000 variable genes",
    "chance": "chance",
}
PREDICTORS = {
    "ridge_expression": "ridge on expression",
    "ridge clock, expression": "ridge on expression",
    "ridge_embedding": "ridge on the embedding",
    "ridge clock, embedding": "ridge on the embedding",
    "sgd_expression": "SGD on expression",
    "SGD, expression": "SGD on expression",
    "most_common": "most common lapse",
    "most common lapse": "most common lapse",
}


def read(name: str) -> dict:
    """Results of one benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(rows: list[dict]) -> str:
    """Rows as a table; what a row lacks is left empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    head, *body = (f"| {' | '.join(line)} |\n" for line in lines)
    return "".join([head, "|" + "---|" * len(columns) + "\n", *body])


def ranged(row: dict, measure: str, form: str) -> str:
    """A measure with its interval, where it has one."""
    value, low, high = (row.get(f"{measure}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return ""
    text = form.format(value)
    return text if low is None else f"{text} ({form.format(low)} to {form.format(high)})"


def embedding() -> str:
    """Neighbour purity."""
    heart, blood = read("embedding_heart_nuclei")["rows"], read("embedding_pbmc_facs_3874")["rows"]
    columns = {
        "heart nuclei, all 700": [row for row in heart if row["cells"] == "all"],
        "heart nuclei held out of training, 70": [row for row in heart if row["cells"] != "all"],
        "sorted blood cells, 3,874 of 10 types": blood,
    }
    rows = []
    for key, label in EMBEDDINGS.items():
        row = {"embedding": label}
        for column, found in columns.items():
            (one,) = (r for r in found if r["embedding"] == key)
            row[column] = f"{one['purity']:.1%} ({100 * one['ci_low']:.1f} to {100 * one['ci_high']:.1f})"
        rows.append(row)
    return markdown(rows)


def _lapses(rows: list[dict]) -> str:
    """One row a set of cells: the model in full, and r and median error of the others."""
    table = []
    for name in dict.fromkeys(row["set"] for row in rows):
        found = {row["predictor"]: row for row in rows if row["set"] == name}
        model = found.pop("MaxToki")
        unit = model.get("time_unit", "months")
        line = {
            "cells": name,
            "r of the model": f"{ranged(model, 'r', '{:.2f}')}{_star(model)}",
            "slope": ranged(model, "slope", "{:.2f}"),
            "median error": f"{ranged(model, 'median_error', '{:.0f}')} {unit}",
        }
        for key, row in found.items():
            r = "none" if row["r"] is None else f"{row['r']:.2f}{_star(row)}"
            line[f"{PREDICTORS[key]}: r, error"] = f"{r}, {row['median_error']:.0f}"
        table.append(line)
    return markdown(table)


def _star(row: dict) -> str:
    """Marks what the null of permuted query donors gives as well."""
    high = row["r_null_high"]
    return "*" if high is not None and row["r"] <= high else ""


def planted() -> str:
    """Simulated cells of donors that nobody was trained on."""
    return _lapses(read("temporal")["parts"]["planted"]["rows"])


def real() -> str:
    """Real cells, the demo model fine-tuned on them."""
    parts = read("temporal")["parts"]
    return _lapses([row for name in ("myoblasts", "onek1k", "pancreas") for row in parts[name]["rows"]])


def time_heads() -> str:
    """The same small model with each time head, at the last step, seeds averaged."""
    rows = read("time_heads")["rows"]
    last = max(row["step"] for row in rows)
    found: dict[str, list[dict]] = {}
    for row in rows:
        if row["step"] == last:
            found.setdefault(row["head"], []).append(row)
    table = []
    for head, seeds in found.items():
        error = next(key for key in seeds[0] if key.startswith("median_error"))
        spans = {
            "r": " and ".join(f"{row['r']:.2f}" for row in seeds),
            "slope": " and ".join(f"{row['slope']:.2f}" for row in seeds),
            "median error, months": " and ".join(f"{row[error]:.0f}" for row in seeds),
        }
        table.append({"head": head, **spans})
    return markdown(table)


def tokenize() -> str:
    """Rank value encoding."""
    names = {
        "one cell at a time": "one cell at a time",
        "in memory": "`mt.pp.rank_value_encode`, in memory",
        "file to file": "`mt.pp.encode_file`",
    }
    rows = []
    for row in read("tokenize")["rows"]:
        few = "" if row["cells"] == 20_000 else f" ({row['cells']:,} cells)"
        rows.append(
            {
                "way": names[row["way"]],
                "cells a second": f"{row['cells_per_second']:,}",
                "speed-up over the baseline": f"{row['speed_up']:.1f}",
                "peak memory, 20,000 cells": f"{row['peak_memory_mb']:,} MB{few}",
            }
        )
    return markdown(rows)


SPEED = {
    "inference": "reading time: queries of one context",
    "screen": "screen: edits of query cells, one context",
    "generation": "generating cells",
    "attention": "attention statistics, 16,384 tokens",
    "training": "training",
}


def files() -> str:
    """From files to files."""
    rows = [
        {
            "job": row["job"],
            "cells": f"{row['cells']:,}",
            "cells a second": f"{row['cells_per_second']:,.0f}",
            "cells a second of processor time": f"{row['cells_per_cpu_second']:,.0f}",
            "largest memory": f"{row['peak_mb']:,.0f} MB" if row.get("peak_mb") else "",
        }
        for row in read("files")["rows"]
    ]
    return markdown(rows)


def speed() -> str:
    """The engine beside the baseline, CPU and GPU."""
    rows = []
    for name, work in SPEED.items():
        cases = read(name)["cases"] if (RESULTS / f"{name}.json").is_file() else {}
        for case, found in cases.items():
            baseline, ours = found["rows"][0], found["rows"][-1]
            rows.append(
                {
                    "work": work,
                    "model and machine": case,
                    "baseline": _pace(baseline),
                    "ours": _pace(ours),
                    "speed-up": f"{ours['speed-up over the baseline']:g}"
                    if "speed-up over the baseline" in ours
                    else "",
                }
            )
        if not any("cuda" in case for case in cases):
            rows.append({"work": work, "model and machine": "GPU", "baseline": "not measured"})
    return markdown(rows)


def _pace(row: dict) -> str:
    for key in ("seconds a prompt", "seconds a cell", "tokens a second", "peak extra memory, MB"):
        if key in row:
            return f"{row[key]:,} {key}" if "MB" not in key else f"{row[key]:,} MB more memory"
    raise KeyError(f"No pace in {row}.")


def _part(name: str) -> list[dict]:
    """Rows of a part of the age acceleration benchmark."""
    return read("age_acceleration")["cases"][name]["rows"]


CLOCKS = {
    "MaxToki": "demo model",
    "ridge_expression": "ridge on expression",
    "ridge_embedding": "ridge on embeddings",
}


def acceleration() -> str:
    """Conditions of known acceleration in 20 atlases."""
    table = []
    for row in _part("planted"):
        table.append(
            {
                "clock": CLOCKS[row["predictor"]],
                "planted, years": row["truth"],
                "mean estimate (standard deviation)": f"{row['mean_effect']:.1f} ({row['sd_effect']:.1f})",
                "half width of the interval": f"{row['median_half_width']:.1f}",
                "truth in the interval": f"{row['covered']:.0%} of {row['n_with_interval']}",
                "p < 0.05": f"{row['called_p']:.0%}",
                "q < 0.05": f"{row['called_q']:.0%}",
            }
        )
    return markdown(table)


def power() -> str:
    """Share of draws in which a condition is called, by the number of donors."""
    rows = [row for row in _part("power") if row["predictor"] == "MaxToki"]
    table = []
    for condition in dict.fromkeys(row["condition"] for row in rows):
        mine = [row for row in rows if row["condition"] == condition]
        shares = {f"{row['donors_a_side']} donors a side": f"{row['called']:.0%}" for row in mine}
        table.append({"condition": condition} | shares)
    return markdown(table)


def ablation() -> str:
    """What the parts of a prompt are worth."""
    table = {}
    for row in read("ablation")["rows"]:
        what = row["ablation"].replace("_", " ")
        line = table.setdefault(what, {"what was done": what})
        q = f"q {row['q_value']:.2g}" if row["q_value"] >= 0.001 else "q < 0.001"
        line[f"{row['cells']}: months more error"] = f"{ranged(row, 'difference', '{:.0f}')}, {q}"
    return markdown(list(table.values()))


def null_conditions() -> str:
    """Random case and control splits."""
    return markdown(
        [
            {
                "unit": row["unit"],
                "called at 0.05": f"{row['share']:.1%} ({100 * row['share_low']:.1f} to {100 * row['share_high']:.1f})",
                "conditions": row["n"],
            }
            for row in _part("null")
        ]
    )


def confounded() -> str:
    """Older patients, and patients of half the counts."""
    rows = [row for row in _part("confounded") if not row["refused"]]
    table = []
    for key in dict.fromkeys((row["design"], row["condition"]) for row in rows):
        mine = [row for row in rows if (row["design"], row["condition"]) == key]

        def mean(column, mine=mine):
            known = [row[column] for row in mine if row[column] is not None]
            return f"{sum(known) / len(known):.1f}" if known else "none"

        table.append(
            {
                "design": key[0],
                "planted, years": mine[0]["truth"],
                "difference of means": mean("difference_of_means"),
                "adjusted, not matched": mean("not_matched"),
                "`mt.tl.age_acceleration`": mean("effect"),
                "truth in the interval": f"{sum(row['covered'] for row in mine)} of {len(mine)}",
            }
        )
    return markdown(table)


DOUBLETS = {
    ("planted", "truth", "all"): "simulated cells, planted doublets of one type",
    ("hashtags", "truth", "all"): "four cell lines, doublets known from hashtags",
    ("heart", "simulated", "same type"): "heart nuclei, made of two of one type",
    ("heart", "simulated", "cross type"): "heart nuclei, made of two types",
}


def _doublet_rows(features: str) -> list[tuple[str, dict]]:
    cases = read("doublets")["cases"]
    return [
        (name, row)
        for (case, where, kind), name in DOUBLETS.items()
        for row in cases[case]["rows"]
        if (row["set"], row.get("doublets"), row.get("features")) == (where, kind, features)
    ]


def doublets() -> str:
    """Doublets beside scrublet's."""
    table = {}
    for name, row in _doublet_rows("all"):
        units = f"{row['n_doublets']:.0f} among {row['n_cells']:,} ({row['n_units']:.0f} {row['unit']}s)"
        line = table.setdefault(name, {"cells": name, "doublets": units})
        which = "`mt.tl.doublets`" if row["detector"] == "detector" else row["detector"]
        line[f"{which}: AUROC"] = ranged(row, "auroc", "{:.2f}")
        line[f"{which}: average precision"] = ranged(row, "average_precision", "{:.2f}")
        if row.get("calibration_error") is not None:
            line["calibration error"] = f"{row['calibration_error']:.3f}"
    return markdown(list(table.values()))


def doublet_features() -> str:
    """The same detector with some of its features."""
    rows = read("doublets")["cases"]["heart"]["rows"]
    table = []
    for features in dict.fromkeys(row["features"] for row in rows if "features" in row):
        line = {"features": features}
        line |= {
            name: ranged(row, "auroc", "{:.3f}")
            for name, row in _doublet_rows(features)
            if row["detector"] == "detector"
        }
        table.append(line)
    return markdown(table)


def generated() -> str:
    """Generated cells beside true and trivial ones, at each temperature."""
    rows, table = read("generated_cells")["rows"], []

    def one(temperature: float, part: str, form: str, measure: str, **which: str) -> str:
        (row,) = [
            r
            for r in rows
            if (r["part"], r.get("temperature"), r.get("group", "all")) == (part, temperature, "all")
            and all(r[k] == v for k, v in which.items())
        ]
        ends = {"_low": "ci_low", "_high": "ci_high"} if "ci_low" in row else {}
        return ranged(
            {measure + e: row.get(ends.get(e, measure + e)) for e in ("", "_low", "_high")}, measure, form
        )

    def line(what: str, temperature: float, who: str, cells: str, training: str) -> None:
        table.append(
            {
                "cells": what,
                "singlets": one(temperature, "singlets", "{:.0%}", "singlet_fraction", population=who),
                "of the type asked for": one(temperature, "concordance", "{:.0%}", "accuracy", cells=cells),
                "trained on them (macro F1)": one(
                    temperature, "train on generated", "{:.2f}", "macro_f1", training=training
                ),
                "the same, genes shuffled": one(
                    temperature,
                    "train on generated",
                    "{:.2f}",
                    "macro_f1",
                    training=f"{training}, genes shuffled",
                ),
                "age: r": one(temperature, "age", "{:.2f}", "r", cells=cells),
            }
        )

    for temperature in dict.fromkeys(r["temperature"] for r in rows if "temperature" in r):
        line(f"written, temperature {temperature:g}", temperature, "queries", "generated", "generated")
    line("true cells", temperature, "cells", "query", "true")
    return markdown(table)


def steering() -> str:
    """A real response predicted, on genes that were not edited."""
    found = read("steering")
    rows = [
        {
            "prediction": row["method"],
            "Pearson-delta": ranged(row | {"r": row["pearson_control"]}, "r", "{:.2f}"),
            "mean squared error": f"{row['mse']:.4f}",
            "right direction of the 20 most changed": f"{row['top_direction']:.0%}",
            f"known genes in the top {found['known_in_top_of']}": f"{row['known_in_top']} of {row['n_known']}",
        }
        for row in found["rows"]
        if row["genes"] == "genes not edited" and row["pearson_control"] is not None
    ]
    return markdown(rows)


def steering_chains() -> str:
    """How far chains have come after so many steps."""
    found = read("steering_chains")["rows"]
    steps = [name for name in found[0] if name.startswith("rhat_")]
    return markdown(
        [
            {
                "proposal": row["proposal"] + (f" of {row['block_size']}" if "block_size" in row else ""),
                "strength": f"{row['strength']:.0f}",
                "accepted": f"{row['acceptance']:.0%}",
            }
            | {f"R-hat after {name.removeprefix('rhat_')}": f"{row[name]:.2f}" for name in steps}
            | {
                "effective size": f"{row['effective_size']:.0f}",
                "distance (start)": f"{row['distance']:.2f} ({row['distance_start']:.2f})",
                "log-likelihood (start)": f"{row['log_likelihood']:.2f} ({row['log_likelihood_start']:.2f})",
            }
            for row in found
        ]
    )


def responses(case: str, **names: str) -> list[dict]:
    """Ways to predict a response, with the columns that tell the settings apart."""
    rows = []
    for row in read("response")["cases"][case]["rows"]:
        if row["mse"] is None:
            continue
        interval = {"r": row["pearson_control"], "r_low": row["low"], "r_high": row["high"]}
        lead = {name: row[name] for name in ("difference", "difference_low", "difference_high")}
        tested = row["kind"] == "way" and row["difference_low"] is not None and row["p_value"] is not None
        rows.append(
            {
                **{shown: row[name] for name, shown in names.items()},
                "prediction": f"{row['method']} ({row['kind']})",
                "Pearson-delta": ranged(interval, "r", "{:.2f}"),
                "ahead of the perturbation mean": ranged(lead, "difference", "{:+.2f}") if tested else "",
                "p": ("< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.2g}") if tested else "",
                "top 20": ""
                if row["pearson_control_top20"] is None
                else f"{row['pearson_control_top20']:.2f}",
                "weighted error": f"{row['mse_weighted']:.3f}",
            }
        )
    return rows


def response_glioma() -> str:
    """Donors left out, one at a time."""
    return markdown(responses("glioma", embedding="embedding"))


def response_planted() -> str:
    """Simulated lines and drugs."""
    return markdown(responses("planted", answers="answers", held_out="left out"))


def response_interferon() -> str:
    """Cells, and cell types, left out."""
    return markdown(responses("interferon", split="left out"))


def response_mixtures() -> str:
    """What other donors' answers say of a donor's own."""
    return markdown(
        [
            {
                "donor": row["donor"],
                "mean of the others": f"{row['mean_of_others']:.2f}",
                "best mixture of the others, knowing half of the answer": f"{row['best_mixture']:.2f}",
                "the donor's own other half": f"{row['own_half']:.2f}",
                "most like a single other": f"{row['nearest_single_donor']:.2f}",
            }
            for row in read("response")["cases"]["mixtures"]["rows"]
        ]
    )


def separable() -> str:
    """Treated cells told from controls by their neighbours."""
    names = {"X_maxtoki": "demo model", "PCA": "PCA", "depth": "depth alone"}
    return markdown(
        [
            {
                "embedding": names[row["embedding"]],
                "AUROC": ranged(
                    {"r": row["auroc"], "r_low": row["low"], "r_high": row["high"]}, "r", "{:.2f}"
                ),
                "exchanged labels, 95th percentile": f"{row['null_high']:.2f}",
                "p": f"{row['p_value']:.3f}",
                "demo model ahead by": ""
                if row["embedding"] == "X_maxtoki"
                else ranged(row, "difference", "{:+.2f}"),
            }
            for row in read("response")["cases"]["separability"]["rows"]
        ]
    )


def response_plates() -> str:
    """Plates of simulated screens."""
    return markdown(
        [
            {
                "effect of drugs (log2)": row["effect"],
                "clean plates flagged": f"{row['clean_flagged']} of {row['clean_plates']}",
                "failed plates found": row["failed_found"],
                "edge effects found": row["edge_found"],
                "other plates of these screens flagged": row["others_flagged"],
            }
            for row in read("response")["cases"]["plates"]["rows"]
        ]
    )


MIXED = {
    "PCA": "PCA",
    "PCA + Harmony": "PCA + Harmony",
    "MaxToki": "demo model",
    "MaxToki + Harmony": "demo model + Harmony",
    "untrained": "same shape, untrained",
    "chance": "cells placed at random",
    "expression": "expression itself",
    "majority": "commonest label",
}


def mixing() -> str:
    """Two studies on one map."""
    rows = [row for row in read("mixing")["rows"] if "lisi" in row]
    return markdown(
        [
            {
                "sorted blood and": row["query"],
                "embedding": MIXED[row["embedding"]],
                "iLISI": ranged(row, "lisi", "{:.2f}"),
                "iLISI of perfect mixing": f"{row['lisi_chance']:.2f}",
                "neighbours of the other study, of those expected": ranged(row, "other_study", "{:.0%}"),
                "nearest of the other study that have the cell's type": ranged(row, "same_type", "{:.0%}"),
            }
            for row in rows
        ]
    )


ANNOTATED = {
    "planted": ("planted, 160 labels", "cell_type"),
    "tuned": ("planted, 160 labels", "cell_type"),
    "blood": ("sorted blood, 10 types", "sorted_type"),
    "heart": ("heart nuclei, 9 types", "cell_type"),
    "brain": ("brain, 9 types", "cell_type"),
}
NAMED = {
    "probe": "demo model, linear probe",
    "knn": "demo model, 15 neighbours",
    "fine-tuned": "demo model, fine-tuned",
}
NAMED |= {
    "PCA logistic": "logistic regression on PCA",
    "majority": "the commonest label",
    "permuted": "calls permuted",
}


def _annotated() -> dict:
    """Parts of the benchmark of annotation that were run."""
    return read("annotate")["cases"]


def annotation() -> str:
    """How well held-out cells are named."""
    table = []
    for part, (name, column) in ANNOTATED.items():
        rows = _annotated().get(part, {"rows": []})["rows"]
        for row in (row for row in rows if row["column"] == column):
            of = f"{row['n_cells']:,} cells" + (
                f" of {row['n_units']} donors" if row["unit"] == "donor" else ""
            )
            table.append(
                {
                    "cells": name,
                    "judged on": f"{row['protocol']}: {of}",
                    "named by": NAMED[row["predictor"]],
                    "macro F1": ranged(row, "macro_f1", "{:.2f}"),
                    "accuracy": ranged(row, "accuracy", "{:.0%}"),
                    "steps in the ontology": ranged(row, "ontology_distance", "{:.2f}"),
                    "calibration error": ranged(row, "calibration_error", "{:.3f}"),
                    "called unknown": ranged(row, "false_alarms", "{:.1%}"),
                }
            )
    return markdown(table)


def annotated_unknown() -> str:
    """Cells of none of the labels, and what cells of each kind are sure of."""
    parts = [case for name, case in _annotated().items() if name in ("planted", "tuned")]
    sure = {row["predictor"]: row for part in parts for row in part["sure"]}
    table = []
    for row in (row for part in parts for row in part["unknown"]):
        of = sure.get(row["predictor"], {})
        table.append(
            {"named by": NAMED[row["predictor"]]}
            | {
                f"called unknown: {name}": f"{row[kind]:.0%}"
                for kind, name in {
                    "known": "known",
                    "near": "beside",
                    "far": "other branch",
                }.items()
            }
            | {
                f"{said}: {name}": f"{of[f'{key}_{kind}']:.0%}" if of else ""
                for kind, name in {"known": "known", "near": "beside"}.items()
                for key, said in {"best": "likeliest label right", "sure": "sure and right"}.items()
            }
            | {"sure of nothing: known": f"{of['nothing_known']:.0%}" if of else ""}
        )
    return markdown(table)


def annotated_speed() -> str:
    """Seconds to name cells."""
    names = {
        "rank": "ranking",
        "embed": "embedding",
        "annotate_probe": "names by the probe",
        "annotate_knn": "names by 15 neighbours",
        "neighbors_alone": "of which neighbours",
    }
    return markdown(
        [
            {"cells": f"{row['n_cells']:,}"}
            | {f"{name}, s": f"{row[key]:,.1f}" for key, name in names.items()}
            for row in _annotated()["speed"]["rows"]
        ]
    )


def annotated_across() -> str:
    """Labels of the sorted blood on cells of another study."""
    return markdown(
        [
            {
                "named by": NAMED[row["predictor"]],
                "macro F1": ranged(row, "macro_f1", "{:.2f}"),
                "accuracy": ranged(row, "accuracy", "{:.0%}"),
                "called unknown": ranged(row, "unknown", "{:.0%}"),
            }
            for row in _annotated()["blood"]["across"]
        ]
    )


def label_transfer() -> str:
    """Labels of the sorted blood on cells of another study."""
    table = []
    for row in read("mixing")["rows"]:
        line = {"labels for": row["query"], "from": MIXED[row["embedding"]]}
        for key, name in {"knn": "15 neighbours", "logistic": "logistic regression"}.items():
            line[f"{name}: macro F1"] = ranged(row, f"{key}_f1", "{:.2f}")
            line[f"{name}: accuracy"] = ranged(row, f"{key}_accuracy", "{:.0%}")
        table.append(line)
    return markdown(table)


def screens() -> str:
    """Whether a screen finds the genes that go with age."""
    cases, models = read("perturbation")["cases"], {"planted": "demo", "panel": "panel of 500 genes"}
    rows = []
    for case, model in models.items():
        for row in cases[case]["rows"] if case in cases else []:
            called, right = row["planted_called"], row["sign_right_called"]
            rows.append(
                {
                    "model": model,
                    "cells": row["group"],
                    "genes read in": f"{row['read_in']} donors or more",
                    "that go with age": row["n_planted"],
                    "against": f"{row['n_genes'] - row['n_planted']}, {row['against']}",
                    "AUROC: beyond matched genes (z)": f"{row['auroc_z']:.2f}",
                    "AUROC: excess over matched genes (years)": f"{row['auroc_excess']:.2f}",
                    "sign right": f"{row['sign_right_planted']:.0%}",
                    "of these called (sign right)": f"{called} ({right:.0%})" if called else "0",
                    "others called": row["n_called"] - called,
                }
            )
    return markdown(rows)


def screen_nulls() -> str:
    """What screens call where there is nothing."""
    cases = read("perturbation")["cases"]
    return markdown(
        [
            {
                "null": row["null"],
                "matched genes": row["n_null"],
                "screens": row["n_screens"],
                "p < 0.05": f"{row['share_p_below']:.1%}",
                "screens with a gene called at q 0.05": f"{row['screens_with_a_call']:.1%}",
            }
            for case in ("null", "null_panel", "models")
            if case in cases
            for row in cases[case]["rows"]
        ]
    )


def install() -> str:
    """Time and size of the README's first command."""
    content = read("install")
    row, where = content["rows"][0], content["environment"]
    return markdown(
        [
            {
                "installing": f"{row['install_seconds'] / 60:.1f} minutes, {row['installed_megabytes'] / 1000:.1f} GB",
                "`maxtoki demo`": f"{row['demo_seconds'] / 60:.1f} minutes",
                "`import maxtoki_toolkit`, with Python's own start": f"{row['import_seconds']:.2f} seconds",
                "measured": f"{where['date']}, {where['cores']} cores, torch {where['torch']}",
            }
        ]
    )


def fuzz() -> str:
    """Wrong inputs by kind, and how they were answered."""
    return markdown(
        [
            {
                "wrong inputs": row["inputs"],
                "number": f"{row['n']:,}",
                "clear": row["clear"],
                "ours, but names nothing": row["vague"],
                "accepted, with reason": row["accepted"],
                "accepted, wrongly": row["wrongly accepted"],
                "library error": row["library"],
                "Python error": row["python"],
                "loss": row["loss"],
                "crash": row["crash"],
                "clear, of those to refuse": ""
                if row["clear_share"] is None
                else f"{row['clear_share']:.1%}",
            }
            for row in read("fuzz")["rows"]
        ]
    )


def codebase() -> str:
    """Size and style of the package beside others: a column each."""
    packages = read("codebase")["rows"]

    def line(measure: str, write) -> dict:
        cells = {f"{row['package']} {row['version']}": write(row) for row in packages}
        return {"": measure} | cells

    def if_measured(row: dict, key: str, form: str) -> str:
        return form.format(row[key]) if key in row else ""

    return markdown(
        [
            line(
                "parameters of a public `pp` or `tl` function: median / most / share with more than 10",
                lambda row: (
                    f"{row['median_parameters']:g} / {row['most_parameters']} / {row['share_with_many']:.0%}"
                ),
            ),
            line("the function with most", lambda row: f"`{row['function_with_most']}`"),
            line("comments per 100 lines", lambda row: f"{row['comments_per_100_lines']:.1f}"),
            line("lines over 110 characters", lambda row: f"{row['share_of_long_lines']:.1%}"),
            line("lines of code", lambda row: f"{row['code_lines']:,}"),
            line(
                "files of one analysis (of the network)",
                lambda row: (
                    if_measured(row, "files_of_analysis", "{}")
                    + if_measured(row, "files_of_network", " ({})")
                ),
            ),
            line("that analysis", lambda row: if_measured(row, "analysis", "`{}`")),
            line("import, seconds", lambda row: if_measured(row, "import_seconds", "{:.1f}")),
        ]
    )


DICTIONARIES = {
    "topk": '`kind="topk"`',
    "batchtopk": '`kind="batchtopk"`',
    "matryoshka": '`kind="matryoshka"`',
    "PCA": "PCA, both directions",
    "ICA": "ICA, both directions",
    "random": "random directions",
    "sae": "autoencoder",
    "subspace": "the first k components",
}


def sae_toy() -> str:
    """Planted directions, found again or not."""
    return markdown(
        [
            {
                "dictionary": DICTIONARIES[row["dictionary"]],
                "cosine with the nearest direction": ranged(row, "cosine", "{:.3f}"),
                "worst seed": f"{row['least']:.3f}",
                "planted directions with a cosine above 0.9": f"{row['found']:.0%}",
            }
            for row in read("sae")["cases"]["toy"]["rows"]
        ]
    )


def sae_drivers() -> str:
    """Scores of nodes against all that they do."""
    return markdown(
        [
            {
                "score": row["score"],
                "Spearman correlation with the truth": ranged(row, "rho", "{:.2f}"),
                "circuits in which it is better": f"{row['share_better']:.0%}"
                if "share_better" in row
                else "",
            }
            for row in read("sae")["cases"]["drivers"]["rows"]
        ]
    )


def sae_layers() -> str:
    """What `mt.tl.driver_features` calls in networks of two layers."""
    rows = read("sae")["cases"]["drivers"]["layered"]
    return markdown(
        [
            {
                "sources with edges three times as strong": f"{row['planted']} of 100",
                "networks": row["networks"],
                "p < 0.05 among the others": ranged(row, "p_below", "{:.1%}"),
                "networks in which one of these is called at q 0.05": f"{row['networks_with_a_call']:.1%}",
                "p < 0.05 among the strong": f"{row['planted_p_below']:.0%}" if row["planted"] else "",
                "strong ones called": f"{row['planted_called']:.0%}" if row["planted"] else "",
                "rank correlation with strength": f"{row['r_strength']:.2f}",
            }
            for row in rows
        ]
    )


def _sae_cells() -> list[dict]:
    cases = read("sae")["cases"]
    names = [f"{name}{more}" for name in ("heart nuclei", "sorted blood") for more in ("", ", longer")]
    return [row for name in names if name in cases for row in cases[name]["rows"]]


def sae_again() -> str:
    """Features found again."""
    return markdown(
        [
            {
                "states of": f"{row['of']}, {row['cells']}",
                "features beside": row["compared with"],
                "cosine with the nearest": f"{row['cosine']:.2f}",
                "with a partner (cosine above 0.7)": f"{row['partner']:.0%}",
            }
            for row in _sae_cells()
            if "cosine" in row
        ]
    )


def sae_quality() -> str:
    """What autoencoders keep of the states of cells that they do not know."""
    table: dict[tuple, dict] = {}
    for row in _sae_cells():
        if "dictionary" not in row or row["measure"] == "active features":
            continue
        key = row["of"], row["cells"], row["dictionary"]
        line = {"states of": f"{key[0]}, {key[1]}", "dictionary": DICTIONARIES[key[2]]}
        table.setdefault(key, line)[row["measure"]] = ranged(row, "value", "{:.1%}")
    return markdown(list(table.values()))


def sae_speed() -> str:
    """Reading and training, beside sparsify."""
    return markdown(
        [
            {
                "features": f"{row['width']:,}",
                "states read and encoded a second": f"{row['states_read_a_second']:,}",
                "states trained on a second": f"{row['trained_a_second']:,}",
                "the same, sparsify": f"{row['sparsify_trained_a_second']:,}",
                "ours over sparsify": f"{row['times_sparsify']:.2f}",
                "decoding, there and back: all features, the active alone": (
                    f"{row['decode_dense_ms']:.0f}, {row['decode_gathered_ms']:.0f} ms"
                ),
            }
            for row in read("sae")["cases"]["speed"]["rows"]
        ]
    )


def sae_network() -> str:
    """Effects of features on later ones, and whether small steps agree."""
    first, *steps = read("sae")["cases"]["network"]["rows"]
    (family,) = read("sae")["cases"]["families"]["rows"]
    return markdown(
        [
            {
                "measure": f"{first['sources']:,} features ({first['active_sources']} active), processor seconds a nucleus"
            }
            | {"": f"{first['seconds']:.1f}"},
            {"measure": "the same with full passes of the model", "": f"{first['simple_seconds']:.1f}"},
            {"measure": "times as fast", "": f"{first['times_simple']:.1f}"},
            {"measure": "processor seconds a thousand active features"}
            | {"": f"{first['seconds_a_thousand_active']:.1f}"},
            *(
                {
                    "measure": f"steps of 0.1 and 0.01, effects on {row['nuclei']} "
                    f"{'nuclei' if row['nuclei'] > 1 else 'nucleus'}: Pearson, Spearman, same sign, "
                    "within a tenth",
                    "": f"{row['r']:.2f}, {row['rho']:.2f}, {row['same_sign']:.0%}, {row['within_tenth']:.0%}",
                }
                for row in steps
            ),
            {
                "measure": f"{family['features']} features in {family['families']} families, on {family['nuclei']} nuclei: times as fast as one by one",
                "": f"{family['times']:.0f}",
            },
            {
                "measure": "effects of the families beside the sums of their features' effects: Pearson",
                "": f"{family['r_with_sum']:.2f}",
            },
        ]
    )


def sae_branch() -> str:
    """What sets of features do to the branch that clones take, in both courses."""
    rows = read("sae")["cases"]["branch"]["rows"]
    table: dict[str, dict] = {}
    for row in rows:
        if row["set"] == "model":
            continue
        course = f"{row['course']}, course {row['seed'] + 1}"
        line = table.setdefault(row["set"], {"features": row["set"], "length": ""})
        if "norm" in row and not line["length"]:
            line["length"] = f"{row['norm']:.1f}"
        text = ranged(row, "effect", "{:.2f}")
        if row["course"] == "driver decides":
            text += f"; {ranged(row, 'moved', '{:.0%}')}"
        line[course] = text
    return markdown(list(table.values()))


def sae_programmes() -> str:
    """How well what is planted is told in other donors."""
    names = {
        "features": "features of the demo model's autoencoder",
        "PCA": "principal components of its states",
    }
    names |= {"untrained": "features of an untrained model", "genes": "single genes"}
    table: dict[str, dict] = {}
    for row in read("sae")["cases"]["programmes"]["rows"]:
        name = names.get(row["dictionary"], row["dictionary"])
        column = {"AUROC": "cell types (AUROC)", "rho": "activities of factors (Spearman)"}[row["measure"]]
        table.setdefault(name, {"best score of one half of the donors": name, "cell types (AUROC)": ""})
        table[name][column] = ranged(row, "value", "{:.2f}")
    return markdown(list(table.values()))


def gene_effects() -> str:
    """Effects of genes on others against known regulons, beside coexpression and random weights."""
    names = {"effect": "size of the effect", "effect_marginal": "its margins", "coexpression": "coexpression"}
    names |= {
        "target_rank": "rank of the target",
        "target_variance": "its variance",
        "expression": "expression",
    }
    lines = []
    for row in read("gene_effects")["cases"]["onek1k"]["rows"]:
        if row["table"] == "scores":
            lines.append(
                {
                    "model": row["model"],
                    "predictor": names[row["predictor"]],
                    "AUROC": ranged(row, "auroc", "{:.2f}"),
                    "permuted regulons": f"{row['null_auroc']:.2f}",
                    "p": f"{row['p_value']:.2f}",
                    "edges of sources": f"{row['n_edges']} of {row['n_sources']}",
                }
            )
    return markdown(lines)


def _space(case: str) -> dict:
    return read("space")["cases"][case]


def space_planted() -> str:
    """Simulated sections, planted and free."""
    return markdown(
        [
            {
                "sections": row["sections"],
                "tissues of 10 sections": row["n_tissues"],
                "pairs of the niche called": f"{row['niche_pairs_called']:.0%}",
                "all pairs with p < 0.05, permutations": f"{row['pairs_with_p_below_05']:.1%}",
                "the same, over donors": f"{row['pairs_with_unit_p_below_05']:.1%}",
                "gradients called": f"{row['features_called']:.0%}",
                "a range found": f"{row['ranges_found']} of {row['n_tissues']}",
                "its median (planted: 250 µm)": ""
                if row["range_median"] is None
                else f"{float(row['range_median']):.0f} µm",
                "intervals that hold it": ""
                if row["intervals_that_hold_the_range"] is None
                else f"{row['intervals_that_hold_the_range']:.0%}",
            }
            for row in _space("planted")["rows"]
        ]
    )


def space_breast() -> str:
    """Moran's I of genes, dimensions and features on breast spots."""
    names = {
        "genes": "most variable genes",
        "X_maxtoki": "dimensions of the demo model's embedding",
        "features": "features of its autoencoder",
        "PCA": "principal components of these genes",
        "cell density": "baseline: density of spots",
        "library size": "baseline: counts of a spot",
    }

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    return markdown(
        [
            {
                "what": names[row["what"]],
                "number": row["n"],
                "Moran's I, median": number(row["morans_i_median"]),
                "largest": number(row["morans_i_largest"]),
                "permuted": number(row["null_mean"]),
                "q < 0.05": share(row["share_called"]),
                "median without counts and density": number(row["adjusted_median"]),
                "q < 0.05 without them": share(row["share_called_adjusted"]),
            }
            for row in _space("breast")["rows"]
        ]
    )


def space_genes() -> str:
    """Two genes on the sections, one by one."""
    return markdown(
        [
            {
                "gene": row["feature"],
                "Moran's I by section": ", ".join(f"{value:.2f}" for value in row["by_section"]),
                "mean (95% interval over sections)": ranged(
                    {"i": row["morans_i"], "i_low": row["ci_low"], "i_high": row["ci_high"]}, "i", "{:.2f}"
                ),
                "permuted, middle 95%": f"{row['null_low']:.2f} to {row['null_high']:.2f}",
                "without counts and density": f"{row['adjusted']:.2f}",
            }
            for row in _space("breast")["genes"]
        ]
    )


def _stage(found: dict) -> str:
    if found["mean"] is None:
        return "none"
    interval = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"{found['mean']:.2f}{interval}, {found['n_donors']}"


def space_beta() -> str:
    """What is left of beta cells, by stage."""
    found = _space("islets")["beta_share"]
    stages = [name for name, value in found.items() if isinstance(value, dict)]
    row = {name.lower(): _stage(found[name]) for name in stages}
    rank = {
        "rank correlation with the stage": f"{found['spearman_with_stage']:.2f}",
        "p": f"{found['p_value']:.2g}",
    }
    return markdown([{"": "beta cells among endocrine cells, share"} | row | rank])


def space_islets() -> str:
    """Pairs of cell types in islets, by stage."""
    return markdown(
        [
            {
                "cell - neighbour": row["pair"],
                "all donors": ranged(
                    {"x": row["log2_enrichment"], "x_low": row["ci_low"], "x_high": row["ci_high"]},
                    "x",
                    "{:.2f}",
                ),
                "permuted": f"{row['null_low']:.2f} to {row['null_high']:.2f}",
                "q, permutations": f"{row['q_value']:.2g}",
                "q, donors": f"{row['unit_q_value']:.2g}" if row["unit_q_value"] else "< 0.0001",
                **{name.lower(): _stage(found) for name, found in row["by_stage"].items()},
            }
            for row in _space("islets")["rows"]
        ]
    )


PREDICTORS_OF_GENES = (
    "MaxToki",
    "untrained",
    "detection",
    "expression",
    "gene length",
    "PCA loadings",
    "all baselines",
    "all baselines and MaxToki",
)
GENES_ARE_IN = {"cells": "in cells", "alone": "alone", "table": "embedding table"}
GENE_TASKS = {
    "essential": "core essential, CEGv2 against NEGv1",
    "broad": "needed by over 70% of DepMap's lines, against under 5%",
    "factors": "transcription factors",
}


def gene_labels() -> str:
    """AUROC of labels of genes, a column a predictor."""
    cases, table = read("gene_tasks")["cases"], []
    for case, label in GENE_TASKS.items():
        rows = cases.get(case, {"rows": []})["rows"]
        for context in dict.fromkeys(row["context"] for row in rows):
            found = {row["predictor"]: row for row in rows if row["context"] == context}
            model = found["MaxToki"]
            line = {
                "label": label,
                "genes are read": GENES_ARE_IN[context],
                "with it, genes": f"{model['n_positive']:,} of {model['n_genes']:,}",
            }
            line["MaxToki"] = ranged(model, "auroc", "{:.2f}")
            line |= {name: f"{found[name]['auroc']:.2f}" for name in PREDICTORS_OF_GENES[1:] if name in found}
            best = found["all baselines"]
            line["MaxToki less all baselines"] = ranged(best, "difference", "{:.2f}")
            line["95% of shuffles below"] = f"{model['null_auroc_high']:.2f}"
            table.append(line)
    return markdown(table)


def gene_dependencies() -> str:
    """Dependencies of lines that were left out."""
    cases, table = read("gene_tasks")["cases"], []
    sets = [
        ("context", row, f"four lung lines, genes that 10% to {row['max_share']:.0%} of the others need")
        for row in cases.get("context", {"rows": []})["rows"]
    ]
    sets += [
        ("panel", row, f"200 simulated lines, {row['labels']}")
        for row in cases.get("panel", {"rows": []})["rows"]
    ]
    for _, row, label in sets:
        high = {name: row[f"null_{name}_high"] for name in ("auroc", "precision")}
        table.append(
            {
                "lines": label,
                "predictor": row["predictor"],
                "AUROC among genes of like share": ranged(row, "auroc", "{:.3f}"),
                "95% of shuffles below": f"{high['auroc']:.3f}",
                "precision of the top genes": ranged(row, "precision", "{:.2f}"),
                "95% of shuffles below ": f"{high['precision']:.2f}",
                "all candidates": f"{row['prevalence']:.2f}",
                "p": f"{row['p_value']:.2f}",
            }
        )
    return markdown(table)


_TABLES = (
    codebase,
    fuzz,
    install,
    embedding,
    planted,
    real,
    ablation,
    acceleration,
    power,
    null_conditions,
    confounded,
    doublets,
    doublet_features,
    generated,
    screens,
    screen_nulls,
    mixing,
    label_transfer,
    annotation,
    annotated_across,
    annotated_unknown,
    annotated_speed,
    steering,
    steering_chains,
    response_glioma,
    response_interferon,
    response_mixtures,
    separable,
    response_planted,
    response_plates,
    sae_toy,
    sae_again,
    sae_quality,
    sae_drivers,
    sae_layers,
    sae_branch,
    sae_programmes,
    sae_speed,
    sae_network,
    gene_effects,
    space_planted,
    space_breast,
    space_genes,
    space_beta,
    space_islets,
    gene_labels,
    gene_dependencies,
    time_heads,
    tokenize,
    files,
    speed,
)
TABLES = {f.__name__: f for f in _TABLES}


def fill(text: str) -> str:
    """The text with its tables written anew."""
    return MARKED.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


if __name__ == "__main__":
    for path in FILES:
        path.write_text(fill(path.read_text()))
