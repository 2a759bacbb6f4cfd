"""How a model wants its pictures: read from the folder, frozen. Knows sizes and numbers, no file format, no
tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from headrace.runtime.checkpoint import CheckpointError, read_json
from headrace.runtime.models.config import Fields
from headrace.runtime.models.vision_config import VisionConfig

ASPECT_LIMIT = 200  # of the longer side to the shorter one
SMALL_PIXELS = 512 * 512  # what `detail: low` asks for
QWEN_PROCESSORS = frozenset(
    f"{family}ImageProcessor{kind}"
    for family in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
    for kind in ("", "Fast", "Pil")
)
BICUBIC = 3  # Pillow's number for it
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class TooNarrow(Exception):
    """No size fits this picture; the text says why."""


@dataclass(frozen=True, slots=True)
class ImageSettings:
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

    def fit(self, height: int, width: int, small: bool = False) -> tuple[int, int]:
        """The size that a picture of this size is given. Raises TooNarrow."""
        if max(height, width) > ASPECT_LIMIT * min(height, width):
            raise TooNarrow(f"is {width} x {height}: one side is more than {ASPECT_LIMIT} times the other")
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
        return high, wide

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Lines and columns of rows that a picture of a fitted size becomes."""
        return size[0] // self.factor, size[1] // self.factor


def read_image_settings(folder: Path, vision: VisionConfig, row_limit: int) -> ImageSettings | None:
    """What the folder says about pictures, None if it says nothing. row_limit: rows of one picture at most.

    Raises CheckpointError for processing that is not understood."""
    fields = _processor(folder)
    if fields is None:
        return None
    kind = fields.get("image_processor_type")
    if kind not in QWEN_PROCESSORS:
        raise fields.refuse("image_processor_type", f"{str(kind)[:60]!r} does not fit this architecture")
    for name, expected in (("patch_size", vision.patch), ("merge_size", vision.merge)):
        found = fields.integer(name, 14 if name == "patch_size" else 2)
        if found != expected:
            raise fields.refuse(name, f"{found} differs from {expected} in config.json")
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if not fields.flag(name, True):
            raise fields.refuse(name, "false is not supported")
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
    return ImageSettings(
        token_id=vision.token_id,
        factor=vision.patch * vision.merge,
        min_pixels=least,
        max_pixels=most,
        row_limit=row_limit,
        scale=fields.number("rescale_factor", 1 / 255),
        mean=_three(fields, "image_mean", CLIP_MEAN, -1e6),
        std=_three(fields, "image_std", CLIP_STD, 0.0),
        resample=fields.integer("resample", BICUBIC, low=0, high=5),
    )


def _processor(folder: Path) -> Fields | None:
    """The image processor's settings: a file of their own, or a part of `processor_config.json`."""
    alone, together = folder / "preprocessor_config.json", folder / "processor_config.json"
    if alone.is_file():
        return Fields(read_json(alone, 1 << 20), alone.name)
    if together.is_file():
        whole = Fields(read_json(together, 1 << 20), together.name)
        if whole.has("image_processor"):
            return whole.inner("image_processor")
    return None


def _three(
    fields: Fields, name: str, default: tuple[float, float, float], low: float
) -> tuple[float, float, float]:
    """Three numbers above `low`, one for each colour."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, list) or len(value) != 3:
        raise CheckpointError(f"{fields.name}: {name} must be a list of three numbers")
    each = Fields({str(i): number for i, number in enumerate(value)}, f"{fields.name}: {name}")
    return each.number("0", low=low), each.number("1", low=low), each.number("2", low=low)
