"""Build the small files in maxtoki_toolkit/resources from the development data.

Run `python benchmarks/build_shipped_data.py [FOLDER]`, where FOLDER (default: ../shared/data beside the
repository) holds the four source files. Prints what was kept, and the size and SHA-256 of every file
for data_manifests/. The same sources give the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import gzip
import tempfile

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr

from maxtoki_toolkit._files import atomic, sha256

REPOSITORY = Path(__file__).parents[1]
RESOURCES = REPOSITORY / "maxtoki_toolkit" / "resources"
MIN_CELLS = 3
MIN_FPKM = 0.1
MANTISSA_BITS = 6

HEART_OBS = [
    "cell_type",
    "cell_state",
    "donor_id",
    "sex",
    "age",
    "region",
    "assay",
    "scrublet_score",
    "cell_type_ontology_term_id",
]
MYOBLAST_OBS = ["Hours", "Media", "Pseudotime", "State", "Library", "Well", "Mapped.Fragments"]


def most_detected_first(X: csr_matrix) -> np.ndarray:
    """Genes in at least `MIN_CELLS` cells, by falling number of cells, then by falling total."""
    cells, total = np.diff(X.tocsc().indptr), np.asarray(X.sum(axis=0)).ravel()
    order = np.lexsort((-total, -cells))
    return order[cells[order] >= MIN_CELLS]


def round_mantissa(values: np.ndarray, bits: int) -> np.ndarray:
    """Float32 values rounded to nearest with `bits` of mantissa left; the zeroed bits compress away."""
    drop = np.uint32(23 - bits)
    raw = values.astype(np.float32).view(np.uint32)
    half = np.uint32((1 << (22 - bits)) - 1) + ((raw >> drop) & np.uint32(1))
    return (((raw + half) >> drop) << drop).view(np.float32)


def write(adata: anndata.AnnData, path: Path) -> None:
    """Write h5ad, every array in one shuffled, gzipped chunk: a third smaller than `write_h5ad` makes it."""
    filters = {"compression": "gzip", "compression_opts": 9, "shuffle": True}

    def repack(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group):
            new = target.require_group(name)
        elif item.ndim == 0 or item.size < 100:
            new = target.create_dataset(name, data=item[()], dtype=item.dtype)
        elif h5py.check_string_dtype(item.dtype):
            # Variable-length strings escape the compression; anndata reads fixed-length ones as well.
            values = np.char.encode(item.asstr()[:].astype(str), "utf-8")
            values = values.astype(h5py.string_dtype("utf-8", values.dtype.itemsize))
            new = target.create_dataset(name, data=values, chunks=item.shape, **filters)
        else:
            new = target.create_dataset(name, data=item[:], chunks=item.shape, **filters)
        new.attrs.update(item.attrs)

    with tempfile.TemporaryDirectory() as folder, atomic(path) as temporary:
        plain = Path(folder) / "plain.h5ad"
        adata.write_h5ad(plain, convert_strings_to_categoricals=False)
        with h5py.File(plain) as source, h5py.File(temporary, "w", libver=("v110", "v110")) as target:
            target.attrs.update(source.attrs)
            source.visititems(repack)


def heart(source: Path) -> anndata.AnnData:
    """All 700 nuclei, raw counts as uint16, the genes found in at least three of them."""
    full = anndata.read_h5ad(source / "heart_nuclei_700.h5ad")
    genes = most_detected_first(full.X)
    X = full.X[:, genes].tocsr()
    X.sort_indices()
    print(f"heart: {len(genes)} of {full.n_vars} genes, {X.sum() / full.X.sum():.4%} of the counts")
    X = csr_matrix((X.data.astype(np.uint16), X.indices.astype(np.int32), X.indptr), shape=X.shape)
    obs = full.obs[HEART_OBS].copy()
    var = pd.DataFrame({"symbol": full.var["feature_name"].astype(str)}).iloc[genes]
    return anndata.AnnData(
        X,
        obs=obs,
        var=var,
        uns={
            "source": {
                "title": "Nuclei of the human sinoatrial node, Heart Cell Atlas v2",
                "citation": "Kanemaru et al. Spatially resolved multiomics of human cardiac niches. "
                "Nature 619, 801-810 (2023). doi:10.1038/s41586-023-06311-1",
                "licence": "CC BY 4.0",
                "origin": "Heart Cell Atlas v2 through CELLxGENE; 700 nuclei drawn at random from the 1,000-cell "
                "file in the test data of the PyPI package transcriptformer 0.6.1",
                "values": "raw counts",
                "changes": f"kept genes with a count in at least {MIN_CELLS} nuclei; genes ordered by the number of "
                "nuclei that express them; constant and redundant columns dropped; counts stored as 16-bit integers",
            }
        },
    )


def myoblasts(source: Path) -> anndata.AnnData:
    """200 differentiating myoblasts, FPKM with a rounded mantissa: the order within a cell is what counts."""
    full = anndata.read_h5ad(source / "myoblast_timecourse_200.h5ad")
    exact = full.X.copy()
    exact.data[exact.data < MIN_FPKM] = 0
    exact.eliminate_zeros()
    genes = most_detected_first(exact)
    exact = exact[:, genes].tocsr()
    exact.sort_indices()
    X = csr_matrix((round_mantissa(exact.data, MANTISSA_BITS), exact.indices.astype(np.int32), exact.indptr))
    X.resize(exact.shape)
    print(f"myoblasts: {len(genes)} of {full.n_vars} genes, {exact.sum() / full.X.sum():.4%} of the FPKM")
    report_order(exact, X)
    obs = full.obs[MYOBLAST_OBS].copy()
    obs["Mapped.Fragments"] = obs["Mapped.Fragments"].astype(np.int32)
    obs["Library"] = obs["Library"].astype(str)
    var = pd.DataFrame(
        {"symbol": full.var["gene_short_name"].astype(str), "biotype": full.var["biotype"].astype("category")}
    ).iloc[genes]
    return anndata.AnnData(
        X,
        obs=obs,
        var=var,
        uns={
            "source": {
                "title": "Differentiating human skeletal muscle myoblasts, 0 to 72 hours",
                "citation": "Trapnell et al. The dynamics and regulators of cell fate decisions are revealed by "
                "pseudotemporal ordering of single cells. Nat Biotechnol 32, 381-386 (2014). doi:10.1038/nbt.2859",
                "licence": "Artistic-2.0",
                "origin": "Bioconductor package HSMMSingleCell 1.18.0; 200 of its cells",
                "values": "FPKM, not counts: read the order of genes within a cell, not the amounts",
                "changes": f"FPKM below {MIN_FPKM} set to 0; kept genes at {MIN_FPKM} or more in at least {MIN_CELLS} "
                f"cells; genes ordered by the number of cells that express them; values rounded to {MANTISSA_BITS + 1} "
                "significant bits (relative error at most 0.8 %)",
            }
        },
    )


def report_order(exact: csr_matrix, rounded: csr_matrix, n_top: int = 2000) -> None:
    """Print how much the rounding changes the order of the genes within a cell."""
    rho, shared = [], []
    for start, stop in zip(exact.indptr[:-1], exact.indptr[1:], strict=True):
        before, after = exact.data[start:stop], rounded.data[start:stop]
        rho.append(spearmanr(before, after).statistic)
        top = [set(np.argsort(-values, kind="stable")[:n_top].tolist()) for values in (before, after)]
        shared.append(len(top[0] & top[1]) / n_top)
    print(f"  Spearman within a cell: median {np.median(rho):.6f}, worst {min(rho):.6f}")
    print(f"  top {n_top} genes shared: median {np.median(shared):.4f}, worst {min(shared):.4f}")
    print(f"  largest relative error: {np.max(np.abs(rounded.data / exact.data - 1)):.4%}")


def main(source: Path) -> None:
    """Build all four files."""
    RESOURCES.mkdir(parents=True, exist_ok=True)
    genes = pd.read_csv(
        source / "gencode_v44_gene_id_name.csv",
        names=["ensembl_id", "symbol"],
        dtype=str,
        keep_default_na=False,
    )
    table = genes.to_csv(index=False, lineterminator="\n").encode()
    with atomic(RESOURCES / "gencode_v44.csv.gz") as temporary:
        temporary.write_bytes(gzip.compress(table, 9, mtime=0))
    # One symbol of the published list ends in a space.
    factors = (source / "human_tfs_lambert2018.txt").read_text(encoding="utf-8").split()
    with atomic(RESOURCES / "human_tfs_lambert2018.txt") as temporary:
        temporary.write_text("\n".join(factors) + "\n", encoding="utf-8", newline="\n")
    write(heart(source), RESOURCES / "heart_nuclei.h5ad")
    write(myoblasts(source), RESOURCES / "myoblast_timecourse.h5ad")
    for name in (
        "gencode_v44.csv.gz",
        "human_tfs_lambert2018.txt",
        "heart_nuclei.h5ad",
        "myoblast_timecourse.h5ad",
    ):
        path = RESOURCES / name
        print(f"{path.name}: size {path.stat().st_size}, sha256 {sha256(path)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY.parent / "shared" / "data")
