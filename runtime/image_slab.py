"""Rows of encoded pictures in device memory, allocated once, and the pixels that become them. Knows no prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headrace.runtime.image import Image
from headrace.runtime.image_settings import ImageSettings
from headrace.runtime.plan import ImageRows

BLOCK_ROWS = 16


def block_count(settings: ImageSettings | None, memory_mb: int, row_bytes: int) -> int:
    """Blocks that `memory_mb` MiB hold, and always enough for the largest picture; none for a model without
    eyes."""
    if settings is None:
        return 0
    largest = -(-settings.row_limit // BLOCK_ROWS)
    return max(largest, (memory_mb << 20) // (row_bytes * BLOCK_ROWS))


class ImageSlab:
    """data: [blocks, BLOCK_ROWS, 1 + deep, hidden]."""

    def __init__(
        self, blocks: int, deep: int, hidden: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        self.data = torch.zeros((blocks, BLOCK_ROWS, 1 + deep, hidden), dtype=dtype, device=device)
        self.flat = self.data.view(-1, 1 + deep, hidden)

    def store(self, blocks: Sequence[int], rows: Tensor) -> None:
        """The rows of one picture lie in `blocks` from now on."""
        self.flat[sent(cells(blocks, 0, len(rows)), self.flat.device)] = rows

    def read(self, places: Tensor) -> Tensor:
        """places int64 [N], as `cells` gives them -> [N, 1 + deep, hidden]."""
        return self.flat.index_select(0, places)


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on `device`, queued: whoever calls does not wait for the steps ahead."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def cells(blocks: Sequence[int], first: int, count: int) -> np.ndarray:
    """int64: where rows [first, first + count) of the picture in `blocks` lie."""
    row = np.arange(first, first + count)
    return np.asarray(blocks, dtype=np.int64)[row // BLOCK_ROWS] * BLOCK_ROWS + row % BLOCK_ROWS


def read_cells(images: Sequence[ImageRows]) -> np.ndarray:
    """Where the image rows of one PlanRow lie, in the order of its tokens."""
    return np.concatenate([cells(part.blocks, part.first, part.count) for part in images])


def normal_table(settings: ImageSettings) -> Tensor:
    """float32 [3, 256]: what each byte of each colour becomes. Rounded where the reference rounds, so it is
    equal."""
    scaled = (np.arange(256, dtype=np.float64) * settings.scale).astype(np.float32)
    colours = [
        (scaled - np.float32(mean)) / np.float32(std)
        for mean, std in zip(settings.mean, settings.std, strict=True)
    ]
    return torch.from_numpy(np.stack(colours))


def normal_pixels(image: Image, table: Tensor) -> Tensor:
    """float32 [3, height, width] of a picture, on the device of `table`."""
    height, width = image.size
    # A copy: torch wants writable memory, and these bytes belong to the request.
    flat = sent(np.frombuffer(image.pixels, dtype=np.uint8).copy(), table.device)
    colours = flat.view(height * width, 3).t().long()
    return table.gather(1, colours).view(3, height, width)
