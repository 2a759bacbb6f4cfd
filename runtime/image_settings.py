"""How a model wants its pictures: read from the folder, frozen. One class per family."""

from __future__ import annotations

from pathlib import Path

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.models.vision_config import PlainVision, VisionConfig
from headrace.runtime.native_settings import NativeSettings, read_native
from headrace.runtime.processor_file import read_processor
from headrace.runtime.square_settings import SquareSettings, read_square
from headrace.runtime.tiled_settings import TiledSettings, read_tiled

ImageSettings = NativeSettings | SquareSettings | TiledSettings


def read_image_settings(folder: Path, vision: VisionConfig, row_limit: int) -> ImageSettings | None:
    """What the folder says about pictures, None if it says nothing. row_limit: rows of one picture at most.

    Raises CheckpointError for processing that is not understood."""
    fields = read_processor(folder)
    if fields is None:
        return None
    if not isinstance(vision, PlainVision):
        return read_native(fields, vision, row_limit)
    if vision.canvases:
        return read_tiled(fields, vision, row_limit)
    settings = read_square(fields, vision)
    if settings.row_limit > row_limit:
        raise CheckpointError(
            f"every picture takes {settings.row_limit} tokens of this model, and only {row_limit} are allowed: "
            "raise image_tokens or max_context"
        )
    return settings
