"""`response.cancel` on the Responses socket. Knows its fields; knows no frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Raw

from headrace.server.faces.branches import running_branches
from headrace.server.faces.jobs import Fetching
from headrace.server.protocol.codec import decode
from headrace.server.protocol.responses import ResponseCancel

if TYPE_CHECKING:
    from headrace.server.faces.responses_ws import ResponsesSocket


def cancel(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """One response ends, or what runs in a lane and in its branches.

    Silent where nothing matches: clients read any frame here as the answer to their next request. An id of the
    wrong type is no such race but a mistake in the client's program, and silence would hide it there."""
    verb = decode(message, ResponseCancel, fields=fields).value
    if verb.response_id is not None:
        job = socket.find(verb.response_id)
        jobs = [] if job is None else [job]
    else:
        socket.drafts.drop(verb.stream_id)
        running = socket.lanes.running(verb.stream_id)
        if isinstance(running, Fetching):
            running.cancelled = True
        jobs = running_branches(socket, verb.stream_id)
        if running is not None and not isinstance(running, Fetching):
            jobs.append(running)
    for each in jobs:
        socket.stop(each)
