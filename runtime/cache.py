"""What stays warm: the cache as the server sees it. Knows streams and pins; no torch, no wire format."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.runtime.ask import Tenant
from headrace.runtime.pins import Favour, Pin
from headrace.runtime.stream import TokenStream

if TYPE_CHECKING:
    from headrace.runtime.loop import StepLoop


class Cache:
    """The prefix cache of one loop."""

    def __init__(self, loop: StepLoop) -> None:
        self._loop = loop

    @property
    def page_size(self) -> int:
        """Tokens of a page: what is cached is whole pages."""
        return self._loop.scheduler.page_size

    @property
    def page_bytes(self) -> int:
        """Bytes of a page on the device."""
        return self._loop.engine.page_bytes

    def favour(self, stream: TokenStream) -> Favour | None:
        """What is cached of the prompt and the answer so far is given up after all other cache, until `forgo`. None
        if there is nothing of the kind."""
        req, scheduler = stream.req, self._loop.scheduler
        if req is None or not scheduler.prefix_cache:
            return None
        return scheduler.pins.favour(req.salt, req.keys(0, len(req.tokens)))

    def forgo(self, favour: Favour | None) -> None:
        """It is cache like any other."""
        if favour is not None:
            self._loop.scheduler.pins.forgo(favour)

    def pin(self, tenant: Tenant, favour: Favour, broken: Callable[[], None]) -> Pin | None:
        """What `favour` is for stays cached until `unpin`, or until `broken` is called, because a request could run
        in no other way. None if pins hold too much already."""
        return self._loop.scheduler.pins.take(tenant.id, favour, broken)

    def unpin(self, pin: Pin) -> None:
        """The pin is let go."""
        self._loop.scheduler.pins.drop(pin)
