"""`x.pin`: what is cached of a response is held for a time. Knows its fields; knows no frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET, Raw

from headrace.runtime.interface import Favour
from headrace.server.protocol import extension as x
from headrace.server.protocol.codec import decode
from headrace.server.protocol.errors import WireError

if TYPE_CHECKING:
    from headrace.server.faces.responses_ws import ResponsesSocket


def pin(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """A pin on a response that runs here, is held, or is the latest of a lane; or the release of any pin."""
    verb = decode(message, x.PinResponse, fields=fields).value
    pins, cache = socket.pins, socket.runtime.cache
    event_id = UNSET if verb.event_id is None else verb.event_id
    if not verb.ttl_s:
        pins.release(socket.tenant, verb.response_id)
        socket.say(x.Pinned(verb.response_id, 0, 0, 0, event_id))
        return
    favour, borrowed = _favour(socket, verb.response_id)
    try:
        found = pins.pin(socket.tenant, verb.response_id, favour, verb.ttl_s, socket)
    finally:
        if borrowed:
            cache.forgo(favour)
    socket.say(x.Pinned(verb.response_id, found.tokens, found.bytes, int(found.expires), event_id))


def _favour(socket: ResponsesSocket, response_id: str) -> tuple[Favour, bool]:
    """The favour on what is cached of a response, and whether it is only ours for the moment."""
    latest = socket.latest.find(response_id)
    if latest is not None and latest.favour is not None:
        return latest.favour, False
    job = socket.find(response_id)
    held = socket.held.find(socket.tenant, response_id)
    if job is None and held is not None:
        job = held.job
    favour = None if job is None else socket.runtime.cache.favour(job.response.run.stream)
    if favour is None:
        raise WireError(
            "response_not_found",
            "no such response runs here, is held, or is the latest of a lane",
            "response_id",
        )
    return favour, True
