"""From `x_latency`, `service_tier` and `priority` to targets, and to the tier that is echoed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from headrace.runtime.interface import Rank, Targets
from headrace.server.protocol.latency import Latency

_RANKS = {
    "priority": Rank.INTERACTIVE,
    "fast": Rank.INTERACTIVE,
    "ultrafast": Rank.INTERACTIVE,
    "flex": Rank.BATCH,
}
_CLASSES = {"interactive": Rank.INTERACTIVE, "batch": Rank.BATCH}
_TIERS = {Rank.INTERACTIVE: "priority", Rank.STANDARD: "default", Rank.BATCH: "flex"}


class Timed(Protocol):
    """A request that may say how soon it wants its answer."""

    @property
    def x_latency(self) -> Latency | None: ...

    @property
    def service_tier(self) -> str | None: ...

    @property
    def priority(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """The three in the words of the OpenAI endpoints, of a request that spells them otherwise."""

    x_latency: Latency | None
    service_tier: str | None
    priority: int | None


def targets_of(request: Timed) -> Targets:
    """What the request wants of its time."""
    latency = request.x_latency or Latency()
    return Targets(
        _rank(request),
        _seconds(latency.ttft_ms),
        _seconds(latency.itl_ms),
        _seconds(latency.deadline_ms),
    )


def tier_of(request: Timed) -> str | None:
    """The service tier that the request is served in; None if it did not speak of any."""
    tier, latency = request.service_tier, request.x_latency
    if tier is None and (latency is None or latency.class_ is None):
        return None
    rank = _rank(request)
    return tier if tier in _RANKS and _RANKS[tier] is rank else _TIERS[rank]


def ranked(priority: int) -> Rank:
    """The class of a priority whose lower values go first."""
    return Rank.STANDARD if not priority else Rank.INTERACTIVE if priority < 0 else Rank.BATCH


def _rank(request: Timed) -> Rank:
    latency = request.x_latency
    if latency is not None and latency.class_ is not None:
        return _CLASSES[latency.class_]
    if request.service_tier in (None, "auto"):
        return ranked(request.priority or 0)
    return _RANKS.get(request.service_tier or "", Rank.STANDARD)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
