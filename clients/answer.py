"""An answer that is read in the main thread while its connection lives on a loop in another one.

So pings are answered and tokens arrive whatever the person does, and Ctrl-C reaches the line editor and the answer
alike. Knows threads and signals; knows no terminal.
"""

from __future__ import annotations

import asyncio
import queue
import signal
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, TypeVar

from headrace.clients.client import Client
from headrace.clients.conversation import Conversation, Turn
from headrace.clients.stream import ResponseStream

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own, for as long as the `with` block runs."""

    def __enter__(self) -> LoopThread:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headrace-chat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin `work` there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work` here."""
        return self.start(work).result()


class Answer:
    """One answer on its way from the loop's thread; iterate it inside its `with` block, in the main thread.

    Inside the block the first Ctrl-C, wherever the program happens to be, stops the answer on the server, and the
    iteration ends with what had come; the second one raises KeyboardInterrupt.
    """

    def __init__(self, loop: LoopThread, client: Client, conversation: Conversation, question: str) -> None:
        self.stopped = False
        self._loop = loop
        self._client = client
        self._conversation = conversation
        # Bytes typed or piped that are no UTF-8 arrive as lone surrogates, which no JSON can carry.
        self._turn = Turn(question.encode(errors="replace").decode())
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._arrived: list[str] = []
        self._stream: ResponseStream | None = None
        self._asked = time.monotonic()
        self._first: float | None = None
        self._last = self._asked

    def __enter__(self) -> Answer:
        self._usual = signal.signal(signal.SIGINT, self._interrupt)
        self._work = self._loop.start(self._follow())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.stop()
        signal.signal(signal.SIGINT, self._usual)

    def _interrupt(self, number: int, frame: object) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stop()

    def stop(self) -> None:
        """Ask the server to stop; the iteration still yields what arrives until its last word."""
        self.stopped = True
        self._loop.start(self._halt())

    async def _halt(self) -> None:
        # `_follow` was started first, so it has got as far as asking.
        if self._stream is not None:
            await self._stream.cancel()
        else:
            self._asking.cancel()

    async def _follow(self) -> None:
        # All changes to the conversation happen after this has ended, in the main thread.
        try:
            self._asking = asyncio.create_task(self._conversation.ask(self._client, self._turn.question))
            self._stream = await self._asking
            if self.stopped:  # between the server's yes and this line, too late to cancel the asking
                await self._stream.cancel()
            async for text in self._stream.text():
                self._last = time.monotonic()
                self._first = self._first or self._last
                self._arrived.append(text)
                self._pieces.put(text)
        finally:
            self._pieces.put(None)

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> str:
        piece = self._pieces.get()
        if piece is not None:
            return piece
        self._settle()
        raise StopIteration

    def _settle(self) -> None:
        """The answer has ended: it joins the conversation, in part if it was stopped or broke off."""
        stream = self._stream
        self._turn.answer = "".join(self._arrived)
        if stream is not None:
            # A lost answer cannot be continued on the server; the next question says everything again.
            self._turn.id = stream.response_id if stream.final is not None else None
            self._conversation.turns.append(self._turn)
        try:
            self._work.result()
        except CancelledError:
            pass  # stopped before the server took the request

    def stats(self) -> str:
        """One line of numbers as seen from here."""
        stream = self._stream
        parts = ["stopped"] if self.stopped else []
        if stream is not None and stream.final is not None and stream.final.incomplete_details is not None:
            parts.append(f"cut: {stream.final.incomplete_details.reason}")
        if self._first is not None:
            parts.append(f"first token {1000 * (self._first - self._asked):.0f} ms")
        usage = stream.usage if stream is not None else None
        if usage is not None:
            if self._first is not None and self._last > self._first and usage.output_tokens > 1:
                parts.append(f"{(usage.output_tokens - 1) / (self._last - self._first):.1f} tokens/s")
            parts.append(f"{usage.output_tokens} tokens")
            parts.append(f"context {usage.total_tokens}")
        return " · ".join(parts)
