"""Logprobs of a step's rows on the CPU: rows of logits go in, columns come out. Knows tensors, not plans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.kernels.reference_logprobs import logprobs
from headrace.runtime.logprobs import Logprobs


class Probed:
    """Collects places one after the other, each with its `width` most likely tokens."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._values: list[float] = []
        self._ids: list[int] = []
        self._tops: list[float] = []

    def add(self, logits: Tensor, tokens: Sequence[int]) -> None:
        """One place per row of `logits` [rows, vocab], for the token given with it."""
        values, ids, tops = logprobs(logits, torch.tensor(tokens), self.width)
        self._values += values.tolist()
        self._ids += ids.flatten().tolist()
        self._tops += tops.flatten().tolist()

    def columns(self) -> Logprobs:
        """All places so far."""
        return Logprobs(self.width, self._values, self._ids, self._tops)
