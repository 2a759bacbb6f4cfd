"""How long a request will wait for its turn, guessed from what was seen lately. Knows counts and seconds only."""

from __future__ import annotations

from collections.abc import Sequence

SHARE = 0.2  # of a new observation in what is believed


class WaitForecast:
    """Two guesses, and the sooner one counts: by the pace of the admissions seen lately, and by how much those who
    run may generate at most. The second is known at once and too long wherever answers end by themselves; the first
    needs to have seen two admissions."""

    __slots__ = ("_admitted_at", "_interval", "_step")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nobody is watched any more: what was seen grows old."""
        self._admitted_at: float | None = None
        self._interval: float | None = None  # seconds between admissions
        self._step: float | None = None  # seconds of a step

    def stepped(self, seconds: float) -> None:
        """A step took so long."""
        self._step = seconds if self._step is None else self._step + SHARE * (seconds - self._step)

    def admitted(self, count: int, now: float) -> None:
        """So many requests got a slot at `now`."""
        if self._admitted_at is not None:
            seen = (now - self._admitted_at) / count
            self._interval = (
                seen if self._interval is None else self._interval + SHARE * (seen - self._interval)
            )
        self._admitted_at = now

    def wait(self, position: int, left: Sequence[int]) -> float | None:
        """Seconds until the request at `position` (1: the next one) gets its turn; None where nothing is known.

        left: how many tokens each running request may still get, ascending."""
        guesses = []
        if self._interval is not None:
            guesses.append(position * self._interval)
        if self._step is not None and position <= len(left):
            guesses.append(left[position - 1] * self._step)
        return min(guesses, default=None)
