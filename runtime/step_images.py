"""What of one step comes from pictures: the rows that replace embeddings, and where tokens stand in them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepImages(NamedTuple):
    """angles: integers [3, T], time, row and column of every token of the step, or None where the model counts
    tokens alone. tokens: int64 [N], which of the step's tokens are a picture's. rows: [N, 1 + deep, hidden], what
    becomes of their embeddings, and what is added behind each of the first layers. mutual: tokens [begin, end) of
    the step that read each other, whichever comes first; never more than one row's."""

    angles: Tensor | None
    tokens: Tensor
    rows: Tensor
    mutual: tuple[tuple[int, int], ...] = ()
