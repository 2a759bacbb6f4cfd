"""A decoder of Llama's structure with a tower beside it, which makes rows of pictures."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from headrace.runtime.models.llama import Llama


class Tower(Protocol):
    """Pixels of one picture to rows that a decoder reads. Holds no state."""

    def rows(self, pixels: Tensor) -> Tensor:
        """pixels: float32 [channels, height, width], normalised, of a size that the model's settings gave.

        [rows, 1 + deep, hidden]: what the embedding of each row's token becomes, and what the first layers of the
        decoder add to it."""


class Seeing(Llama):
    """Born with its `tower`."""

    tower: Tower
