"""Pictures at their own resolution, as Qwen's towers want them. Knows sizes and numbers, no tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headrace.runtime.image_shape import Shape, TooNarrow, check_aspect
from headrace.runtime.models.config import Fields
from headrace.runtime.models.vision_config import QwenVision, QwenWindowVision
from headrace.runtime.processor_file import check_steps, three

SMALL_PIXELS = 512 * 512  # what `detail: low` asks for
QWEN_PROCESSORS = frozenset(
    f"{family}ImageProcessor{kind}"
    for family in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
    for kind in ("", "Fast", "Pil")
)
BICUBIC = 3  # Pillow's number for it
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """Native resolution: sides become multiples of `factor` pixels, the area stays between two bounds.

    token_id: the token that stands for a row in a prompt. factor: pixels a side of one row's square. row_limit:
    rows of one picture at most. scale, mean, std: a byte v of colour c becomes (v * scale - mean[c]) / std[c].
    resample: Pillow's number of the filter.
    """

    token_id: int
    factor: int
    min_pixels: int
    max_pixels: int
    row_limit: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = BICUBIC
    frame: None = None  # the template writes all that stands around a picture

    @property
    def smallest(self) -> tuple[int, int]:
        """Height and width of the smallest picture."""
        return self.factor, self.factor

    def fit(self, height: int, width: int, small: bool = False) -> Shape:
        """What becomes of a picture of this size. Raises TooNarrow."""
        check_aspect(height, width)
        factor = self.factor
        square = factor * factor
        most = min(self.max_pixels, self.row_limit * square)
        if small:
            most = min(most, SMALL_PIXELS)
        least = min(self.min_pixels, most)
        high, wide = round(height / factor) * factor, round(width / factor) * factor
        if high * wide > most:
            shrink = math.sqrt(height * width / most)
            high = max(factor, math.floor(height / shrink / factor) * factor)
            wide = max(factor, math.floor(width / shrink / factor) * factor)
        elif high * wide < least or not high * wide:
            grow = math.sqrt(max(least, 1) / (height * width))
            high = math.ceil(height * grow / factor) * factor
            wide = math.ceil(width * grow / factor) * factor
        rows = high * wide // square
        if rows > self.row_limit:
            raise TooNarrow(f"is {width} x {height}, which takes {rows} tokens; {self.row_limit} are allowed")
        return Shape((high, wide), (high, wide), (high // factor, wide // factor))


def read_native(fields: Fields, vision: QwenVision | QwenWindowVision, row_limit: int) -> NativeSettings:
    """row_limit: rows of one picture at most. Raises CheckpointError for processing that is not understood."""
    kind = fields.get("image_processor_type")
    if kind not in QWEN_PROCESSORS:
        raise fields.refuse("image_processor_type", f"{str(kind)[:60]!r} does not fit this architecture")
    for name, expected in (("patch_size", vision.patch), ("merge_size", vision.merge)):
        found = fields.integer(name, 14 if name == "patch_size" else 2)
        if found != expected:
            raise fields.refuse(name, f"{found} differs from {expected} in config.json")
    check_steps(fields)
    size = fields.get("size")
    if size is not None and not isinstance(size, dict):
        raise fields.refuse("size", "must be an object")
    size = size or {}
    area = Fields(
        {
            "least": fields.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels"),
            "most": fields.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels"),
        },
        f"{fields.name}: size",
    )
    least = area.integer("least", 56 * 56, high=1 << 30)
    most = area.integer("most", 28 * 28 * 1280, low=least, high=1 << 30)
    return NativeSettings(
        token_id=vision.token_id,
        factor=vision.patch * vision.merge,
        min_pixels=least,
        max_pixels=most,
        row_limit=row_limit,
        scale=fields.number("rescale_factor", 1 / 255),
        mean=three(fields, "image_mean", CLIP_MEAN, -1e6),
        std=three(fields, "image_std", CLIP_STD, 0.0),
        resample=fields.integer("resample", BICUBIC, low=0, high=5),
    )
