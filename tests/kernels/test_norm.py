"""rms_norm over rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headrace.kernels import reference
from headrace.kernels.norm import rms_norm

ON_GPU = torch.cuda.is_available()
SHAPES = [(1, 64), (3, 96), (5, 1), (4, 1000)]
if ON_GPU:
    SHAPES += [(257, 1024), (513, 4096), (7, 14336)]


def exact(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.double()


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_equals_the_reference(rows: int, width: int, dtype, close, random_tensor, distance, capture) -> None:
    x, weight = random_tensor(rows, width, dtype=dtype), random_tensor(width, dtype=dtype)
    out = torch.empty_like(x)
    replay = capture(lambda: rms_norm(x, weight, 1e-6, out))
    x.copy_(random_tensor(rows, width, dtype=dtype, scale=3.0))
    out.fill_(float("nan"))
    replay()
    assert distance(out, exact(x, weight, 1e-6)) < close
    # The same roundings as the reference: most elements are the very same number, wherever the sum is the same.
    assert (out == reference.rms_norm(x, weight, 1e-6)).double().mean() > (0.3 if width > 1 else 0.0)


def test_rows_may_lie_apart_and_be_normed_in_place(dtype, close, random_tensor, distance) -> None:
    wide = random_tensor(6, 200, dtype=dtype)
    weight = random_tensor(64, dtype=dtype)
    before = wide.clone()
    rows = wide[:, 40:104]
    rms_norm(rows, weight, 1e-5, rows)
    assert distance(rows, exact(before[:, 40:104], weight, 1e-5)) < close
    assert torch.equal(wide[:, :40], before[:, :40]) and torch.equal(wide[:, 104:], before[:, 104:])


def test_a_row_of_zeros_stays_zero(dtype, device) -> None:
    x = torch.zeros(2, 64, dtype=dtype, device=device)
    out = torch.full_like(x, float("nan"))
    rms_norm(x, torch.ones(64, dtype=dtype, device=device), 1e-6, out)
    assert torch.equal(out, x)


@pytest.mark.parametrize("wrong", ["shape", "dtype", "columns"])
def test_wrong_tensors_are_refused(wrong: str, device) -> None:
    x, out, weight = (torch.ones(*shape, device=device) for shape in ((2, 64), (2, 64), (64,)))
    spoil: dict[str, Callable[[], torch.Tensor]] = {
        "shape": lambda: out[:1],
        "dtype": lambda: out.half(),
        "columns": lambda: torch.ones(64, 2, device=device).t(),
    }
    with pytest.raises(AssertionError):
        rms_norm(x, weight, 1e-6, spoil[wrong]())
