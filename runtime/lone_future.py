"""A future for one thread alone. Knows nothing of steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar, cast

T = TypeVar("T")


class LoneFuture(Future[T]):
    """A Future that is resolved, asked and heard on one thread, so it has no locks.

    Those of the library cost more than all else that the host does for a step of one stream. Nothing can be waited
    for here: `result` and `exception` of an open one raise InvalidStateError, and `cancel` does nothing."""

    def __init__(self) -> None:  # deliberately not that of Future, which makes the locks
        self._over = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._heard: list[Callable[[Future[T]], object]] = []

    def done(self) -> bool:
        return self._over

    def running(self) -> bool:
        return not self._over

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def result(self, timeout: float | None = None) -> T:
        error = self.exception()
        if error is not None:
            raise error
        return cast(T, self._value)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if not self._over:
            raise InvalidStateError("nobody else could resolve it while this thread waits")
        return self._error

    def set_result(self, result: T) -> None:
        self._value = result
        self._end()

    def set_exception(self, exception: BaseException | None) -> None:
        self._error = exception
        self._end()

    def add_done_callback(self, fn: Callable[[Future[T]], Any]) -> None:
        if self._over:
            fn(self)
        else:
            self._heard.append(fn)

    def _end(self) -> None:
        assert not self._over, "a future is resolved once"
        self._over = True
        heard, self._heard = self._heard, []
        for call in heard:
            call(self)
