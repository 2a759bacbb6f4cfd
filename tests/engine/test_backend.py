"""The CPU backend's worker thread beside the event loop's."""

from __future__ import annotations

import os
import threading

import torch

from headrace.runtime.backends.cpu import COMPUTE_NICENESS, CpuBackend


def test_compute_steps_back_and_the_loop_does_not() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    backend = CpuBackend(1, torch.float32)
    try:
        nice = backend.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()
    finally:
        backend.close()
    assert nice == max(before, COMPUTE_NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
