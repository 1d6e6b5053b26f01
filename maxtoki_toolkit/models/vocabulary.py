"""The vocabulary: which token is which gene, special mark or time lapse, and each gene's median."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .._counts import check_counts
from .._features import gene_features
from .._files import atomic

SPECIALS = ("<pad>", "<mask>", "<bos>", "<eos>")
QUERY = ("<boq>", "<eoq>")

# Kinds of features in the order in which a cell has them. Names of features that are no genes begin with
# their kind.
RNA = "rna"
MODALITIES = (RNA, "adt", "atac")
MARKS = {kind: f"<{kind}>" for kind in MODALITIES}

# Medians are read off a histogram per gene: bins a factor 1.005 apart, so a median is known to 0.3%.
_BINS = 4096
_BIN_RATIO = np.log(1.005)
_LOWEST = np.log(1e-4)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens of a MaxToki model.

    Parameters
    ----------
    tokens
        Token to id. Genes are Ensembl ids without version, time lapses are integers; proteins and peaks begin
        with "adt:" and "atac:" (`with_modalities`).
    medians
        Ensembl id to the gene's median of non-zero expression (counts per 10,000); for a protein its median
        above background, for a peak the share of cells in which it is open.

    Raises
    ------
    ValueError
        If two tokens share an id, a special token is missing, or a gene has no positive median.

    Notes
    -----
    The published dictionaries are described in `data_manifests/maxtoki-dictionaries.yaml`.

    Examples
    --------
    >>> from maxtoki_toolkit.models import Vocabulary
    >>> specials = {"<pad>": 0, "<mask>": 1, "<bos>": 2, "<eos>": 3}
    >>> vocab = Vocabulary(specials | {"ENSG00000000003": 4}, {"ENSG00000000003": 1.67})
    >>> vocab.size, vocab.is_temporal
    (5, False)
    >>> vocab.with_times(-12, 12).is_temporal
    True
    """

    tokens: Mapping[str | int, int]
    medians: Mapping[str, float]

    def __post_init__(self) -> None:
        if missing := [token for token in SPECIALS if token not in self.tokens]:
            raise ValueError(f"The token dictionary lacks {', '.join(missing)}.")
        ids = np.fromiter(self.tokens.values(), dtype=np.int64, count=len(self.tokens))
        if ids.min() < 0 or len(np.unique(ids)) != len(ids):
            raise ValueError("The token dictionary gives one id to several tokens, or a negative id.")
        if self.time_values.size and not all(token in self.tokens for token in QUERY):
            raise ValueError(
                f"The token dictionary has {self.time_values.size} integer keys but lacks <boq> or <eoq>. "
                "Integers are read as time lapses; genes must be Ensembl ids."
            )
        bad = ~self._gene_table["median"].between(0, np.inf, inclusive="neither").to_numpy()
        if bad.any():
            raise ValueError(
                f"{bad.sum()} of {len(bad)} genes in the token dictionary have no positive median "
                f"(first: {self._gene_table.index[bad][0]}). Give the gene medians made for this dictionary."
            )

    @classmethod
    def from_json(cls, path: str | Path, *, gene_medians: str | Path) -> Vocabulary:
        """Read a published token dictionary and its gene medians (JSON, never pickle)."""
        tokens = {
            _as_time(token): int(number) for token, number in _read_json(path, "token dictionary").items()
        }
        return cls(tokens, _read_json(gene_medians, "gene medians"))

    @classmethod
    def from_counts(
        cls,
        chunks: Iterable[sp.csr_matrix],
        ensembl_ids: Iterable[str],
        *,
        min_cells: int = 3,
        force: bool = False,
    ) -> Vocabulary:
        """Build a vocabulary from raw counts, a block of cells at a time.

        Parameters
        ----------
        chunks
            Blocks of raw counts, cells x genes.
        ensembl_ids
            Ensembl id of each column, "" where unknown; columns with the same id are summed.
        min_cells
            A gene enters the vocabulary when at least this many cells express it.
        force
            Accept values that are linear in expression but no integers (CPM, TPM, FPKM).

        Returns
        -------
        Genes in alphabetical order from id 4. Medians are of non-zero counts per 10,000, to 0.3%,
        and do not depend on the order or size of the blocks.

        Raises
        ------
        ValueError
            If the values are no raw counts, or no gene is in enough cells.
        """
        names, column_gene = np.unique(np.asarray(list(ensembl_ids), dtype=object), return_inverse=True)
        known = np.array([name.startswith("ENSG") for name in names])
        histogram = np.zeros((len(names), _BINS), dtype=np.uint32)
        to_gene = sp.csr_matrix(
            (np.ones(len(column_gene), np.float64), (np.arange(len(column_gene)), column_gene)),
            shape=(len(column_gene), len(names)),
        )
        for chunk in chunks:
            chunk = sp.csr_matrix(chunk)
            check_counts(chunk, force=force)
            counts = chunk @ to_gene
            totals = np.asarray(counts.sum(axis=1)).ravel()
            cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
            expressed = (counts.data > 0) & known[counts.indices]
            value = counts.data[expressed] / totals[cell[expressed]] * 10_000
            bins = np.clip((np.log(value) - _LOWEST) / _BIN_RATIO, 0, _BINS - 1).astype(np.int64)
            np.add.at(histogram.reshape(-1), counts.indices[expressed] * np.int64(_BINS) + bins, 1)
        n_cells = histogram.sum(axis=1)
        kept = known & (n_cells >= min_cells)
        if not kept.any():
            raise ValueError(
                f"No gene with an Ensembl id is expressed in at least {min_cells} cells. "
                "Run mt.pp.map_genes(adata) first."
            )
        medians = _histogram_median(histogram[kept])
        tokens = {token: number for number, token in enumerate([*SPECIALS, *names[kept]])}
        return cls(tokens, dict(zip(names[kept], medians.tolist(), strict=True)))

    @classmethod
    def from_anndata(
        cls,
        adata,
        *,
        layer: str | None = None,
        min_cells: int = 3,
        force: bool = False,
        chunk_size: int = 4096,
    ) -> Vocabulary:
        """Build a vocabulary from the raw counts of an AnnData, in memory or backed.

        See `from_counts`; needs `var["ensembl_id"]` as written by `mt.pp.map_genes`.
        """
        if "ensembl_id" not in adata.var:
            raise KeyError("Did not find .var['ensembl_id']. Run mt.pp.map_genes(adata) first.")
        from ..pp._counts import get_counts  # here only: nothing else in `models` knows of AnnData

        counts = get_counts(adata, layer)
        # Antibodies and the like are no part of a cell's total.
        genes = np.flatnonzero(gene_features(adata.var))
        chunks = (counts[start : start + chunk_size][:, genes] for start in range(0, adata.n_obs, chunk_size))
        ids = adata.var["ensembl_id"].astype(str).iloc[genes]
        return cls.from_counts(chunks, ids, min_cells=min_cells, force=force)

    def with_times(self, lowest: int, highest: int) -> Vocabulary:
        """Return the temporal vocabulary: lapses `lowest`..`highest`, then `<boq>` and `<eoq>`, appended.

        -1500..1499 on the published stage-1 dictionary gives the authors' temporal dictionary.
        """
        if self.is_temporal:
            raise ValueError("This vocabulary has time tokens already.")
        if not lowest <= 0 <= highest:
            raise ValueError(f"The lapses must include 0, got {lowest}..{highest}.")
        added = [*range(lowest, highest + 1), *QUERY]
        return Vocabulary(
            {**self.tokens, **{token: self.size + i for i, token in enumerate(added)}}, self.medians
        )

    def with_modalities(self, medians: Mapping[str, Mapping[str, float]]) -> Vocabulary:
        """Return the vocabulary with surface proteins ("adt") or chromatin peaks ("atac") beside the genes, appended.

        Parameters
        ----------
        medians
            For each kind, what values of its features are divided by before they are ranked
            (`mt.pp.modality_medians`).

        Raises
        ------
        ValueError
            If there is no such kind, or the vocabulary has it already.

        Examples
        --------
        >>> import maxtoki_toolkit as mt
        >>> vocab = mt.load_model("demo-cells").vocab.with_modalities({"adt": {"CD3": 2.5, "CD19": 1.0}})
        >>> vocab.modalities
        ('rna', 'adt')
        """
        if unknown := set(medians) - set(MODALITIES[1:]):
            raise ValueError(
                f"There is no modality {unknown.pop()!r}; choose from {', '.join(MODALITIES[1:])}."
            )
        if again := set(medians) & set(self.modalities):
            raise ValueError(f"This vocabulary has {again.pop()!r} already.")
        added = [MARKS[kind] for kind in MODALITIES if kind == RNA or kind in medians]
        added = [mark for mark in added if mark not in self.tokens]
        features = {f"{kind}:{name}": float(m) for kind, of in medians.items() for name, m in of.items()}
        numbers = {token: self.size + i for i, token in enumerate([*added, *features])}
        return Vocabulary({**self.tokens, **numbers}, {**self.medians, **features})

    def save(self, directory: str | Path) -> None:
        """Write `token_dictionary.json` and `gene_median_dictionary.json` into `directory`, where they must not be yet."""
        directory = Path(directory)
        medians = self._gene_table["median"].to_dict()
        contents = {"token_dictionary": self.tokens, "gene_median_dictionary": medians}
        files = {directory / f"{name}.json": json.dumps(content) for name, content in contents.items()}
        for path, text in files.items():
            if path.exists() and path.read_text() != text:
                raise ValueError(
                    f"{path} exists, and is of another vocabulary: it stays as it is. Give another folder."
                )
        for path, text in files.items():
            with atomic(path) as temporary:
                temporary.write_text(text)

    @property
    def size(self) -> int:
        """Rows a model's embedding needs: the highest id plus one."""
        return max(self.tokens.values()) + 1

    @property
    def is_temporal(self) -> bool:
        """Whether there are time tokens and query marks."""
        return self.time_values.size > 0

    @cached_property
    def _gene_table(self) -> pd.DataFrame:
        genes = {
            token: number
            for token, number in self.tokens.items()
            if isinstance(token, str) and token not in (*SPECIALS, *QUERY, *MARKS.values())
        }
        medians = [float(self.medians.get(gene, np.nan)) for gene in genes]
        return pd.DataFrame({"token_id": list(genes.values()), "median": medians}, index=list(genes))

    @property
    def genes(self) -> pd.Index:
        """Ensembl ids of all genes, in the dictionary's order."""
        return self._gene_table.index

    @property
    def gene_ids(self) -> np.ndarray:
        """Token ids of `genes`, int64."""
        return self._gene_table["token_id"].to_numpy(dtype=np.int64)

    def token_id(self, ensembl_ids: Iterable[str]) -> np.ndarray:
        """Token id of each Ensembl id, int32; -1 where the vocabulary has none."""
        numbers = self._gene_table["token_id"].reindex(list(ensembl_ids)).fillna(-1)
        return numbers.to_numpy(dtype=np.int32)

    @cached_property
    def median_of_token(self) -> np.ndarray:
        """Median of each token id, float64 of length `size`; NaN where the token is no gene."""
        medians = np.full(self.size, np.nan)
        medians[self._gene_table["token_id"]] = self._gene_table["median"]
        return medians

    @cached_property
    def gene_of_token(self) -> np.ndarray:
        """Ensembl id of each token id, object of length `size`; "" where the token is no gene."""
        genes = np.full(self.size, "", dtype=object)
        genes[self._gene_table["token_id"]] = self.genes
        return genes

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Kinds of features, in the order in which a cell has them; empty where there are genes alone."""
        return tuple(kind for kind in MODALITIES if MARKS[kind] in self.tokens)

    @cached_property
    def modality_of_token(self) -> np.ndarray:
        """Place in `MODALITIES` of each token's kind, int8 of length `size`; -1 where the token is no feature."""
        kinds = np.full(self.size, -1, dtype=np.int8)
        for gene, number in self._gene_table["token_id"].items():
            kind = gene.partition(":")[0]
            kinds[number] = MODALITIES.index(kind) if kind in MODALITIES[1:] else 0
        return kinds

    @cached_property
    def time_values(self) -> np.ndarray:
        """All lapses that have a token, ascending, int64."""
        return np.array(sorted(t for t in self.tokens if isinstance(t, int)), dtype=np.int64)

    @cached_property
    def time_ids(self) -> np.ndarray:
        """Token ids of `time_values`, int64."""
        return np.array([self.tokens[int(value)] for value in self.time_values], dtype=np.int64)

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of tokens and medians, independent of the files' key order."""
        tokens = sorted((str(token), number) for token, number in self.tokens.items())
        return hashlib.sha256(json.dumps([tokens, self.genes_sha256]).encode()).hexdigest()

    @cached_property
    def genes_sha256(self) -> str:
        """Fingerprint of the genes alone, on which the encoding of a cell depends; time tokens leave it as it is."""
        genes = sorted(zip(self._gene_table.index, *self._gene_table.to_dict("list").values(), strict=True))
        return hashlib.sha256(json.dumps(genes).encode()).hexdigest()

    def __getitem__(self, token: str | int) -> int:
        return self.tokens[token]

    def __repr__(self) -> str:
        times = f", lapses {self.time_values[0]}..{self.time_values[-1]}" if self.is_temporal else ""
        return f"Vocabulary({len(self.genes):,} genes{times}, size {self.size:,})"


def _as_time(token: str) -> str | int:
    """Turn "3" and "5.0" into integers, as the original does; "2.5" and "1_000" stay text."""
    return int(float(token)) if re.fullmatch(r"-?\d+(\.0+)?", token) else token


def _read_json(path: str | Path, what: str) -> dict:
    """Read a flat JSON object; anything else, a pickle above all, is refused unread."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Did not find the {what} at {path}.")
    content = path.read_bytes()
    if content[:1] == b"\x80":
        raise ValueError(
            f"{path} is a Python pickle, which can run code when read. Give the {what} as JSON; "
            "the published one is in data_manifests/maxtoki-dictionaries.yaml."
        )
    try:
        table = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Download the {what} again.") from None
    if not isinstance(table, dict) or not all(isinstance(value, (int, float)) for value in table.values()):
        raise ValueError(f"{path} is not a {what}: a JSON object of names and numbers was expected.")
    return table


def _histogram_median(histogram: np.ndarray) -> np.ndarray:
    """Median of each row's values, placed inside its bin by linear interpolation of the counts."""
    cumulative = histogram.cumsum(axis=1)
    half = cumulative[:, -1] / 2
    bins = (cumulative < half[:, None]).sum(axis=1)
    row = np.arange(len(bins))
    inside = histogram[row, bins]
    before = cumulative[row, bins] - inside
    return np.exp(_LOWEST + _BIN_RATIO * (bins + (half - before) / inside))
