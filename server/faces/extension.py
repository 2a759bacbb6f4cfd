"""headrace's own verbs on the Responses socket (`x.…`), one function each. Knows their fields; knows no frames.

A verb is answered by an event of its own or not at all; a verb that fails is answered with `x.error`, and whatever
runs goes on as if it had not been said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import UNSET, Raw

from headrace.server.protocol import extension as x
from headrace.server.protocol.codec import decode, string
from headrace.server.protocol.errors import WireError

if TYPE_CHECKING:
    from headrace.server.faces.responses_ws import ResponsesSocket

Verb = Callable[["ResponsesSocket", str | bytes, dict[str, Raw]], None]


def credit(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.credit`: the reader of a lane may be told more."""
    verb = decode(message, x.GrantCredit, fields=fields).value
    job = socket.running(verb.stream_id)
    if job is None:
        raise WireError("response_not_found", "no answer runs in this lane", "stream_id")
    stream = job.run.stream
    if stream.limit is None:
        raise WireError("credit_not_enabled", "this answer was asked for without x_credit", "stream_id")
    socket.runtime.grant(stream, verb.tokens)
    socket.mark(stream)


def resume(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.resume`: a held response is told on, on this connection."""
    verb = decode(message, x.Resume, fields=fields).value
    held = socket.held.find(socket.tenant, verb.response_id, verb.resume_token)
    if held is None:
        # One answer for unknown, expired, another tenant's and a wrong key: who guesses learns nothing.
        raise WireError(
            "response_not_found", "no response with this id and resume_token can be resumed", "response_id"
        )
    if verb.starting_after >= held.tape.next:
        raise WireError(
            "invalid_value",
            f"starting_after: the last event so far is {held.tape.next - 1}",
            "starting_after",
        )
    if verb.starting_after + 1 < held.tape.oldest:
        raise OffsetEvicted(held.tape.oldest)
    socket.take_over(
        held, held.job.lane if "stream_id" not in fields else verb.stream_id, verb.starting_after
    )


class OffsetEvicted(WireError):
    """What should be told again is no longer there."""

    def __init__(self, oldest: int) -> None:
        super().__init__("offset_evicted", f"the oldest event that is kept is {oldest}", "starting_after")
        self.oldest = oldest


VERBS: dict[str | None, Verb] = {"x.credit": credit, "x.resume": resume}


def verb_error(error: WireError, fields: dict[str, Raw]) -> x.Error:
    """The answer to a verb that failed; it repeats the verb's event_id and lane, where those can be read."""
    inner = error.fields()
    oldest = error.oldest if isinstance(error, OffsetEvicted) else UNSET
    event_id, lane = string(fields.get("event_id")), string(fields.get("stream_id"))
    return x.Error(
        x.VerbError(inner.type, inner.code, inner.message, inner.param, oldest),
        UNSET if event_id is None else event_id[:512],
        UNSET if lane is None else lane[:256],
    )
