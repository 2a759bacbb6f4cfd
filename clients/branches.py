"""Several answers to one request, as they grow side by side. Knows streams and their connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

from headrace.clients.errors import ConnectionLost
from headrace.clients.stream import ResponseStream

if TYPE_CHECKING:
    from headrace.clients.link import Link


class Branches(Sequence[ResponseStream]):
    """The streams of one request's branches. Number 0 runs from the beginning; the others begin when it comes to
    the token at which they part, and are "queued" until then. One that does not begin, because number 0 ended
    before, ends as "cancelled", and reading its `response()` raises ServerRefused("branch_pruned").

    Each is read, granted credit and cancelled by itself, and is told on over a new connection if one breaks."""

    def __init__(self, streams: list[ResponseStream], link: Link) -> None:
        self._streams = streams
        self._link = link
        self._lanes = {stream: stream.lane for stream in streams}

    @overload
    def __getitem__(self, index: int) -> ResponseStream: ...
    @overload
    def __getitem__(self, index: slice) -> list[ResponseStream]: ...
    def __getitem__(self, index: int | slice) -> ResponseStream | list[ResponseStream]:
        return self._streams[index]

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[ResponseStream]:
        return iter(self._streams)

    async def prune(self, branch: ResponseStream) -> None:
        """Give up one branch; returns when its end is here. What it alone held is free on the server."""
        branch.prune()
        await branch.over()

    async def promote(self, branch: ResponseStream) -> None:
        """Keep this branch, which may have ended, and give up the others; returns when their ends are here. It is
        what the conversation goes on from, also if nothing is stored.

        Raises ServerRefused if it has been given up already."""
        lane = self._lanes[branch]
        try:
            await self._link.ask({"type": "x.promote", "branch": lane})
        except ConnectionLost:
            pass  # nothing there remembers a lane any more; the others are given up all the same
        others = [stream for stream in self._streams if stream is not branch]
        for stream in others:
            stream.prune()
        await asyncio.gather(*(stream.over() for stream in others))
