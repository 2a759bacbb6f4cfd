"""SamplingTable: penalties, masks, ties, slots that change owners, rows that must not touch each other."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from headrace.runtime.plan import NON_FINITE
from headrace.runtime.request import SamplingParams
from headrace.runtime.sampling import History, SamplingTable

WIDTH = 97


def rows_of(count: int, seed: int = 3, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 2.0


# -- penalties and masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 10.0])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    row = rows_of(1)
    prompt, output = (3, 5, 5, 8, 96), (5, 40, 40)
    ours = row[0].numpy().copy()
    History(prompt, output, WIDTH).penalise(ours, SamplingParams(repetition_penalty=penalty))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), row.clone())
    assert np.array_equal(ours, theirs[0].numpy())


def test_presence_and_frequency_count_the_output_alone() -> None:
    ours = rows_of(1)[0].numpy().copy()
    before = ours.copy()
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    History((1, 2, 2, 3), (2, 9, 9, 9), WIDTH).penalise(ours, params)
    change = before - ours
    assert change[2] == pytest.approx(0.75, abs=1e-6)
    assert change[9] == pytest.approx(0.5 + 3 * 0.25, abs=1e-6)
    change[[2, 9]] = 0.0
    assert not change.any()


def test_history_grows_with_each_sampled_token(draws: SimpleNamespace) -> None:
    """A flat row under a frequency penalty visits every token once before any comes again."""
    params = SamplingParams(temperature=0.0, frequency_penalty=1.0)
    table = draws.table_of(WIDTH, draws.grant(0, params, (0, 1)))
    tokens = [table.sample(torch.zeros(1, WIDTH), [0], [2 + step])[0] for step in range(2 * WIDTH)]
    assert tokens == [*range(WIDTH), *range(WIDTH)], "prompt tokens are not counted"


def test_history_of_a_regrant_equals_an_unbroken_run(draws: SimpleNamespace) -> None:
    params = SamplingParams(repetition_penalty=1.2, frequency_penalty=0.3, seed=4)
    prompt = (5, 6, 7)
    rows = rows_of(12)
    whole = draws.table_of(WIDTH, draws.grant(0, params, prompt))
    tokens = [whole.sample(rows[i : i + 1], [0], [3 + i])[0] for i in range(12)]
    parts = draws.table_of(WIDTH, draws.grant(1, params, prompt))
    resumed = [parts.sample(rows[i : i + 1], [1], [3 + i])[0] for i in range(5)]
    parts.grant(draws.grant(0, params, prompt + tuple(resumed), prompt_len=3))
    resumed += [parts.sample(rows[i : i + 1], [0], [3 + i])[0] for i in range(5, 12)]
    assert resumed == tokens


def test_prompt_ids_beyond_the_logits_are_left_out(draws: SimpleNamespace) -> None:
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0)
    row = torch.zeros(WIDTH)
    row[7] = 1.0
    assert draws.one(row, params, known=(WIDTH, WIDTH + 50, 3)) == 7


def test_long_histories_keep_every_id() -> None:
    history = History(tuple(range(500)), tuple(range(400, 1000)), 1000)
    row = np.ones(1000, np.float32)
    history.penalise(row, SamplingParams(frequency_penalty=1.0))
    assert np.array_equal(row, np.where(np.arange(1000) < 400, 1.0, 0.0).astype(np.float32))


def test_logit_bias_is_added(draws: SimpleNamespace) -> None:
    row = torch.zeros(WIDTH)
    row[10] = 5.0
    greedy = {"temperature": 0.0}
    assert draws.one(row, SamplingParams(logit_bias=((20, 4.0),), **greedy)) == 10
    assert draws.one(row, SamplingParams(logit_bias=((20, 5.5),), **greedy)) == 20
    assert draws.one(row, SamplingParams(logit_bias=((10, -100.0), (3, 0.5)), **greedy)) == 3
    assert draws.one(row, SamplingParams(logit_bias=((20, 3.0), (20, 3.0)), **greedy)) == 20


def test_stop_ids_wait_for_min_tokens(draws: SimpleNamespace) -> None:
    row = torch.zeros(1, WIDTH)
    row[0, 10], row[0, 11], row[0, 12] = 9.0, 8.0, 7.0
    params = SamplingParams(temperature=0.0, stop_ids=frozenset({10, 11}), min_tokens=3)
    table = draws.table_of(WIDTH, draws.grant(0, params, (1, 2, 3, 4)))
    assert [table.sample(row, [0], [4 + index])[0] for index in range(5)] == [12, 12, 12, 10, 10]


def test_nothing_left_after_masking_fails_the_row(draws: SimpleNamespace) -> None:
    row = torch.full((WIDTH,), -math.inf)
    row[10] = 0.0
    assert draws.one(row, SamplingParams(stop_ids=frozenset({10}), min_tokens=1)) == NON_FINITE
    assert draws.one(row, SamplingParams(stop_ids=frozenset({10}))) == 10


# -- ties and extremes ----------------------------------------------------------------------------------------


def test_ties_go_to_the_lowest_id(draws: SimpleNamespace) -> None:
    row = torch.zeros(WIDTH)
    row[[70, 30, 50]] = 4.0
    assert draws.one(row, SamplingParams(temperature=0.0)) == 30
    assert draws.one(row, SamplingParams(temperature=1e-6)) == 30
    # top_k keeps all ties of its last rank; top_p, which ranks by id too, keeps the lowest.
    assert {draws.one(row, SamplingParams(top_k=1, seed=seed)) for seed in range(60)} == {30, 50, 70}
    assert {draws.one(row, SamplingParams(top_p=0.01, seed=seed)) for seed in range(60)} == {30}


def test_equal_sums_go_to_the_lowest_id(draws: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    same = lambda seed, position, width, scratch: np.full(width, 77, np.uint32)  # noqa: E731
    monkeypatch.setattr("headrace.runtime.sampling.row_words", same)
    row = torch.zeros(WIDTH)
    row[[8, 9]] = 1.0
    assert draws.one(row, SamplingParams()) == 8


@pytest.mark.parametrize("temperature", [0.0, 1e-5, 1e-3, 1.0, 2.0, 100.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 3e38])
def test_extreme_numbers_stay_in_range(temperature: float, scale: float, draws: SimpleNamespace) -> None:
    row = rows_of(1)[0].clamp(-1.0, 1.0) * scale
    params = SamplingParams(temperature=temperature, top_p=0.9, top_k=7, min_p=0.01, seed=1)
    assert 0 <= draws.one(row, params) < WIDTH
    best = torch.zeros(WIDTH)
    best[40] = scale
    if scale >= 1e30:
        assert draws.one(best, params) == 40


def test_masked_logits_are_never_drawn(draws: SimpleNamespace) -> None:
    row = torch.full((WIDTH,), -math.inf)
    row[[4, 90]] = 0.0
    for options in ({}, {"top_k": 50}, {"top_p": 0.999}, {"min_p": 0.5}, {"temperature": 2.0}):
        tokens = {draws.one(row, SamplingParams(seed=seed, **options)) for seed in range(40)}
        assert tokens == {4, 90}


def test_a_vocabulary_of_one(draws: SimpleNamespace) -> None:
    for params in (
        SamplingParams(),
        SamplingParams(temperature=0.0),
        SamplingParams(top_p=0.5, top_k=1, min_p=1.0),
    ):
        assert draws.one(torch.tensor([2.5]), params) == 0


# -- rows and slots that must not touch each other ------------------------------------------------------------

MIX = [
    SamplingParams(seed=1),
    SamplingParams(temperature=0.0),
    SamplingParams(seed=2, top_k=9, temperature=0.7),
    SamplingParams(seed=3, top_p=0.8, repetition_penalty=1.3),
    SamplingParams(seed=4, min_p=0.1, frequency_penalty=0.5),
    SamplingParams(seed=5, logit_bias=((4, 6.0),), stop_ids=frozenset({4}), min_tokens=5),
    SamplingParams(seed=6, presence_penalty=-1.0, temperature=1.9),
    SamplingParams(seed=(1 << 64) - 1),
]


def alone(draws: SimpleNamespace, rows: torch.Tensor, steps: int) -> list[list[int]]:
    results = []
    for index, params in enumerate(MIX):
        table = draws.table_of(WIDTH, draws.grant(0, params, (1, 2, index)))
        results.append(
            [table.sample(rows[step, index : index + 1], [0], [3 + step])[0] for step in range(steps)]
        )
    return results


def test_a_token_does_not_depend_on_the_batch(draws: SimpleNamespace) -> None:
    """SEC-42: random slots, random order, random subsets of rows per step; each request's tokens stay the same."""
    steps = 12
    rows = rows_of(steps * len(MIX)).reshape(steps, len(MIX), WIDTH)
    expected = alone(draws, rows, steps)
    random = np.random.default_rng(8)
    for _ in range(10):
        slots = random.permutation(len(MIX) + 3)[: len(MIX)].tolist()
        table = SamplingTable(len(MIX) + 3, WIDTH)
        for index, params in enumerate(MIX):
            table.grant(draws.grant(slots[index], params, (1, 2, index)))
        done = [0] * len(MIX)
        got: list[list[int]] = [[] for _ in MIX]
        while min(done) < steps:
            ready = [i for i in range(len(MIX)) if done[i] < steps]
            batch = random.permutation(ready)[: random.integers(1, len(ready) + 1)].tolist()
            logits = torch.stack([rows[done[i], i] for i in batch])
            tokens = table.sample(logits, [slots[i] for i in batch], [3 + done[i] for i in batch])
            for i, token in zip(batch, tokens, strict=True):
                got[i].append(token)
                done[i] += 1
        assert got == expected


def test_a_reused_slot_forgets_its_last_owner(draws: SimpleNamespace) -> None:
    poison = SamplingParams(
        temperature=0.01,
        top_k=1,
        top_p=0.01,
        min_p=1.0,
        repetition_penalty=50.0,
        presence_penalty=2.0,
        frequency_penalty=2.0,
        logit_bias=((5, 100.0),),
        seed=123,
        stop_ids=frozenset(range(50)),
        min_tokens=1000,
    )
    rows = rows_of(6)
    for params in (*MIX, SamplingParams()):
        fresh = draws.table_of(WIDTH, draws.grant(0, params, (1, 2)))
        reused = draws.table_of(WIDTH, draws.grant(0, poison, tuple(range(90))))
        reused.sample(rows_of(1, seed=9), [0], [90])
        reused.grant(draws.grant(0, params, (1, 2)))
        for step in range(6):
            row = rows[step : step + 1]
            assert reused.sample(row, [0], [2 + step]) == fresh.sample(row, [0], [2 + step])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_row_fails_alone(bad: float, draws: SimpleNamespace) -> None:
    """ENG-08: the row that holds the bad value is told apart, its neighbours keep their tokens."""
    rows = rows_of(len(MIX))
    slots = list(range(len(MIX)))
    positions = [3] * len(MIX)
    grants = [draws.grant(i, params, (1, 2, i)) for i, params in enumerate(MIX)]
    expected = draws.table_of(WIDTH, *grants).sample(rows, slots, positions)
    for victim in slots:
        damaged = rows.clone()
        if bad == -math.inf:
            damaged[victim] = bad
        else:
            damaged[victim, 4] = bad  # also a stop id that min_tokens masks, and a biased id
        before = damaged.clone()
        tokens = draws.table_of(WIDTH, *grants).sample(damaged, slots, positions)
        assert tokens[victim] == NON_FINITE
        assert tokens[:victim] + tokens[victim + 1 :] == expected[:victim] + expected[victim + 1 :]
        assert torch.equal(damaged.view(torch.int32), before.view(torch.int32)), "the logits were written to"


def test_bfloat16_rows_choose_as_their_float32_values(draws: SimpleNamespace) -> None:
    rows = rows_of(len(MIX)).bfloat16()
    grants = [draws.grant(i, params, (1, 2, i)) for i, params in enumerate(MIX)]
    args = (list(range(len(MIX))), [3] * len(MIX))
    narrow = draws.table_of(WIDTH, *grants).sample(rows, *args)
    assert narrow == draws.table_of(WIDTH, *grants).sample(rows.float(), *args)


def test_strided_logits_are_accepted(draws: SimpleNamespace) -> None:
    rows = rows_of(4, width=2 * WIDTH)[::2, ::2]
    grants = [draws.grant(i, SamplingParams(seed=i)) for i in range(2)]
    got = draws.table_of(WIDTH, *grants).sample(rows, [0, 1], [1, 1])
    assert got == draws.table_of(WIDTH, *grants).sample(rows.contiguous(), [0, 1], [1, 1])


def test_no_rows_no_tokens() -> None:
    assert SamplingTable(1, WIDTH).sample(torch.zeros(0, WIDTH), [], []) == []


# -- SEC-08, SEC-10: every pair of options -------------------------------------------------------------------

GRID: dict[str, list[object]] = {
    "temperature": [0.0, 1e-320, 1e-5, 0.7, 2.0],
    "top_k": [0, 1, WIDTH, 1 << 31],
    "top_p": [5e-324, 0.5, 1.0 - 2**-53, 1.0],
    "min_p": [0.0, 5e-324, 0.3, 1.0],
    "repetition_penalty": [0.01, 1.0, 100.0],
    "presence_penalty": [-2.0, 0.0, 2.0],
    "frequency_penalty": [-2.0, 0.0, 2.0],
    "logit_bias": [(), ((0, 100.0), (WIDTH - 1, -100.0))],
    "seed": [0, (1 << 64) - 1],
    "stop_ids": [frozenset(), frozenset({0}), frozenset(range(WIDTH - 1))],
    "min_tokens": [0, 1, 1 << 31],
}


def test_every_pair_of_options(draws: SimpleNamespace) -> None:
    rows = torch.cat([rows_of(2), torch.zeros(1, WIDTH), rows_of(1) * 1e37])
    pairs = [
        {one: a, other: b}
        for one, other in itertools.combinations(GRID, 2)
        for a, b in itertools.product(GRID[one], GRID[other])
    ]
    assert len(pairs) > 500
    for start in range(0, len(pairs), 64):
        chosen = [SamplingParams(**pair) for pair in pairs[start : start + 64]]  # type: ignore[arg-type]
        table = draws.table_of(WIDTH, *[draws.grant(i, params, (0, 5, 5)) for i, params in enumerate(chosen)])
        for step in range(3):
            logits = rows[[(i + step) % len(rows) for i in range(len(chosen))]]
            tokens = table.sample(logits, list(range(len(chosen))), [3 + step] * len(chosen))
            assert all(0 <= token < WIDTH for token in tokens)


# -- masks of grammars -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_only_what_a_mask_allows_is_chosen(draws: SimpleNamespace, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3)
    table = draws.table_of(WIDTH, *(draws.grant(slot, params, (0, 1)) for slot in range(3)))
    allowed = [5, 40, 96]
    mask = sum(1 << token for token in allowed).to_bytes(13, "little")
    for step in range(40):
        rows = rows_of(3, seed=step)
        kept = rows.clone()
        free = table.sample(rows, [0, 1, 2], [2 + step] * 3)
        masked = table.sample(rows, [0, 1, 2], [2 + step] * 3, {1: mask})
        assert masked[1] in allowed
        assert (masked[0], masked[2]) == (free[0], free[2]), "other rows do not notice"
        assert torch.equal(rows, kept)
        if temperature == 0.0:
            assert masked[1] == max(allowed, key=lambda token: rows[1, token])


def test_ids_beyond_a_mask_and_empty_masks(draws: SimpleNamespace) -> None:
    table = draws.table_of(WIDTH, draws.grant(0, SamplingParams(temperature=0.0), (0, 1)))
    row = torch.zeros(1, WIDTH)
    row[0, WIDTH - 1] = 9.0
    row[0, 3] = 5.0
    assert table.sample(row, [0], [2], {0: b"\xff"}) == [3]
    assert table.sample(row, [0], [2], {0: b"\xff" * 64}) == [WIDTH - 1]
    assert table.sample(row, [0], [2], {0: b""}) == [NON_FINITE]
    assert table.sample(row, [0], [2], {0: b"\x00" * 13}) == [NON_FINITE]
