"""What shapes a vision tower: frozen facts, one class per family. Knows no tensor and reads no file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QwenVision:
    """The tower of Qwen3-VL: a transformer over patches at native resolution. Sizes in elements.

    token_id: the token that stands for one row of an image in a prompt. out: width of a row, the decoder's own.
    grid: the learned positions are a square of so many a side, stretched over each image. deepstack: blocks whose
    output goes, merged, into the decoder's first layers. temporal: a still image is so many equal frames.
    """

    token_id: int
    depth: int
    hidden: int
    intermediate: int
    heads: int
    channels: int
    patch: int
    merge: int
    temporal: int
    out: int
    grid: int
    deepstack: tuple[int, ...]
    tanh: bool  # GELU by its tanh formula
    rope_theta: float = 10000.0

    @property
    def deep(self) -> int:
        """Decoder layers that take rows of their own, beside the embedding."""
        return len(self.deepstack)

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


VisionConfig = QwenVision
