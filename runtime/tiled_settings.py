"""Pictures cut into tiles of a tower's size, as LLaVA-OneVision wants them. Knows sizes and numbers, no tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.image_shape import Shape, Tiling, check_aspect
from headrace.runtime.models.config import Fields
from headrace.runtime.models.vision_config import PlainVision
from headrace.runtime.processor_file import check_steps, three
from headrace.runtime.square_settings import BICUBIC, CLIP_MEAN, CLIP_STD

PROCESSORS = frozenset(f"LlavaOnevisionImageProcessor{kind}" for kind in ("", "Fast", "Pil"))


@dataclass(frozen=True, slots=True)
class TiledSettings:
    """side: pixels a side of a tile. patches: of it, a side. canvases: (height, width) that a picture may be laid
    on. most: tiles whose patches are all kept. token_id, row_limit, scale, mean, std, resample: as in
    NativeSettings."""

    token_id: int
    side: int
    patches: int
    canvases: tuple[tuple[int, int], ...]
    most: int
    row_limit: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = BICUBIC
    frame: None = None

    @property
    def smallest(self) -> tuple[int, int]:
        """Height and width of one tile."""
        return self.side, self.side

    def fit(self, height: int, width: int, small: bool = False) -> Shape:
        """What becomes of a picture of this size: the canvas that shows most of it, of those whose rows are few
        enough; one tile where none is, and where `small` is enough. Raises TooNarrow."""
        check_aspect(height, width)
        best, most, waste = None, 0, math.inf
        for canvas in () if small else self.canvases:
            scale = min(canvas[1] / width, canvas[0] / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            left = canvas[0] * canvas[1] - shown
            fits = self._rows(self._tiling(height, width, canvas)) <= self.row_limit
            if fits and (shown, -left) > (most, -waste):
                best, most, waste = canvas, shown, left
        if best is None:
            square = (self.side, self.side)
            return Shape(square, square, (1, self.patches**2 + 1))
        tiling = self._tiling(height, width, best)
        return Shape(_inside(height, width, best), best, (1, self._rows(tiling)), tiling)

    def _rows(self, tiling: Tiling) -> int:
        """The whole picture's, and those of the tiles, with one more behind each line."""
        return self.patches**2 + tiling.lines * (tiling.columns + 1)

    def _tiling(self, height: int, width: int, canvas: tuple[int, int]) -> Tiling:
        high, wide = canvas[0] // self.side, canvas[1] // self.side
        lines, columns = high * self.patches, wide * self.patches
        top = left = 0
        if width / height > columns / lines:
            top = (lines - int(round(height * (columns / width), 7))) // 2
        else:
            left = (columns - int(round(width * (lines / height), 7))) // 2
        lines, columns = lines - 2 * top, columns - 2 * left
        ratio = math.sqrt(lines * columns / (self.most * self.patches**2))
        if ratio > 1.1:
            lines, columns = int(lines // ratio), int(columns // ratio)
        return Tiling(high, wide, top, left, lines, columns)


def _inside(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """As large as it fits on the canvas without being stretched."""
    across, down = canvas[1] / width, canvas[0] / height
    if across < down:
        return min(math.ceil(height * across), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(width * down), canvas[1])


def read_tiled(fields: Fields, vision: PlainVision, row_limit: int) -> TiledSettings:
    """row_limit: rows of one picture at most. Raises CheckpointError for processing that is not understood."""
    kind = fields.get("image_processor_type")
    if kind not in PROCESSORS:
        raise fields.refuse("image_processor_type", f"{str(kind)[:60]!r} does not fit this architecture")
    check_steps(fields)
    if fields.flag("do_center_crop", False):
        raise fields.refuse("do_center_crop", "true is not supported")
    size = fields.inner("size") if fields.has("size") else Fields({"height": 384, "width": 384})
    if (size.integer("height"), size.integer("width")) != (vision.side, vision.side):
        raise fields.refuse("size", f"is not the square of image_size {vision.side} in config.json")
    found = fields.get("image_grid_pinpoints")
    if found is not None and [tuple(each) for each in found] != list(vision.canvases):
        raise fields.refuse("image_grid_pinpoints", "differs from that in config.json")
    least = vision.patches**2 + 1
    if row_limit < least:
        raise CheckpointError(
            f"every picture takes {least} tokens of this model and more, and only {row_limit} are allowed: "
            "raise image_tokens or max_context"
        )
    return TiledSettings(
        token_id=vision.token_id,
        side=vision.side,
        patches=vision.patches,
        canvases=vision.canvases,
        most=vision.most_tiles,
        row_limit=row_limit,
        scale=fields.number("rescale_factor", 1 / 255),
        mean=three(fields, "image_mean", CLIP_MEAN, -1e6),
        std=three(fields, "image_std", CLIP_STD, 0.0),
        resample=fields.integer("resample", BICUBIC, low=0, high=5),
    )
