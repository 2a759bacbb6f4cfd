"""headrace's own verbs on the Responses socket (`x.…`): what a client says, and what it is told. Fields only.

Events of these types carry no `sequence_number` and are never told again: they say how a stream is doing, not what
the answer is. A verb that fails is answered with `x.error`, never with `error`, which means a refused request.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headrace.server.protocol import fields as f
from headrace.server.protocol.fields import honoured

Credit = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Number = Annotated[int, Meta(ge=-1, le=(1 << 53) - 1)]
MOST_BUFFERED = 1 << 16


class Buffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`x_on_slow: {"buffer": n}`: so many tokens may wait for a reader before the answer pauses."""

    buffer: Annotated[int, Meta(ge=1, le=MOST_BUFFERED)]


class EntropyAbove(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`at: {"entropy_gt": t}`: the first token that was chosen among so much doubt, in nats."""

    entropy_gt: Annotated[float, Meta(ge=0, le=20)]


class Branching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`x_branches`: so many answers, that part at a token of the first one."""

    n: Annotated[int, Meta(ge=1, le=256)]
    at: Literal["start"] | Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | EntropyAbove = "start"


OnSlow = Literal["pause", "drop"] | Buffer
Telemetry = Literal["off", "response", "step"]
OnDisconnect = Literal["cancel", "pause", "continue"]


# -- what a client says ----------------------------------------------------------------------------------------


class Verb(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A verb is ours alone: a field that it does not know is a mistake, and is never passed over."""


class GrantCredit(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.credit"):
    """More credit for the answer that runs in a lane; it must have been asked for with `x_credit`."""

    tokens: Annotated[Annotated[int, Meta(ge=1, le=(1 << 31) - 1)], honoured("added to what is left")]
    stream_id: Annotated[f.ShortText | None, honoured("the lane; without one, the unnamed lane")] = None
    event_id: Annotated[f.ShortText | None, honoured("echoed if the verb fails")] = None


class Resume(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.resume"):
    """Tell an answer on, on this connection, from behind event `starting_after`."""

    response_id: Annotated[f.ShortText, honoured()]
    starting_after: Annotated[Number, honoured("the last sequence_number that arrived; -1: none")]
    resume_token: Annotated[f.ShortText, honoured("x_resume_token of its response.created")]
    stream_id: Annotated[f.ShortText | None, honoured("its lane here; without one, the lane it had")] = None
    event_id: Annotated[f.ShortText | None, honoured("echoed if the verb fails")] = None


class Update(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.update"):
    """Other parameters for an answer that runs; what is not named stays as it is."""

    response_id: Annotated[f.ShortText, honoured()]
    temperature: Annotated[f.Temperature | None, honoured()] = None
    top_p: Annotated[f.TopP | None, honoured()] = None
    top_k: Annotated[f.TopK | None, honoured("0 and -1 are off")] = None
    min_p: Annotated[f.MinP | None, honoured()] = None
    frequency_penalty: Annotated[f.Penalty | None, honoured()] = None
    presence_penalty: Annotated[f.Penalty | None, honoured()] = None
    repetition_penalty: Annotated[f.RepetitionPenalty | None, honoured("1 is off")] = None
    logit_bias: Annotated[f.LogitBias | None, honoured("replaces what was asked for before")] = None
    max_output_tokens: Annotated[
        f.Count | None, honoured("counted from the beginning; if it is passed already, one token more comes")
    ] = None
    event_id: Annotated[f.ShortText | None, honoured("echoed in the reply")] = None


class Fork(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.fork"):
    """Another answer that begins as an earlier one does, in a lane of its own. Fields that are not given are those
    of the request for the earlier one."""

    response_id: Annotated[f.ShortText, honoured("the earlier one: running on this connection, or held")]
    stream_id: Annotated[f.ShortText, honoured("the new answer's lane; it must be free")]
    at_token: Annotated[
        Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None, honoured("so many of its output tokens are kept")
    ] = None
    at_char: Annotated[
        Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None,
        honoured("or so many characters of its text; what it thought is not counted"),
    ] = None
    force_text: Annotated[str | None, honoured("comes next, as if the model had written it")] = None
    drop_parent: Annotated[bool | None, honoured("true cancels the earlier one: a rewind")] = None
    max_output_tokens: Annotated[f.Count | None, honoured("of the whole answer, what is kept included")] = (
        None
    )
    temperature: Annotated[f.Temperature | None, honoured()] = None
    top_p: Annotated[f.TopP | None, honoured()] = None
    top_k: Annotated[f.TopK | None, honoured("0 and -1 are off")] = None
    min_p: Annotated[f.MinP | None, honoured()] = None
    frequency_penalty: Annotated[f.Penalty | None, honoured()] = None
    presence_penalty: Annotated[f.Penalty | None, honoured()] = None
    repetition_penalty: Annotated[f.RepetitionPenalty | None, honoured("1 is off")] = None
    logit_bias: Annotated[f.LogitBias | None, honoured()] = None
    seed: Annotated[f.Seed | None, honoured("the same seed and parameters go on as the earlier one did")] = (
        None
    )
    stop: Annotated[f.Stop | None, honoured()] = None
    metadata: Annotated[f.Metadata | None, honoured("echoed")] = None
    store: Annotated[bool | None, honoured()] = None
    x_credit: Annotated[Credit | None, honoured("as on response.create")] = None
    x_telemetry: Annotated[Telemetry | None, honoured("as on response.create")] = None
    x_branches: Annotated[
        Branching | None, honoured("as on response.create: they part where the fork begins, or behind that")
    ] = None
    event_id: Annotated[f.ShortText | None, honoured("echoed if the verb fails")] = None


class Prune(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.prune"):
    """Give up one branch of an answer: it ends as cancelled, and what it alone holds is free."""

    branch: Annotated[f.ShortText, honoured("its lane, `LANE#k`")]
    event_id: Annotated[f.ShortText | None, honoured("echoed in the reply")] = None


class Promote(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.promote"):
    """One branch is the answer of its lane: the others are given up, and the lane remembers this one."""

    branch: Annotated[f.ShortText, honoured("its lane, `LANE#k`; it may have ended")]
    event_id: Annotated[f.ShortText | None, honoured("echoed in the reply")] = None


class PinResponse(Verb, frozen=True, kw_only=True, tag_field="type", tag="x.pin"):
    """What is cached of a response stays cached for a time, whatever else is asked of the server."""

    response_id: Annotated[
        f.ShortText, honoured("running on this connection, held, or the latest of one of its lanes")
    ]
    ttl_s: Annotated[
        Annotated[float, Meta(ge=0, le=86_400)], honoured("seconds; 0 lets go of the pin that it has")
    ]
    event_id: Annotated[f.ShortText | None, honoured("echoed in the reply")] = None


# -- what it is told -------------------------------------------------------------------------------------------

Lane = str | UnsetType


class Paused(msgspec.Struct, frozen=True, tag_field="type", tag="x.paused"):
    """Nothing more is told, and soon nothing more is computed, until the reason is gone."""

    response_id: str
    reason: str  # credit, slow
    sent_tokens: int
    stream_id: Lane = UNSET


class Resumed(msgspec.Struct, frozen=True, tag_field="type", tag="x.resumed"):
    """The stream flows again. After `x.resume` (reason reconnect) it says what comes next and how the answer is."""

    response_id: str
    reason: str  # credit, slow, reconnect
    sent_tokens: int
    next_sequence: int | UnsetType = UNSET
    status: str | UnsetType = UNSET
    stream_id: Lane = UNSET


class Updated(msgspec.Struct, frozen=True, tag_field="type", tag="x.updated"):
    """An `x.update` has taken effect: from this output token on (the first one is 0)."""

    response_id: str
    effective_at_token: int
    event_id: str | UnsetType = UNSET
    stream_id: Lane = UNSET


class Pruned(msgspec.Struct, frozen=True, tag_field="type", tag="x.pruned"):
    """A branch was given up when it had so many tokens; with 0, it may never have begun. If it had, its last event
    follows."""

    branch: str
    tokens: int
    event_id: str | UnsetType = UNSET


class Promoted(msgspec.Struct, frozen=True, tag_field="type", tag="x.promoted"):
    """A branch is the answer of its lane now; it goes on in its own."""

    branch: str
    response_id: str
    event_id: str | UnsetType = UNSET


class Pinned(msgspec.Struct, frozen=True, tag_field="type", tag="x.pinned"):
    """So many tokens stay cached, in so many bytes of the device, until then (Unix seconds; 0: no longer)."""

    response_id: str
    tokens: int
    bytes: int
    expires_at: int
    event_id: str | UnsetType = UNSET


class CacheEvicted(msgspec.Struct, frozen=True, tag_field="type", tag="x.cache.evicted"):
    """A pin ended before its time: a request could run in no other way, or the cache was flushed."""

    response_id: str
    tokens: int


class Goaway(msgspec.Struct, frozen=True, tag_field="type", tag="x.goaway"):
    """The server stops: answers that end within the deadline end well, then the connection closes with 1012."""

    deadline_ms: int


class Queue(msgspec.Struct, frozen=True, tag_field="type", tag="x.queue"):
    """The request waits for a place in the batch; the one at position 1 is next. `eta_ms` is a guess, if there is
    anything to guess from."""

    response_id: str
    position: int
    eta_ms: int | None
    stream_id: Lane = UNSET


class PrefillProgress(msgspec.Struct, frozen=True, tag_field="type", tag="x.prefill.progress"):
    """So many tokens of `total` have been read, `cached` of them without computing. Told when reading begins, if
    one step is not enough for it, and after each chunk; also when an answer that lost its pages reads again."""

    response_id: str
    done: int
    total: int
    cached: int
    eta_ms: int | None
    stream_id: Lane = UNSET


class StepStream(msgspec.Struct, frozen=True, kw_only=True):
    """One answer in a step. `token_index` is missing where the step only read prompt. `queue_ms`: what it waited
    since its step before (or its arrival); `send_lag_ms`: from the landing of the step to this event."""

    response_id: str
    token_index: int | UnsetType = UNSET
    queue_ms: float
    send_lag_ms: float
    draft_accepted: int


class Step(msgspec.Struct, frozen=True, tag_field="type", tag="x.step", kw_only=True):
    """One step of the engine, and what it meant to the answers of this connection that asked for telemetry. batch:
    requests of everybody in it; bucket: the rows it was padded to."""

    step_id: int
    step_ms: float
    batch: int
    bucket: int
    graph: Literal["hit", "eager"]
    prefill_tokens_in_step: int
    skipped: int | UnsetType = UNSET  # steps before this one that were not told: the reader was too slow
    streams: list[StepStream]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of one answer went. total_ms, from its arrival until its end was told, is the sum of: queue_ms
    until its first step; prefill_ms, from there to its first token; steps_ms, of the steps after that; waited_ms,
    between those; send_lag_ms, from the last one to its reader."""

    queue_ms: float
    prefill_ms: float
    steps_ms: float
    waited_ms: float
    send_lag_ms: float
    total_ms: float
    steps: int  # after the first token
    graph_hits: int  # of all its steps
    recomputed_tokens: int  # read again, because others had needed its pages


class VerbError(msgspec.Struct, frozen=True):
    type: str
    code: str
    message: str
    param: str | None


class Error(msgspec.Struct, frozen=True, tag_field="type", tag="x.error"):
    """A verb was refused; whatever runs goes on as if it had not been said."""

    error: VerbError
    event_id: str | UnsetType = UNSET
    stream_id: Lane = UNSET
