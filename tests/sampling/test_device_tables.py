"""Sampling from device tables (its plain-torch meaning) chooses as SamplingTable does, whatever the settings."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sampling_rig import grant_of, random_params, tables_of

from headrace.kernels import reference_sampling
from headrace.kernels import settings as words
from headrace.runtime.device_sampling import history_cells, settings_row
from headrace.runtime.philox import token_words
from headrace.runtime.plan import NON_FINITE
from headrace.runtime.request import SamplingParams
from headrace.runtime.sampling import SamplingTable

STEPS = 3


def both(params: list[SamplingParams], width: int, seed: int, logits: torch.Tensor) -> int:
    """Sample STEPS times for all params by both; returns how many tokens were equal. logits [STEPS, n, width]."""
    random = np.random.default_rng(seed)
    known = [tuple(random.integers(0, width + 3, random.integers(1, 30)).tolist()) for _ in params]
    prompts = [int(random.integers(1, len(each) + 1)) for each in known]
    table, device = SamplingTable(len(params), width), tables_of(len(params), width)
    for slot, each in enumerate(params):
        grant = grant_of(slot, each, known[slot], prompts[slot])
        table.grant(grant)
        device.grant(grant)
    for step in range(STEPS):
        slots = random.permutation(len(params)).tolist()
        positions = [len(known[slot]) + step for slot in slots]
        expected = table.sample(logits[step], slots, positions)
        tokens = device.sample_by_twin(
            logits[step], torch.tensor(slots, dtype=torch.int32), torch.tensor(positions)
        )
        # Only float32 rounding could tell them apart (the exp of one library against another's): about one token in
        # 10**5. None does with these seeds.
        different = [
            (slot, a, b, params[slot])
            for slot, a, b in zip(slots, tokens.tolist(), expected, strict=True)
            if a != b
        ]
        assert not different, different
        assert device.last_tokens[torch.tensor(slots)].tolist() == [max(token, 0) for token in expected]
    return STEPS * len(params)


@pytest.mark.parametrize("width", [5, 257, 1000])
def test_thousands_of_settings_choose_as_the_host_table_does(width: int) -> None:
    random = np.random.default_rng(width)
    compared = 0
    for case in range(12):
        params = [random_params(random, width) for _ in range(40)]
        generator = torch.Generator().manual_seed(width * 100 + case)
        logits = torch.randn(STEPS, 40, width, generator=generator) * [0.3, 1.0, 4.0][case % 3]
        if case % 4 == 1:
            logits = logits.bfloat16()  # many equal logits
        if case % 4 == 3:
            logits = torch.where(logits > 0.5, logits, -math.inf)
        compared += both(params, width, case, logits)
    assert compared == 12 * 40 * STEPS


GRID: dict[str, list[object]] = {
    "temperature": [0.0, 1e-320, 1e-5, 0.7, 100.0],
    "top_k": [0, 1, 99, 1 << 31],
    "top_p": [5e-324, 0.5, 1.0 - 2**-53, 1.0],
    "min_p": [0.0, 5e-324, 0.3, 1.0],
    "repetition_penalty": [0.01, 1.0, 100.0],
    "presence_penalty": [-2.0, 0.0, 2.0],
    "frequency_penalty": [-2.0, 0.0, 2.0],
    "logit_bias": [(), ((0, 100.0), (98, -100.0))],
    "seed": [0, (1 << 64) - 1],
    "stop_ids": [frozenset(), frozenset({0}), frozenset(range(98))],
    "min_tokens": [0, 1, 1 << 31],
}


def test_every_pair_of_options_chooses_as_the_host_table_does() -> None:
    pairs = [
        SamplingParams(**{one: a, other: b})
        for one, other in itertools.combinations(GRID, 2)
        for a, b in itertools.product(GRID[one], GRID[other])
    ]
    assert len(pairs) > 500
    logits = torch.randn(STEPS, len(pairs), 99, generator=torch.Generator().manual_seed(3))
    logits[:, 1::4] = 0.0
    logits[:, 2::4] *= 1e37
    both(pairs, 99, 4, logits)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bad_row_is_told_apart(bad: float, temperature: float) -> None:
    logits = torch.zeros(STEPS, 3, 40)
    logits[:, 1, :] = torch.where(torch.arange(40) % 7 == 0, bad, 0.0) if bad != -math.inf else bad
    params = [SamplingParams(temperature=temperature, presence_penalty=1.0, seed=seed) for seed in range(3)]
    device = tables_of(3, 40)
    for slot, each in enumerate(params):
        device.grant(grant_of(slot, each, (1, 2), 2))
    before = device.history[1].clone()
    slots, positions = torch.arange(3, dtype=torch.int32), torch.full((3,), 2)
    tokens = device.sample_by_twin(logits[0], slots, positions)
    assert tokens[1] == NON_FINITE and device.last_tokens[1] == 0
    assert torch.equal(device.history[1], before)
    assert (tokens[[0, 2]] >= 0).all()
    both(params, 40, 9, logits)


def test_a_padded_row_changes_nothing() -> None:
    device = tables_of(2, 40)
    device.grant(grant_of(0, SamplingParams(presence_penalty=1.0), (1,), 1))
    before = device.copy()
    tokens = device.sample_by_twin(
        torch.full((2, 40), math.nan),
        torch.full((2,), -1, dtype=torch.int32),
        torch.zeros(2, dtype=torch.int64),
    )
    assert device.equals(before) and tokens.tolist() == [tokens[0].item()] * 2 and tokens[0] < -1


def test_words_equal_those_of_the_host() -> None:
    ids = np.arange(0, 300_000, 37)
    for seed, position in ((0, 0), (0x0123456789ABCDEF, 1), ((1 << 64) - 1, 131071)):
        words_of = reference_sampling.philox_words(
            seed & 0xFFFFFFFF, seed >> 32, position, torch.from_numpy(ids)
        )
        assert np.array_equal(words_of.numpy(), token_words(seed, position, ids))


def test_a_row_says_what_its_grant_says() -> None:
    params = SamplingParams(
        temperature=0.75,
        top_k=1000,
        top_p=0.1,
        logit_bias=((7, 1.5), (3, -2.0), (7, 0.25)),
        seed=0xFEDCBA9876543210,
        stop_ids=frozenset({30, 4}),
        min_tokens=5,
    )
    row = settings_row(grant_of(0, params, (1, 2, 3), 3), 50)
    floats = row.view(np.float32)
    assert row[words.FLAGS] == words.FILTERED | words.BIASED
    assert row[words.TOP_K] == 0, "a top_k of the whole vocabulary filters nothing"
    assert row[words.TOP_P : words.TOP_P + 2].view(np.float64)[0] == 0.1
    assert row[words.SEED : words.SEED + 2].view(np.uint64)[0] == params.seed
    assert floats[words.TEMPERATURE] == 0.75 and floats[words.LOG_MIN_P] == -math.inf
    assert row[words.FIRST_FREE] == 8
    assert row[words.STOP_IDS : words.STOP_IDS + row[words.STOP_COUNT]].tolist() == [4, 30]
    assert row[words.BIAS_IDS : words.BIAS_IDS + row[words.BIAS_COUNT]].tolist() == [3, 7]
    assert floats[words.BIASES : words.BIASES + 2].tolist() == [-2.0, 1.75]


def test_a_top_k_of_the_whole_vocabulary_is_no_filter() -> None:
    row = settings_row(grant_of(0, SamplingParams(top_k=50), (1,), 1), 50)
    assert row[words.FLAGS] == 0
    row = settings_row(grant_of(0, SamplingParams(top_k=49), (1,), 1), 50)
    assert row[words.FLAGS] == words.FILTERED and row[words.TOP_K] == 49


def test_what_does_not_fit_or_is_no_logit_is_our_mistake() -> None:
    too_many = frozenset(range(words.MOST_STOPS + 1))
    with pytest.raises(AssertionError, match="513 ids"):
        settings_row(grant_of(0, SamplingParams(stop_ids=too_many), (1,), 1), 1000)
    for params in (SamplingParams(stop_ids=frozenset({50})), SamplingParams(logit_bias=((-1, 1.0),))):
        with pytest.raises(AssertionError, match="when a prompt is prepared"):
            settings_row(grant_of(0, params, (1,), 1), 50)


def test_history_counts_the_output_alone() -> None:
    grant = grant_of(0, SamplingParams(presence_penalty=1.0), (5, 5, 9, 70, 9, 5, 9, 2), 4)
    ids, cells = history_cells(grant, 50)
    assert dict(zip(ids.tolist(), cells.tolist(), strict=True)) == {2: 2, 5: 2, 9: 3}
