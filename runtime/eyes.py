"""What an engine of a model that sees has beside the others: a tower, encoded rows, and where tokens stand on the
axes.

Used on the thread of the engine's steps, in their order. Where steps are replayed from graphs, what this file does
runs beside them, eagerly: before the step, or in the middle of one that is then not replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from headrace.runtime.image_settings import ImageSettings
from headrace.runtime.image_slab import (
    BLOCK_ROWS,
    ImageSlab,
    block_count,
    normal_pixels,
    normal_table,
    read_cells,
    sent,
)
from headrace.runtime.models.config import ModelConfig
from headrace.runtime.models.llama import Llama
from headrace.runtime.models.seeing import Seeing
from headrace.runtime.models.vision_config import PlainVision
from headrace.runtime.plan import ImageEncode, PlanRow, SlotGrant
from headrace.runtime.slot_spans import SlotSpans
from headrace.runtime.step_images import StepImages


def image_blocks(config: ModelConfig, images: ImageSettings | None, memory_mb: int, item: int) -> int:
    """How many blocks of BLOCK_ROWS rows an engine keeps. item: bytes of a number."""
    return block_count(images, memory_mb, config.image_row_size * item)


def image_stages(config: ModelConfig) -> int:
    """Pieces that an encode can be cut into: its tower's blocks."""
    return 1 if config.vision is None else config.vision.depth


def sees_mutually(config: ModelConfig) -> bool:
    """The tokens of a picture read each other, so that no chunk may split them."""
    return isinstance(config.vision, PlainVision) and config.vision.mutual


class Eyes:
    """Of one engine. `spans.shift` is, by slot, what the axes are ahead of the count behind all pictures."""

    def __init__(
        self,
        model: Llama,
        images: ImageSettings,
        blocks: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        config = model.config
        assert config.vision is not None and isinstance(model, Seeing)
        self.tower = model.tower
        self.slab = ImageSlab(blocks, config.vision.deep, config.hidden_size, dtype, device)
        self.table = normal_table(images).to(self.slab.data.device)
        self.spans = SlotSpans(slots)
        self.by_axes = bool(config.rope.sections)
        self.smallest = images.smallest
        self.mutual = sees_mutually(config)
        self._going: Iterator[Tensor | None] | None = None  # the picture that is begun and not done

    def grant(self, grant: SlotGrant) -> int:
        """The slot has a new owner; its shift."""
        self.spans.grant(grant)
        return int(self.spans.shift[grant.slot])

    def encode(self, encodes: Sequence[ImageEncode]) -> None:
        """Each picture goes on as far as its plan says; behind the last stage its rows lie in its blocks."""
        for each in encodes:
            if not each.first:
                self._going = self.tower.encode(normal_pixels(each.image, self.table), each.image.tiling)
            assert self._going is not None, "a picture goes on that was never begun"
            for _ in range(each.first, each.last):
                rows = next(self._going)
            if each.last == self.tower.stages:
                assert rows is not None
                self.slab.store(each.blocks, rows)
                self._going = None

    def see(
        self,
        decode: Sequence[PlanRow],
        prefill: Sequence[PlanRow],
        first: int,
        total: int,
        shifted: bool = False,
    ) -> StepImages | None:
        """What of a step comes from pictures; None where nothing does.

        first: the step's first prompt token; total: its tokens, padding among them. shifted: whoever turns heads
        adds each slot's shift by itself, so that angles are needed only for chunks that begin before the last
        picture's end."""
        angles = None
        if self.by_axes and not (shifted and self.spans.settled(prefill)):
            angles = self.spans.angles(decode, prefill, first, total)
        tokens: list[np.ndarray] = []
        mutual: list[tuple[int, int]] = []
        cells: list[np.ndarray] = []
        at = first
        for row in prefill:
            tokens += [np.arange(at + part.at, at + part.at + part.count) for part in row.images]
            if row.images:
                cells.append(read_cells(row.images))
            if self.mutual:
                mutual += [(at + part.at, at + part.at + part.count) for part in row.images]
            at += row.count
        if angles is None and not tokens:
            return None
        device = self.slab.data.device
        empty = np.zeros(0, dtype=np.int64)
        return StepImages(
            None if angles is None else sent(angles, device),
            sent(np.concatenate([empty, *tokens]), device),
            self.slab.read(sent(np.concatenate([empty, *cells]), device)),
            tuple(mutual),
        )

    def exercise(self) -> None:
        """The tower has run once, on the smallest picture: what it must load or compile is there."""
        self.tower.rows(torch.zeros((3, *self.smallest), device=self.table.device))


__all__ = ["BLOCK_ROWS", "Eyes", "image_blocks"]
