"""Errors that the Responses socket answers with, and the lane that an event names. Knows no connection."""

from __future__ import annotations

import re
from typing import Any

from msgspec import UNSET, Raw

from headrace.runtime.refusal import shorten
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import string
from headrace.server.protocol.errors import WireError
from headrace.server.session import Lanes

LANE_NAME = re.compile(r"\A[A-Za-z0-9_.-]{1,256}\Z")
# Where an answer that was told elsewhere may be told on: a branch keeps its name.
RESUMED_LANE = re.compile(r"\A([A-Za-z0-9_.-]{1,256}|[A-Za-z0-9_.-]{0,256}#[0-9]{1,3})\Z")


def error_frame(error: WireError, lane: ev.Lane = UNSET) -> ev.ErrorFrame:
    """The frame that answers a request for which no response exists."""
    inner = error.fields()
    headers = error.headers()
    return ev.ErrorFrame(
        error.status,
        ev.ErrorBody(inner.type, inner.code, inner.message, inner.param, headers or UNSET),
        lane,
    )


def not_found(response_id: str) -> WireError:
    """Clients compare this sentence."""
    return WireError(
        "previous_response_not_found",
        f"Previous response with id '{shorten(response_id)}' not found.",
        "previous_response_id",
    )


def stopping() -> WireError:
    return WireError("server_is_overloaded", "The server is stopping; try again.", retry_after=1.0)


def too_old(limit: float) -> WireError:
    """The connection has reached its age, which is in seconds."""
    what = f"This connection is older than {limit / 60:g} minutes; open a new one."
    return WireError("websocket_connection_limit_reached", what)


def absent(raw: Raw | None) -> bool:
    return raw is None or bytes(raw).strip() == b"null"


def lane_of(fields: dict[str, Raw]) -> ev.Lane:
    """The lane that a create names; UNSET for the unnamed one."""
    raw = fields.get("stream_id")
    if absent(raw):
        return UNSET
    name = string(raw)
    if name is None or not LANE_NAME.match(name):
        raise bad_lane()
    return name


def bad_lane() -> WireError:
    return WireError(
        "invalid_stream_id",
        "stream_id must have 1 to 256 characters of A-Z, a-z, 0-9, '_', '.' and '-'.",
        "stream_id",
    )


def lanes_named(limit: int) -> WireError:
    """One named lane would be too many."""
    what = f"A connection has at most {limit} named streams."
    return WireError("websocket_stream_limit_reached", what, "stream_id")


def too_many(lanes: Lanes[Any, Any], size: int) -> WireError:
    """No room is left on this connection, or for `size` bytes more on all of them."""
    if not lanes.budget.fits(size):
        return WireError("server_is_overloaded", "Too much is waiting already; try again.", retry_after=1.0)
    return WireError(
        "rate_limit_exceeded",
        f"{lanes.in_flight} requests run and {lanes.waiting} ({lanes.waiting_bytes} "
        "bytes) wait on this connection: no more may wait. Ask again when one of them has ended.",
        retry_after=1.0,
    )
