"""Words for very many tokens are made in a thread, while the loop serves streams. Knows no endpoint's objects."""

from __future__ import annotations

from collections.abc import Callable

from headrace.runtime.interface import Refusal, Runtime
from headrace.server.exchange import Wire

AT_ONCE = 1024  # tokens whose names the loop looks up itself: a millisecond of it


class Elsewhere:
    """One piece of work that an answer waits for."""

    def __init__(self, runtime: Runtime, wire: Wire) -> None:
        self._runtime = runtime
        self._wire = wire
        self._begun = False
        self._done = False
        self._error: Refusal | None = None

    def finished(self, tokens: int, work: Callable[[], None]) -> bool:
        """Whether `work`, about so many tokens, has been done. It begins with the first call and runs once; the
        wire is marked when it is done elsewhere. Nothing else may touch what it works on until then. Raises
        Refusal if it failed there."""
        if not self._begun:
            self._begun = True
            if tokens <= AT_ONCE:
                self._run(work)
            else:
                try:
                    self._runtime.work_on_text(tokens, lambda: self._run(work), self._tell)
                except Refusal:  # the server stops: better late than never
                    self._run(work)
        if self._error is not None:
            raise self._error
        return self._done

    def _run(self, work: Callable[[], None]) -> None:
        work()
        self._done = True

    def _tell(self, found: Refusal | None) -> None:
        self._error = found
        self._wire.dirty()
