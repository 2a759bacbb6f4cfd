"""A decoder of Llama's structure with a tower beside it, which makes rows of pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from headrace.runtime.image_shape import Tiling
from headrace.runtime.models.llama import Llama


class Tower(ABC):
    """Pixels of one picture to rows that a decoder reads. Holds no state.

    pixels: float32 [channels, height, width], normalised, of a size that the model's settings gave. rows: [rows,
    1 + deep, hidden], what the embedding of each row's token becomes, and what the first layers of the decoder add
    to it. stages: pieces of about equal work that an encode can be cut into."""

    stages: int

    @abstractmethod
    def encode(self, pixels: Tensor, tiling: Tiling | None = None) -> Iterator[Tensor | None]:
        """One stage at each turn; the last one gives the rows. tiling: what a column of tiles is."""

    def rows(self, pixels: Tensor) -> Tensor:
        """All stages at once."""
        *_, rows = self.encode(pixels)
        assert rows is not None
        return rows


class Seeing(Llama):
    """Born with its `tower`."""

    tower: Tower
