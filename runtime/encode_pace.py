"""How many prompt tokens take as long as the encode of a picture, so that a step can be kept to its budget.

Before anything was seen it is a ratio of sizes: what the tower does for a row against what the decoder does for a
token. Then it is learnt from the steps that land: what such a step took beyond its decode rows and its chunk. The
middle of the last few is taken, so that a step which something else held up says nothing. Knows numbers only: no
clock, no tensor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from headrace.runtime.image import Image
from headrace.runtime.plan import StepPlan

KEPT = 9  # newest steps of a kind
LEAST = 1e-8  # seconds: a token or a row that takes less was not measured

Seen = deque[float]


class EncodePace:
    """`price` is what a Scheduler asks; `observe` is told what each landed step took.

    ratio: tokens that a row of a picture is worth before anything was seen. stages: of a whole encode."""

    def __init__(self, ratio: float, stages: int) -> None:
        assert ratio > 0.0 and stages >= 1
        self.ratio = ratio
        self.stages = stages
        self._decode: dict[int, Seen] = {}  # log2 class of decode rows -> seconds of a step of them
        self._tokens: Seen = deque(maxlen=KEPT)  # seconds of a prompt token
        self._rows: dict[int, Seen] = {}  # log2 class of a picture's rows -> seconds of one of them

    @property
    def seen(self) -> int:
        """Steps with an encode that are remembered."""
        return sum(map(len, self._rows.values()))

    def price(self, image: Image) -> int:
        """Prompt tokens that take as long as all stages of `image`; at least one."""
        ratio = self.ratio
        if self._rows and self._tokens:
            ratio = max(_nearest(self._rows, image.rows), LEAST) / max(median(self._tokens), LEAST)
        return max(1, math.ceil(image.rows * ratio))

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """`plan` kept the device busy for `seconds`."""
        decode, tokens = len(plan.decode), plan.prefill_tokens
        if not tokens and not plan.encodes:
            self._decode.setdefault(_class(decode), deque(maxlen=KEPT)).append(seconds)
            return
        left = max(0.0, seconds - (_nearest(self._decode, decode) if decode else 0.0))
        if not plan.encodes:
            self._tokens.append(left / tokens)
            return
        if self._tokens:
            left -= tokens * median(self._tokens)
        rows = sum([encode.image.rows for encode in plan.encodes])
        part = sum([encode.last - encode.first for encode in plan.encodes]) / self.stages
        self._rows.setdefault(_class(rows), deque(maxlen=KEPT)).append(max(0.0, left) / (part * rows))


def _nearest(seen: Mapping[int, Seen], count: int) -> float:
    """The middle of what was seen of the class of `count`, or of the nearest one; 0 if nothing was."""
    if not seen:
        return 0.0
    wanted = _class(count)
    return median(seen[min(seen, key=lambda size: (abs(size - wanted), -size))])


def _class(count: int) -> int:
    return (count - 1).bit_length()
