"""The GPU engine on what there is: a GPU, or Triton's interpreter with the same code and fewer tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_rig import drive, start, tiny
from interpreted import ON_GPU

from headrace.runtime.backends.queue import CudaQueue, HostQueue
from headrace.runtime.blueprint import Blueprint
from headrace.runtime.config import EngineConfig
from headrace.runtime.device_engine import DeviceEngine
from headrace.runtime.engine import open_device_engine

__all__ = ["device_engine", "drive", "start", "tiny"]


@pytest.fixture
def device_engine() -> Iterator[Callable[..., DeviceEngine]]:
    """device_engine(folder, **settings): an engine that is closed when the test ends; float32, small slab."""
    engines: list[DeviceEngine] = []

    def build(folder: Path, **settings: Any) -> DeviceEngine:
        defaults: dict[str, Any] = {
            "dtype": "float32",
            "page_size": 16,
            "kv_memory_mb": 4,
            "max_running": 24,
            "max_context": 160,
            "chunk_tokens": 64,
        }
        config = EngineConfig(**{**defaults, **settings})
        if ON_GPU:
            queue: Any = CudaQueue(torch.device("cuda", 0))
            free, total = torch.cuda.mem_get_info()
        else:
            queue, free, total = HostQueue(), 8 << 30, 8 << 30
        engine = open_device_engine(Blueprint(folder), config, queue, free, total)
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.close()
