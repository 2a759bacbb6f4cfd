"""What may be asked of a profile of the steps, and who makes one. Knows no torch, no engine and no route."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileWish:
    """One profile. steps: how many, then it ends by itself; what it notes stays in memory until then. first_step:
    the number of its first step, counted from the server's start; None: the next. cpu, gpu: what is noted, where it
    is there. stacks, shapes: Python stacks and shapes of operations too. name: how the file's name begins."""

    steps: int
    first_step: int | None = None
    cpu: bool = True
    gpu: bool = True
    stacks: bool = False
    shapes: bool = False
    name: str = "steps"


class Profiler(Protocol):
    """One profile at a time. Called on the event loop's thread; the futures are resolved on any."""

    def start(self, wish: ProfileWish) -> Future[None]:
        """Resolved when it runs, or waits for its first step. Raises Refusal if there is one already."""

    def stop(self) -> Future[str]:
        """The name of the file, once it is written. Raises Refusal if there is no profile."""

    def stepped(self) -> None:
        """A step has landed."""

    def close(self) -> None:
        """What runs is stopped and written, before the engine's threads end. Waits for it."""


# Runs what it is given where the steps run, behind those that were launched.
Aside = Callable[[Callable[[], None]], Future[None]]
