"""What a model folder says about the processing of pictures, field by field. Knows no size and no picture."""

from __future__ import annotations

from pathlib import Path

from headrace.runtime.checkpoint import CheckpointError, read_json
from headrace.runtime.models.config import Fields


def read_processor(folder: Path) -> Fields | None:
    """The image processor's settings: a file of their own, or a part of `processor_config.json`."""
    alone, together = folder / "preprocessor_config.json", folder / "processor_config.json"
    if alone.is_file():
        return Fields(read_json(alone, 1 << 20), alone.name)
    if together.is_file():
        whole = Fields(read_json(together, 1 << 20), together.name)
        if whole.has("image_processor"):
            return whole.inner("image_processor")
    return None


def three(
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


def check_steps(fields: Fields) -> None:
    """Raise CheckpointError unless pictures are resized, scaled, normalised and made RGB, as all are here."""
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if not fields.flag(name, True):
            raise fields.refuse(name, "false is not supported")
