"""From a checked request to a response under way: the same on a socket, over HTTP and in the background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from msgspec import UNSET

from headrace.runtime.interface import (
    Draft,
    ForkPlace,
    Refusal,
    Runtime,
    StepBoard,
    Tenant,
    TokenStream,
    receipt_of,
)
from headrace.server.conversation import Turn
from headrace.server.faces.asks import check_response, response_ask, response_messages
from headrace.server.faces.input_items import input_items
from headrace.server.faces.responses import ResponseRun
from headrace.server.faces.running import Running, RunningResponse
from headrace.server.faces.settings import FaceSettings
from headrace.server.faces.telemetry import row_name
from headrace.server.faces.warm_up import WarmUpRun, ended_stream, is_warm_up
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import ResponseRequest


def open_response(
    runtime: Runtime,
    settings: FaceSettings,
    running: Running,
    request: ResponseRequest,
    parent: Turn | None,
    tenant: Tenant,
    listener: Callable[[TokenStream], None],
    *,
    lane: ev.Lane = UNSET,
    background: bool = False,
    board: StepBoard | None = None,
    doubt: bool = False,
    draft: Draft | None = None,
) -> RunningResponse:
    """The response to `request` after `parent`; `board` hears of its steps if it asks for that. doubt: how sure
    the model is of each token is kept. draft: what was read ahead of its prompt. Raises WireError or Refusal;
    then nothing was begun."""
    check_response(request)
    if request.x_receipt and not runtime.card.computing:
        what = "x_receipt: this server computes faster than it could certify; start it with --deterministic"
        raise WireError("unsupported_parameter", what, "x_receipt")
    if request.store is not False and running.store.behind:
        raise Refusal("server_is_overloaded", "too much waits to be stored already", retry_after=1.0)
    warm_up = is_warm_up(request)
    added = response_messages(request.input, tenant)
    history = () if parent is None else parent.history()
    if warm_up and not (history or added or request.instructions):
        stream = ended_stream(settings.clock())
    else:
        ask = response_ask(request, history, added, tenant, warm_up=warm_up)
        ask = replace(ask, doubt=True) if doubt else ask
        stream = runtime.open(ask, listener) if draft is None else runtime.drafting.send(draft, ask, listener)
    kind = WarmUpRun if warm_up else ResponseRun
    run = kind(request, stream, created=settings.now(), model=runtime.card.id, lane=lane)
    if request.x_receipt:
        run.certify = partial(receipt_of, stream, runtime.card)
    meter_run(runtime, run, board)
    items = input_items(request, run.id) if request.store is not False else []
    return running.begin(run, tenant, parent, added, items, background=background)


def meter_run(runtime: Runtime, run: ResponseRun, board: StepBoard | None) -> None:
    """What the request asks to know of its time is measured from now on."""
    if (level := run.request.x_telemetry) in ("response", "step"):
        meter = runtime.meter(run.stream, board if level == "step" else None)
        meter.owner, meter.name = run, row_name(run.id)


def fork_response(
    runtime: Runtime,
    settings: FaceSettings,
    running: Running,
    parent: RunningResponse,
    turn: Turn | None,
    place: ForkPlace,
    request: ResponseRequest,
    listener: Callable[[TokenStream], None],
    lane: str,
    board: StepBoard,
    doubt: bool,
) -> RunningResponse:
    """A response that begins as `parent` does up to `place` and goes on as `request` says. `turn` is what both
    continue; doubt: as for `open_response`. Raises WireError or Refusal; then nothing was begun."""
    check_response(request)
    history = () if turn is None else turn.history()
    ask = response_ask(request, history, parent.added, parent.tenant, warm_up=False)
    stream, shared = runtime.fork(parent.run.stream, place, replace(ask, doubt=doubt), listener)
    run = ResponseRun(request, stream, created=settings.now(), model=runtime.card.id, lane=lane)
    run.forked_from = ev.ForkedFrom(parent.run.id, shared)
    if request.x_receipt:
        run.certify = partial(receipt_of, stream, runtime.card)
    meter_run(runtime, run, board)
    items = input_items(request, run.id) if request.store is not False else []
    return running.begin(run, parent.tenant, turn, parent.added, items)
