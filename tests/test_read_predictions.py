"""Predictions of the original's runs: in the order of the data, and nothing in them is run."""

import numpy as np
import pytest
import torch
from test_convert import Exploit
from test_parity_prompts import make_vocab

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.sequences import Sequences, require_cells


def test_parity_screen_predictions(parity, tmp_path):
    """`screen_predictions`: the gaps that the original joins with its manifest, of one file and of batches."""
    for case in parity["screen_predictions"]["cases"]:
        lapses = torch.tensor([case["preds"]])
        gaps = [row["predicted_time_gap"] for row in case["expected"]]
        torch.save({"regression_preds": lapses}, tmp_path / "predictions__rank_0.pt")
        assert mt.pp.read_predictions(tmp_path)["predicted"].tolist() == gaps
        for i, part in enumerate(lapses.split(2, dim=1)):
            (tmp_path / "batches").mkdir(exist_ok=True)
            saved = {"regression_preds": part, "batch_idx": i}
            torch.save(saved, tmp_path / "batches" / f"predictions__rank_0__batch_{i}.pt")
        assert mt.pp.read_predictions(tmp_path / "batches")["predicted"].tolist() == gaps


def test_batches_come_in_the_order_of_their_numbers(tmp_path):
    """Twelve of them: by name, 10 and 11 would come before 2."""
    for i in range(12):
        torch.save(
            {"regression_preds": torch.tensor([[2.0 * i, 2 * i + 1]])},
            tmp_path / f"predictions__rank_0__batch_{i}.pt",
        )
    assert mt.pp.read_predictions(tmp_path)["predicted"].tolist() == list(range(24))
    (tmp_path / "predictions__rank_0__batch_5.pt").unlink()
    with pytest.raises(ValueError, match="lacks batches"):
        mt.pp.read_predictions(tmp_path)


def test_tokens_are_cut_to_the_rows(tmp_path):
    """Collected over batches, tokens are [batches, size] with padding at the end, lapses [1, rows]."""
    saved = {
        "regression_preds": torch.arange(5.0)[None],
        "timelapse_token_preds": torch.tensor([[7, 8, 9], [10, 11, 0]]),
    }
    torch.save(saved, tmp_path / "predictions__rank_0.pt")
    found = mt.pp.read_predictions(tmp_path / "predictions__rank_0.pt")
    assert found["token"].tolist() == [7, 8, 9, 10, 11]


def test_generated_cells(parity, tmp_path):
    """Cells up to their length; they are whole cells of the original's dictionary."""
    vocab = make_vocab(parity["compose_example"]["token_dictionary"])
    saved = {
        "generated_tokens": torch.tensor([[2, 5, 9, 3, 0, 0], [2, 4, 3, 0, 0, 0], [2, 4, 6, 7, 8, 9]]),
        "lengths": torch.tensor([4, 3, 6]),
        "finished_naturally": torch.tensor([True, True, False]),
    }
    torch.save(saved, tmp_path / "predictions__rank_0.pt")
    found = mt.pp.read_predictions(tmp_path)
    assert [row.tolist() for row in found["input_ids"]] == [[2, 5, 9, 3], [2, 4, 3], [2, 4, 6, 7, 8, 9]]
    assert found["finished"].tolist() == [True, True, False]
    require_cells(Sequences.of(list(found["input_ids"][:2])), vocab, tmp_path)


def test_what_is_no_prediction_is_refused(tmp_path):
    path = tmp_path / "predictions__rank_0.pt"
    torch.save({"regression_preds": Exploit(tmp_path / "mark")}, path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        mt.pp.read_predictions(path)
    assert not (tmp_path / "mark").exists()
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is no prediction"):
        mt.pp.read_predictions(path)
    torch.save(
        {
            "generated_tokens": torch.zeros(2, 3),
            "lengths": torch.tensor([9, 9]),
            "finished_naturally": torch.ones(2),
        },
        path,
    )
    with pytest.raises(ValueError, match="is damaged"):
        mt.pp.read_predictions(path)
    for rank in range(2):
        torch.save({"regression_preds": torch.zeros(1, 2)}, tmp_path / f"predictions__rank_{rank}.pt")
    with pytest.raises(ValueError, match="several processes"):
        mt.pp.read_predictions(tmp_path)
    with pytest.raises(FileNotFoundError, match="Did not find predictions__rank"):
        mt.pp.read_predictions(tmp_path / "nothing")
    np.testing.assert_array_equal(
        mt.pp.read_predictions(tmp_path / "predictions__rank_1.pt")["predicted"], [0, 0]
    )
