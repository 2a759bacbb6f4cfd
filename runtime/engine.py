"""Opens a model folder on the device that the settings ask for. The only file that knows both engines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

# How long OpenMP threads spin for each other before they sleep, read when torch is first imported. The built-in
# value is longer than a time slice: with one busy neighbour on two cores, steps of 40 ms then took seconds, since
# the waiting thread kept its core from the one it waited for. This much covers the gaps inside a step.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# cuBLAS takes its scratch once and never again: a growth while serving would stop the whole device.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from headrace.runtime.blueprint import Blueprint
from headrace.runtime.config import DeviceFacts, EngineConfig, SettingError, settle_device
from headrace.runtime.cpu_engine import CpuEngine
from headrace.runtime.models.vision_config import PlainVision
from headrace.runtime.slab import page_bytes

if TYPE_CHECKING:
    from headrace.runtime.backends.queue import DeviceQueue
    from headrace.runtime.device_engine import DeviceEngine


def open_engine(folder: Path, config: EngineConfig) -> CpuEngine | DeviceEngine:
    """The engine for `folder`. device auto: a GPU if torch sees one, else the CPU.

    Raises CheckpointError for a folder that cannot be served, SettingError for settings that cannot work."""
    wanted = config.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    blueprint = Blueprint(folder, random_weights=config.weights == "random")
    if wanted == "cpu":
        return CpuEngine(blueprint, config)
    if not torch.cuda.is_available():
        raise SettingError("device cuda: torch sees no GPU here")
    from headrace.runtime.backends.queue import CudaQueue

    free, total = torch.cuda.mem_get_info()
    return open_device_engine(blueprint, config, CudaQueue(torch.device("cuda", 0)), free, total)


def open_device_engine(
    blueprint: Blueprint, config: EngineConfig, queue: DeviceQueue, free: int, total: int
) -> DeviceEngine:
    """The GPU engine behind `queue`, for a device with `free` of `total` bytes."""
    # Not at the top: the CPU path needs no Triton.
    from headrace.graphs.keys import KeyList
    from headrace.runtime.device_engine import DTYPES, DeviceEngine
    from headrace.runtime.device_sizes import measure_device
    from headrace.runtime.eyes import BLOCK_ROWS, image_blocks

    model = blueprint.config
    if model.experts is not None:
        raise SettingError("mixtures of experts run on the CPU only (device cpu)")
    if model.gemma is not None:
        raise SettingError("Gemma models run on the CPU only (device cpu)")
    if isinstance(model.vision, PlainVision):
        raise SettingError("LLaVA models run on the CPU only (device cpu)")
    head_dim = model.head_dim
    if head_dim & (head_dim - 1) or not 16 <= head_dim <= 256:
        raise SettingError(
            f"heads of {head_dim} numbers run on the CPU only (device cpu): a GPU needs a power of two"
        )
    facts = DeviceFacts(
        free_memory=free,
        total_memory=total,
        weight_elements=sum(torch.Size(shape).numel() for shape in blueprint.outline.parts.values()),
        kv_token_elements=page_bytes(model, 1, torch.float32) // torch.float32.itemsize,
        max_positions=model.max_positions,
    )
    settled = settle_device(config, facts)
    largest = KeyList.of(settled.max_running, settled.chunk_tokens).largest
    images = blueprint.images(settled.image_tokens)
    dtype = DTYPES[settled.dtype]
    blocks = image_blocks(model, images, settled.image_memory_mb, dtype.itemsize)
    sizes = measure_device(model, settled, facts, largest, dtype, blocks * BLOCK_ROWS)
    return DeviceEngine(blueprint, settled, sizes, queue)
