"""The sampling kernels against their plain-torch meaning: every kind of row, mixed in one launch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sampling_rig import POISON, Tables, grant_of, random_params, tables_of

from headrace.kernels import history, sampling
from headrace.kernels.settings import MOST_BIASES, MOST_STOPS
from headrace.runtime.request import SamplingParams

ON_GPU = torch.cuda.is_available()
TIMES = 90 if ON_GPU else 1  # the interpreter needs up to a fifth of a second for a row

# Gaps and arrivals overflow where a token has no chance; numpy says so and the GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning:triton")

# (vocabulary, room for candidates, tokens at a time where they do not fit)
SHAPES = [(257, 4096, 2048), (1000, 64, 256), (3000, 4096, 2048)]


def sample(
    tables: Tables, logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, room: int = 4096
):
    tokens = torch.full_like(slots, POISON)
    space = sampling.scratch(len(slots), tables.width, logits.device, room)
    for part in (space.peaks, space.masses, space.crests, space.gaps, space.work):
        part.fill_(math.nan)
    sampling.sample(
        logits,
        slots,
        positions,
        tables.settings,
        tables.history,
        tables.masks,
        space,
        tokens,
        tables.last_tokens,
    )
    return tokens


def granted(
    params: list[SamplingParams],
    width: int,
    device: torch.device,
    known: tuple[int, ...] = (1, 2, 1),
    guided: bool = False,
):
    tables = tables_of(len(params), width, device)
    for slot, each in enumerate(params):
        tables.grant(grant_of(slot, each, known, 2, guided))
    return tables


def as_rows(
    device: torch.device, slots: list[int], positions: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.tensor(slots, dtype=torch.int32, device=device),
        torch.tensor(positions, dtype=torch.int64, device=device),
    )


def assert_same_choice(
    params: list[SamplingParams],
    width: int,
    logits: torch.Tensor,
    room: int,
    random: np.random.Generator,
    rounding: int = 0,
) -> None:
    """By kernel and twin from the same tables: equal tokens but for `rounding` of them, equal tables."""
    tables = granted(params, width, logits.device)
    slots, positions = as_rows(
        logits.device, random.permutation(len(params)).tolist(), random.integers(3, 6, len(params)).tolist()
    )
    twin = tables.copy()
    expected = twin.sample_by_twin(logits, slots, positions)
    found = sample(tables, logits, slots, positions, room)
    different = (found != expected).nonzero().flatten().tolist()
    assert len(different) <= rounding, [
        (found[at].item(), expected[at].item(), params[int(slots[at])]) for at in different
    ]
    if not different:
        assert tables.equals(twin)


@pytest.mark.parametrize(("width", "room", "chunk"), SHAPES)
def test_any_mix_of_rows(
    width: int, room: int, chunk: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CHUNK", chunk)
    random = np.random.default_rng(width)
    generator = torch.Generator().manual_seed(width)
    for case in range(TIMES):
        params = [random_params(random, width) for _ in range(6)]
        logits = torch.randn(6, width, generator=generator) * [1.0, 3.0, 0.3][case % 3]
        if case % 2 or width == 1000:
            logits = logits.bfloat16()
        assert_same_choice(params, width, logits.to(device), room, random, rounding=case // 30)


EVERY_WAY = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7, seed=4),
    SamplingParams(top_k=7, seed=1),
    SamplingParams(top_k=150, seed=2),
    SamplingParams(top_p=0.3, seed=5),
    SamplingParams(top_p=0.97, seed=6),
    SamplingParams(min_p=0.1, seed=7),
    SamplingParams(temperature=1.5, top_k=200, top_p=0.9, min_p=0.02, seed=8),
]


@pytest.mark.parametrize("shape", ["flat", "equal", "steep", "tied", "holes"])
def test_shapes_of_distributions(
    shape: str, device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose candidates fit into 64 places and rows whose do not; ties at every cut; almost nothing left."""
    monkeypatch.setattr(sampling, "CHUNK", 256)
    width = 300
    normal = torch.randn(len(EVERY_WAY), width, generator=generator)
    logits = {
        "flat": normal * 0.2,
        "equal": torch.zeros_like(normal),
        "steep": normal * 20.0,
        "tied": normal.round(),
        "holes": torch.where(torch.arange(width) % 100 == 99, normal, -math.inf),
    }[shape]
    assert_same_choice(EVERY_WAY, width, logits.to(device), 64, np.random.default_rng(1))


def test_penalties_bias_and_held_stop_ids(device: torch.device, generator: torch.Generator) -> None:
    """All at once, on both sides of every tile edge, with the tables full, for every kind of row."""
    width = 2100
    edges = (0, 1, 2, 1022, 1023, 1024, 1025, 2047, 2048, 2099)
    most = {
        "logit_bias": tuple((token, 0.001 * token - 1.0) for token in range(width - MOST_BIASES, width)),
        "stop_ids": frozenset(range(MOST_STOPS)),
        "min_tokens": 2,
    }
    some = {
        "repetition_penalty": 0.3,
        "frequency_penalty": -1.1,
        "stop_ids": frozenset(edges),
        "min_tokens": 5,
        "logit_bias": ((1023, 8.0),),
    }
    params = [
        SamplingParams(seed=5, **way, **option)  # type: ignore[arg-type]
        for way, option in [
            ({"temperature": 0.0}, most),
            ({"top_k": 20, "top_p": 0.9}, most),
            ({"temperature": 0.0}, some),
            ({"temperature": 0.8}, some),
            ({"top_p": 0.9}, some),
            ({"temperature": 0.0}, {"logit_bias": tuple((token, 2.0 + token % 3) for token in edges)}),
            ({"temperature": 0.8}, {"repetition_penalty": 1.7, "presence_penalty": 0.4}),
        ]
    ]
    logits = torch.randn(len(params), width, generator=generator).to(device)
    assert_same_choice(params, width, logits, 4096, np.random.default_rng(2))


def test_tokens_and_counts_run_on(device: torch.device, generator: torch.Generator) -> None:
    """Four steps of greedy rows with penalties: each count written is what the next step reads."""
    params = [
        SamplingParams(temperature=0.0, frequency_penalty=1.0),
        SamplingParams(temperature=0.0, repetition_penalty=2.0),
    ]
    tables = granted(params, 50, device)
    twin = tables.copy()
    logits = torch.randn(2, 50, generator=generator).to(device)
    chosen = set()
    for step in range(4):
        rows = as_rows(device, [0, 1], [3 + step] * 2)
        tokens = sample(tables, logits, *rows)
        assert torch.equal(tokens, twin.sample_by_twin(logits, *rows))
        assert tables.equals(twin)
        assert tables.last_tokens.tolist() == tokens.tolist()
        chosen.add(int(tokens[0]))
    assert len(chosen) > 1, "the penalty never moved a choice"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_row_fails_alone(bad: float, device: torch.device, generator: torch.Generator) -> None:
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.0, "presence_penalty": 1.0},
        {"seed": 1},
        {"top_k": 5, "frequency_penalty": 1.0},
        {"stop_ids": frozenset({4}), "logit_bias": ((1023, -100.0),), "min_tokens": 9},
    ]
    params = [SamplingParams(**kind) for kind in kinds for _ in range(2)]  # type: ignore[arg-type]
    logits = torch.randn(len(params), 1100, generator=generator)
    rows = as_rows(device, list(range(len(params))), [3] * len(params))
    expected = sample(granted(params, 1100, device), logits.to(device), *rows)
    damaged = logits.clone()
    if bad == -math.inf:
        damaged[::2] = bad
    else:
        damaged[::2, 4 if math.isinf(bad) else 1099] = bad
    tables = granted(params, 1100, device)
    before = tables.copy()
    given = damaged.to(device)
    tokens = sample(tables, given, *rows)
    assert tokens[::2].tolist() == [-1] * 5
    assert torch.equal(tokens[1::2], expected[1::2])
    assert tables.last_tokens[::2].tolist() == [0] * 5
    assert torch.equal(tables.history[::2], before.history[::2]), "a token that never was is counted"
    assert torch.equal(given.cpu().view(torch.int32), damaged.view(torch.int32)), "the logits were written to"


def test_nothing_left_after_masking_fails_the_row(device: torch.device) -> None:
    logits = torch.full((2, 70), -math.inf)
    logits[:, 10] = 0.0
    params = [SamplingParams(stop_ids=frozenset({10}), min_tokens=at) for at in (9, 0)]
    tokens = sample(granted(params, 70, device), logits.to(device), *as_rows(device, [0, 1], [3, 3]))
    assert tokens.tolist() == [-1, 10]


def test_extreme_numbers(device: torch.device) -> None:
    """A penalty does not push a logit to +inf, a gap may overflow, and the tiniest temperature divides rightly."""
    logits = torch.linspace(-1.0, 1.0, 90).repeat(4, 1)
    logits *= torch.tensor([[3e38], [3e38], [1e30], [1e-30]])
    params = [
        SamplingParams(temperature=0.0, repetition_penalty=0.01),
        SamplingParams(temperature=1e-5, top_p=0.9, top_k=7),
        SamplingParams(temperature=1e-5, min_p=0.5),
        SamplingParams(temperature=100.0, top_p=0.5),
    ]
    assert_same_choice(params, 90, logits.to(device), 64, np.random.default_rng(3))


def test_padded_rows_are_left_alone(device: torch.device, generator: torch.Generator) -> None:
    params = [SamplingParams(presence_penalty=1.0), SamplingParams(top_k=4)]
    tables = granted(params, 300, device)
    logits = torch.randn(4, 300, generator=generator).to(device)
    alone = sample(tables.copy(), logits[1:2], *as_rows(device, [1], [3]))
    logits[[0, 2, 3]] = math.nan
    before = tables.copy()
    slots, positions = as_rows(device, [-1, 1, -1, -1], [1 << 40, 3, -7, 0])
    tokens = sample(tables, logits, slots, positions)
    assert tokens.tolist() == [POISON, int(alone), POISON, POISON]
    assert int(tables.last_tokens[1]) == int(alone) and int(tables.last_tokens[0]) == POISON
    assert torch.equal(tables.history, before.history) and torch.equal(tables.settings, before.settings)


def test_a_token_does_not_depend_on_the_batch(device: torch.device, generator: torch.Generator) -> None:
    """The same row alone, and among enough others that tiles are spread over programs in another way."""
    width = 4500
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1, temperature=1.4),
        SamplingParams(seed=2, top_p=0.8),
    ]
    tables = granted([*params, SamplingParams(temperature=0.0)], width, device)
    logits = torch.randn(20, width, generator=generator).to(device)
    slots = [-1] * 20
    slots[3], slots[11], slots[19], slots[7] = 0, 1, 2, 3
    among = sample(tables.copy(), logits, *as_rows(device, slots, [5] * 20))
    for at in (3, 11, 19):
        alone = sample(tables.copy(), logits[at : at + 1], *as_rows(device, [slots[at]], [5]))
        assert int(alone) == int(among[at])


def test_rows_may_lie_apart_and_positions_may_be_narrow(
    device: torch.device, generator: torch.Generator
) -> None:
    params = [SamplingParams(seed=1), SamplingParams(top_k=9)]
    tables = granted(params, 130, device)
    wide = torch.randn(4, 200, generator=generator).to(device, torch.bfloat16)
    slots, positions = as_rows(device, [1, 0], [3, 4])
    expected = sample(tables.copy(), wide[::2, :130].contiguous(), slots, positions)
    assert torch.equal(sample(tables, wide[::2, :130], slots, positions.int()), expected)


def test_replayed_with_other_rows(
    device: torch.device,
    generator: torch.Generator,
    capture: Callable[[Callable[[], object]], Callable[[], None]],
) -> None:
    """One captured launch serves whatever stands in the tables: all four kinds of row go through every row."""
    width = 700
    params = [
        SamplingParams(temperature=0.0, presence_penalty=0.5),
        SamplingParams(seed=8),
        SamplingParams(top_k=5, top_p=0.9),
        SamplingParams(top_p=0.99, temperature=2.0, logit_bias=((3, 4.0),)),
    ]
    tables = granted(params, width, device)
    logits = torch.randn(4, width, generator=generator).to(device)
    slots, positions = as_rows(device, [0, 1, 2, 3], [3] * 4)
    space = sampling.scratch(4, width, device, room=64)
    tokens = torch.full_like(slots, POISON)
    replay = capture(
        lambda: sampling.sample(
            logits,
            slots,
            positions,
            tables.settings,
            tables.history,
            tables.masks,
            space,
            tokens,
            tables.last_tokens,
        )
    )
    for turn in range(3):
        logits.copy_(torch.randn(4, width, generator=generator))
        order = [(turn + at) % 4 for at in range(4)]
        if turn == 2:
            order[1] = -1
        slots.copy_(torch.tensor(order, dtype=torch.int32))
        positions.fill_(4 + turn)
        tokens.fill_(POISON)
        twin = tables.copy()
        replay()
        assert torch.equal(tokens, twin.sample_by_twin(logits, slots, positions))
        assert tables.equals(twin)


@pytest.mark.parametrize("count", [0, 3, 300])
def test_history_is_reset(
    count: int,
    device: torch.device,
    random_tensor: Callable[..., torch.Tensor],
    generator: torch.Generator,
) -> None:
    width = 9000
    found = random_tensor(4, width, scale=100.0).int()
    expected = found.clone()
    ids = torch.randperm(width, generator=generator)[:count].int().to(device)
    cells = torch.arange(1, count + 1, dtype=torch.int32, device=device)
    history.reset(found, 2, ids, cells)
    expected[2] = 0
    expected[2, ids.long()] = cells
    assert torch.equal(found, expected)


@pytest.mark.parametrize("width", [97, 1000, 3000])
def test_only_what_a_mask_allows_is_chosen(width: int, device: torch.device) -> None:
    """Greedy, drawn, filtered and penalised rows under masks of few and of many tokens, beside rows without one."""
    random = np.random.default_rng(width)
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=3, temperature=0.8),
        SamplingParams(seed=4, top_k=7, top_p=0.9),
        SamplingParams(seed=5, min_p=0.2, repetition_penalty=1.3),
        SamplingParams(temperature=0.0, logit_bias=((5, 30.0),), stop_ids=frozenset({1}), min_tokens=9),
        SamplingParams(seed=6, top_p=0.5, temperature=3.0),
    ]
    tables = granted(params, width, device, guided=True)
    for slot in (1, 5):  # these have none: whatever stands in their row of masks is not read
        tables.grant(grant_of(slot, params[slot], (1, 2, 1), 2))
    sets = []
    for slot, few in enumerate((1, 2, width // 2, 40, 3, 1)):
        chosen = random.choice(np.arange(2, width), few, replace=False)
        sets.append({int(token) for token in chosen})
        bits = np.zeros(tables.masks.shape[1] * 32, dtype=np.uint8)
        bits[chosen] = 1
        mask = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32).copy())
        tables.masks[slot] = mask.to(device)
    logits = torch.from_numpy(random.standard_normal((6, width)).astype(np.float32) * 2).to(device)
    slots, positions = as_rows(device, [2, 0, 1, 5, 4, 3], [4] * 6)
    twin = tables.copy()
    expected = twin.sample_by_twin(logits, slots, positions)
    assert torch.equal(sample(tables, logits, slots, positions), expected)
    assert tables.equals(twin)
    for slot, token in zip(slots.tolist(), expected.tolist(), strict=True):
        assert slot in (1, 5) or token in sets[slot]


def test_a_mask_of_nothing_leaves_nothing(device: torch.device) -> None:
    params = [SamplingParams(temperature=0.0), SamplingParams(seed=2), SamplingParams(seed=3, top_p=0.9)]
    tables = granted(params, 70, device, guided=True)
    tables.masks.zero_()
    tables.masks[1, 2] = -(1 << 31)  # the last bit of the last word: beyond the vocabulary
    logits = torch.ones(3, 70, device=device)
    assert sample(tables, logits, *as_rows(device, [0, 1, 2], [3] * 3)).tolist() == [-1, -1, -1]
