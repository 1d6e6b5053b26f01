"""The reference tables that ship with the package."""

import gzip

import pytest

from maxtoki_toolkit._reference import gene_table, resource, transcription_factors


def test_gene_table():
    genes = gene_table()
    assert genes.columns.to_list() == ["ensembl_id", "symbol"]
    assert len(genes) == 62_754
    assert genes["ensembl_id"].is_unique
    assert genes["ensembl_id"].str.fullmatch(r"ENSG\d{11}").all()
    assert (genes["symbol"].str.len() > 0).all()
    assert genes.iloc[0].to_list() == ["ENSG00000290825", "DDX11L2"]
    by_symbol = genes.drop_duplicates("symbol").set_index("symbol")["ensembl_id"]
    assert by_symbol[["TTN", "GAPDH", "CDKN2A"]].to_list() == [
        "ENSG00000155657",
        "ENSG00000111640",
        "ENSG00000147889",
    ]


def test_gene_table_is_read_once():
    assert gene_table() is gene_table()


def test_gene_table_is_the_source(source):
    with gzip.open(resource("gencode_v44.csv.gz"), "rt") as file:
        header, *rows = file.read().splitlines()
    assert header == "ensembl_id,symbol"
    assert rows == (source / "gencode_v44_gene_id_name.csv").read_text().splitlines()


def test_gene_table_has_no_timestamp():
    # Bytes 4 to 7 of a gzip file: the time it was made, which would change its checksum.
    assert resource("gencode_v44.csv.gz").read_bytes()[4:8] == bytes(4)


def test_transcription_factors():
    factors = transcription_factors()
    assert isinstance(factors, frozenset)
    assert len(factors) == 1639
    assert {"TBX5", "GATA4", "MYC", "PHF19"} <= factors
    assert not factors & {"TTN", "GAPDH", "COL1A1"}
    assert len(factors - set(gene_table()["symbol"])) == 17


def test_unknown_resource():
    with pytest.raises(FileNotFoundError, match=r"no file 'genes\.csv'.*gencode_v44\.csv\.gz"):
        resource("genes.csv")
