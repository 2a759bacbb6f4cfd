"""The logprob kernels against their plain-torch meaning."""

from __future__ import annotations

import math

import pytest
import torch

from headrace.kernels.logprobs import IDS, MOST_TOP, PLACE_WORDS, TOPS, logprobs, scratch
from headrace.kernels.reference_logprobs import logprobs as twin

ON_GPU = torch.cuda.is_available()
POISON = 1 << 30
VOCABS = [21, 1024, 2500, *([128256, 151936, 262144] if ON_GPU else [])]


def told(logits, rows, targets, top, capture=None):
    """(values, ids, tops) by kernel, from memory that holds garbage."""
    space = scratch(len(rows), logits.shape[1], logits.device)
    out = torch.full((len(rows), PLACE_WORDS), POISON, dtype=torch.int32, device=logits.device)
    for part in (space.peaks, space.masses, space.best):
        part.fill_(math.nan)
    space.who.fill_(POISON)

    def launch() -> None:
        logprobs(logits, rows, targets, top, space, out)

    if capture is None:
        launch()
    else:
        replay = capture(launch)
        out.fill_(POISON)
        replay()
    assert (out[:, IDS + top : TOPS] == POISON).all() and (out[:, TOPS + top :] == POISON).all()
    floats = out.view(torch.float32)
    return floats[:, 0], out[:, IDS : IDS + top], floats[:, TOPS : TOPS + top]


def ints(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


@pytest.mark.parametrize("top", [0, 1, MOST_TOP])
@pytest.mark.parametrize("vocab", VOCABS)
def test_equals_the_reference(vocab, top, dtype, device, random_tensor, capture) -> None:
    """Of some rows, in another order; half precision has ties everywhere, which go to the lowest ids."""
    logits = random_tensor(5, vocab, dtype=dtype, scale=3.0)
    logits[3, : vocab // 2] = -math.inf
    rows = ints([4, 0, 3], device)
    targets = ints([7, 1, 2, vocab - 1, vocab // 2], device)
    values, ids, tops = told(logits, rows, targets, top, capture)
    picked = rows.long()
    expected = twin(logits[picked], targets[picked], top)
    torch.testing.assert_close(values, expected[0], rtol=1e-6, atol=2e-5)
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(tops, expected[2], rtol=1e-6, atol=2e-5)
    exact = logits[picked].double().log_softmax(-1).gather(1, targets[picked].long()[:, None])[:, 0]
    torch.testing.assert_close(values.double(), exact, rtol=1e-6, atol=2e-5)


def test_a_ranked_target_has_the_same_bits(device, random_tensor) -> None:
    logits = random_tensor(4, 1500)
    best = logits.topk(3, -1).indices.int()
    rows = ints([0, 1, 2, 3], device)
    for rank in range(3):
        values, ids, tops = told(logits, rows, best[:, rank].contiguous(), 5)
        assert torch.equal(ids[:, rank], best[:, rank])
        assert torch.equal(values, tops[:, rank])


def test_ties_go_to_the_lowest_id(device) -> None:
    logits = torch.zeros(1, 2100, device=device)
    values, ids, tops = told(logits, ints([0], device), ints([2099], device), MOST_TOP)
    assert ids[0].tolist() == list(range(MOST_TOP))
    assert (tops == values[0]).all()
    assert values[0].item() == pytest.approx(-math.log(2100), abs=1e-6)


def test_what_tokens_cannot_be_said(device) -> None:
    """Masked tokens have minus infinity and come last, in order; a failed row's target reads token 0."""
    logits = torch.full((2, 1100), -math.inf, device=device)
    logits[:, 5], logits[:, 1050] = 1.0, 2.0
    values, ids, tops = told(logits, ints([1, 0], device), ints([5, -1], device), 4)
    assert ids.tolist() == [[1050, 5, 0, 1]] * 2
    assert values[0].item() == -math.inf and tops[:, 2:].isinf().all()
    assert values[1].item() == tops[1, 1].item() == pytest.approx(-1.3132617)


def test_a_row_with_a_nan_disturbs_nobody(device, random_tensor) -> None:
    logits = random_tensor(3, 1100)
    clean = told(logits, ints([0, 2], device), ints([1, 2, 3], device), 3)
    logits[1, 40] = math.nan
    values, ids, tops = told(logits, ints([0, 1, 2], device), ints([1, 2, 3], device), 3)
    assert values[1].isnan()
    for found, expected in zip((values, ids, tops), clean, strict=True):
        assert torch.equal(found[[0, 2]], expected)


def test_rows_of_a_wider_table_and_none(device, random_tensor) -> None:
    wide = random_tensor(3, 130)
    found = told(wide[:, :100], ints([2], device), ints([0, 0, 9], device), 2)
    expected = twin(wide[2:, :100], ints([9], device), 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)
    told(wide, ints([], device), ints([0, 0, 0], device), 2)


def test_wrong_tensors_are_refused(device) -> None:
    logits, rows, targets = torch.zeros(2, 50, device=device), ints([0], device), ints([0, 0], device)
    space = scratch(1, 50, device)
    out = torch.zeros(1, PLACE_WORDS, dtype=torch.int32, device=device)
    for wrong in (
        (logits.double(), rows, targets, 1, space, out),
        (logits, rows.long(), targets, 1, space, out),
        (logits, rows, targets[:1], 1, space, out),
        (logits, rows, targets, MOST_TOP + 1, space, out),
        (logits, rows, targets, 1, space, out[:, :40]),
        (logits, ints([0, 1], device), targets, 1, space, out.repeat(2, 1)),
    ):
        with pytest.raises(AssertionError):
            logprobs(*wrong)
