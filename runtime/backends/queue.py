"""The one queue of work in front of a device: copies, graphs and marks, all in order.

CudaQueue is a stream of the GPU. HostQueue does everything at once on the CPU, where Triton's interpreter runs the
same kernels: that is how the GPU engine is tested without one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A point in the queue."""

    def done(self) -> bool:
        """True once everything queued before it has happened. Never waits."""

    def wait(self) -> None:
        """Return when it is done. Raises what the device raised."""


class DeviceQueue(Protocol):
    """Everything given to it happens in order. Used by one thread at a time."""

    device: torch.device
    processors: int  # multiprocessors: how many programs run side by side
    early: bool  # kernels may start before the one before them has ended (programmatic dependent launch)

    def turn(self) -> AbstractContextManager[object]:
        """Inside, kernels and torch ops of this thread go into this queue."""

    def host_words(self, count: int) -> Tensor:
        """int32 [count] on the host, where copies to and from the device need no help from the CPU."""

    def mark(self) -> Mark: ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` as one launch. It must have run once before, so that nothing compiles or allocates in it."""

    def wait(self) -> None:
        """Return when the queue is empty."""


class _CudaMark:
    __slots__ = ("event",)

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event()
        self.event.record(stream)

    def done(self) -> bool:
        return self.event.query()

    def wait(self) -> None:
        self.event.synchronize()


class CudaQueue:
    """One stream of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.processors = torch.cuda.get_device_properties(device).multi_processor_count
        self.early = True  # on an H200 steps of few rows take 10 % less time with it, of many rows more
        self.stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def turn(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.stream)

    def host_words(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int32, pin_memory=True)

    def mark(self) -> Mark:
        return _CudaMark(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # A module unloaded by the collector would break the capture.
        enabled = gc.isenabled()
        gc.disable()
        try:
            # By hand: torch's own context collects garbage and gives cached memory back, 0.2 s each time.
            with torch.cuda.stream(self.stream):
                # thread_local: other threads (tokenizers) may allocate pinned memory meanwhile.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
        finally:
            if enabled:
                gc.enable()
        self._graphs.append(graph)
        return graph.replay

    def wait(self) -> None:
        self.stream.synchronize()


class _Past:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class HostQueue:
    """No queue at all: everything has happened when the call returns."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.processors = 2
        self.early = False

    def turn(self) -> AbstractContextManager[object]:
        return nullcontext()

    def host_words(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int32)

    def mark(self) -> Mark:
        return _Past()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def wait(self) -> None:
        pass
