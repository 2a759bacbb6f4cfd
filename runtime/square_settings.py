"""Pictures of one size, square, as SigLIP's and CLIP's towers want them. Knows sizes and numbers, no tensor."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.runtime.image_shape import Shape, check_aspect
from headrace.runtime.models.config import Fields
from headrace.runtime.models.vision_config import PlainVision
from headrace.runtime.processor_file import check_steps, three

BILINEAR, BICUBIC = 2, 3  # Pillow's numbers for them
HALVES = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STRETCHED = frozenset(
    f"{family}ImageProcessor{kind}" for family in ("Gemma3", "Siglip") for kind in ("", "Fast", "Pil")
)
CROPPED = frozenset(
    f"{family}{kind}"
    for family in ("CLIPImageProcessor", "CLIPFeatureExtractor")
    for kind in ("", "Fast", "Pil")
)


@dataclass(frozen=True, slots=True)
class SquareSettings:
    """side: pixels a side. shortest: what the shorter side is scaled to before the middle is cut out of the
    picture; 0: the whole is stretched to the square. rows: a side. token_id, scale, mean, std, resample: as in
    NativeSettings. frame: tokens that stand before and behind a picture, where the template writes the first alone.
    """

    token_id: int
    side: int
    rows: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int
    shortest: int = 0
    frame: tuple[int, int] | None = None

    @property
    def row_limit(self) -> int:
        """Rows of every picture."""
        return self.rows * self.rows

    @property
    def smallest(self) -> tuple[int, int]:
        """Height and width of the only size there is."""
        return self.side, self.side

    def fit(self, height: int, width: int, small: bool = False) -> Shape:
        """What becomes of a picture of this size; `small` changes nothing. Raises TooNarrow."""
        check_aspect(height, width)
        square = (self.side, self.side)
        resized = square
        if self.shortest:
            longest = self.shortest * max(height, width) // min(height, width)
            resized = (self.shortest, longest) if height <= width else (longest, self.shortest)
        return Shape(resized, square, (self.rows, self.rows))


def read_square(fields: Fields, vision: PlainVision) -> SquareSettings:
    """Raises CheckpointError for processing that is not understood."""
    kind = fields.get("image_processor_type")
    if kind not in STRETCHED and kind not in CROPPED:
        raise fields.refuse("image_processor_type", f"{str(kind)[:60]!r} does not fit this architecture")
    check_steps(fields)
    cropped = kind in CROPPED and fields.flag("do_center_crop", True)
    size = _sides(fields, "size", 224)
    shortest = 0
    if kind in CROPPED:
        shortest = size.get("shortest_edge", 0)
        side = _square(fields, "crop_size", _sides(fields, "crop_size", 224)) if cropped else shortest
        if not cropped or not shortest or side > shortest:
            raise fields.refuse("size", "is not a shortest_edge that crop_size is cut from")
    else:
        side = _square(fields, "size", size)
        if fields.flag("do_pan_and_scan", False):
            raise fields.refuse("do_pan_and_scan", "true is not supported")
    if side != vision.side:
        raise fields.refuse("size", f"{side} differs from image_size {vision.side} in config.json")
    return SquareSettings(
        token_id=vision.token_id,
        side=side,
        rows=vision.rows,
        scale=fields.number("rescale_factor", 1 / 255),
        mean=three(fields, "image_mean", CLIP_MEAN if kind in CROPPED else HALVES, -1e6),
        std=three(fields, "image_std", CLIP_STD if kind in CROPPED else HALVES, 0.0),
        resample=fields.integer("resample", BICUBIC if kind in CROPPED else BILINEAR, low=0, high=5),
        shortest=shortest,
        frame=vision.frame,
    )


def _sides(fields: Fields, name: str, default: int) -> dict[str, int]:
    """The lengths in a field that is an object of them, or one number."""
    value = fields.get(name)
    if value is None:
        value = default
    if not isinstance(value, dict):
        value = {"shortest_edge": value, "height": value, "width": value}
    sides = Fields(value, f"{fields.name}: {name}")
    return {side: sides.integer(side) for side in ("shortest_edge", "height", "width") if sides.has(side)}


def _square(fields: Fields, name: str, sides: dict[str, int]) -> int:
    if sides.get("height") is None or sides.get("height") != sides.get("width"):
        raise fields.refuse(name, "is not the height and width of a square")
    return sides["height"]
