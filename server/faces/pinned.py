"""Responses that stay warm: pins by response id, each with an end, and a quota for each key. Knows pages only as
the runtime's; knows no wire format.

A pin belongs to a key, not to a connection: it outlives the one that asked for it, which hears of an early end
while it lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from msgspec import Struct

from headrace.runtime.interface import Cache, Favour, Pin, Tenant, TokenStream
from headrace.server.faces.settings import FaceSettings, Timer
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.extension import CacheEvicted


class Teller(Protocol):
    """A connection that can be told of the end of a pin."""

    def say(self, event: Struct) -> None:
        """This event goes out there."""


@dataclass(slots=True, eq=False)
class Pinned:
    """One pinned response. `expires`: Unix seconds."""

    response_id: str
    tenant: str
    pin: Pin
    tokens: int
    bytes: int
    expires: float
    teller: Teller | None
    asked: bool  # by x.pin; else it is the cache lifetime of its request
    timer: Timer | None = None


class PinnedResponses:
    """All pins of the server. per_key: how many a key may have at one time; of those that came with a request's
    cache lifetime, the oldest makes room for the next."""

    def __init__(self, cache: Cache, settings: FaceSettings) -> None:
        self._cache = cache
        self._settings = settings
        self._all: dict[tuple[str, str], Pinned] = {}  # by tenant and response, the oldest first
        self.refused = 0
        self.expired = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._all)

    def pin(
        self,
        tenant: Tenant,
        response_id: str,
        favour: Favour,
        seconds: float,
        teller: Teller | None,
        *,
        asked: bool = True,
    ) -> Pinned:
        """What is cached of the response that `favour` is for stays cached for so long. A pin that it had is
        replaced. Raises WireError("pin_quota_exceeded") if the key, or all keys together, have too many."""
        key = tenant.id, response_id
        own = [each for (owner, _), each in self._all.items() if owner == tenant.id]
        if key not in self._all and len(own) >= self._settings.pins_per_key:
            lapsing = next((each for each in own if not each.asked), None)
            if asked or lapsing is None:
                self.refused += 1
                what = f"this key has {len(own)} pins already, the most that it may have"
                raise WireError("pin_quota_exceeded", what, "response_id")
            self._drop(lapsing)
        pin = self._cache.pin(tenant, favour, partial(self._broken, key))
        if pin is None:
            self.refused += 1
            what = "pins hold as much of the cache as they may"
            raise WireError("pin_quota_exceeded", what, "response_id")
        if key in self._all:
            self._drop(self._all[key])
        tokens = len(pin.pages) * self._cache.page_size
        size = len(pin.pages) * self._cache.page_bytes
        expires = self._settings.now() + seconds
        pinned = Pinned(response_id, tenant.id, pin, tokens, size, expires, teller, asked)
        pinned.timer = self._settings.call_later(seconds, partial(self._expire, pinned))
        self._all[key] = pinned
        return pinned

    def find(self, tenant: Tenant, response_id: str) -> Pinned | None:
        return self._all.get((tenant.id, response_id))

    def release(self, tenant: Tenant, response_id: str) -> Pinned | None:
        """The pin ends now. None if there was none."""
        pinned = self.find(tenant, response_id)
        if pinned is not None:
            self._drop(pinned)
        return pinned

    def outlast(
        self, tenant: Tenant, response_id: str, parent: str | None, stream: TokenStream, ttl: float
    ) -> None:
        """A response whose request named a cache lifetime has ended: it is pinned in place of the one that it
        continues. Over the quota, it is cached like any other: a lifetime is a wish, not a question."""
        if parent is not None and (before := self.find(tenant, parent)) is not None and not before.asked:
            self._drop(before)
        favour = self._cache.favour(stream)
        if favour is None:
            return
        try:
            self.pin(tenant, response_id, favour, ttl, None, asked=False)
        except WireError:
            pass
        self._cache.forgo(favour)

    def leave(self, teller: Teller) -> None:
        """This connection is gone: it is told nothing more."""
        for pinned in self._all.values():
            if pinned.teller is teller:
                pinned.teller = None

    def stats(self) -> dict[str, float]:
        """Facts for metrics."""
        return {
            "pinned_responses": len(self._all),
            "pins_refused": self.refused,
            "pins_expired": self.expired,
            "pins_evicted": self.evicted,
        }

    def _drop(self, pinned: Pinned) -> None:
        del self._all[pinned.tenant, pinned.response_id]
        if pinned.timer is not None:
            pinned.timer.cancel()
        self._cache.unpin(pinned.pin)

    def _expire(self, pinned: Pinned) -> None:
        self.expired += 1
        self._drop(pinned)

    def _broken(self, key: tuple[str, str]) -> None:
        pinned = self._all.pop(key)
        self.evicted += 1
        if pinned.timer is not None:
            pinned.timer.cancel()
        if pinned.teller is not None:
            pinned.teller.say(CacheEvicted(pinned.response_id, pinned.tokens))


LIFETIMES = {"s": 1, "m": 60, "h": 3600}
LONGEST = 24 * 3600


def lifetime(ttl: str | None) -> float | None:
    """Seconds of a cache lifetime like "30m" or "12h". Raises WireError if it is none, or longer than a day."""
    if ttl is None:
        return None
    number, unit = ttl[:-1], ttl[-1:]
    if unit in LIFETIMES and number.isascii() and number.isdigit() and len(number) <= 6:
        seconds = int(number) * LIFETIMES[unit]
        if 0 < seconds <= LONGEST:
            return float(seconds)
    what = 'prompt_cache_options.ttl: a time like "30m" or "12h", a day at most'
    raise WireError("invalid_value", what, "prompt_cache_options.ttl")
