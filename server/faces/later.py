"""A reply that is made elsewhere and comes later. Knows when it is there; knows no endpoint."""

from __future__ import annotations

from headrace.server.exchange import Answer, HttpReply, Part, Wire


class Later:
    """An Answer (exchange.py) that becomes another answer, or a whole reply, once `settle` is called, on the loop's
    thread."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._gone = False
        self._told = False
        self._result: HttpReply | Answer | None = None

    def settle(self, result: HttpReply | Answer) -> None:
        """What the answer is. If the client has gone meanwhile, it is closed at once."""
        assert self._result is None
        self._result = result
        if self._gone:
            if not isinstance(result, HttpReply):
                result.closed()
        else:
            self._wire.dirty()

    def now(self) -> HttpReply | Answer:
        """The result, if it is known already; else this answer."""
        return self if self._result is None else self._result

    def render(self) -> list[Part]:
        """See exchange.Answer."""
        result = self._result
        if isinstance(result, HttpReply):
            told, self._told = self._told, True
            return [] if told else [result]
        return [] if result is None else result.render()

    def ping(self) -> list[Part]:
        """See exchange.Answer. Nothing, as long as even the status is unknown."""
        return [] if self._result is None or isinstance(self._result, HttpReply) else self._result.ping()

    def closed(self) -> None:
        """See exchange.Answer."""
        self._gone = True
        if self._result is not None and not isinstance(self._result, HttpReply):
            self._result.closed()
