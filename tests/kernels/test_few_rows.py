"""norm_linear, linear_add and gate_up: what is true of all products of few rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from headrace.kernels import reference
from headrace.kernels.few_rows import Scratch
from headrace.kernels.gate_up import gate_up
from headrace.kernels.linear_add import linear_add
from headrace.kernels.norm import rms_norm
from headrace.kernels.norm_linear import norm_linear
from headrace.kernels.tilings import Tiling

ON_GPU = torch.cuda.is_available()
EPS = 1e-5
OPS = ("norm_linear", "linear", "gate_up", "linear_add")
ROWS = [1, 2, 3, 5, 16]
# N, K and how they are cut: whole tiles; K shorter than a tile; ragged both ways, with splits that get nothing.
CUTS = [
    (64, 64, None),
    (34, 24, None),
    (22, 100, Tiling(16, 32, 4, splits=3, stages=2)),
    (22, 100, Tiling(8, 64, 1, splits=4)),
]
REAL = [
    ("norm_linear", 4096, 1024), ("norm_linear", 6144, 4096), ("linear", 32000, 1024),
    ("gate_up", 6144, 1024), ("gate_up", 28672, 4096),
    ("linear_add", 1024, 2048), ("linear_add", 1024, 3072), ("linear_add", 4096, 14336),
] if ON_GPU else [(op, 80, 48) for op in OPS]  # fmt: skip
REAL_ROWS = (1, 2, 3, 4, 8, 11, 16, 32, 64) if ON_GPU else (2, 11, 33)


def scratch_on(device: torch.device, floats: int = 1 << 16) -> Scratch:
    partials = torch.full((floats,), float("nan"), device=device)
    return Scratch(partials, torch.zeros(1 << 10, dtype=torch.int32, device=device))


@dataclass
class Call:
    """One op with its tensors; `fresh` draws new values into the same tensors."""

    op: str
    x: Tensor
    weight: Tensor
    norm_weight: Tensor
    bias: Tensor | None
    residual: Tensor
    out: Tensor
    scratch: Scratch | None
    tiling: Tiling | None

    def run(self) -> None:
        op, options = self.op, {"tiling": self.tiling}
        if op == "gate_up":
            gate_up(self.x, self.norm_weight, EPS, self.weight, self.bias, self.out, **options)
            return
        options["scratch"] = self.scratch
        if op == "linear_add":
            linear_add(self.x, self.weight, self.bias, self.residual, self.out, **options)
        else:
            norm = self.norm_weight if op == "norm_linear" else None
            norm_linear(self.x, norm, EPS, self.weight, self.bias, self.out, **options)

    def exact(self) -> Tensor:
        x, weight, norm, residual = (
            tensor.double() for tensor in (self.x, self.weight, self.norm_weight, self.residual)
        )
        bias = None if self.bias is None else self.bias.double()
        if self.op == "linear_add":
            return reference.linear_add(x, weight, bias, residual)
        if self.op == "gate_up":
            return silu_mul_exact(norm_exact(x, norm) @ weight.t() + (0.0 if bias is None else bias))
        return (norm_exact(x, norm) if self.op == "norm_linear" else x) @ weight.t() + (
            0.0 if bias is None else bias
        )

    def fresh(self, draw: Callable[..., Tensor]) -> None:
        for tensor in (self.x, self.norm_weight, self.residual):
            tensor.copy_(draw(*tensor.shape, dtype=tensor.dtype))
        self.out.fill_(float("nan"))


def norm_exact(x: Tensor, weight: Tensor) -> Tensor:
    """The reference norm rounds at float32; this one nowhere."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def silu_mul_exact(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def make(
    op: str, rows: int, n: int, k: int, dtype: torch.dtype, draw: Callable[..., Tensor], *, bias: bool = True,
    tiling: Tiling | None = None, scratch: bool = True,
) -> Call:  # fmt: skip
    """A call on tensors that lie inside larger ones full of NaN: whoever reads or writes past them is seen."""
    width = n // 2 if op == "gate_up" else n
    x = draw(rows, k, dtype=dtype)
    device = x.device

    def walled(values: Tensor, aside: int) -> Tensor:
        wide = torch.full(
            (values.shape[0] + 2, values.shape[1] + aside), float("nan"), dtype=dtype, device=device
        )
        inner = wide[1:-1, aside : aside + values.shape[1]]
        inner.copy_(values)
        return inner

    return Call(
        op=op,
        x=walled(x, 16),
        weight=walled(draw(n, k, dtype=dtype, scale=k**-0.5), 0),
        norm_weight=walled(draw(1, k, dtype=dtype), 0)[0],
        bias=walled(draw(1, n, dtype=dtype), 0)[0] if bias else None,
        residual=walled(draw(rows, width, dtype=dtype), 8),
        out=walled(torch.full((rows, width), float("nan"), device=device), 8),
        scratch=scratch_on(device) if scratch else None,
        tiling=tiling,
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rows", ROWS)
def test_equals_the_twin(op: str, rows: int, dtype, close, random_tensor, distance, capture) -> None:
    for n, k, tiling in CUTS:
        call = make(op, rows, n, k, dtype, random_tensor, bias=k != 64, tiling=tiling)
        replay = capture(call.run)
        call.fresh(random_tensor)
        replay()
        assert distance(call.out, call.exact()) < close, (tiling, n, k)
        around = call.out._base
        assert around is not None and around.isnan().sum() == around.numel() - call.out.numel()
        assert call.scratch is not None and not call.scratch.arrivals.any()


@pytest.mark.parametrize(("op", "n", "k"), REAL)
def test_chooses_for_itself_at_real_shapes(op, n, k, dtype, close, random_tensor, distance, capture) -> None:
    for rows in REAL_ROWS:
        call = make(op, rows, n, k, dtype, random_tensor, bias=False)
        call.scratch = Scratch.of([(n, k)], rows, call.x.device)
        replay = capture(call.run)
        call.fresh(random_tensor)
        replay()
        assert distance(call.out, call.exact()) < close, rows
        assert not call.scratch.arrivals.any()


@pytest.mark.parametrize("op", OPS)
def test_is_as_near_as_the_reference_says(op: str, dtype, close, random_tensor, distance) -> None:
    """The twin in the same dtype rounds more often; it lies as near."""
    call = make(op, 3, 64, 64, dtype, random_tensor)
    call.run()
    norm = call.norm_weight if op != "linear" else None
    if op == "linear_add":
        twin = reference.linear_add(call.x, call.weight, call.bias, call.residual)
    elif op == "gate_up":
        twin = reference.gate_up(call.x, norm, EPS, call.weight, call.bias)
    else:
        twin = reference.norm_linear(call.x, norm, EPS, call.weight, call.bias)
    assert distance(call.out, twin) < 2 * close


@pytest.mark.parametrize("tiling", [Tiling(16, 64, 4), Tiling(32, 32, 4, splits=3)])
@pytest.mark.parametrize("rows", [2, 7])
def test_residual_is_added_in_place(rows: int, tiling: Tiling, dtype, close, random_tensor, distance) -> None:
    call = make("linear_add", rows, 50, 100, dtype, random_tensor, tiling=tiling)
    exact = call.exact()
    call.out = call.residual
    call.run()
    assert distance(call.out, exact) < close


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rows", [3, 12])
def test_rows_do_not_see_each_other(op: str, rows: int, dtype, random_tensor) -> None:
    """Within one row class a row's bits depend on that row alone, be the others NaN."""
    for tiling in (None, Tiling(32, 32, 4, splits=3, stages=2)):
        call = make(op, rows, 50, 100, dtype, random_tensor, tiling=tiling)
        call.run()
        alone = call.out[1].clone()
        call.x[0] = float("nan")
        call.x[2:] = float("nan")
        call.run()
        assert torch.equal(call.out[1], alone)
        assert call.out[0].isnan().all() and call.out[2:].isnan().all()


@pytest.mark.parametrize("rows", [1, 6])
def test_equal_inputs_give_equal_bits(rows: int, dtype, random_tensor, capture) -> None:
    call = make("norm_linear", rows, 50, 100, dtype, random_tensor, tiling=Tiling(16, 32, 4, splits=4))
    replay = capture(call.run)
    first = call.out.clone()
    assert call.scratch is not None
    for _ in range(20 if ON_GPU else 2):
        call.out.fill_(float("nan"))
        call.scratch.partials.fill_(float("nan"))
        replay()
        assert torch.equal(call.out, first)


@pytest.mark.parametrize("op", ["norm_linear", "gate_up"])
@pytest.mark.parametrize("rows", [1, 6])
def test_rows_of_zeros_stay_finite(op: str, rows: int, dtype, random_tensor) -> None:
    call = make(op, rows, 64, 64, dtype, random_tensor, bias=False)
    call.x.zero_()
    call.run()
    assert not call.out.any() and not call.out.isnan().any()


@pytest.mark.parametrize("rows", [1, 6])
def test_logits_may_be_float32(rows: int, dtype, random_tensor, distance) -> None:
    call = make("norm_linear", rows, 50, 100, dtype, random_tensor)
    call.out = torch.full((rows, 50), float("nan"), device=call.x.device)
    call.run()
    # Up to 4 rows nothing is rounded below float32; more rows have x times the norm weight rounded once.
    assert distance(call.out, call.exact()) < (5e-6 if rows <= 4 or dtype == torch.float32 else 5e-3)


def test_without_scratch_nothing_is_split(dtype, close, random_tensor, distance) -> None:
    call = make(
        "linear_add", 2, 50, 100, dtype, random_tensor, tiling=Tiling(32, 32, 4, splits=4), scratch=False
    )
    call.run()
    assert distance(call.out, call.exact()) < close


def test_scratch_that_is_too_small_is_refused(random_tensor, device) -> None:
    call = make("linear_add", 2, 64, 64, torch.float32, random_tensor, tiling=Tiling(8, 16, 4, splits=2))
    tiles = 8
    for floats, counts in ((2 * 9 * 2 * tiles - 1, tiles), (2 * 9 * 2 * tiles, tiles - 1)):
        call.scratch = Scratch(
            torch.empty(floats, device=device), torch.zeros(counts, dtype=torch.int32, device=device)
        )
        with pytest.raises(AssertionError):
            call.run()
    call.scratch = Scratch(
        torch.empty(2 * 9 * 2 * tiles, device=device), torch.zeros(tiles, dtype=torch.int32, device=device)
    )
    call.run()


@pytest.mark.parametrize("op", OPS)
def test_wrong_tensors_are_refused(op: str, random_tensor) -> None:
    def spoilt(**changes: Tensor) -> None:
        call = make(op, 2, 64, 64, torch.float32, random_tensor)
        for name, tensor in changes.items():
            setattr(call, name, tensor)
        with pytest.raises(AssertionError):
            call.run()

    good = make(op, 2, 64, 64, torch.float32, random_tensor)
    spoilt(x=good.x.half())
    spoilt(x=good.x[:, :32])
    spoilt(x=random_tensor(65, 64))
    spoilt(weight=random_tensor(64, 64).t())
    spoilt(out=good.out[:1])
    spoilt(out=good.out.half())
    spoilt(bias=random_tensor(63))
    if op in ("norm_linear", "gate_up"):
        spoilt(norm_weight=random_tensor(32))
    if op == "linear_add":
        spoilt(residual=good.residual.half())


@pytest.mark.parametrize("rows", [1, 9])
def test_early_starts_change_nothing(rows: int, dtype, random_tensor, device, capture) -> None:
    """A chain in which each launch reads what the one before wrote, and the residual stream is added to in place,
    gives the same bits whether launches wait for each other as a whole or start early. (Without a GPU there is
    nothing to start early: then this says that the flag is taken.)"""
    hidden, inner, layers = (1024, 3072, 12) if ON_GPU else (32, 48, 2)
    splits = Tiling(16, 64, 4, splits=4, stages=1 if rows <= 4 else 3)
    shapes = [(2 * hidden, hidden), (hidden, 2 * hidden), (2 * inner, hidden), (hidden, inner)]
    weights = [[random_tensor(n, k, dtype=dtype, scale=k**-0.5) for n, k in shapes] for _ in range(layers)]
    norm = random_tensor(hidden, dtype=dtype)
    start = random_tensor(rows, hidden, dtype=dtype)
    stream, wide = torch.empty_like(start), start.new_empty(rows, 2 * hidden)
    active = start.new_empty(rows, inner)
    scratch = scratch_on(device, 1 << 20)

    def chain(pdl: bool) -> None:
        rms_norm(start, norm, EPS, stream, pdl=pdl)
        for first, second, third, fourth in weights:
            norm_linear(stream, norm, EPS, first, None, wide, scratch=scratch, pdl=pdl)
            linear_add(wide, second, None, stream, stream, scratch=scratch, tiling=splits, pdl=pdl)
            gate_up(stream, norm, EPS, third, None, active, pdl=pdl)
            linear_add(active, fourth, None, stream, stream, scratch=scratch, pdl=pdl)

    replays = [capture(lambda: chain(False)), capture(lambda: chain(True))]
    for _ in range(5 if ON_GPU else 1):
        start.copy_(random_tensor(rows, hidden, dtype=dtype))
        ends = []
        for replay in replays:
            stream.fill_(float("nan"))
            replay()
            ends.append(stream.clone())
        assert torch.equal(*ends) and not ends[0].isnan().any()
