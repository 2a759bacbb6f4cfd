"""A word for every token over its likelihood, as machine code for this CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from headrace.runtime.backends.draw_code import WORDS, DrawCode
from headrace.runtime.backends.native_step import compile_module, vector_width


@lru_cache(maxsize=1)
def _compiled() -> tuple[Callable[..., None], int, object]:
    """The function for any width, the lanes that it was written for, and what keeps it alive."""
    lanes, _ = vector_width()
    module = ir.Module("draw")
    DrawCode(module, "draw", lanes)
    engine = compile_module(module)
    numbers = (ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, *numbers)
    return kind(engine.get_function_address("draw")), lanes, engine


class NativeDraw:
    """`weigh(gaps, seed, position)` over rows of `width` logits. Used by one thread at a time."""

    def __init__(self, width: int) -> None:
        self._run, lanes, _ = _compiled()
        self.width = width
        self._blocks = -(-width // (WORDS * lanes))
        room = self._blocks * WORDS * lanes
        self._gaps = np.zeros(room, np.float32)
        self._words = np.zeros(room, np.uint32)
        self._quotients = np.zeros(room, np.float32)
        self._places = [each.ctypes.data for each in (self._gaps, self._words, self._quotients)]

    def weigh(
        self, gaps: NDArray[np.float32], seed: int, position: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """The random word of each token, and that word over exp(gap) up to rounding, which says nothing where a
        gap is below -87. gaps: float32 [width]. Valid until the next call."""
        self._gaps[: self.width] = gaps
        signed = seed - (1 << 64) if seed >> 63 else seed
        self._run(*self._places, self._blocks, signed, position)
        return self._words[: self.width], self._quotients[: self.width]
