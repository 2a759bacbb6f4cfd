"""What the GPU engine allocates at start, computed before anything is: one function, printed once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headrace.graphs.packed import StepKey
from headrace.kernels.settings import SETTINGS_WIDTH
from headrace.runtime.config import DeviceFacts, EngineConfig, device_pages
from headrace.runtime.device_probe import probe_bytes
from headrace.runtime.device_sampler import sampler_bytes
from headrace.runtime.models.config import ModelConfig
from headrace.runtime.models.device_decoder import attention_bytes, buffer_shapes

GRAPH_BYTES = (
    1 << 30
)  # of the driver and cuBLAS: contexts, modules, workspaces, graphs. Measured, not promised.


@dataclass(frozen=True, slots=True)
class DeviceSizes:
    """Bytes of everything that lives as long as the engine."""

    weights: int
    kv: int
    tables: int
    sampling: int
    activations: int
    attention: int
    images: int
    graphs: int
    page_count: int

    @property
    def total(self) -> int:
        return sum(
            (
                self.weights,
                self.kv,
                self.tables,
                self.sampling,
                self.activations,
                self.attention,
                self.images,
                self.graphs,
            )
        )

    def __str__(self) -> str:
        names = ("weights", "kv", "tables", "sampling", "activations", "attention", "images", "graphs")
        words = ", ".join(f"{name} {getattr(self, name) / 2**20:.1f}" for name in names)
        return f"{words}, together {self.total / 2**20:.1f} MiB; {self.page_count} pages"


def measure_device(
    model: ModelConfig,
    config: EngineConfig,
    facts: DeviceFacts,
    largest: StepKey,
    dtype: torch.dtype,
    image_rows: int = 0,
) -> DeviceSizes:
    """The sizes of an engine for a settled `config` whose largest step is `largest`, with room for `image_rows`
    rows of pictures. Raises SettingError."""
    pages_per_slot = -(-config.max_context // config.page_size)
    weights = facts.weight_elements * dtype.itemsize
    tables = config.max_running * ((pages_per_slot + SETTINGS_WIDTH + 1) * 4 + 8)
    sampling = sampler_bytes(config.max_running, largest.samples, model.vocab_size)
    sampling += probe_bytes(largest, model.vocab_size)
    activations = sum(math.prod(shape) for shape in buffer_shapes(model, largest).values()) * dtype.itemsize
    attention = attention_bytes(model, config.max_running)
    images = image_rows * model.image_row_size * dtype.itemsize
    if image_rows and model.vision is not None:
        images += model.vision.scratch(config.image_tokens) * dtype.itemsize
    fixed = weights + tables + sampling + activations + attention + images + GRAPH_BYTES
    pages = device_pages(config, facts, fixed)
    kv = pages * facts.kv_token_elements * dtype.itemsize * config.page_size
    return DeviceSizes(weights, kv, tables, sampling, activations, attention, images, GRAPH_BYTES, pages)
