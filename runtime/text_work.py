"""Text that is worked on in threads beside the event loop, and how much of it waits. Knows no prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from headrace.runtime.refusal import Refusal

log = logging.getLogger("headrace.runtime")
Worked = TypeVar("Worked")
Soon = Callable[..., Any]  # calls its first argument with the others, later and on another thread

# Characters (of pictures: bytes): beyond it the server takes no more for the moment.
LIMIT = 256 << 20


class TextWork:
    """Used on the event loop's thread alone. `waiting`: characters of all that was taken and not let go."""

    def __init__(self) -> None:
        self.waiting = 0
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="headrace-prompt")

    def take(self, size: int, instead: int = 0) -> None:
        """So many characters more wait, in place of `instead`. Alone, a text of any size is taken; raises Refusal
        else, and then nothing has changed."""
        others = self.waiting - instead
        if others and others + size > LIMIT:
            raise Refusal("server_is_overloaded", "too much text is waiting already", retry_after=1.0)
        self.waiting = others + size

    def let_go(self, size: int) -> None:
        """So many characters were worked on, or nobody wants them any more."""
        self.waiting -= size
        assert self.waiting >= 0, "text is let go twice"

    def run(self, work: Callable[[], Worked], done: Callable[[Future[Worked]], None], soon: Soon) -> None:
        """Have `done` called when `work` has ended in a thread. soon: calls on the event loop's thread."""
        self._threads.submit(work).add_done_callback(partial(soon, done))

    def run_taken(
        self,
        size: int,
        work: Callable[[], Worked],
        told: Callable[[Worked | Refusal], None],
        soon: Soon,
    ) -> None:
        """Call `told`, once and never from inside this call, with what `work` returns or the Refusal that it
        raises; `size` characters wait so long. Raises Refusal where they may not."""
        self.take(size)

        def worked(future: Future[Worked]) -> None:
            self.let_go(size)
            try:
                told(future.result())
            except Refusal as refusal:
                told(refusal)
            except Exception:
                log.exception("working on a text failed")
                told(Refusal("server_error", "the text could not be worked on"))

        self.run(work, worked, soon)

    def close(self) -> None:
        """The threads stop; what waits for one is forgotten."""
        self._threads.shutdown(wait=False, cancel_futures=True)
