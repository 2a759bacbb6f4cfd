"""What the sampling kernels draw follows the distribution that the settings describe; real vocabularies too."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sampling_rig import POISON, grant_of, random_params, tables_of

from headrace.kernels import sampling
from headrace.kernels.reference_sampling import kept
from headrace.runtime.request import SamplingParams

ON_GPU = torch.cuda.is_available()
WIDTH = 12
# Gaps overflow where a token has no chance; numpy says so and the GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning:triton")
DRAWS = 40_000 if ON_GPU else 50  # the interpreter draws some twenty a second

FILTERS = [{"temperature": 1.3}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2, "temperature": 0.6}]


def chi_square_limit(freedom: int) -> float:
    """A bound that a true chi-square exceeds with probability about 1e-6 (Wilson and Hilferty)."""
    spread = 2.0 / (9.0 * freedom)
    return freedom * (1.0 - spread + 4.75 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_counts_follow_the_kept_masses(options: dict[str, float], device: torch.device) -> None:
    """One row of logits, drawn from at many positions: each row of a launch is a draw of its own."""
    row = torch.randn(WIDTH, generator=torch.Generator().manual_seed(11))
    slots = torch.arange(50 if not ON_GPU else 250, dtype=torch.int32, device=device)
    tables = tables_of(len(slots), WIDTH, device)
    for slot in range(len(slots)):
        tables.grant(grant_of(slot, SamplingParams(seed=slot * 7919, **options), (0,), 1))  # type: ignore[arg-type]
    logits = row.repeat(len(slots), 1).to(device)
    space = sampling.scratch(len(slots), WIDTH, device, room=64)
    tokens = torch.full_like(slots, POISON)
    seen = np.zeros(WIDTH)
    for turn in range(DRAWS // len(slots)):
        sampling.sample(
            logits, slots, torch.full_like(slots, turn), tables.settings, tables.history, tables.masks, space,
            tokens, tables.last_tokens,
        )  # fmt: skip
        seen += np.bincount(tokens.cpu().numpy(), minlength=WIDTH)
    gaps = (row - row.max()) / options.get("temperature", 1.0)
    weights = torch.where(kept(gaps, tables.settings[0].cpu()), gaps.double().exp(), 0.0)
    expected = (weights / weights.sum()).numpy() * seen.sum()
    assert seen.sum() == DRAWS
    assert np.all(seen[expected == 0.0] == 0), "a token that the filter removes was drawn"
    # Cells below five expected hits are pooled, as the test demands.
    small = (expected < 5.0) & (expected > 0.0)
    cells = [(seen[at], expected[at]) for at in range(WIDTH) if expected[at] >= 5.0]
    if expected[small].sum() >= 1.0:
        cells.append((seen[small].sum(), expected[small].sum()))
    statistic = sum((a - b) ** 2 / b for a, b in cells)
    assert statistic < chi_square_limit(len(cells) - 1), (statistic, cells)


@pytest.mark.parametrize("width", [151936, 128256] if ON_GPU else [5000])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_real_vocabularies(
    width: int,
    scale: float,
    device: torch.device,
    capture: Callable[[Callable[[], object]], Callable[[], None]],
) -> None:
    """Any mix of settings at the real room and widths, captured once and replayed with other logits and slots."""
    rows, turns = (24, 3) if ON_GPU else (4, 1)
    random = np.random.default_rng(width)
    generator = torch.Generator().manual_seed(width)
    tables = tables_of(rows + 3, width, device)
    for slot in range(rows + 3):
        known = tuple(random.integers(0, width, 40).tolist())
        tables.grant(grant_of(slot, random_params(random, width), known, 30))
    logits = torch.zeros(rows, width, dtype=torch.bfloat16, device=device)
    slots = torch.arange(rows, dtype=torch.int32, device=device)
    positions = torch.full((rows,), 40, device=device)
    space = sampling.scratch(rows, width, device)
    tokens = torch.full_like(slots, POISON)
    launch = capture if ON_GPU else lambda each: each
    replay = launch(
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
    apart = 0
    for turn in range(turns):
        logits.copy_(torch.randn(rows, width, generator=generator) * scale)
        slots.copy_(torch.from_numpy(random.permutation(rows + 3)[:rows].astype(np.int32)))
        positions.fill_(41 + turn)
        twin = tables.copy()
        replay()
        apart += int((tokens != twin.sample_by_twin(logits, slots, positions)).sum())
        tables.history.copy_(twin.history)
    # float32 sums of masses move the edge of a nucleus by a token or so: that token is drawn once in thousands.
    assert apart <= (1 if ON_GPU else 0), apart
