"""/start_profile and /stop_profile as the clients of SGLang and vLLM call them. Knows wishes; makes no profile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from headrace.runtime.interface import Profiler, ProfileWish, Refusal, Runtime
from headrace.server.exchange import Answer, HttpReply, HttpRequest, Wire
from headrace.server.faces.answers import error_reply, ignored_header
from headrace.server.faces.later import Later
from headrace.server.protocol.codec import decode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.profile import MOST_STEPS, StartProfile

Told = TypeVar("Told")
TEXT = "text/plain; charset=utf-8"
_log = logging.getLogger("headrace.server")


class ProfileFace:
    """One profile at a time, for everybody with a key: it is of the whole engine."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def start(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /start_profile. What is unknown in its body is named and otherwise left alone, also with strict
        fields: one benchmark sends a whole completions request of its own."""
        headers: dict[str, str] = {}
        try:
            decoded = decode(request.body or b"{}", StartProfile)
            headers = ignored_header(decoded.ignored)
            begun = self._profiler().start(_wish(decoded.value))
        except (WireError, Refusal) as error:
            return error_reply(error, headers)
        return _later(wire, begun, headers, lambda _: "Profiling started.\n")

    def stop(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """POST /stop_profile: answered when the file is written. Nothing of a body is read: clients send what they
        sent to begin."""
        try:
            written = self._profiler().stop()
        except Refusal as error:
            return error_reply(error)
        return _later(wire, written, {}, lambda name: f"Profile written: {name}\n")

    def _profiler(self) -> Profiler:
        if self._runtime.profiler is None:
            what = "this server makes no profiles: it was started without --profile-dir"
            raise Refusal("unsupported_parameter", what)
        return self._runtime.profiler


def _wish(body: StartProfile) -> ProfileWish:
    activities = body.activities or ["CPU", "GPU"]
    for each in activities:
        if each not in ("CPU", "GPU"):
            what = f"activities: {each} is not supported; CPU and GPU are"
            raise WireError("unsupported_parameter", what, "activities")
    steps = MOST_STEPS if body.num_steps is None else int(body.num_steps)
    if not 1 <= steps <= MOST_STEPS:
        raise WireError("invalid_value", f"num_steps must be between 1 and {MOST_STEPS}", "num_steps")
    return ProfileWish(
        steps=steps,
        first_step=None if body.start_step is None else int(body.start_step),
        cpu="CPU" in activities,
        gpu="GPU" in activities,
        stacks=bool(body.with_stack),
        shapes=bool(body.record_shapes),
        name=body.profile_prefix or "steps",
    )


def _later(
    wire: Wire, coming: Future[Told], headers: Mapping[str, str], said: Callable[[Told], str]
) -> Answer:
    """An answer for when `coming` is there, from whatever thread."""
    answer, loop = Later(wire), asyncio.get_running_loop()

    def told() -> None:
        error = coming.exception()
        if error is None:
            answer.settle(HttpReply(200, said(coming.result()).encode(), TEXT, headers))
            return
        if not isinstance(error, Refusal):
            _log.error("a profile failed", exc_info=error)
            error = Refusal("server_error", f"the profile failed: {type(error).__name__}: {error}")
        answer.settle(error_reply(error, headers))

    coming.add_done_callback(lambda _: loop.call_soon_threadsafe(told))
    return answer
