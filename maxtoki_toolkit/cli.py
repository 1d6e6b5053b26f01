"""The command line: `maxtoki demo`, `embed`, `age`, `annotate`, `prompts`, `predict`, `generate`, `encode`, `corpus`, `clock` and others."""

from __future__ import annotations

import re
import signal
import sys
import threading
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from . import __version__, _keys, settings
from ._errors import is_ours, tell

_Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what this command wrote there with other settings or data."),
]
_ShareArray = Annotated[
    bool, typer.Option("--share-array", help="Share the job with the other tasks of this SLURM array.")
]
_Plan = Annotated[
    bool,
    typer.Option("--plan", help="Say what the model takes, in time, memory and money; write nothing."),
]
_Gpu = Annotated[
    str | None,
    typer.Option(help='With --plan: a GPU such as "H100"; by default this machine is measured.'),
]
_Devices = Annotated[int, typer.Option(min=1, help="With --plan: how many of them.")]
_Price = Annotated[float | None, typer.Option(min=0, help="With --plan: price of an hour of one.")]

_Cells = Annotated[
    Path,
    typer.Argument(help="Cells: raw counts (.h5ad, .zarr, 10x), encoded files, or a folder of `datasets`."),
]
_Prompts = Annotated[
    Path,
    typer.Argument(help="A folder of `datasets` with prompts (input_ids), or cells with prompts in uns."),
]
_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]
_Model = Annotated[
    str, typer.Option(help="demo, demo-cells, maxtoki-217m, maxtoki-1b, a folder or a hub id.")
]
_Revision = Annotated[str | None, typer.Option(help="Commit of the hub id.")]
_Tokens = Annotated[Path | None, typer.Option(help="Token dictionary (JSON), for published weights.")]
_Medians = Annotated[Path | None, typer.Option(help="Gene medians (JSON), for published weights.")]
_Layer = Annotated[str | None, typer.Option(help="Layer with the raw counts, by default X; raw for raw.X.")]
_GeneKey = Annotated[
    str | None, typer.Option(help="Column of .var with gene names; found by itself if not given.")
]
_Force = Annotated[
    bool, typer.Option("--force", help="Accept values that are linear in expression but no integers (TPM).")
]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
_Dtype = Annotated[str, typer.Option(help="auto (float32), float32, bfloat16, or on GPUs float16.")]
_Limit = Annotated[int | None, typer.Option(min=1, help="Read the first so many only.")]
_To = Annotated[str, typer.Option(help="h5ad or parquet.")]

app = typer.Typer(
    help="MaxToki for single cells.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; an error gives one line, not a traceback (unless `--debug`), and so does a warning."""
    warnings.formatwarning = _format_warning
    debug = settings.debug or "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]  # after a command as well as before it
    if threading.current_thread() is threading.main_thread():
        # A job that is cancelled cleans up behind itself.
        signal.signal(signal.SIGTERM, _stop)
    try:
        for flag, value in pairwise(sys.argv):
            if not value:  # as of a variable of the shell that is not set
                raise ValueError(f"{flag} is followed by an empty text. Give a value, or leave it out.")
        app()
    except Exception as error:
        if debug:
            raise
        hint = "" if is_ours(error) else " With --debug, the traceback is shown."
        print(f"maxtoki: {_in_flags(tell(error))}{hint}", file=sys.stderr)
        sys.exit(1)


def _stop(*_) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
    sys.exit(143)


def _format_warning(message, category, filename, lineno, line=None) -> str:
    # Warnings of libraries to programmers stay as they are.
    if category is UserWarning:
        return f"maxtoki: warning: {_in_flags(message)}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


# What Python calls by these names, the command line has as something else.
_WORDS = {"mt.reports.catalogue()": "maxtoki report --list", "mt.pp.encode_file.": "maxtoki encode."}


def _in_flags(message: object) -> str:
    """Put a message in the words of the command: layer='counts' is --layer counts, or a line of its settings."""
    text, command = str(message), typer.main.get_command(app)
    for python, words in _WORDS.items():
        text = text.replace(python, words)
    for word in sys.argv[1:]:
        command = getattr(command, "commands", {}).get(word, command)
    command = getattr(command, "commands", {}).get(_NOTEBOOK, command)
    options = {parameter.name for parameter in command.params}

    def flag(found: re.Match) -> str:
        before = text[: found.start()]
        if before.count("(") > before.count(")"):
            return found[0]  # in a call in Python
        name, value = found["name"], found["value"].strip("'\"")
        if name in options:
            return f"--{name.replace('_', '-')}{'' if value in ('', 'True') else f' {value}'}"
        value = {"True": "true", "False": "false"}.get(value, value)
        if "parameter" in options:
            return f"-p {name}={value}"
        return f"{name}: {value}" if "config" in options and value else found[0]

    return re.sub(
        r"(?<![\w.(=])(?P<name>[a-z_]+)=(?P<value>'[^']*'|\"[^\"]*\"|True|False|[\d.]*\d|)", flag, text
    )


def _version(*, show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=lambda show: _version(show=show), is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; MAXTOKI_DEBUG=1 does, too.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for figures and tables.")] = Path(
        "maxtoki_demo"
    ),
) -> None:
    """Embed 700 real heart nuclei, tell the time of simulated cells and which conditions look older (about two minutes)."""
    from .demo import run_demo

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = run_demo(output)
    shown = found.purity[["cells", "embedding", "purity", "ci_low", "ci_high", "n_cells"]]
    print("Share of a nucleus's 15 nearest neighbours that are of its cell type (95% interval over cells):\n")
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    scores = found.timelapse
    r, low, high, n = scores.loc[scores["group"] == "all", ["r", "r_low", "r_high", "n_units"]].iloc[0]
    print(
        f"\nPredicted against true time lapse, {n:.0f} simulated donors that the model never saw: "
        f"r = {r:.2f} (95% interval over donors {low:.2f} to {high:.2f})."
    )
    effects = found.acceleration
    effects = effects[(effects["group"] == "all") & (effects["predictor"] == "MaxToki")]
    print(
        "\nYears by which simulated conditions look older than controls of the same age (95% interval over donors):\n"
    )
    columns = ["condition", "planted", "effect", "effect_low", "effect_high", "q_value", "conclusion"]
    print(effects[columns].to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print("\nq values permute donors and correct for the four conditions; a single interval does not.")
    for note in caught:
        if issubclass(note.category, UserWarning):
            print(f"  {note.message}")
    print(f"\nFigures and tables are in {output}/: {', '.join(sorted(p.name for p in output.iterdir()))}")


def _dictionaries(tokens: Path | None, medians: Path | None):
    """The vocabulary of two files, or `None`."""
    from .models import Vocabulary

    if (tokens is None) != (medians is None):
        raise ValueError("Give --tokens and --medians together.")
    return None if tokens is None else Vocabulary.from_json(tokens, gene_medians=medians)


@app.command()
def embed(
    path: Annotated[
        Path, typer.Argument(help="Your cells, human, raw counts: .h5ad, .zarr, .h5 of 10x, or a 10x folder.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write, by default PATH's name + _maxtoki."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="demo, maxtoki-217m, maxtoki-1b, a folder or a hub id.")
    ] = "demo",
    revision: _Revision = None,
    tokens: _Tokens = None,
    medians: _Medians = None,
    color: Annotated[
        str | None, typer.Option(help="Column of .obs to colour the UMAP by, beside the clusters; guessed.")
    ] = None,
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    force: _Force = False,
    device: _Device = "auto",
    plan: _Plan = False,
    gpu: _Gpu = None,
    n_devices: _Devices = 1,
    hourly_price: _Price = None,
    share_array: _ShareArray = False,
    overwrite: _Overwrite = False,
) -> None:
    """Embed, cluster and plot the cells of a file, which is read a block at a time.

    The result holds the embedding, clusters and .obs, but no counts: add it to your own object by cell name.
    """
    from .models import load_model
    from .pipeline import embed_file, plan_embedding
    from .pp._formats import stem_of

    vocab = _dictionaries(tokens, medians)
    loaded = load_model(model, vocab=vocab, revision=revision, device=device)
    if plan:
        how = {"gpu": gpu, "n_devices": n_devices, "hourly_price": hourly_price}
        print(plan_embedding(path, loaded, layer=layer, gene_key=gene_key, force=force, **how))
        print("Neighbours, UMAP and clusters come on top of it.")
        return
    output = output or path.with_name(f"{stem_of(path)}_maxtoki")
    adata = embed_file(
        path,
        output,
        loaded,
        color=color,
        layer=layer,
        gene_key=gene_key,
        force=force,
        share_array=share_array,
        overwrite=overwrite,
    )
    if adata is None:
        print(f"This process has done its share; the last one to finish writes {output}/.")
        return
    if model == "demo":
        print(
            "Note: the demo model has learned from heart nuclei and simulated cells; it is for trying things out."
        )
    print(f"{adata.n_obs:,} cells in {adata.obs[_keys.LEIDEN].nunique()} clusters.")
    print(
        f"Embedding, tables and figures are in {output}/: {', '.join(sorted(p.name for p in output.iterdir()))}"
    )


@app.command()
def age(
    path: Annotated[
        Path, typer.Argument(help="Your cells, human, raw counts: .h5ad, .zarr, .h5 of 10x, or a 10x folder.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write, by default PATH's name + _ages.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Folder of a model that mt.train.temporal has trained on such cells; or demo.")
    ] = "demo",
    time_key: Annotated[
        str | None, typer.Option(help="Column of .obs with known ages, numbers or text; guessed.")
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option(help="Their unit, if the column's name does not say it.")
    ] = None,
    donor_key: Annotated[str | None, typer.Option(help="Column of .obs with donors; guessed.")] = None,
    groupby: Annotated[str | None, typer.Option(help="Column of .obs with cell types; guessed.")] = None,
    condition_key: Annotated[
        str | None, typer.Option(help="Column of .obs with conditions; guessed.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Condition of the donors who are the reference; guessed.")
    ] = None,
    n_contexts: Annotated[int, typer.Option(help="Contexts that each cell is read after.")] = 8,
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    force: _Force = False,
    device: _Device = "auto",
    overwrite: _Overwrite = False,
) -> None:
    """Say how old cells look, beside donors of known age: a table of cells, one of donors, and a figure."""
    from . import get
    from .ages import age_file
    from .models import load_model
    from .models.load import SHIPPED
    from .pp._formats import stem_of

    output = output or path.with_name(f"{stem_of(path)}_ages")
    adata = age_file(
        path,
        output,
        load_model(model, device=device),
        time_key=time_key,
        donor_key=donor_key,
        groupby=groupby,
        condition_key=condition_key,
        control=control,
        time_unit=time_unit,
        n_contexts=n_contexts,
        layer=layer,
        gene_key=gene_key,
        force=force,
        overwrite=overwrite,
    )
    if model in SHIPPED:
        print(
            "Note: the time that the demo model tells is that of a simulation. What follows is worth what the reference donors' "
            "errors say; train a model on your own controls (mt.train.temporal) for more."
        )
    groups = get.table(adata, "predict_age", "groups")
    unit = groups.attrs["unit"]
    for row in groups.itertuples():
        found = (
            f"median error {row.median_error:.0f} {unit} over {row.n_reference_donors} reference donors, "
            f"of their mean age {row.median_error_mean_age:.0f}"
        )
        print(f"{row.group}: {row.reason or found}")
    print(f"Ages are in {output}/: {', '.join(sorted(p.name for p in output.iterdir()))}")


@app.command()
def prompts(
    path: _Cells,
    output: _Output,
    model: Annotated[
        str | None,
        typer.Option(
            help="As for the others; by default demo, and demo-cells for --task cell, as generate has it."
        ),
    ] = None,
    revision: _Revision = None,
    tokens: _Tokens = None,
    medians: _Medians = None,
    time_key: Annotated[
        str | None, typer.Option(help="Column of .obs with the time, in whole units; guessed.")
    ] = None,
    groupby: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of .obs in which cells of a prompt agree, several times for several; guessed."
        ),
    ] = None,
    donor_key: Annotated[str | None, typer.Option(help="Column of .obs with donors; guessed.")] = None,
    task: Annotated[
        str, typer.Option(help="timelapse, to be predicted, or cell, to be generated.")
    ] = "timelapse",
    n_prompts: Annotated[int, typer.Option(min=1, help="Prompts to draw.")] = 1000,
    min_context: Annotated[int, typer.Option(min=1, help="Fewest context cells of a prompt.")] = 2,
    max_context: Annotated[int, typer.Option(min=1, help="Most context cells of a prompt.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 0,
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    force: _Force = False,
    overwrite: _Overwrite = False,
) -> None:
    """Draw prompts from cells and write them down, with their answers, as a folder of `datasets`: the original's paragraphs."""
    from .batch import prompt_file
    from .models import load_model

    vocab = _dictionaries(tokens, medians)
    model = model or ("demo-cells" if task == "cell" else "demo")
    loaded = load_model(model, vocab=vocab, revision=revision, device="cpu")
    sampling = {"time_key": time_key, "groupby": groupby, "donor_key": donor_key, "task": task, "rng": seed}
    sampling |= {"n_prompts": n_prompts, "context_size": (min_context, max_context)}
    reading = {"layer": layer, "gene_key": gene_key, "force": force}
    n = prompt_file(path, output, loaded, sampling=sampling, reading=reading, overwrite=overwrite)
    print(f"{n:,} prompts are in {output}/.")


@app.command()
def predict(
    path: _Prompts,
    output: _Output,
    model: _Model = "demo",
    revision: _Revision = None,
    tokens: _Tokens = None,
    medians: _Medians = None,
    to: _To = "h5ad",
    limit: _Limit = None,
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    force: _Force = False,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    share_array: _ShareArray = False,
    overwrite: _Overwrite = False,
) -> None:
    """Read the lapses that prompts ask for, a block at a time; called again, it goes on. For ages of cells: maxtoki age."""
    from .batch import predict_file
    from .models import load_model

    vocab = _dictionaries(tokens, medians)
    loaded = load_model(model, vocab=vocab, revision=revision, device=device, dtype=dtype)
    reading = {"layer": layer, "gene_key": gene_key, "force": force}
    settings = {"to": to, "limit": limit, "share_array": share_array, "overwrite": overwrite}
    _say(predict_file(path, output, loaded, reading=reading, **settings), output)


@app.command()
def generate(
    path: Annotated[
        Path,
        typer.Argument(
            help="Prompts, as for predict, that ask for cells; with --n-given cells, as for prompts."
        ),
    ],
    output: _Output,
    model: _Model = "demo-cells",
    revision: _Revision = None,
    tokens: _Tokens = None,
    medians: _Medians = None,
    n_given: Annotated[
        int | None, typer.Option(min=0, help="Go on with each cell from so many of its highest ranked genes.")
    ] = None,
    n_samples: Annotated[int, typer.Option(min=1, help="Cells for each prompt.")] = 1,
    max_genes: Annotated[int | None, typer.Option(min=1, help="Genes after which a cell is ended.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is the model's favourite.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k likeliest genes; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest of this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 0,
    cache_gb: Annotated[
        float | None,
        typer.Option(min=0, help="Memory for keys and values, in GB; by default what suits the device."),
    ] = None,
    to: _To = "h5ad",
    limit: _Limit = None,
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    force: _Force = False,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    share_array: _ShareArray = False,
    overwrite: _Overwrite = False,
) -> None:
    """Write the cells that prompts ask for, a block at a time; called again, it goes on."""
    from .batch import generate_file
    from .models import load_model
    from .models.generation import tokens_in

    vocab = _dictionaries(tokens, medians)
    loaded = load_model(model, vocab=vocab, revision=revision, device=device, dtype=dtype)
    sampling = {"n_samples": n_samples, "max_genes": max_genes, "temperature": temperature}
    sampling |= {"top_k": top_k, "top_p": top_p}
    if cache_gb is not None:
        sampling["max_tokens"] = tokens_in(loaded, cache_gb)
    reading = {"layer": layer, "gene_key": gene_key, "force": force}
    settings = {"to": to, "limit": limit, "share_array": share_array, "overwrite": overwrite}
    found = generate_file(
        path, output, loaded, n_given=n_given, sampling=sampling, rng=seed, reading=reading, **settings
    )
    _say(found, output)


def _say(found: Path | None, output: Path) -> None:
    if found is None:
        print(f"This process has done its share; the last one to finish writes {output}/.")
    else:
        print(f"{found} is there.")


@app.command()
def annotate(
    path: Annotated[
        Path, typer.Argument(help="Your cells, human, raw counts: .h5ad, .zarr, .h5 of 10x, or a 10x folder.")
    ],
    reference: Annotated[
        Path | None, typer.Option(help="Labelled cells, human, raw counts, in any of these formats.")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="In place of a reference: the folder that mt.train.classify wrote.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write, by default PATH's name + _annotated."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="demo, maxtoki-217m, maxtoki-1b, a folder or a hub id.")
    ] = "demo",
    revision: _Revision = None,
    tokens: _Tokens = None,
    medians: _Medians = None,
    groupby: Annotated[
        list[str] | None,
        typer.Option(help="Column of the reference's .obs with labels; several times for several; guessed."),
    ] = None,
    donor_key: Annotated[
        str | None, typer.Option(help="Column of the reference's .obs with donors; guessed.")
    ] = None,
    method: Annotated[str, typer.Option(help="probe, or knn.")] = "probe",
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    force: _Force = False,
    device: _Device = "auto",
    overwrite: _Overwrite = False,
) -> None:
    """Name cells by a labelled file or a classifier: a table of cells, how good the names are, and a figure."""
    from . import get
    from .annotation import annotate_file
    from .models import load_model
    from .models.load import SHIPPED
    from .pp._formats import stem_of

    output = output or path.with_name(f"{stem_of(path)}_annotated")
    loaded = load_model(model, vocab=_dictionaries(tokens, medians), revision=revision, device=device)
    adata = annotate_file(
        path,
        output,
        loaded,
        reference=reference,
        classifier=classifier,
        groupby=groupby or None,
        donor_key=donor_key,
        method=method,
        layer=layer,
        gene_key=gene_key,
        force=force,
        overwrite=overwrite,
    )
    if model in SHIPPED:
        print(
            "Note: the demo model has learned from heart nuclei and simulated cells; it is for trying things out."
        )
    scores = get.table(adata, _keys.ANNOTATE)
    for column, part in scores.groupby("column", sort=False):
        labels = adata.obs[f"{_keys.ANNOTATED}_{column}"]
        found = ", ".join(
            f"{row.predictor} {row.macro_f1:.2f} ({row.macro_f1_low:.2f} to {row.macro_f1_high:.2f})"
            for row in part.itertuples()
        )
        first = part.iloc[0]
        print(
            f"{column}: {labels[labels != 'unknown'].nunique()} labels for {len(labels):,} cells, {(labels == 'unknown').sum():,} of them unknown. "
            f"Macro F1 of {first['n_cells']:,} held-out reference cells (95% interval over {first['unit']}s): {found}."
        )
    for note in adata.uns[_keys.ANNOTATE]["params"]["warnings"]:
        print(note)
    print(f"Labels are in {output}/: {', '.join(sorted(p.name for p in output.iterdir()))}")


@app.command()
def encode(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Files of cells, human, raw counts: .h5ad, .zarr, .h5 of 10x, 10x folders."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the encoded files.")],
    model: Annotated[
        str, typer.Option(help="demo, maxtoki-217m, maxtoki-1b, a folder or a hub id.")
    ] = "demo",
    revision: _Revision = None,
    tokens: _Tokens = None,
    medians: _Medians = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask cluster instead.")] = None,
    to_dataset: Annotated[
        bool,
        typer.Option(
            "--to-dataset", help="Also write each as NAME.dataset, a folder of Hugging Face `datasets`."
        ),
    ] = False,
    time_key: Annotated[
        str | None, typer.Option(help="With --to-dataset: column of .obs that becomes its time.")
    ] = None,
    groupby: Annotated[
        list[str] | None,
        typer.Option(
            help="With --to-dataset: column of .obs (several times for several) that becomes time_group."
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=3, help="With --to-dataset: tokens of a cell, its marks included.")
    ] = 4096,
    layer: _Layer = None,
    gene_key: _GeneKey = None,
    force: _Force = False,
    overwrite: _Overwrite = False,
) -> None:
    """Rank-encode a collection of files for training, larger than memory if need be; called again, it goes on."""
    from .models import load_model
    from .pp import encode_files

    loaded = load_model(model, vocab=_dictionaries(tokens, medians), revision=revision, device="cpu")
    table = encode_files(
        paths,
        output,
        loaded,
        scheduler=scheduler,
        n_workers=workers,
        layer=layer,
        gene_key=gene_key,
        force=force,
        overwrite=overwrite,
    )
    if to_dataset:
        from .batch import encoded_to_dataset

        for encoded in table["encoded"]:
            encoded_to_dataset(
                encoded,
                loaded,
                time_key=time_key,
                groupby=groupby,
                max_length=max_length,
                overwrite=overwrite,
            )
    print(f"{table['n_cells'].sum():,} cells of {len(table)} files are in {output}/.")


@app.command()
def corpus(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="YAML: output, model, store; filters and balance.")
    ],
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be taken and its size on disk; write nothing.")
    ] = False,
    share_array: _ShareArray = False,
    overwrite: _Overwrite = False,
) -> None:
    """Make a corpus to train on from the CELLxGENE Census or any TileDB-SOMA store; called again, it goes on.

    The output has shards/ (for train), filters.csv (what each filter left), composition.csv, and the figure corpus_composition.

    corpus.yaml has the parameters of mt.datasets.census and the settings of mt.datasets.CorpusRecipe:

    \b
    output: corpus
    model: maxtoki-217m             # or a folder; vocab: {tokens: PATH, medians: PATH} beside it, or alone
    store: my_experiment            # or an address, or the date of a release; without it, the Census of 2025-11-08
    value_filter: sex != 'unknown'  # asked of the store itself
    keep:                           # beside normal, primary data, tissues, droplet protocols; null takes one out
      tissue_general: [heart, lung]
    known_age: true
    balance_sex: true               # in each decade of age
    cells_per_donor: 2000
    max_tissue_share: 0.5
    """  # noqa: D301 - typer does not wrap what follows \b
    from .corpus import run_corpus

    shards = run_corpus(config, plan=plan, share_array=share_array, overwrite=overwrite)
    if shards is not None:
        print(
            f"{shards['n_cells'].sum():,} cells in {len(shards)} shards are in {Path(shards['path'][0]).parent}/."
        )


@app.command()
def clock(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="YAML: cells, model, output, columns, hold-outs.")
    ],
    plan: _Plan = False,
    gpu: _Gpu = None,
    n_devices: _Devices = 1,
    hourly_price: _Price = None,
) -> None:
    """Train a clock on some donors, judge it by others beside baselines, and write a card and a report.

    Called again, it goes on. On several GPUs: accelerate launch -m maxtoki_toolkit.cli clock -c clock.yaml

    clock.yaml has the parameters of mt.train.clock and the settings of mt.train.ClockRecipe:

    \b
    cells: my_cells.h5ad          # raw counts, encoded files, or the folder of a corpus
    model: maxtoki-217m           # or "demo", a folder; vocab: {tokens: PATH, medians: PATH} beside it
    output: my_clock
    time_key: development_stage   # numbers in time_unit, or text such as "45-year-old stage"
    donor_key: donor_id
    groupby: cell_type            # columns may be left out: they are guessed
    donors: 0.2                   # held out: a share, or names
    times: [[600, 660]]           # and donors of these ages
    groups: {cell_type: [T cell]} # and this lineage, in all donors
    max_steps: 2000
    batch_size: 8
    """  # noqa: D301 - typer does not wrap what follows \b
    from .clocks import plan_clock, run_clock

    if plan:
        print(plan_clock(config, gpu=gpu, n_devices=n_devices, hourly_price=hourly_price))
        return
    model = run_clock(config)
    folder = Path(model.name).parent.parent
    print(
        f"{model!r}\nThe model is in {model.name}/, what it is worth in {folder}/card.md and {folder}/report/."
    )


@app.command("import")
def import_(
    sheet: Annotated[
        Path,
        typer.Argument(
            help="Table (CSV), one row a sample: path, sample, and columns such as donor, age and condition."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .h5ad or .zarr.")],
    layer: _Layer = None,
    overwrite: _Overwrite = False,
) -> None:
    """Join the samples of a sheet (10x folders, .h5, .h5ad, .zarr) into one file of cells, and list what does not match."""
    from .pp import import_samples

    table = import_samples(sheet, output, layer=layer, overwrite=overwrite)
    for row in table.itertuples():
        notes = f"; {row.notes}" if row.notes else ""
        print(f"{row.sample}: {row.n_cells:,} cells, {row.n_genes:,} genes{notes}")
    print(f"{table['n_cells'].sum():,} cells of {len(table)} samples are in {output}.")


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Checkpoint of the original (Megatron), a model as for embed, or a pickled dictionary (.pkl)."
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="Folder to write, which must not exist, or be empty; of a dictionary, a .json file."
        ),
    ],
    tokens: Annotated[
        Path | None, typer.Option(help="Token dictionary (JSON), if it is not beside the weights.")
    ] = None,
    medians: Annotated[
        Path | None, typer.Option(help="Gene medians (JSON), if they are not beside the weights.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="hf or megatron; by default what SOURCE is not.")] = None,
    sanity_check: Annotated[
        Path | None,
        typer.Option(
            help="Compare logits before and after: cells (.h5ad, .zarr, a folder of datasets), or a .safetensors with "
            "input_ids and logits of the original."
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Largest difference that the check allows; beyond it the command fails."),
    ] = 1e-3,
) -> None:
    """Convert a checkpoint of the original into a folder that this package reads, or back; or a pickled dictionary to JSON."""
    from .models import from_megatron, load_model, save_model, to_megatron
    from .models.megatron import is_megatron

    if source.endswith((".pkl", ".pickle")):
        _convert_pickle(Path(source), output)
        return
    if to not in (None, "hf", "megatron"):
        raise ValueError(f"There is no layout {to!r}; choose hf or megatron.")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ValueError(f"{output} exists and is not empty. Give a new folder.")
    vocab = _dictionaries(tokens, medians)
    original = is_megatron(source)
    if original:
        model = from_megatron(source, vocab=vocab)
    else:
        model = load_model(source, vocab=vocab, device="cpu")
    to = to or ("hf" if original else "megatron")
    (save_model if to == "hf" else to_megatron)(model, output)
    print(f"{model!r}\nis in {output}/, in the layout {to}.")
    if sanity_check is not None:
        from .sanity import compare_logits

        found = compare_logits(model, output, sanity_check)
        is_fine = found.largest <= tolerance
        print(
            f"{'The logits agree' if is_fine else 'The logits differ'}: at most {found.largest:.2g} apart, {found.mean:.2g} on "
            f"average, at {found.n_positions:,} positions of {found.n_cells:,} cells (allowed: {tolerance:g})."
        )
        if not is_fine:
            raise typer.Exit(1)


def _convert_pickle(source: Path, output: Path) -> None:
    import json

    from ._files import atomic
    from .models.safe_pickle import read_pickle

    if output.suffix != ".json":
        raise ValueError(f"A dictionary becomes a .json file. Give such a name, not {output}.")
    if output.exists():
        raise ValueError(f"{output} exists. Give another name.")
    found = read_pickle(source)
    if len({str(key) for key in found}) < len(found):
        raise ValueError(f"{source} has keys that are one in JSON, such as 1 and '1'. It was not converted.")
    text = json.dumps(found)
    with atomic(output) as temporary:
        temporary.write_text(text)
    print(f"{len(found):,} entries are in {output}.")


@app.command()
def screen(
    config: Annotated[
        Path,
        typer.Option("--config", "-c", help="YAML: cells, output, model; sections prompts, perturb, stats."),
    ],
    plan: _Plan = False,
    gpu: _Gpu = None,
    n_devices: _Devices = 1,
    hourly_price: _Price = None,
    share_array: _ShareArray = False,
    overwrite: _Overwrite = False,
) -> None:
    """Edit genes and read the cells again: tables and figures of a screen; called again, it goes on.

    The output has effects.csv.gz (of each prompt), stats.csv (over donors), controls.csv, and the figures ranked and volcano.
    The column effect_unit is the unit of the effects.

    The sections of screen.yaml have parameters of mt.pp.sample_prompts, mt.tl.perturb and mt.tl.perturbation_stats:

    \b
    cells: my_cells.h5ad        # raw counts, human
    layer: counts               # where they are; without this line, X; raw for raw.X
    model: runs/clock/model     # as in mt.load_model
    output: screen
    prompts:
      time_key: age_months
      groupby: cell_type
      donor_key: donor_id
      n_prompts: 300
    perturb:
      genes: all                # or names: [FOXO3, KLF2]
      mode: inhibit
    stats:
      min_donors: 3
    """  # noqa: D301 - typer does not wrap what follows \b
    from ._files import read_yaml

    if plan:
        from .screen import plan_screen

        print(plan_screen(config, gpu=gpu, n_devices=n_devices, hourly_price=hourly_price))
        return
    output = Path(str(read_yaml(config).get("output")))
    try:
        from .screen import run_screen

        stats = run_screen(config, share_array=share_array, overwrite=overwrite)
    except KeyboardInterrupt:
        print(f"maxtoki: stopped{_kept(output / 'effects.csv.gz')}", file=sys.stderr)
        raise typer.Exit(130) from None  # as a shell expects it
    if stats is None:
        print(f"This process has done its share; the last one to finish writes {output}/.")
        return
    for group, part in stats.groupby("group", sort=False):
        known, called = part["effect"].notna().sum(), (part["q_value"] < 0.05).sum()
        print(f"{group}: {known:,} genes read, {called} beyond matched genes (q < 0.05).")
    print(f"Tables and figures are in {output}/.")


def _kept(effects: Path) -> str:
    """What is there of a screen that was stopped."""
    from ._shards import count_shards, parts_folder

    folder = parts_folder(effects)
    n_done, n_parts = count_shards(folder)
    if n_done:
        return f"; {n_done} of {n_parts} parts are kept in {folder}. The same command goes on."
    if effects.is_file():
        return f"; {effects} is complete. The same command goes on."
    return " before the first part was done."


class _OrNotebook(TyperGroup):
    """`maxtoki report NAME` runs a notebook, unless NAME is a command of its own."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] and args[0] in self.commands else [_NOTEBOOK, *args])


report_app = typer.Typer(
    cls=_OrNotebook,
    help="Run a notebook with other parameters, or write a page of an autoencoder's features.",
)
app.add_typer(report_app, name="report")
_NOTEBOOK = "notebook"


@report_app.command(_NOTEBOOK)
def report(
    notebook: Annotated[
        str | None, typer.Argument(help="Name or path of a notebook, or all; --list has the names.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="NAME=VALUE; lists as YAML: -p 'genes=[A, B]'."),
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(
            "--parameters",
            "-y",
            help="YAML file or name of a preset; a list of parameter sets makes a batch.",
        ),
    ] = None,
    output: _Output = Path("maxtoki_report"),
    on: Annotated[
        list[Path] | None, typer.Option(help="Your cells, as for embed; given several times, each of them.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say which notebooks there are.")] = False,
    help_notebook: Annotated[
        bool, typer.Option("--help-notebook", help="Say which parameters NOTEBOOK has.")
    ] = False,
    overwrite: _Overwrite = False,
) -> None:
    """Run a notebook, or all that your cells allow, with other parameters: executed notebook and HTML page.

    `maxtoki report features PATH` writes a page of an autoencoder's features; it has a --help of its own.
    """
    from . import reports

    if listed:
        for row in reports.catalogue().itertuples():
            print(f"{row.notebook}: {row.title}\n    path: {row.data}\n    columns of .obs: {row.columns}")
        return
    if notebook is None:
        raise ValueError("Give a notebook, or all; maxtoki report --list says which there are.")
    if help_notebook:
        for row in reports.parameters(notebook).itertuples():
            print(f"{row.name}: {row.type} = {row.default}\n    {row.help}")
        return
    sets, given = _parameters(parameter, parameters)
    try:
        if notebook == "all":
            if sets:
                raise ValueError("all takes one set of parameters, not a list of them.")
            table = reports.run_all(on or None, output, overwrite=overwrite, **given)
        elif sets or len(on or []) > 1:
            table = reports.run_batch(notebook, output, sets, on=on, overwrite=overwrite, **given)
        else:
            given |= {"path": on[0]} if on else {}
            path = reports.run(notebook, output, overwrite=overwrite, **given)
            print(f"{path.with_suffix('.html')} and {path.name} are there.")
            return
    except RuntimeError as error:
        print(f"maxtoki: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for row in table.itertuples():
        where = row.report if row.status in ("done", "kept") else row.why
        print(f"{row.notebook}: {row.status}. {where}")
    print(f"{output / 'index.html'} lists them all.")
    states = set(table["status"])
    if states & {"failed", "kept as it was"} or not states & {"done", "kept"}:
        raise typer.Exit(1)


@report_app.command("features")
def report_features(
    path: Annotated[
        Path,
        typer.Argument(help="Cells: with a result of mt.tl.features, or raw counts, human, as for embed."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write.")] = Path("features.html"),
    model: Annotated[
        str | None, typer.Option(help="demo, maxtoki-217m, maxtoki-1b, a folder or a hub id; with --sae.")
    ] = None,
    sae: Annotated[
        str | None, typer.Option(help="Autoencoder of the model: demo, or a folder that mt.train.sae wrote.")
    ] = None,
    key: Annotated[str, typer.Option(help="Key in .obsm and .uns of the features.")] = _keys.FEATURES,
    groupby: Annotated[str | None, typer.Option(help="Column of .obs with cell types; guessed.")] = None,
    basis: Annotated[
        str | None, typer.Option(help="Key in .obsm of the map, by default X_umap, and spatial.")
    ] = None,
    n_cells: Annotated[int, typer.Option(help="Top cells of a feature.")] = 8,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Features",
    layer: _Layer = None,
    device: _Device = "auto",
    overwrite: _Overwrite = False,
) -> None:
    """Write a page to look through the features of an autoencoder: one file, which needs no network.

    Without --model and --sae, features that are in the file are shown, without the genes of single cells.
    """
    from . import reports
    from .models import load_model
    from .models.sae import load_sae

    loaded = None if model is None else load_model(model, device=device)
    coder = None if sae is None else load_sae(sae, device="cpu" if loaded is None else str(loaded.device))
    reports.features(
        path,
        output,
        model=loaded,
        sae=coder,
        key=key,
        groupby=groupby,
        basis=basis,
        n_cells=n_cells,
        title=title,
        layer=layer,
        overwrite=overwrite,
    )
    print(f"{output} is there ({output.stat().st_size / 1e6:.1f} MB); open it in a browser.")


def _parameters(single: list[str] | None, file: str | None) -> tuple[list | None, dict]:
    """Sets of parameters, if the file has a list of them, and those of every report."""
    from .reports._sources import read_preset

    pairs = [text.partition("=") for text in single or []]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ValueError(f"-p takes NAME=VALUE, not {', '.join(wrong)}.")
    given = {name.strip(): value for name, _, value in pairs}
    content = read_preset(file) if file else {}
    if isinstance(content, list) and all(isinstance(one, dict) for one in content):
        return content, given
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold parameters as `name: value`, or a list of such sets.")
    return None, {**content, **given}


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For a report of a bug.")] = False,
) -> None:
    """Check Python, packages, device, memory, data, models and kernel; say what will be slow, and why."""
    import textwrap

    from ._doctor import BROKEN, examine
    from ._doctor import doctor as table

    if as_json:
        found = table()
        print(found.to_json(orient="records", indent=2))
        is_broken = BROKEN in set(found["status"])
    else:
        is_broken = False
        for check, status, found, advice in examine():
            print(f"{status:<6}  {check:<17}  {found}", flush=True)
            if advice:
                print(textwrap.indent(textwrap.fill(advice, 100), " " * 27))
            is_broken |= status == BROKEN
    if is_broken:
        raise typer.Exit(1)


train_app = typer.Typer(help="Train a model from a YAML file of settings.", no_args_is_help=True)
app.add_typer(train_app, name="train")
_Settings = Annotated[
    Path,
    typer.Option(
        "--config", "-c", help="YAML with the parameters of the function of mt.train, and of its recipe."
    ),
]


def _train(kind: str, config: Path) -> None:
    from .train.from_yaml import train_from_yaml

    model = train_from_yaml(kind, config)
    print(f"{model!r}\nThe model is in {model.name}/; mt.load_model({model.name!r}) opens it.")


@train_app.command()
def pretrain(config: _Settings) -> None:
    """Stage 1: learn to predict each next gene, from random weights."""
    _train("pretrain", config)


@train_app.command()
def temporal(config: _Settings) -> None:
    """Stage 2: learn to tell time; with `lora_rank`, by adapters. On several GPUs: accelerate launch -m maxtoki_toolkit.cli train temporal -c ..."""
    _train("temporal", config)


@train_app.command()
def sae(config: _Settings) -> None:
    """A sparse autoencoder of a model's hidden states: features. On several GPUs: accelerate launch -m maxtoki_toolkit.cli train sae -c ..."""
    from ._files import read_yaml
    from .train.from_yaml import train_from_yaml

    found = train_from_yaml("sae", config)
    folder = Path(read_yaml(config)["output"]) / "sae"
    print(f"{found!r}\nIt is in {folder}; mt.load_sae({str(folder)!r}) opens it.")


if __name__ == "__main__":
    main()
