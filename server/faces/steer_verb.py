"""`response.steer` on the Responses socket. Knows its fields and its refusals; knows no frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET, Raw

from headrace.server.faces.steering import SteerRefused, fate, no_target, steer_failed, steer_items
from headrace.server.faces.warm_up import WarmUpRun
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import decode, string
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import ResponseSteer

if TYPE_CHECKING:
    from headrace.server.faces.jobs import Job
    from headrace.server.faces.responses_ws import ResponsesSocket


def steer(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """A running response gets more input, or the client is told why not."""
    target = string(fields.get("previous_response_id")) or ""
    given = fields.get("input", Raw(b"null"))
    job = socket.find(target)
    try:
        try:
            items = steer_items(decode(message, ResponseSteer, fields=fields).value)
        except WireError as error:
            raise SteerRefused("invalid_input", error.message) from None
        if job is None:
            raise no_target(target, socket.latest, socket.responses, socket.tenant)
        run = job.response.run
        if isinstance(run, WarmUpRun):
            raise SteerRefused("steering_not_supported", "A warm-up has no answer to steer.")
        if (why := None if run.stream.finish is None else fate(run)) is not None:
            raise SteerRefused("response_not_active", why)
        if job.response.over:  # its end is recorded, and only waits to be read here
            raise SteerRefused("response_already_completed", "The response has ended: continue it.")
        accepted = job.steering.accept(run, target, given, items)
    except SteerRefused as refused:
        _refuse(socket, job, target, given, refused)
        return
    job.response.say(ev.SteerAccepted(run.next_number(), accepted.name, run.lane))
    socket.mark(run.stream)


def _refuse(socket: ResponsesSocket, job: Job | None, target: str, given: Raw, refused: SteerRefused) -> None:
    if job is None or job.response.over:
        lane: ev.Lane = UNSET
        if job is not None:
            lane = job.response.run.lane
            # Steers of one response are told apart by their order alone: earlier ones are answered first.
            socket.tell_rest(job)
        socket.say(steer_failed(0, refused.code, refused.message, target, given, lane))
        return
    run = job.response.run
    job.response.say(steer_failed(run.next_number(), refused.code, refused.message, target, given, run.lane))
    socket.mark(run.stream)
