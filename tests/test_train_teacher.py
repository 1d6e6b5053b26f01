"""The linear clock that teaches, gene by gene, and the optimiser of long runs."""

import numpy as np
import pytest
import torch

import maxtoki_toolkit as mt
from maxtoki_toolkit.models.sequences import Sequences
from maxtoki_toolkit.pp._sampling import Sampler
from maxtoki_toolkit.train._optimizer import MuonAdamW
from maxtoki_toolkit.train._teacher import fit_teacher
from maxtoki_toolkit.train.prompt_stream import PromptCollator, PromptStream, Stage

N_CELLS, N_GENES, OLD = 900, 60, 4  # the gene that comes earlier the older a cell is
N_TOKENS = 4 + N_GENES + 201 + 2  # marks, genes, lapses of -100 to 100, marks of prompts


@pytest.fixture(scope="module")
def cells():
    """Cells of 20 to 40 genes in which one gene's place follows the time; two groups, ten donors."""
    rng = np.random.default_rng(0)
    time = rng.integers(0, 100, N_CELLS)
    rows = []
    for t in time:
        others = 5 + rng.permutation(N_GENES - 1)[: rng.integers(20, 40)]
        rows.append(np.concatenate([[2], np.insert(others, round((100 - t) / 5), OLD), [3]]))
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(np.concatenate(rows).astype(np.int32), indptr), time, rng.integers(0, 10, N_CELLS)


@pytest.fixture(scope="module")
def teacher(cells):
    sequences, time, donor = cells
    group = (np.arange(N_CELLS) >= 850).astype(int)
    used = np.arange(N_CELLS) < 700
    return fit_teacher(sequences, group, time, used, donor.astype(str), n_tokens=N_TOKENS, n_groups=2), group


def read(teacher, sequences, group, rows):
    """The running clock of some cells, end to end, and where each cell's last gene is."""
    tokens = np.concatenate([sequences.tokens[sequences.indptr[i] : sequences.indptr[i + 1]] for i in rows])
    n = sequences.lengths[rows]
    start = np.cumsum(n) - n
    place = np.arange(len(tokens)) - np.repeat(start, n) - 1
    is_gene = tokens >= 4
    running = teacher.running(tokens, np.where(is_gene, place, -1), np.repeat(group[rows], n), is_gene)
    return running, start, start + n - 2


def test_running_clock_tells_held_out_cells_apart(cells, teacher):
    sequences, time, _ = cells
    clock, group = teacher
    rows = np.arange(700, 850)
    running, start, last = read(clock, sequences, group, rows)
    assert np.corrcoef(running[last], time[rows])[0, 1] > 0.9
    # The first gene says little, and nothing is read at marks.
    assert np.corrcoef(running[start + 1], time[rows])[0, 1] < 0.7
    assert np.isnan(running[start]).all()


def test_running_clock_is_right_on_average_at_every_place(cells, teacher):
    sequences, time, _ = cells
    clock, group = teacher
    rows = np.arange(700)
    running, start, _ = read(clock, sequences, group, rows)
    for place in (0, 5, 15):
        assert running[start + 1 + place].mean() == pytest.approx(time[rows].mean(), abs=0.05)


def test_running_clock_does_not_see_what_comes_later(cells, teacher):
    sequences, _, _ = cells
    clock, group = teacher
    cut = Sequences(
        np.concatenate([sequences.tokens[sequences.indptr[i] :][:12] for i in range(5)]), np.arange(6) * 12
    )
    whole, start, _ = read(clock, sequences, group, np.arange(5))
    part, begin, _ = read(clock, cut, group, np.arange(5))
    for a, b in zip(start, begin, strict=True):
        assert np.allclose(whole[a + 1 : a + 11], part[b + 1 : b + 11], atol=1e-4)


def test_groups_with_few_cells_have_no_teacher(cells, teacher):
    sequences, _, _ = cells
    clock, group = teacher
    running, _, _ = read(clock, sequences, group, np.arange(850, 860))
    assert np.isnan(running).all()


def test_cells_that_are_not_used_do_not_teach(cells, teacher):
    sequences, time, donor = cells
    clock, group = teacher
    other = np.where(np.arange(N_CELLS) < 700, time, 0)
    again = fit_teacher(
        sequences, group, other, np.arange(N_CELLS) < 700, donor.astype(str), n_tokens=N_TOKENS, n_groups=2
    )
    assert np.array_equal(clock.weight, again.weight)


@pytest.fixture(scope="module")
def collated(cells, teacher):
    sequences, time, _ = cells
    clock, _ = teacher
    genes = [f"ENSG{i:011d}" for i in range(N_GENES)]
    tokens = {t: i for i, t in enumerate(["<pad>", "<mask>", "<bos>", "<eos>", *genes])}
    vocab = mt.models.Vocabulary(tokens, dict.fromkeys(genes, 1.0)).with_times(-100, 100)
    group = np.zeros(N_CELLS, int)
    all_cells = np.ones(N_CELLS, bool)
    sampler = Sampler(group, time, contexts=all_cells, queries=all_cells, context_size=(1, 3), timelapse=0.7)
    stream = PromptStream(sequences, [Stage(32, sampler)], batch_size=16, n_taught=16)

    def collate(indices, **settings):
        collator = PromptCollator(
            sequences,
            vocab,
            max_length=400,
            age=time.astype(float),
            running=True,
            group=group,
            teacher=clock,
            **settings,
        )
        drawn = stream.__getitems__(list(indices))
        return drawn, collator(drawn)

    return collate, vocab, time


def test_true_times_take_over(collated):
    collate, vocab, time = collated
    drawn, batch = collate(range(16, 32))
    genes = torch.from_numpy(vocab.gene_of_token != "")[batch["input_ids"]]
    assert torch.equal(batch["running_weight"] > 0, genes)
    for i in range(16):
        prompt = drawn.prompts[i : i + 1]
        rows = [*prompt.context[0][prompt.context[0] >= 0], prompt.query[0]]
        found = batch["running"][i][genes[i]].numpy()
        expected = np.repeat(time[rows], [(batch["input_ids"][i] == 2).sum() and 1] * len(rows))
        assert list(dict.fromkeys(found)) == list(dict.fromkeys(expected.astype(float)))
        # From the last context cell on, what is read of the query is the lapse that is asked for.
        asked = batch["in_query"][i] & genes[i]
        if prompt.timelapse[0]:
            lapse = batch["running"][i][asked] - batch["running_from"][i]
            assert lapse.numpy() == pytest.approx(float(prompt.lapse[0]))
        else:
            assert not asked.any()


def test_the_teacher_comes_first(collated):
    collate, _, _ = collated
    _, taught = collate(range(16))
    weight = taught["running_weight"]
    assert set(weight.unique().tolist()) == {0.0, 1.0}
    assert len(taught["running"].unique()) > 100


def test_cells_are_cut_alike_within_a_prompt(collated):
    collate, _, _ = collated
    drawn, whole = collate(range(16, 32))
    again, cut = collate(range(16, 32), shortest=5)
    assert all(np.array_equal(a, b) for a, b in zip(drawn.prompts, again.prompts, strict=True))
    n_whole, n_cut = ((b["running_weight"] > 0).sum(dim=1) for b in (whole, cut))
    assert (n_cut <= n_whole).all()
    assert (n_cut < n_whole).any()
    assert (n_cut == n_whole).any()
    # Marks stay: as many cells begin and end.
    for mark in (2, 3):
        assert torch.equal((whole["input_ids"] == mark).sum(dim=1), (cut["input_ids"] == mark).sum(dim=1))


def make_layers(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    module = torch.nn.Module()
    module.embedding = torch.nn.Embedding(10, 8)
    module.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)])
    body = torch.nn.Module()
    body.model = module
    return body


def test_optimiser_goes_on_where_it_was():
    def steps(body, optimiser, n):
        for _ in range(n):
            optimiser.zero_grad()
            x = body.model.embedding(torch.arange(10))
            for layer in body.model.layers:
                x = layer(x)
            (x.squeeze(-1) - torch.arange(10.0)).square().mean().backward()
            optimiser.step()
        return body.state_dict()

    whole = make_layers(0)
    expected = steps(whole, MuonAdamW(whole, 0.02, 0.01, 0.0), 6)
    part = make_layers(0)
    optimiser = MuonAdamW(part, 0.02, 0.01, 0.0)
    half = {name: value.clone() for name, value in steps(part, optimiser, 3).items()}
    resumed = make_layers(1)
    resumed.load_state_dict(half)
    again = MuonAdamW(resumed, 0.5, 0.5, 0.0)
    again.load_state_dict(optimiser.state_dict())
    found = steps(resumed, again, 3)
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert [g["lr"] for g in again.param_groups] == [0.02, 0.01, 0.01]


def test_matrices_of_the_blocks_alone_go_to_muon():
    body = make_layers(0)
    muon, adamw = MuonAdamW(body, 0.02, 0.01, 0.1).parts
    assert sum(len(g["params"]) for g in muon.param_groups) == 2
    assert [g["weight_decay"] for g in adamw.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, "no optimizer 'sgd'"),
        ({"teacher": "lasso"}, "no teacher 'lasso'"),
        ({"teacher": "ridge"}, "give running a weight"),
        ({"optimizer": "muon", "lora_rank": 2}, "low rank"),
    ],
)
def test_settings_are_checked_first(settings, message, tmp_path):
    model = mt.load_model("demo", device="cpu")
    with pytest.raises(ValueError, match=message):
        mt.train.temporal(
            "no such file.h5ad",
            model,
            tmp_path / "run",
            time_key="age",
            groupby=[],
            recipe=mt.train.TemporalRecipe.of(**settings),
        )
    assert not (tmp_path / "run").exists()
