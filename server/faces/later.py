"""A whole reply that is made elsewhere and comes later. Knows when it is there; knows no endpoint's objects."""

from __future__ import annotations

from headrace.server.exchange import HttpReply, Part, Wire


class LaterAnswer:
    """An Answer (exchange.py) of one HttpReply: the one that `tell` gets, once, on the loop's thread."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._told: HttpReply | None = None

    def tell(self, reply: HttpReply) -> None:
        """Answer. The wire of a client that left is silent, so nobody need ask whether it is still there."""
        self._told = reply
        self._wire.dirty()

    def render(self) -> list[Part]:
        told, self._told = self._told, None
        return [] if told is None else [told]

    def ping(self) -> list[Part]:
        return []

    def closed(self) -> None:
        """What makes the reply is short and goes on; nobody hears of it."""
