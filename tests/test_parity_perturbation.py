"""What the original makes of edits of cells, scores of the likelihood, and screens (`data/parity.json`, and its own inputs).

Deviations: cells are edited in their whole ranking before they are cut, an absent gene is reported and has no effect instead of 0, and a
combination of a knock-out and an overexpression is two edits, one after the other.
"""

import numpy as np
import pytest
import torch

from maxtoki_toolkit.models.edits import edit_cells
from maxtoki_toolkit.models.prompts import Prompts, write_prompts
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.models.vocabulary import Vocabulary, _as_time


def as_sequences(cells):
    return Sequences(
        np.array([token for cell in cells for token in cell], dtype=np.int32),
        np.cumsum([0, *(len(cell) for cell in cells)]),
    )


def edited(rank, genes, mode):
    genes = np.atleast_1d(genes)
    cells = as_sequences([[2, *rank, 3]])
    found = edit_cells(cells, [0], np.zeros(len(genes), dtype=int), genes, mode, max_length=4096)
    return found.sequences.tokens.tolist()[1:-1]


@pytest.mark.parametrize(("group", "mode"), [("knockout", "delete"), ("overexpress", "overexpress")])
def test_edits(parity, group, mode):
    for case in parity[group]["cases"]:
        assert edited(case["rank"], case["genes"], mode) == case["expected"]


def test_specs(parity):
    tokens = parity["perturb_specs"]["token_dictionary"]
    for case in parity["perturb_specs"]["cases"]:
        rank, metadata = case["rank"], case["metadata"]
        for key, mode in [("gene", "delete"), ("knockouts", "delete"), ("overexpressions", "overexpress")]:
            if metadata.get(key):
                rank = edited(rank, tokens[metadata[key]], mode)
        assert rank == case["expected"]


def test_cells_keep_their_marks(parity):
    for case in parity["strip_wrap"]["cases"]:
        rank = case["stripped"]
        assert edited(rank, 99, "delete") == rank
        assert [2, *rank, 3] == case["rewrapped"]


def test_scoring_prompt(parity, monkeypatch):
    """The target follows the edited cell, and its genes alone are scored."""
    from maxtoki_toolkit.tl import _edit_readouts

    seen = {}

    def record(_, sequences, *, first):
        seen["tokens"], seen["first"] = sequences.tokens.tolist(), first.tolist()
        found = np.full(len(sequences.tokens), np.nan)
        found[first[0] :] = np.arange(len(found) - first[0])
        return found

    monkeypatch.setattr(_edit_readouts, "token_log_likelihoods", record)
    for case in parity["scoring_prompt"]["cases"]:
        cell, target = as_sequences([[2, *case["context"], 3]]), as_sequences([[2, *case["target"], 3]])
        mean = _edit_readouts.read_likelihoods(None, cell, target)
        expected = case["expected"]
        assert seen["tokens"] == expected["input_ids"]
        assert seen["first"] == [expected["target_start"]]
        n = expected["target_end"] - expected["target_start"]
        assert mean.tolist() == [(n - 1) / 2]


def test_score(parity):
    """The sum of the log-probabilities, from the logits before each token."""
    for case in parity["score_logprob"]["cases"]:
        start, end = case["target_start"], case["target_end"]
        if start < 1:
            assert "error" in case["expected"]
            continue
        log_p = torch.tensor(case["logits"], dtype=torch.float32).log_softmax(dim=-1)
        chosen = [log_p[i - 1, case["input_ids"][i]].item() for i in range(start, end)]
        value = case["expected"]["value"]
        assert sum(chosen) == pytest.approx(value["sum_logprob"], rel=1e-5)
        assert np.mean(chosen) == pytest.approx(value["mean_logprob"], rel=1e-5)


def test_screen_dataset(parity):
    """Unedited prompt, then each edit, pair by pair; without the placeholder that the original writes after `<eoq>`."""
    for case in parity["screen_dataset"]["cases"]:
        tokens = {
            _as_time(str(token)): number
            for token, number in parity["screen_dataset"]["token_dictionary"].items()
        }
        genes = [token for token in tokens if isinstance(token, str) and not token.startswith("<")]
        vocab = Vocabulary(tokens, dict.fromkeys(genes, 1.0))
        written = []
        for pair in case["pairs"]:
            rank = pair["old"][1:-1]
            for spec in case["specs"]:
                kind, _, gene = spec.partition(":")
                query = (
                    rank
                    if not gene
                    else edited(rank, tokens[gene], {"KO": "delete", "OE": "overexpress"}[kind])
                )
                cells = as_sequences([pair["young"], [2, *query, 3]])
                prompt = Prompts(*map(np.array, ([[0]], [1], np.zeros((1, 0), int), [1], [True])))
                found = write_prompts(prompt, cells, vocab, max_length=4096, answer=False)
                written.append(found.sequences.tokens.tolist())
        assert written == [row[:-1] for row in case["input_ids"]]


def test_screen_predictions(parity):
    """The effect is the edited prompt's prediction less that of the same pair unedited."""
    for case in parity["screen_predictions"]["cases"]:
        for row, predicted in zip(case["expected"], case["preds"], strict=True):
            base = next(
                other
                for other in case["expected"]
                if other["pair_idx"] == row["pair_idx"] and other["kind"] == "baseline"
            )
            assert predicted - base["predicted_time_gap"] == pytest.approx(row["delta_vs_baseline"])
