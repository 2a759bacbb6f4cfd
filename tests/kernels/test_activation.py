"""silu(gate) * up."""

from __future__ import annotations

import pytest
import torch

from headrace.kernels import reference
from headrace.kernels.activation import silu_mul

ON_GPU = torch.cuda.is_available()
SHAPES = [(1, 64), (3, 97), (2, 1100), (4, 1)]
if ON_GPU:
    SHAPES += [(257, 3072), (100, 14336)]


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_equals_the_reference(rows: int, width: int, dtype, close, random_tensor, distance, capture) -> None:
    x = random_tensor(rows, 2 * width, dtype=dtype)
    out = x.new_empty(rows, width)
    replay = capture(lambda: silu_mul(x, out))
    x.copy_(random_tensor(rows, 2 * width, dtype=dtype, scale=4.0))
    out.fill_(float("nan"))
    replay()
    assert distance(out, reference.silu_mul(x.double())) < close
    assert distance(out, reference.silu_mul(x)) < close / 2


def test_large_gates_neither_overflow_nor_vanish(dtype, device) -> None:
    gate = torch.tensor([-80.0, -60.0, 0.0, 60.0, 1000.0], device=device)
    x = torch.stack((gate, torch.full_like(gate, 2.0))).view(1, -1).to(dtype)
    out = torch.full((1, 5), float("nan"), dtype=dtype, device=device)
    silu_mul(x, out)
    assert out.float().tolist()[0][2:] == [0.0, 120.0, 2000.0]
    assert (out[0, :2].float().abs() < 1e-20).all()


def test_wrong_tensors_are_refused(device) -> None:
    x = torch.ones(2, 128, device=device)
    for out in (
        torch.ones(2, 128, device=device),
        torch.ones(3, 64, device=device),
        torch.ones(2, 64).half(),
    ):
        with pytest.raises(AssertionError):
            silu_mul(x, out)
