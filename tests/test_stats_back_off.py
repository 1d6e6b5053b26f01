"""Backing off to the nearest kind that a cell is sure of: planted doubts, and the errors that were asked for."""

import numpy as np
import pytest

from maxtoki_toolkit._ontology import find_term
from maxtoki_toolkit.stats.back_off import NOTHING, cross_back_off, fit_threshold
from maxtoki_toolkit.stats.calibration import probabilities
from maxtoki_toolkit.tl._annotation import kinds_of_labels, named_kinds

LABELS = np.array(
    ["B cell", "CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell", "monocyte", "my type"]
)
KINDS = kinds_of_labels(LABELS, [*map(find_term, LABELS[:4]), ""])
ALPHA = 0.05


def draw(rng, n, apart):
    """Labels and logits; CD4 and CD8 T cells are `apart`, the others far from each other."""
    code = rng.integers(0, len(LABELS), n)
    logits = rng.normal(size=(n, len(LABELS)))
    logits[np.arange(n), code] += 9
    t_cell = np.isin(code, (1, 2))
    noise = rng.normal(size=t_cell.sum())
    logits[t_cell, 1] = 6 + noise + apart * (code[t_cell] == 1)
    logits[t_cell, 2] = 6 - noise + apart * (code[t_cell] == 2)
    return code, logits


def test_what_labels_are_kinds_of():
    assert KINDS.names[KINDS.above[:, 0]].tolist() == LABELS.tolist()
    of = dict(zip(LABELS, KINDS.holds, strict=True))
    place = {name: i for i, name in enumerate(KINDS.names)}
    assert of["B cell"][place["lymphocyte"]]
    assert not of["monocyte"][place["lymphocyte"]]
    assert (KINDS.holds.sum(axis=0).max(), of["my type"].sum()) == (4, 1)
    assert not {"cell", "eukaryotic cell"} & set(KINDS.names)
    # Kinds of the same labels as one further down are left out.
    for way in KINDS.above:
        held = KINDS.holds[:, way[way != NOTHING]].T
        assert len(np.unique(held, axis=0)) == len(held)
    assert (np.diff(KINDS.steps[1, KINDS.above[1] != NOTHING]) >= 0).all()


def test_doubt_between_two_kinds_ends_at_what_both_are():
    rng = np.random.default_rng(0)
    code, logits = draw(rng, 2000, apart=0.8)
    fold = np.arange(2000) % 5
    found = cross_back_off(logits, code, fold, KINDS, ALPHA)
    names = named_kinds(KINDS, found.kind)
    t_cell = np.isin(code, (1, 2))
    called = logits.argmax(axis=1)
    assert (called == code)[t_cell].mean() < 0.9  # in doubt
    assert (names[~t_cell] == LABELS[code[~t_cell]]).mean() > 0.97
    assert np.isin(names[t_cell], LABELS[1:3]).any()
    above = t_cell & ~np.isin(names, LABELS)
    assert above[t_cell].mean() > 0.3
    assert len(set(names[above])) == 1
    assert "alpha-beta T cell" in set(names[above]).pop()
    assert (~found.right).mean() <= ALPHA + 0.01
    # One step up for all cells says less.
    assert np.nanmean(found.steps) < 0.5 * KINDS.steps[called, 1].mean()


@pytest.mark.parametrize("apart", [0.0, 1.5, 4.0])
def test_no_more_are_wrong_than_was_asked_for(apart):
    rng = np.random.default_rng(1)
    wrong, plain = [], []
    for _ in range(20):
        (code, logits), (new, unseen) = draw(rng, 300, apart), draw(rng, 300, apart)
        threshold = fit_threshold(KINDS.climb(probabilities(logits, 1.0)), code, KINDS, ALPHA)
        kind = KINDS.climb(probabilities(unseen, 1.0)).stop(threshold)[1]
        wrong.append(((kind != NOTHING) & ~KINDS.holds[new, kind]).mean())
        plain.append((unseen.argmax(axis=1) != new).mean())
    assert np.mean(wrong) <= ALPHA + 0.005
    if apart == 0:
        assert np.mean(plain) > 2 * ALPHA


def test_where_labels_mean_nothing_little_is_said():
    rng = np.random.default_rng(2)
    code = rng.integers(0, len(LABELS), 600)
    found = cross_back_off(rng.normal(size=(600, len(LABELS))), code, np.arange(600) % 5, KINDS, ALPHA)
    assert ((found.kind != NOTHING) & ~found.right).mean() <= ALPHA + 0.01
    assert np.isin(named_kinds(KINDS, found.kind), LABELS).mean() < 0.1
    few = cross_back_off(rng.normal(size=(10, len(LABELS))), code[:10], np.zeros(10, int), KINDS, ALPHA)
    assert (few.kind == NOTHING).all()  # ten cells say nothing of one in twenty
