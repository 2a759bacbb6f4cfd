"""How promises went, by class: refused early, kept, broken. Counts for metrics; decides nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from headrace.runtime.claim import Rank, Targets
from headrace.runtime.request import FinishReason
from headrace.runtime.stream import StreamTimes


@dataclass(slots=True)
class Tally:
    """Answers that wanted something of their time, since the start."""

    refused: Counter[Rank] = field(default_factory=Counter)
    met: Counter[Rank] = field(default_factory=Counter)
    missed: Counter[Rank] = field(default_factory=Counter)

    def ended(self, targets: Targets, times: StreamTimes, finish: FinishReason, slow: bool) -> None:
        """An answer has ended. slow: two of its tokens came further apart than it was promised. One that its client
        ended is not judged by what it had no time for."""
        if not targets.promised:
            return
        broken = slow
        if targets.ttft is not None:
            first = times.ended if times.first_token is None else times.first_token
            broken |= first is not None and first - times.opened > targets.ttft
        if targets.deadline is not None and times.ended is not None:
            broken |= times.ended - times.opened > targets.deadline
        if broken:
            self.missed[targets.rank] += 1
        elif finish in (FinishReason.STOP, FinishReason.LENGTH):
            self.met[targets.rank] += 1
