"""headrace's own verbs on the Responses socket (`x.…`), one function each. Knows their fields; knows no frames.

A verb is answered by an event of its own or not at all; a verb that fails is answered with `x.error`, and whatever
runs goes on as if it had not been said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import UNSET, Raw, structs

from headrace.runtime.interface import ForkPlace, Refusal
from headrace.runtime.refusal import shorten
from headrace.server.faces.branches import promote, prune
from headrace.server.faces.frames import RESUMED_LANE, bad_lane
from headrace.server.faces.pinning import pin
from headrace.server.faces.warm_up import WarmUpRun
from headrace.server.protocol import extension as x
from headrace.server.protocol.codec import decode, string
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.fields import bias_pairs
from headrace.server.protocol.responses import ResponseCreate

if TYPE_CHECKING:
    from headrace.server.faces.responses_ws import ResponsesSocket

_ASK_NAMES = {"max_output_tokens": "max_tokens"}  # where a field of Ask has another name
Verb = Callable[["ResponsesSocket", str | bytes, dict[str, Raw]], None]

# Every event ends with its lane, if it has one, and a lane's name needs no escapes.
_LANE_AT_END = re.compile(r',"stream_id":"[^"]*"\}\Z')


def credit(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.credit`: the reader of a lane may be told more."""
    verb = decode(message, x.GrantCredit, fields=fields).value
    job = socket.running(verb.stream_id)
    if job is None:
        raise WireError("response_not_found", "no answer runs in this lane", "stream_id")
    stream = job.response.run.stream
    if stream.limit is None:
        raise WireError("credit_not_enabled", "this answer was asked for without x_credit", "stream_id")
    socket.runtime.grant(stream, verb.tokens)
    socket.mark(stream)


def resume(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.resume`: a held response is told on, on this connection."""
    verb = decode(message, x.Resume, fields=fields).value
    held = socket.held.unlock(socket.tenant, verb.response_id, verb.resume_token)
    if held is None:
        # One answer for unknown, expired, another tenant's and a wrong key: who guesses learns nothing.
        raise WireError(
            "response_not_found", "no response with this id and resume_token can be resumed", "response_id"
        )
    start = verb.starting_after + 1
    if start > len(held.tape):
        raise WireError(
            "invalid_value",
            f"starting_after: the last event so far is {len(held.tape) - 1}",
            "starting_after",
        )
    lane = verb.stream_id if "stream_id" in fields else held.job.lane
    if lane is not None and not RESUMED_LANE.match(lane):
        raise bad_lane()
    socket.take_over(held, lane, start)


def update(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.update`: an answer that runs here goes on with other parameters."""
    verb = decode(message, x.Update, fields=fields).value
    job = socket.find(verb.response_id)
    if job is None:
        raise WireError("response_not_found", "no such answer runs on this connection", "response_id")
    said = {
        _ASK_NAMES.get(name, name): getattr(verb, name)
        for name in verb.__struct_fields__
        if name not in ("response_id", "event_id") and getattr(verb, name) is not None
    }
    if not said:
        raise WireError("missing_required_parameter", "x.update names nothing to change")
    if "logit_bias" in said:
        said["logit_bias"] = bias_pairs(said["logit_bias"])
    run = job.response.run

    def told(index: int | None) -> None:
        if index is None:
            late = WireError(
                "response_not_found", "the answer ended before the change took effect", "response_id"
            )
            socket.say(verb_error(late, fields))
        else:
            event_id = UNSET if verb.event_id is None else verb.event_id
            socket.say(x.Updated(run.id, index, event_id, run.lane))

    socket.runtime.change(run.stream, said, told, {ask: wire for wire, ask in _ASK_NAMES.items()})


def fork(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.fork`: an answer that begins as another one does, and goes on in a lane of its own."""
    verb = decode(message, x.Fork, fields=fields).value
    if (verb.at_token is None) == (verb.at_char is None):
        raise WireError("invalid_value", "give at_token or at_char, and only one of them", "at_token")
    job = socket.find(verb.response_id)
    held = socket.held.find(socket.tenant, verb.response_id)
    if job is not None:
        parent, turn = job.response, job.response.parent
    elif held is not None:
        parent, turn = held.job.response, held.parent
    else:
        raise WireError("response_not_found", "no such answer runs here or is held", "response_id")
    if isinstance(parent.run, WarmUpRun):
        raise WireError("fork_point_invalid", "a warm-up has no answer to fork", "response_id")
    given = {
        name: getattr(verb, name)
        for name in verb.__struct_fields__
        if name in ResponseCreate.__struct_fields__
        and name not in _OF_FORKS
        and getattr(verb, name) is not None
    }
    request = structs.replace(parent.run.request, **given)
    place = ForkPlace(verb.at_token, verb.at_char, verb.force_text or "")
    socket.fork(parent, turn, place, request, verb.stream_id)
    if verb.drop_parent:
        if job is not None:
            socket.stop(job)
        elif parent.run.stream.finish is None:
            socket.runtime.cancel(parent.run.stream)


_OF_FORKS = ("stream_id", "event_id")  # fields that say something else in a `response.create`

VERBS: dict[str, Verb] = {
    "x.pin": pin,
    "x.credit": credit,
    "x.resume": resume,
    "x.update": update,
    "x.fork": fork,
    "x.prune": prune,
    "x.promote": promote,
}


def obey(socket: ResponsesSocket, verb: str, message: str | bytes, fields: dict[str, Raw]) -> bool:
    """Do what a verb says, or answer it with `x.error`; False if there is no such verb."""
    if verb not in VERBS:
        # In the verbs' own words, although there is none: clients take an `error` for their next request's end.
        unknown = WireError("unknown_event", f"unknown event type: '{shorten(verb)}'", "type")
        socket.say(verb_error(unknown, fields))
        return False
    try:
        VERBS[verb](socket, message, fields)
    except (WireError, Refusal) as error:
        socket.say(verb_error(WireError.of(error), fields))
    return True


def append(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.input.append`: a key, or a picture, at the end of a prompt that is typed."""
    socket.drafts.append(message, fields)


def edit(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.input.replace`: a part of it is other text now."""
    socket.drafts.replace(message, fields)


def discard(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.input.discard`: it is not wanted any more."""
    socket.drafts.discard(message, fields)


def commit(socket: ResponsesSocket, message: str | bytes, fields: dict[str, Raw]) -> None:
    """`x.input.commit`: it is asked for."""
    socket.drafts.commit(message, fields)


VERBS |= {
    "x.input.append": append,
    "x.input.replace": edit,
    "x.input.discard": discard,
    "x.input.commit": commit,
}


def verb_error(error: WireError, fields: dict[str, Raw]) -> x.Error:
    """The answer to a verb that failed; it repeats the verb's event_id and lane, where those can be read."""
    inner = error.fields()
    event_id, lane = string(fields.get("event_id")), string(fields.get("stream_id"))
    return x.Error(
        x.VerbError(inner.type, inner.code, inner.message, inner.param),
        UNSET if event_id is None else event_id[:512],
        UNSET if lane is None else lane[:256],
    )


def with_key(created: str, key: str) -> str:
    """The JSON of `response.created`, with the key that its client comes back with. The tape has it without: who
    else reads the response is not told."""
    return created.replace('"response":{', f'"response":{{"x_resume_token":"{key}",', 1)


def relaned(raw: str, lane: str | object) -> str:
    """The JSON of an event, as if it had been said in `lane` (UNSET: in the unnamed one)."""
    bare = _LANE_AT_END.sub("}", raw)
    return bare if lane is UNSET else f'{bare[:-1]},"stream_id":"{lane}"}}'
