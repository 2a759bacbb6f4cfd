"""What shapes a vision tower: frozen facts, one class per family. Knows no tensor and reads no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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

    def scratch(self, rows: int) -> int:
        """Numbers that the tower has in hand for a picture of `rows` rows, at most."""
        patches = rows * self.merge**2
        return patches * (10 * self.hidden + 2 * self.intermediate) + rows * 4 * self.hidden * self.merge**2

    @property
    def row_patches(self) -> int:
        """Patches that the tower looks at for one row."""
        return self.merge**2

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class QwenWindowVision:
    """The tower of Qwen2.5-VL. window: rows a side of a window; full: blocks that see the whole picture; rest as
    in QwenVision."""

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
    window: int
    full: tuple[int, ...]
    rope_theta: float = 10000.0
    deep: int = 0

    def scratch(self, rows: int) -> int:
        """Numbers that the tower has in hand for a picture of `rows` rows, at most."""
        return rows * self.merge**2 * (14 * self.hidden + 3 * self.intermediate)

    @property
    def row_patches(self) -> int:
        """Patches that the tower looks at for one row."""
        return self.merge**2

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class PlainVision:
    """The towers of SigLIP and CLIP: a transformer over the patches of a square of one size.

    side: pixels a side of the picture. depth: blocks that are computed. rows: rows a side that a decoder gets;
    fewer than patches are the means of squares of them. act: of the MLPs, a GELU: exact, by its tanh formula, or
    CLIP's quick one. leading: a learned patch that stands for the whole picture comes first, without a bias on the
    others, and a norm before the blocks (CLIP). closing: a norm behind them. bias: of the matrices behind it.
    spare: how names of tensors begin that are in the files and take no part. mutual: in the decoder, the tokens of
    a picture read each other. frame: see SquareSettings. canvases, most_tiles: see
    TiledSettings; none: a picture is one square. rest as in QwenVision.
    """

    token_id: int
    depth: int
    hidden: int
    intermediate: int
    heads: int
    channels: int
    patch: int
    side: int
    rows: int
    out: int
    eps: float
    act: Literal["exact", "tanh", "quick"]
    leading: bool
    closing: bool
    bias: bool = True
    spare: tuple[str, ...] = ()
    mutual: bool = False
    frame: tuple[int, int] | None = None
    canvases: tuple[tuple[int, int], ...] = ()
    most_tiles: int = 0
    deep: int = 0

    @property
    def patches(self) -> int:
        """A side."""
        return self.side // self.patch

    @property
    def row_patches(self) -> int:
        """Patches that the tower looks at for one row."""
        return (self.patches // self.rows) ** 2

    def scratch(self, rows: int) -> int:
        """Numbers that the tower has in hand for a picture of `rows` rows, at most."""
        tiles = 1 + max((high * wide for high, wide in self.canvases), default=0) // self.side**2
        patches = tiles * self.patches**2 + 1
        return patches * (8 * self.hidden + 2 * self.intermediate + 4 * self.out) + rows * 4 * self.out


VisionConfig = QwenVision | QwenWindowVision | PlainVision
