"""Draws with native weights: the same words, the same tokens."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.runtime.backends.native_draw import NativeDraw
from headrace.runtime.philox import row_words
from headrace.runtime.plan import SlotGrant
from headrace.runtime.request import SamplingParams
from headrace.runtime.sampling import RowScratch, SlotSampling

WIDTHS = (1, 3, 64, 199, 3072, 5001)
LAST = (1 << 64) - 1
SETTINGS = (
    SamplingParams(seed=1),
    SamplingParams(seed=LAST, temperature=3.0),
    SamplingParams(seed=1 << 63, min_p=1e-4),
    SamplingParams(seed=5, top_p=0.99, temperature=2.0),
    SamplingParams(seed=6, temperature=1e-3),
)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("seed", "position"), [(0, 0), (1, 77), (LAST, (1 << 31) - 1), (1 << 63, 5)])
def test_words_are_philoxs(width: int, seed: int, position: int) -> None:
    gaps = -np.random.default_rng(0).random(width, dtype=np.float32) * 20
    words, quotients = NativeDraw(width).weigh(gaps, seed, position)
    expected = row_words(seed, position, width)
    assert (words == expected).all()
    np.testing.assert_allclose(quotients, expected / np.exp(gaps.astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("params", SETTINGS)
def test_tokens_are_the_same(params: SamplingParams) -> None:
    generator = np.random.default_rng(1)
    for width in (3, 199, 3072):
        owner = SlotSampling(SlotGrant(0, 0, params, 4, (0,), ()), width)
        plain, native = RowScratch(width), RowScratch(width, NativeDraw(width).weigh)
        for position in range(100, 140):
            row = generator.standard_normal(width, dtype=np.float32) * 3
            row[generator.integers(width)] = -np.inf if width > 3 else 0.0
            assert owner.choose(row, position, plain) == owner.choose(row, position, native)


def test_two_widths_do_not_share_memory() -> None:
    one, two = NativeDraw(70), NativeDraw(70)
    words, _ = one.weigh(np.zeros(70, np.float32), 1, 1)
    kept = words.copy()
    two.weigh(np.zeros(70, np.float32), 2, 2)
    assert (words == kept).all()
