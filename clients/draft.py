"""A prompt that is being typed: the server reads it ahead, and its answer begins sooner. Knows texts and events.

The text lives here. Reading ahead is a favour of the server's: where it refuses it, or the connection broke, the
text is sent as a plain request in the end, and its answer is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from headrace.clients.errors import ConnectionLost, ServerRefused
from headrace.clients.events import InputAck, InputCommitted, InputEnded, VerbRefused
from headrace.clients.stream import ResponseStream

COMMIT = "commit"  # the event_id of a commit


class Draft:
    """Made by `Client.draft`. Places are characters, as in any Python string."""

    def __init__(
        self,
        opening: dict[str, Any],
        seat: Callable[[], ResponseStream | None],
        ask: Callable[[str, dict[str, Any]], Awaitable[ResponseStream]],
    ) -> None:
        """opening: what the prompt is besides its text. `seat()`: a lane for the answer, None if there is none
        now. `ask(text, parameters)`: a plain request."""
        self.text = ""
        self.ack: InputAck | None = None  # the newest that the server has said
        self.outcome: InputCommitted | None = None  # once its answer has begun
        self._opening = opening
        self._seat = seat
        self._ask = ask
        self._stream: ResponseStream | None = None
        self._rev = 0  # changes that the server has been told
        self._over = False
        self._own_fault = True  # of the request, if it is refused; else of what was said while typing
        self._news = asyncio.Event()

    def insert(self, text: str, at: int | None = None) -> None:
        """`text` stands before character `at` from now on; without `at`, at the end."""
        place = len(self.text) if at is None else at
        self.replace(place, place, text)

    def delete(self, start: int, end: int | None = None) -> None:
        """Characters [start, end) are gone; without `end`, all from `start` on."""
        self.replace(start, len(self.text) if end is None else end, "")

    def replace(self, start: int, end: int, text: str) -> None:
        """Characters [start, end) are `text` from now on. Raises IndexError for places that the text does not
        have, RuntimeError when it has been sent."""
        if self._over:
            raise RuntimeError("this draft was sent or discarded")
        if not 0 <= start <= end <= len(self.text):
            raise IndexError(f"[{start}, {end}) is no part of a text of {len(self.text)} characters")
        size = len(self.text)
        self.text = self.text[:start] + text + self.text[end:]
        if self._stream is None or self._stream.ended:
            self._open()
        elif start == size:
            self._post({"type": "x.input.append", "text": text})
        elif end == size:
            self._post({"type": "x.input.replace", "from_char": start, "text": text})
        else:
            self._post({"type": "x.input.replace", "from_char": start, "to_char": end, "text": text})

    async def settled(self) -> None:
        """Returns when the server has read all of the text that is certain, or does not read it ahead."""
        while (stream := self._stream) is not None and not stream.ended:
            ack = self.ack
            if ack is not None and ack.rev == self._rev and ack.settled:
                return
            self._news.clear()
            await self._news.wait()

    async def commit(self, **parameters: Any) -> ResponseStream:
        """Ask for the answer. `parameters` are those of `Client.respond` that a draft was not opened with.
        Raises as that does."""
        if self._over:
            raise RuntimeError("this draft was sent or discarded")
        stream = self._stream
        if stream is None or stream.ended or not self.text:
            self.discard()
            return await self._ask(self.text, parameters)
        self._over = True
        extra = dict(parameters.pop("extra", None) or {})
        fields = {"x_credit" if name == "credit" else name: value for name, value in parameters.items()}
        stream.say(
            {
                "type": "x.input.commit",
                "event_id": COMMIT,
                "rev": self._rev,
                **extra,
                **{k: v for k, v in fields.items() if v is not None},
            }
        )
        try:
            await stream.created()
        except ServerRefused:
            if self._own_fault:
                raise
            return await self._ask(self.text, {**parameters, "extra": extra})
        except ConnectionLost:
            if self.outcome is not None:
                raise  # the answer had begun, and broke with the connection
            return await self._ask(self.text, {**parameters, "extra": extra})
        except BaseException:
            stream.abandon()
            raise
        return stream

    def discard(self) -> None:
        """The text is not wanted any more: nothing of it is kept on the server."""
        self._over = True
        if self._stream is not None and not self._stream.ended:
            self._post({"type": "x.input.discard"})
            self._stream.end("cancelled", None)
        self._news.set()

    # -- the connection's side ---------------------------------------------------------------------------------

    def _open(self) -> None:
        """Have the text read ahead, from its beginning, if a lane can be had now."""
        self._stream = self._seat()
        if self._stream is None:
            return
        self.ack, self._rev = None, 0
        self._stream.typed = self._hear
        self._post({"type": "x.input.append", **self._opening, "text": self.text})

    def _post(self, event: dict[str, Any]) -> None:
        assert self._stream is not None
        self._rev += 1
        self._stream.say(event)

    def _hear(self, event: InputAck | InputEnded | InputCommitted | VerbRefused | None) -> None:
        """What the server says of it; None: the stream has ended."""
        if isinstance(event, InputAck):
            self.ack = event
        elif isinstance(event, InputCommitted):
            self.outcome = event
        elif isinstance(event, InputEnded) and self._stream is not None:
            self._stream.end("cancelled", None)  # the next change opens it anew
        elif isinstance(event, VerbRefused) and self._over and self._stream is not None:
            code = event.error.code
            self._own_fault = event.event_id == COMMIT and code not in ("draft_not_found", "draft_changed")
            if code != "draft_not_found":  # the server keeps a draft whose commit it refuses; here it is over
                self._stream.say({"type": "x.input.discard"})
        self._news.set()
