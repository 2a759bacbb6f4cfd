"""User input for a response that already runs: what is accepted, when the response stops for it, what follows.

Knows requests and runs; knows no socket. A steered response goes on to the end of its sentence, so that its text
can stand as it is and steers that come together are taken together; but it does not go on for long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import UNSET, Raw, structs

from headrace.runtime.interface import PUBLIC_TENANT, FinishReason, Tenant
from headrace.runtime.refusal import shorten
from headrace.server.faces.asks import response_messages
from headrace.server.faces.responses import ResponseRun
from headrace.server.faces.running import Running
from headrace.server.faces.tool_items import OUTPUTS
from headrace.server.ids import new_id
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import Item, Part, ResponseRequest, ResponseSteer
from headrace.server.session import Latest

STEERS_PENDING = 16  # of one response
STEER_BYTES = 8 << 20  # of their inputs together
STEER_ECHO = 512 << 10  # bytes of an input that are repeated when it could not be committed
# Deltas that a steered response may use to finish its sentence. What is held back, because it may become a call, is
# no delta, so nothing is cut while that is open.
PATIENCE = 32

_ENDS = (".", "!", "?", "…", "。", "！", "？", "\n")
_CLOSERS = " \t\"'”’»)]*_`"


class SteerRefused(Exception):
    """This steer cannot be accepted; `code` is one of the protocol's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Steer:
    """One accepted submission."""

    id: str
    target: str
    input: Raw
    items: tuple[Item, ...]

    @property
    def name(self) -> ev.SteerName:
        return ev.SteerName(self.id, self.target)

    def failed(self, number: int, code: str, message: str, lane: ev.Lane) -> ev.SteerFailed:
        """The event that gives the input back."""
        return steer_failed(number, code, message, self.target, self.input, lane, self.id)


def steer_failed(
    number: int, code: str, message: str, target: str, given: Raw, lane: ev.Lane, steer_id: str | None = None
) -> ev.SteerFailed:
    """The event that gives `given` back, unless it is too large to be repeated."""
    echo: Raw | str = given if len(bytes(given)) <= STEER_ECHO else ""
    return ev.SteerFailed(
        number,
        ev.SteerError("invalid_request_error", code, message),
        ev.SteerEcho(target[:256], echo, UNSET if steer_id is None else steer_id),
        lane,
    )


def steer_items(steer: ResponseSteer) -> tuple[Item, ...]:
    """The input as items of a request. Raises WireError for parts that this server does not take."""
    if isinstance(steer.input, str):
        items: tuple[Item, ...] = (Item(type="message", role="user", content=steer.input),)
    else:
        items = tuple(
            Item(
                type="message",
                role="user",
                content=given.content
                if isinstance(given.content, str)
                else [Part(**structs.asdict(part)) for part in given.content],
            )
            for given in steer.input
        )
    if not any(item.content for item in items):
        raise WireError("missing_required_parameter", "input must not be empty", "input")
    response_messages(list(items), PUBLIC_TENANT)  # nothing in them is anybody's own
    return items


@dataclass(slots=True)
class Steering:
    """The steers that one response has accepted."""

    steers: list[Steer] = field(default_factory=list)
    bytes: int = 0
    since: int = 0  # events that had been told when the first one came

    def accept(self, run: ResponseRun, target: str, given: Raw, items: tuple[Item, ...]) -> Steer:
        """One steer more. Raises SteerRefused."""
        size = len(bytes(given))
        if len(self.steers) >= STEERS_PENDING or self.bytes + size > STEER_BYTES:
            raise SteerRefused(
                "too_many_pending_steers",
                f"{len(self.steers)} steers ({self.bytes} bytes) wait for this response already.",
            )
        if not self.steers:
            self.since = run.said
        steer = Steer(new_id("steer"), target, given, items)
        self.steers.append(steer)
        self.bytes += size
        return steer

    def stop(self, run: ResponseRun) -> bool:
        """Whether the response should end now for its steers; `run` is told how its open item ends."""
        if not self.steers or run.steered or run.stream.finish is not None:
            return False
        tail = run.tail
        if tail is None:
            return False
        if not tail or tail.rstrip(_CLOSERS).endswith(_ENDS):
            run.steered = "completed"
        elif run.said - self.since >= PATIENCE:
            run.steered = "incomplete"
        return bool(run.steered)


def successor(request: ResponseRequest, response_id: str, steers: list[Steer]) -> ResponseRequest:
    """The request that follows by itself: the settings of the steered one, its id, the steers in their order."""
    items = [item for steer in steers for item in steer.items]
    return structs.replace(request, previous_response_id=response_id, input=items)


def with_steers(request: ResponseRequest, steers: list[Steer]) -> ResponseRequest:
    """A client's own request with the waiting steers before its input, but behind the tool outputs that it begins
    with: many templates let nothing come between a call and its output."""
    own = request.input
    if isinstance(own, str):
        own = [Item(type="message", role="user", content=own)] if own else []
    own = own or []
    outputs = next((i for i, item in enumerate(own) if item.type not in OUTPUTS), len(own))
    items = [item for steer in steers for item in steer.items]
    return structs.replace(request, input=[*own[:outputs], *items, *own[outputs:]])


def no_target(target: str, latest: Iterable[Latest], running: Running, tenant: Tenant) -> SteerRefused:
    """Why there is no response to steer under this id. latest: the last responses of the connection's lanes."""
    if any(each.response_id == target for each in latest):
        return SteerRefused("response_already_completed", "The response has ended: continue it.")
    if running.find(tenant, target) is not None:
        return SteerRefused("response_not_active", "This response runs on another connection.")
    if running.store.get(tenant, target) is not None:
        return SteerRefused("response_already_completed", "The response has ended: continue it.")
    what = f"Response with id '{shorten(target)}' not found on this connection."
    return SteerRefused("response_not_found", what)


def fate(run: ResponseRun) -> str | None:
    """Why a response that has ended takes no successor, or None if it does."""
    if run.stream.finish is FinishReason.ERROR:
        return "The response failed before the input could be committed."
    if run.stream.finish is FinishReason.CANCELLED and not run.steered:
        return "The response was cancelled before the input could be committed."
    return None


def required_input(response: ev.Response) -> tuple[ev.RequiredInput, ...]:
    """What the client must supply before this conversation can go on: the outputs of the calls in `response`."""
    stubs = []
    for item in response.output:
        if isinstance(item, ev.FunctionCallItem) and item.status == "completed":
            stubs.append(ev.RequiredInput("function_call_output", item.call_id, item.name))
        elif isinstance(item, ev.CustomCallItem) and item.status == "completed":
            stubs.append(ev.RequiredInput("custom_tool_call_output", item.call_id))
    return tuple(stubs)
