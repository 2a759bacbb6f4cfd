"""The numbers that native code computes with, one op at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from llvmlite import ir

from headrace.runtime.backends.native_step import compile_module, vector_width
from headrace.runtime.backends.vector_code import POINTER, Code, pieces


def run(
    write: Callable[[Code, ir.Value, ir.Value], None], source: np.ndarray, target: np.ndarray, stored: str
) -> None:
    """Call a function whose two arguments are the addresses of the arrays."""
    module = ir.Module("test")
    code = Code(module, "work", [POINTER, POINTER], vector_width()[0], stored)
    write(code, *code.function.args)
    code.finish()
    engine = compile_module(module)
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(engine.get_function_address("work"))
    work(source.ctypes.data, target.ctypes.data)


def mapped(
    op: Callable[[Code, ir.Value], ir.Value], numbers: np.ndarray, stored: str = "float32"
) -> np.ndarray:
    """op over all float32 numbers, stored as `stored`."""
    target = np.zeros(len(numbers), np.float32 if stored == "float32" else np.int16)

    def write(code: Code, source: ir.Value, out: ir.Value) -> None:
        code.over(
            len(numbers),
            lambda at, lanes: code.store_stored(
                op(code, code.load(code.at(source, at), lanes)), code.at(out, at, code.item)
            ),
        )

    run(write, numbers, target, stored)
    return target


def test_exp() -> None:
    numbers = np.concatenate(
        [np.linspace(-90, 88, 4001), [0.0, -0.0, -np.inf, np.inf, np.nan, 1e-30]]
    ).astype(np.float32)
    found = mapped(lambda code, x: code.exp(x), numbers)
    inside = np.abs(numbers) <= 87
    expected = np.exp(numbers[inside].astype(np.float64))
    assert np.abs(found[inside] / expected - 1).max() < 3e-7
    assert (found[numbers < -87.3] <= 2e-38).all() and (found[numbers < -87.3] >= 0).all()
    assert found[numbers == np.inf] > 1e38
    assert np.isnan(found[np.isnan(numbers)]).all() and not np.isnan(found[~np.isnan(numbers)]).any()


def test_rounding_to_bfloat16() -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 1 << 32, 5000, dtype=np.uint32)
    words[:6] = (0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001)  # ties, ends, a NaN
    numbers = words.view(np.float32)
    found = torch.from_numpy(mapped(lambda code, x: x, numbers, "bfloat16")).view(torch.bfloat16)
    expected = torch.from_numpy(numbers).to(torch.bfloat16)
    assert torch.equal(found.isnan(), expected.isnan())
    good = ~expected.isnan()
    assert torch.equal(found[good], expected[good])


@pytest.mark.parametrize("length", [1, 2, 7, 16, 21, 100])
def test_sums_take_every_number_once(length: int) -> None:
    numbers = np.arange(1, length + 1, dtype=np.float32)
    target = np.zeros(1, np.float32)

    def write(code: Code, source: ir.Value, out: ir.Value) -> None:
        total = code.real(0.0)
        for at, lanes in pieces(length, code.lanes):
            total = code.to.fadd(total, code.total(code.load(code.at(source, at), lanes)))
        code.store(total, out)

    run(write, numbers, target, "float32")
    assert target[0] == length * (length + 1) / 2


def test_loops() -> None:
    target = np.zeros(3, np.int64)

    def write(code: Code, _: ir.Value, out: ir.Value) -> None:
        to, count = code.to, code.variable(code.whole(0))
        with code.loop(3, 11, 2) as index:
            to.store(to.add(code.read(count), index), count)
        to.store(code.read(count), out)
        with code.loop(5, 5):
            to.store(code.whole(-1), code.at(out, 1, 8))
        with code.forever() as leave_if:
            leave_if(to.icmp_signed(">", code.read(count), code.whole(100)))
            to.store(to.add(code.read(count), code.whole(50)), count)
        to.store(code.read(count), code.at(out, 2, 8))

    run(write, target, target, "float32")
    assert target.tolist() == [3 + 5 + 7 + 9, 0, 124]


def test_llvm_is_the_one_that_is_written_for() -> None:
    assert llvm.llvm_version_info[0] >= 20, "constants are spelled as LLVM 20 and later read them"
