"""What kernel tests share. Without a GPU the kernels run in Triton's interpreter, on the CPU and on small shapes.

The interpreter multiplies bfloat16 operands of `tl.dot` wrongly, so half precision is float16 on the CPU and
bfloat16 on the GPU.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterator

import pytest
import torch

ON_GPU = torch.cuda.is_available()

if not ON_GPU:
    # Triton decides when a kernel is decorated, for its own library functions when it is imported.
    assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", (
        "triton was imported before tests/kernels/conftest.py could switch the interpreter on"
    )
    os.environ["TRITON_INTERPRET"] = "1"

HALF = torch.bfloat16 if ON_GPU else torch.float16


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(params=[torch.float32, HALF], ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """float32, whose results must be exact to rounding, and the half precision of this machine."""
    kind: torch.dtype = request.param
    return kind


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """A CPU generator of its own for each test, the same one in every run."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def random_tensor(generator: torch.Generator, device: torch.device) -> Callable[..., torch.Tensor]:
    """random_tensor(*shape, dtype=float32, scale=1.0): normal numbers on the device; new ones with every call."""

    def draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)

    return draw


@pytest.fixture
def distance() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """distance(found, exact): norm of the difference over the norm of `exact`, in float64; inf for any NaN."""

    def measure(found: torch.Tensor, exact: torch.Tensor) -> float:
        assert found.shape == exact.shape, (found.shape, exact.shape)
        found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
        off = ((found - exact).norm() / exact.norm().clamp_min(1e-300)).item()
        return off if off == off else float("inf")

    return measure


@pytest.fixture
def close(dtype: torch.dtype) -> float:
    """The largest `distance` that rounding explains: float32 sums, float16 or bfloat16 operands and results."""
    return {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]


@pytest.fixture
def capture(device: torch.device) -> Callable[[Callable[[], object]], Callable[[], None]]:
    """capture(launch) runs `launch` once, so that everything is compiled, and returns what runs it again: on the
    GPU the replay of a CUDA graph of it, on the CPU the same call. Change inputs in place between runs, and poison
    outputs after `capture`, which has written them once."""

    def prepare(launch: Callable[[], object]) -> Callable[[], None]:
        if device.type == "cpu":
            launch()
            return lambda: (launch(), None)[1]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            launch()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            before = torch.cuda.memory_stats()["allocation.all.allocated"]
            launch()
            after = torch.cuda.memory_stats()["allocation.all.allocated"]
        assert after == before, "a launcher allocated memory"

        def replay() -> None:
            graph.replay()
            torch.cuda.synchronize()

        return replay

    return prepare


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
