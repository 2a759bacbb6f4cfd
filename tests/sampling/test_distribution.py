"""Does what is drawn follow softmax under every filter, and do the filters keep what transformers keeps?"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from headrace.runtime import sampling
from headrace.runtime.request import SamplingParams

FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.7},
    {"top_p": 0.01},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.05, "top_k": 20, "top_p": 0.95},
]


def filtered(row: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities by transformers' own warpers, in our order."""
    scores = row.reshape(1, -1)
    ids = torch.zeros(1, 1, dtype=torch.long)
    if params.temperature != 1.0:
        scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.min_p > 0:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1.0:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    return torch.softmax(scores.double(), -1)[0]


def chi_square_limit(freedom: int) -> float:
    """A bound that a true chi-square exceeds with probability about 1e-6 (Wilson and Hilferty)."""
    spread = 2.0 / (9.0 * freedom)
    return freedom * (1.0 - spread + 4.75 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_counts_follow_softmax(options: dict[str, float], draws: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(11)
    row = torch.randn(1, 40, generator=generator) * 2.0
    params = SamplingParams(seed=99, **options)
    table = draws.table_of(40, draws.grant(0, params))
    count = 6000
    seen = np.bincount([table.sample(row, [0], [at])[0] for at in range(count)], minlength=40)
    expected = filtered(row, params).numpy() * count
    assert np.all(seen[expected == 0.0] == 0), "a token that the filter removes was drawn"
    # Cells below five expected hits are pooled, as the test demands.
    small = (expected < 5.0) & (expected > 0.0)
    cells = [(seen[i], expected[i]) for i in range(40) if expected[i] >= 5.0]
    if expected[small].sum() >= 1.0:
        cells.append((seen[small].sum(), expected[small].sum()))
    if len(cells) > 1:
        statistic = sum((a - b) ** 2 / b for a, b in cells)
        assert statistic < chi_square_limit(len(cells) - 1), (statistic, cells)


def test_seeds_are_independent_streams(draws: SimpleNamespace) -> None:
    row = torch.zeros(1, 16)
    tokens = [draws.one(row, SamplingParams(seed=seed)) for seed in range(4000)]
    statistic = sum((c - 250.0) ** 2 / 250.0 for c in np.bincount(tokens, minlength=16))
    assert statistic < chi_square_limit(15)


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("width", [3, 259, 5000])
def test_the_kept_set_equals_transformers(options: dict[str, float], width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    for scale in (0.5, 3.0):
        row = torch.randn(width, generator=generator) * scale
        params = SamplingParams(**options)
        gaps = ((row - row.max()) / params.temperature).numpy()
        kept = set(sampling.candidates(gaps, params).tolist())
        expected = set(torch.nonzero(filtered(row, params)).flatten().tolist())
        hopeless = set(np.flatnonzero(gaps < sampling._HOPELESS).tolist())
        assert kept == expected - hopeless


def test_pruning_is_exact(draws: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token equals the argmax over all exact sums, for flat and for steep rows, with a wide vocabulary."""
    generator = torch.Generator().manual_seed(5)
    width = 4099
    for case in range(120):
        row = torch.randn(width, generator=generator) * float([0.0, 0.1, 1.0, 4.0, 12.0][case % 5])
        params = SamplingParams(seed=case * 7919, temperature=[0.3, 1.0, 1.7][case % 3])
        gaps = ((row - row.max()) / np.float32(params.temperature)).numpy()
        words = sampling.row_words(params.seed, case, width)
        sums = gaps.astype(np.float64) - np.log(-np.log1p(-(words.astype(np.float64) + 0.5) / 2.0**32))
        assert draws.one(row, params, position=case) == int(sums.argmax())


def test_the_hopeless_bound_covers_every_word() -> None:
    extremes = sampling._sums(np.zeros(2, np.float32), np.array([0, 0xFFFFFFFF], np.uint32))
    assert extremes[0] == pytest.approx(33 * math.log(2))
    assert extremes[1] == pytest.approx(-math.log(33 * math.log(2)))
    assert extremes[0] - extremes[1] < -float(sampling._HOPELESS)


@pytest.mark.parametrize("width", [700, 30_000])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0 - 1e-7])
def test_nucleus_by_brute_force(width: int, top_p: float) -> None:
    """Equal values are ranked by id, and blocks of the running sum do not show."""
    generator = np.random.default_rng(width)
    for step in (0.0, 0.5, 4.0):
        gaps = generator.normal(0, 1.5, width).astype(np.float32)
        if step:
            gaps = (np.round(gaps / step) * step).astype(np.float32)
        gaps -= gaps.max()
        order = np.lexsort((np.arange(width), -gaps))
        masses = np.exp(gaps[order].astype(np.float64))
        before = np.cumsum(masses) - masses
        share = before / masses.sum()
        kept = np.zeros(width, bool)
        kept[sampling.candidates(gaps, SamplingParams(top_p=top_p))] = True
        # float32 masses may move the edge by a hair: only tokens clearly on one side are judged.
        assert np.all(kept[order][share < top_p - 1e-5])
        assert not np.any(kept[order][share > top_p + 1e-5])
        assert not np.any(np.diff(kept[order].astype(int)) > 0), "a kept token ranks behind a dropped one"
